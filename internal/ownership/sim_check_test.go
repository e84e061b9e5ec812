package ownership

import (
	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// served is a shard at an epoch: one incarnation ever serves it.
type served struct {
	shard kbroker.Shard
	epoch uint64
}

// serves holds that of an incarnation that serves a shard.
func (w *world) serves(i kbroker.Incarnation, n kbroker.Shard, epoch uint64) {
	k := served{n, epoch}
	switch was := w.serving[k]; was {
	case i:
	case "":
		w.serving[k] = i
	default:
		w.fail("P0 two owners of shard %d at epoch %d: %s and %s", n, epoch, was, i)
	}
}

// checkOwned holds that what is stored of a shard leaves it to somebody: an owner that has
// released it does not serve it again, so that who the record names then must be who the
// release is to, or a later one.
func (w *world) checkOwned(k subjects.OwnKey) {
	if k.Table != subjects.OwnAssign && k.Table != subjects.OwnRelease {
		return
	}
	a := decodeAs[Assignment](w, w.store.recs[subjects.KeyAssign(k.Shard)].value)
	r := decodeAs[Release](w, w.store.recs[subjects.KeyRelease(k.Shard)].value)
	if k.Shard.OfOne() && a.Owner == "" {
		return // it is to be allocated again, at a higher epoch
	}
	left := r.Epoch == a.Epoch && r.To == a.Next && r.ToEpoch == a.NextEpoch
	if r.Epoch != 0 && r.Epoch >= a.Epoch && !left {
		w.fail("P5 nobody is to serve shard %d: %s has it at epoch %d, next is %q, and it was released at epoch %d to %s at %d", k.Shard, a.Owner, a.Epoch, a.Next, r.Epoch, r.To, r.ToEpoch)
	}
}
