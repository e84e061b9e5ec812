package state

import (
	"context"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// mendUntilWhole mends until every head matches or ctx ends.
func (l *Leader) mendUntilWhole(ctx context.Context) {
	for ctx.Err() == nil {
		err := l.mend(ctx)
		if err == nil {
			return
		}
		l.store.cfg.Log.Debug("heads not mended; trying again", "epoch", l.Epoch(), "err", err)
		sleep(ctx, createPause)
	}
}

// mend rewrites the heads that do not match their host's placements.
//
// A refused batch is refused whole, and on a replicated stream a batch is one
// entry of the log. But a stream with one replica applies a batch message by
// message: when its server ends in the middle, the first messages of the batch
// stay and the others never were (seen on 2.15.2, about one stop in ten under
// load). A batch is ordered so that any beginning of it is a state to plan
// from, with one exception: its heads come last. Until they are mended the
// host's view is refused, so that no agent acts on it.
func (l *Leader) mend(ctx context.Context) error {
	v, err := l.store.View(ctx)
	if err != nil {
		return err
	}
	c := &commit{leader: l, view: v, hosts: map[kbroker.HostID]*hostState{}}
	var writes []write
	for host := range v.torn() {
		l.store.cfg.Log.Warn("the head of a host does not match its placements; writing it again", "host", host, "rev", v.Heads[host].Revision)
		writes = append(writes, write{host: host})
	}
	for len(writes) > 0 {
		n := c.fits(writes)
		if _, err := c.batch(ctx, writes[:n]); err != nil {
			return err
		}
		writes = writes[n:]
	}
	return nil
}

// torn returns the hosts whose head does not match their placements, without
// those of which a record is not readable.
func (v *View) torn() map[kbroker.HostID]bool {
	torn := map[kbroker.HostID]bool{}
	for k := range v.Placements {
		torn[k.Host] = true
	}
	for host := range v.Heads {
		torn[host] = true
	}
	for host := range torn {
		if v.whole(host) {
			delete(torn, host)
		}
	}
	for key := range v.Unreadable {
		delete(torn, subjects.ParseKey(key).Host)
	}
	return torn
}

// whole reports whether the host's placements are those of its head.
func (v *View) whole(host kbroker.HostID) bool {
	on, head := v.On(host), v.Heads[host]
	if head.Revision == 0 {
		return len(on) == 0
	}
	return head.Count == len(on) && head.Hash == kbroker.PlacementsHash(on)
}
