package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// syncFresh is how long one measurement is good for all who ask.
	syncFresh = 5 * time.Second
	// A measurement is syncCount syncs of syncBytes, and no further one after
	// syncBudget.
	syncCount  = 16
	syncBytes  = 4 << 10
	syncBudget = time.Second
	// syncWait is how long an answer waits for one: a disk that hangs must not
	// silence the host.
	syncWait = 3 * time.Second

	syncFile = "sync.probe"
)

// syncProbe measures how long a sync takes: one measurement at a time, and at
// most one each syncFresh, whoever asks. look is for one goroutine.
type syncProbe struct {
	last    kbroker.SyncCheckup
	at      time.Duration // boottime of last; 0: never
	began   time.Duration
	running chan kbroker.SyncCheckup // capacity 1; nil: none runs
	work    sync.WaitGroup
}

// look returns the last measurement, or a new one where that is old.
func (p *syncProbe) look(ctx context.Context, dir string, now time.Duration) kbroker.SyncCheckup {
	if p.running == nil {
		if p.at > 0 && now-p.at < syncFresh {
			return p.last
		}
		done := make(chan kbroker.SyncCheckup, 1)
		p.running, p.began = done, now
		p.work.Go(func() { done <- timeSyncs(ctx, dir) })
	}
	timer := time.NewTimer(syncWait)
	defer timer.Stop()
	select {
	case p.last = <-p.running:
		p.at, p.running = now, nil
		return p.last
	case <-timer.C:
		return kbroker.SyncCheckup{Error: fmt.Sprintf("a sync has not come back for %v", (now - p.began + syncWait).Round(time.Second))}
	}
}

// wait returns when nothing is measured any more.
func (p *syncProbe) wait() { p.work.Wait() }

// timeSyncs writes and syncs a small file again and again.
func timeSyncs(ctx context.Context, dir string) kbroker.SyncCheckup {
	path := filepath.Join(dir, syncFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return kbroker.SyncCheckup{Error: err.Error()}
	}
	block := make([]byte, syncBytes)
	var took []time.Duration
	for begin := time.Now(); len(took) < syncCount && (len(took) == 0 || time.Since(begin) < syncBudget) && ctx.Err() == nil; {
		at := time.Now()
		if _, err = f.Write(block); err == nil {
			err = f.Sync()
		}
		if err != nil {
			break
		}
		took = append(took, time.Since(at))
	}
	err = errors.Join(err, f.Close(), os.Remove(path))
	return summary(took, err)
}

// summary of what was measured, and of what went wrong then.
func summary(took []time.Duration, err error) kbroker.SyncCheckup {
	out := kbroker.SyncCheckup{Count: len(took)}
	if err != nil {
		out.Error = err.Error()
	}
	if len(took) > 0 {
		slices.Sort(took)
		out.Median, out.Worst = took[len(took)/2], took[len(took)-1]
	}
	return out
}
