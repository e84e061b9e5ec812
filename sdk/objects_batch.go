package sdk

import (
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of what is asked of a core at a time about shards: an instance that leaves has
// hundreds to release, and its successor as many to ask for; a core works on 128 requests.
const (
	maxReleases   = 100                     // of a batch
	maxShardsRead = kbroker.MaxReadKeys / 2 // two records each
)

// releases are on their way to the store, in batches, one at a time: each release is
// guarded by its own assignment, and which of a batch was refused nobody says.
//
//	waiting --batch--> sent --refused, of more than one--> its halves wait in front
//	                     \--otherwise--> told
type releases struct {
	waiting [][]ownership.WriteRelease
	sent    bool
}

// add has a release written; an earlier one of the shard that still waits is over.
func (r *releases) add(e ownership.WriteRelease) {
	for i, batch := range r.waiting {
		r.waiting[i] = slices.DeleteFunc(batch, func(o ownership.WriteRelease) bool { return o.Shard == e.Shard })
	}
	r.waiting = slices.DeleteFunc(r.waiting, func(batch []ownership.WriteRelease) bool { return len(batch) == 0 })
	if n := len(r.waiting); n > 0 && len(r.waiting[n-1]) < maxReleases {
		r.waiting[n-1] = append(r.waiting[n-1], e)
		return
	}
	r.waiting = append(r.waiting, []ownership.WriteRelease{e})
}

// release sends what waits.
func (k *keeper) release() {
	r := &k.releases
	if r.sent || len(r.waiting) == 0 {
		return
	}
	batch := r.waiting[0]
	r.waiting, r.sent = r.waiting[1:], true
	writes := make([]kbroker.Write, len(batch))
	for i, e := range batch {
		writes[i] = e.Write
	}
	k.write(writes, writeWithin, func(now time.Duration, w ownership.Written, _ kbroker.Revision) {
		r.sent = false
		if half := len(batch) / 2; w == ownership.Refused && half > 0 {
			r.waiting = slices.Insert(r.waiting, 0, slices.Clone(batch[:half]), slices.Clone(batch[half:]))
			return
		}
		for _, e := range batch {
			k.owner.ReleaseWritten(now, e.Shard, e.Number, w)
		}
	})
}

// asking are shards whose records are to be read, some of them at a time.
type asking struct {
	shards map[kbroker.Shard]bool
	sent   bool
}

// lookUp reads those of the shards that are asked for.
func (k *keeper) lookUp() {
	a := &k.asking
	if a.sent || len(a.shards) == 0 {
		return
	}
	a.sent = true
	var keys []string
	for _, s := range slices.Sorted(maps.Keys(a.shards)) {
		if len(keys) == 2*maxShardsRead {
			break
		}
		keys = append(keys, subjects.KeyAssign(s), subjects.KeyRelease(s))
		delete(a.shards, s)
	}
	k.concerns.reads.Add(1)
	k.read(kbroker.OwnReadRequest{Keys: keys}, func(now time.Duration, found []kbroker.Stored, ok bool) {
		a.sent = false
		k.see(now, found, ok)
		k.concerns.reads.Add(-1)
	})
}
