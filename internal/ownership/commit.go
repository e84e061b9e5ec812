package ownership

import (
	"fmt"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// committer writes what objects of one stream have done, one batch at a time, as many of
// them together as wait.
//
//	                    +--accepted--> done
//	waiting --batch--> sent --refused--> inspected --none has moved--> sent again
//	                    |  ^                 \--those that have moved are lost; the others wait again
//	                    +--+ not known: the same batch again
type committer struct {
	owner  *Owner
	stream int
	wait   []*item
	flight *flight
}

// item is what one object has to write.
type item struct {
	x          *object
	activation uint64
	next       Record
	writes     []kbroker.Write
	sends      []Send          // the first of the writes
	after      []kbroker.Write // removals
	unsure     bool            // whether those were made
	claim      bool
	call       *Call
	reply      Reply
	refused    int // times, in a batch with others or alone
}

// maxRefused is how often an object's write is refused although its record is where it is
// expected, before the turn is given up.
const maxRefused = 3

// flight is a batch under way.
type flight struct {
	number  uint64
	commit  string
	items   []*item
	writes  []kbroker.Write
	at      []int // the index in writes of each item's record
	tries   int
	backoff time.Duration
	unknown bool // an attempt ended without an outcome
}

func (o *Owner) committer(x *object) *committer {
	return &o.commits[int(x.id.Shard())%o.cfg.Streams]
}

func (c *committer) add(now time.Duration, it *item) {
	c.wait = append(c.wait, it)
	c.send(now)
}

// send makes a batch of what waits, if none is under way.
func (c *committer) send(now time.Duration) {
	o := c.owner
	c.wait = slices.DeleteFunc(c.wait, func(it *item) bool { return it.x.gone || it.x.activation != it.activation })
	if c.flight != nil || len(c.wait) == 0 {
		return
	}
	if ruleTurnLease && !o.Valid(now) {
		return
	}
	f := &flight{number: o.next(), backoff: retryLeast}
	f.commit = fmt.Sprintf("%s/%d", o.cfg.Incarnation, f.number)
	size := 0
	for len(c.wait) > 0 {
		it := c.wait[0]
		if it.refused > 1 && len(f.items) > 0 { // twice refused: alone
			break
		}
		if !it.claim {
			it.next.Commit = f.commit
		}
		record := kbroker.Write{Key: subjects.KeyState(it.x.id), Expected: it.x.rev, Value: stored(it)}
		bytes := bytesOf(record) + bytesOf(it.writes...) + bytesOf(it.after...)
		if len(f.items) > 0 && (len(f.writes)+1+len(it.writes)+len(it.after) > kbroker.MaxBatchWrites || size+bytes > kbroker.MaxBatchBytes) {
			break
		}
		c.wait = c.wait[1:]
		// Where a batch may be cut off (one core): what it leaves before the record is known
		// to be no part of the object, and what it has not removed behind it is known to be
		// done with.
		f.items, f.at = append(f.items, it), append(f.at, len(f.writes)+len(it.writes))
		f.writes = append(append(append(f.writes, it.writes...), record), it.after...)
		if size += bytes; it.refused > 1 {
			break
		}
	}
	c.flight = f
	o.want(Commit{c.stream, f.number, f.tries, f.writes})
}

// fits reports whether it is a batch of its own at most.
func (it *item) fits() bool {
	record := len(it.next.State) + recordHead(it.next) + kbroker.MaxKeyBytes
	return 1+len(it.writes)+len(it.after) <= kbroker.MaxBatchWrites && record+bytesOf(it.writes...)+bytesOf(it.after...) <= kbroker.MaxBatchBytes
}

// bytesOf are what writes count for, of kbroker.MaxBatchBytes.
func bytesOf(writes ...kbroker.Write) (n int) {
	for _, w := range writes {
		n += len(w.Key) + len(w.Guard) + len(w.Value)
	}
	return n
}

// stored is an item's record, as it is written.
func stored(it *item) []byte {
	r := it.next
	if !ruleRing && !it.claim {
		r.Ring, r.Marks = it.x.rec.Ring, it.x.rec.Marks
	}
	return Encode(r)
}

// Committed is what became of a Commit; accepted, first is the revision of its first write,
// and the others follow.
func (o *Owner) Committed(now time.Duration, stream int, number uint64, w Written, first kbroker.Revision) {
	c := &o.commits[stream]
	f := c.flight
	if o.ended || f == nil || f.number != number {
		return
	}
	if o.lookBack(now); o.ended {
		return
	}
	switch w {
	case Accepted:
		c.flight = nil
		o.figures.Commits++
		for i, it := range f.items {
			it.x.stored(now, it, first+kbroker.Revision(f.at[i]))
		}
		c.send(now)
	case Refused:
		o.figures.CommitsRefused++
		f.inspect(c)
	case NotKnown, NotAttempted:
		f.unknown = f.unknown || w == NotKnown
		c.retry(now)
	}
}

// retry sends the same batch again, a while later.
func (c *committer) retry(now time.Duration) {
	f := c.flight
	again := f.backoff
	f.backoff = min(2*f.backoff, retryMost)
	c.owner.later(now+again, func(time.Duration) {
		if c.flight == f {
			f.tries++
			c.owner.want(Commit{c.stream, f.number, f.tries, f.writes})
		}
	})
}

func (f *flight) inspect(c *committer) {
	var keys []string
	for _, w := range f.writes {
		keys = append(keys, w.Key)
	}
	c.owner.want(Inspect{c.stream, f.number, keys})
}

// Found is what was read of a key: the record, if it is that of an object.
type Found struct {
	Record   Record
	Revision kbroker.Revision
}

// Inspected is the answer to Inspect: what was found, in the order of the keys. ok is false
// if it could not be read, which is tried again.
func (o *Owner) Inspected(now time.Duration, stream int, number uint64, all []Found, ok bool) {
	c := &o.commits[stream]
	f := c.flight
	if o.ended || f == nil || f.number != number {
		return
	}
	if o.lookBack(now); o.ended {
		return
	}
	if !ok || len(all) != len(f.writes) {
		again := f.backoff
		f.backoff = min(2*f.backoff, retryMost)
		o.later(now+again, func(time.Duration) {
			if c.flight == f {
				f.inspect(c)
			}
		})
		return
	}
	var found []Found // by item
	for _, at := range f.at {
		found = append(found, all[at])
	}
	// One record that has the batch's name proves that all of it was written, where it cannot
	// be cut off; there it proves that no more of it will be.
	written := slices.ContainsFunc(found, func(r Found) bool { return r.Record.Commit == f.commit })
	moved := func(i int) bool { return found[i].Revision != f.writes[f.at[i]].Expected }
	anyMoved := false
	for i := range f.items {
		anyMoved = anyMoved || moved(i)
	}
	if !written && !anyMoved {
		f.overwrite(all)
	}
	if !written && !anyMoved && f.unknown {
		c.retry(now) // a copy may still be written, and then it was this batch
		return
	}
	c.flight = nil
	for i, it := range f.items {
		switch r := found[i]; {
		case it.x.gone || it.x.activation != it.activation:
		case written && moved(i) && (it.claim || r.Record.Commit == f.commit) && r.Record.Owner == o.cfg.Incarnation && r.Record.Epoch == it.next.Epoch:
			it.unsure = true
			it.x.stored(now, it, r.Revision)
		case moved(i):
			it.x.superseded(now, r)
		default:
			if it.refused++; it.refused >= maxRefused {
				it.x.again(now)
				continue
			}
			c.wait = append(c.wait, it)
		}
	}
	c.send(now)
}

// overwrite has messages take the place of those that a batch has left that was not
// written to its end, as their objects' records are where they were.
func (f *flight) overwrite(all []Found) {
	for i, w := range f.writes {
		if len(w.Value) > 0 && !slices.Contains(f.at, i) && w.Guard == "" {
			f.writes[i].Expected = all[i].Revision
		}
	}
}

// superseded is for an object whose record is not where its owner has left it.
func (x *object) superseded(now time.Duration, r Found) {
	if r.Record.Epoch > x.shard.epoch || r.Record.Epoch == x.shard.epoch && r.Record.Owner != x.owner().cfg.Incarnation {
		x.shard.lost(now)
		return
	}
	x.again(now)
}

// again loads the object anew. What ran is answered as unknown: it may be stored.
func (x *object) again(now time.Duration) { x.reload(now, Unknown, "its state was changed meanwhile") }
