package client

import (
	"context"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

// maxCheckups bounds how many hosts are asked for a checkup at once.
const maxCheckups = 64

// Facts are what the parts of a cluster say about themselves at one moment; what
// is wrong with them, Diagnose says.
type Facts struct {
	Version   string // of the program that asks
	Now       time.Time
	Status    kbroker.StatusReply
	Hosts     []kbroker.HostRow
	Apps      []kbroker.AppRow
	Instances []kbroker.InstanceRow
	Checkups  map[kbroker.HostID]HostCheckup // of every host of the list
}

// HostCheckup is a host's own answer.
type HostCheckup struct {
	kbroker.Checkup
	// Err: it did not answer; what follows, and the checkup, are empty.
	Err error
	// Ahead is how far its clock is ahead of the asker's; too small by the
	// answer's way back, so by less than the asker's patience of 5 s, and on a
	// network that works by milliseconds.
	Ahead time.Duration
}

// Examine asks the cores and every host's agent, all at once. version is that of
// the program that asks. It needs a core that answers, no leader. Errors:
// Unavailable - no core answers.
func (c *Client) Examine(ctx context.Context, version string) (Facts, error) {
	f := Facts{Version: version, Now: time.Now(), Checkups: map[kbroker.HostID]HostCheckup{}}
	var err error
	if f.Hosts, err = c.Hosts(ctx, false); err != nil {
		return f, err
	}
	var (
		mu     sync.Mutex
		asking sync.WaitGroup
		slots  = make(chan struct{}, maxCheckups)
	)
	for _, h := range f.Hosts {
		asking.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			got := HostCheckup{}
			if got.Checkup, got.Err = c.Checkup(ctx, h.Name); got.Err == nil {
				got.Ahead = time.Until(got.Now)
			}
			mu.Lock()
			defer mu.Unlock()
			f.Checkups[h.Name] = got
		})
	}
	f.Status, err = c.Status(ctx)
	if err == nil {
		f.Apps, err = c.Apps(ctx)
	}
	if err == nil {
		f.Instances, err = c.Instances(ctx, "", false)
	}
	asking.Wait()
	return f, err
}
