package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// fullViewEvery covers lost change messages; jittered by half.
	fullViewEvery = time.Minute
	// viewDebounce collects the changes of one plan.
	viewDebounce = 5 * time.Millisecond
	// A view that was not to be had is asked for again after viewRetryFirst,
	// doubling to viewRetryMax.
	viewRetryFirst = 50 * time.Millisecond
	viewRetryMax   = time.Second
	// connectionPoll covers a lost message of the connection's state.
	connectionPoll = 500 * time.Millisecond
)

// errNoHead: nothing was ever placed on the host, or the cluster does not know
// it. That is absence: nothing is started or stopped because of it.
var errNoHead = errors.New("the host has no head")

// checkView reports why a view may not be acted on, or nil.
func checkView(host kbroker.HostID, v kbroker.ViewReply) error {
	if v.Head.Revision == 0 {
		return errNoHead
	}
	if v.Head.Host != host {
		return fmt.Errorf("the view is that of host %q", v.Head.Host)
	}
	if v.Head.Count != len(v.Placements) {
		return fmt.Errorf("%d placements, the head says %d", len(v.Placements), v.Head.Count)
	}
	if h := kbroker.PlacementsHash(v.Placements); h != v.Head.Hash {
		return fmt.Errorf("placements hash to %s, the head says %s", h, v.Head.Hash)
	}
	for _, p := range v.Placements {
		if p.Host != host {
			return fmt.Errorf("placement %s is for host %q", p.Instance, p.Host)
		}
		if err := validKey(keyOf(p)); err != nil {
			return err
		}
	}
	return nil
}

// viewer fetches the host's view whenever there is reason to, and hands
// complete ones to the loop.
type viewer struct {
	host       kbroker.HostID
	generation int
	dir        *Dir
	conn       *nats.Conn
	log        *slog.Logger

	// look has capacity 1: somebody saw that there is something new.
	look chan struct{}
	// lower counts complete views in a row that were older than the held one.
	lower int
}

// load returns the view of the last run, or an empty one.
func (v *viewer) load() kbroker.ViewReply {
	var held kbroker.ViewReply
	err := loadSealed(filepath.Join(v.dir.Path, viewFile), &held)
	if err == nil {
		err = checkView(v.host, held)
	}
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			v.log.Warn("the stored view is not used", "err", err)
		}
		return kbroker.ViewReply{}
	}
	return held
}

// stir asks for a fresh view.
func (v *viewer) stir() {
	select {
	case v.look <- struct{}{}:
	default: // somebody did already
	}
}

// run fetches until ctx ends. lost is called when the connection went away,
// accept with each complete view. held is the revision that is held already.
func (v *viewer) run(ctx context.Context, held uint64, accept func(kbroker.ViewReply), lost func()) error {
	sub, err := v.conn.Subscribe(subjects.Changed(subjects.KeyPlacements(v.host)), func(*nats.Msg) { v.stir() })
	if err != nil {
		return fmt.Errorf("subscribe to changes: %w", err)
	}
	defer sub.Unsubscribe()
	status := v.conn.StatusChanged()
	defer v.conn.RemoveStatusListener(status)
	poll := time.NewTicker(connectionPoll)
	defer poll.Stop()
	again := time.NewTimer(0) // the first view is asked for at once
	defer again.Stop()

	connected, reconnects, retry := false, uint64(0), viewRetryFirst
	for {
		fetch := false
		select {
		case <-ctx.Done():
			return nil
		case <-status:
		case <-poll.C:
		case <-again.C:
			fetch = true
		case <-v.look:
			fetch = true
			pause(ctx, viewDebounce)
		}
		is, n := v.conn.IsConnected(), v.conn.Stats().Reconnects
		if connected && (!is || n != reconnects) {
			lost()
		}
		fetch = is && (fetch || !connected || n != reconnects)
		connected, reconnects = is, n
		if !fetch {
			continue
		}
		drain(v.look)
		got, err := v.fetch(ctx, held)
		if errors.Is(err, errNoHead) {
			again.Reset(fullViewEvery/2 + rand.N(fullViewEvery/2))
			continue
		}
		if err != nil {
			if ctx.Err() == nil {
				v.log.Debug("no view; asking again", "err", err)
			}
			again.Reset(retry)
			retry = min(2*retry, viewRetryMax)
			continue
		}
		held, retry = got.Head.Revision, viewRetryFirst
		accept(got)
		again.Reset(fullViewEvery/2 + rand.N(fullViewEvery/2))
	}
}

// fetch asks for one view, checks it, and stores it before anybody acts on it.
func (v *viewer) fetch(ctx context.Context, held uint64) (kbroker.ViewReply, error) {
	var got kbroker.ViewReply
	if err := request(ctx, v.conn, subjects.View(v.host), kbroker.ViewRequest{Host: v.host, Generation: v.generation}, &got); err != nil {
		return got, err
	}
	if err := checkView(v.host, got); err != nil {
		return got, fmt.Errorf("incomplete view: %w", err)
	}
	if got.Head.Revision < held {
		// The store itself went back (a restore, lost last moments), or a core
		// is wrong: a second answer must agree.
		if v.lower++; v.lower < 2 {
			return got, fmt.Errorf("revision %d is older than the held %d", got.Head.Revision, held)
		}
		v.log.Warn("the cluster's view of this host went back", "rev", got.Head.Revision, "held", held)
	}
	v.lower = 0
	if got.Head.Revision != held {
		if err := saveSealed(filepath.Join(v.dir.Path, viewFile), got); err != nil {
			v.log.Warn("the view is not stored; a restart without the bus will use an older one", "err", err)
		}
	}
	return got, nil
}

func drain(c chan struct{}) {
	select {
	case <-c:
	default:
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
