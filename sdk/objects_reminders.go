package sdk

import (
	"container/heap"
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of a reminder's calls.
const (
	remindWithin = time.Minute // one call, with what waits in front of it
	remindLeast  = time.Second // the pause after one that failed
	remindMost   = time.Minute
)

// reminderID names a reminder.
type reminderID struct {
	object kbroker.Object
	name   string
}

// reminder is one that is stored, as far as this owner knows.
//
//	stored --due--> called --stored with what follows--> the next time, or over
//	                  ^  \--failed--> called again later
//	                  \--it had taken effect, or was found before the object was claimed, and an
//	                     earlier owner may have ended it since: what is stored is looked at
type reminder struct {
	id      reminderID
	due     *due
	sure    bool      // it was read, or written, when the object was claimed
	at      time.Time // when it is called
	index   int       // in the queue; -1: it is called
	backoff time.Duration
}

// reminders are those of the shards that an instance serves: what is found in a shard when it
// comes to be served, and what turns have set since.
type reminders struct {
	queue []*reminder
	named named[*reminder]
	// scanning are shards that are looked through, and which of their reminders have changed
	// meanwhile: of those what was found says nothing.
	scanning map[kbroker.Shard]map[reminderID]bool
}

func newReminders() reminders {
	return reminders{named: named[*reminder]{}, scanning: map[kbroker.Shard]map[reminderID]bool{}}
}

func (r *reminders) Len() int           { return len(r.queue) }
func (r *reminders) Less(i, j int) bool { return r.queue[i].at.Before(r.queue[j].at) }
func (r *reminders) Swap(i, j int) {
	r.queue[i], r.queue[j] = r.queue[j], r.queue[i]
	r.queue[i].index, r.queue[j].index = i, j
}

func (r *reminders) Push(x any) {
	x.(*reminder).index = len(r.queue)
	r.queue = append(r.queue, x.(*reminder))
}

func (r *reminders) Pop() any {
	last := len(r.queue) - 1
	x := r.queue[last]
	r.queue[last] = nil
	r.queue, x.index = r.queue[:last], -1
	return x
}

// put makes d what is stored under a name; nil: nothing is.
func (r *reminders) put(id reminderID, d *due) {
	if touched := r.scanning[id.object.Shard()]; touched != nil {
		touched[id] = true
	}
	if x := r.get(id); x != nil {
		r.drop(x)
	}
	if d == nil {
		return
	}
	x := &reminder{id: id, due: d, sure: true, at: time.UnixMilli(d.Due)}
	r.named.put(id.object, id.name, x)
	heap.Push(r, x)
}

func (r *reminders) drop(x *reminder) {
	if x.index >= 0 {
		heap.Remove(r, x.index)
	}
	r.named.drop(x.id.object, x.id.name)
}

func (r *reminders) get(id reminderID) *reminder { return r.named.of(id.object)[id.name] }

// names are those of an object's reminders.
func (r *reminders) names(o kbroker.Object) []string { return slices.Collect(maps.Keys(r.named.of(o))) }

// apply does what a turn wanted.
func (r *reminders) apply(o kbroker.Object, wanted map[string]*due) {
	for name, d := range wanted {
		r.put(reminderID{o, name}, d)
	}
}

// release forgets those of a shard.
func (r *reminders) release(s kbroker.Shard) {
	delete(r.scanning, s)
	for _, all := range r.named[s] {
		for _, x := range all {
			r.drop(x)
		}
	}
}

// later has one be called again after a while.
func (r *reminders) later(x *reminder) {
	x.backoff = min(max(2*x.backoff, remindLeast), remindMost)
	x.at = time.Now().Add(x.backoff)
	heap.Push(r, x)
}

// scanDue finds the reminders of a shard that is served, beside its messages.
func (k *keeper) scanDue(s kbroker.Shard) {
	if k.reminders.scanning[s] == nil {
		k.reminders.scanning[s] = map[reminderID]bool{}
	}
	k.read(kbroker.OwnReadRequest{Match: subjects.MatchDues(s)}, func(now time.Duration, found []kbroker.Stored, ok bool) {
		touched := k.reminders.scanning[s]
		if touched == nil {
			return // it is served no more
		}
		if !ok {
			time.AfterFunc(readAgain, func() { k.post(func(time.Duration) { k.scanDueAgain(s) }) })
			return
		}
		delete(k.reminders.scanning, s)
		for _, f := range found {
			k.foundDue(f, touched)
		}
	})
}

// readAgain is the pause after a read that failed.
const readAgain = time.Second

func (k *keeper) scanDueAgain(s kbroker.Shard) {
	if k.reminders.scanning[s] != nil {
		k.scanDue(s)
	}
}

func (k *keeper) foundDue(f kbroker.Stored, touched map[reminderID]bool) {
	key := subjects.ParseOwnKey(f.Key)
	id := reminderID{key.Object, key.Name}
	if k.kinds[id.object.Kind] == nil || touched[id] || k.reminders.get(id) != nil || !f.Exists() {
		return
	}
	d, err := decodeDue(f.Value)
	if err != nil { // it stays there, for who can read it
		k.log.Error("reminder not readable", "object", id.object, "reminder", id.name, "err", err)
		return
	}
	k.reminders.put(id, d)
	k.reminders.get(id).sure = false
}

// dueWithin reports whether one is due in that time.
func (r *reminders) dueWithin(within time.Duration) bool {
	return len(r.queue) > 0 && !r.queue[0].at.After(time.Now().Add(within))
}

// remind begins the turns of what is due.
func (k *keeper) remind(now time.Duration) {
	for len(k.reminders.queue) > 0 && !k.reminders.queue[0].at.After(time.Now()) {
		x := heap.Pop(&k.reminders).(*reminder)
		m := k.kinds[x.id.object.Kind].methods[x.due.Method]
		if m == nil || m.readOnly {
			k.log.Error("a reminder of a method that there is not; it is called again later", "object", x.id.object, "reminder", x.id.name, "method", x.due.Method)
			k.reminders.later(x)
			continue
		}
		if k.quarantine.in[x.id.object] > 0 {
			k.reminders.later(x)
			continue
		}
		sum := sha256.Sum256([]byte(x.id.object.String() + "\x00" + x.id.name + "\x00" + x.due.Of))
		session, sequence := "r."+hex.EncodeToString(sum[:16]), uint64(max(x.due.Due, 0))
		id := session + ":" + strconv.FormatUint(sequence, 10)
		c := &heard{id: id, method: m, data: x.due.Data, deadline: time.Now().Add(remindWithin), root: root{time.Now().UnixMicro(), id}, reminder: x}
		if !k.owner.Begin(now, &ownership.Call{
			Object: x.id.object, Session: session, Sequence: sequence, Hash: hashOf(m.name, x.due.Data), Confirmed: sequence,
			Expires: now + remindWithin, Data: c,
		}) {
			k.reminders.drop(x) // the shard is served no more
		}
		k.settle(now)
	}
}

// reminded is the end of a call that a reminder has begun.
func (k *keeper) reminded(c *heard, o ownership.Outcome, e *kbroker.Error) {
	x := c.reminder
	if k.reminders.get(x.id) != x {
		return // it was set anew meanwhile, or the turn has put the next one
	}
	switch {
	case o == ownership.Again || o == ownership.Expired:
		k.resolveDue(x)
		return
	case o == ownership.Done && !x.sure:
		k.makeSure(x)
		return
	}
	if e != nil {
		k.log.Warn("turn of a reminder failed, and is begun again", "object", x.id.object, "reminder", x.id.name, "err", e)
	}
	k.reminders.later(x)
}

// makeSure looks at what is stored of a reminder whose object is claimed by now: what an earlier
// owner has sent before that is written, or never will be.
func (k *keeper) makeSure(x *reminder) {
	k.read(kbroker.OwnReadRequest{Keys: []string{subjects.KeyDue(x.id.object, x.id.name)}}, func(_ time.Duration, found []kbroker.Stored, ok bool) {
		if k.reminders.get(x.id) != x {
			return
		}
		if !ok {
			k.reminders.later(x)
			return
		}
		d, err := decodeDue(found[0].Value)
		switch {
		case !found[0].Exists() || err != nil:
			k.reminders.put(x.id, nil)
		case d.Due != x.due.Due || d.Of != x.due.Of:
			k.reminders.put(x.id, d)
		default:
			x.sure, x.at = true, time.Now()
			heap.Push(&k.reminders, x)
		}
	})
}

// resolveDue is for a reminder that had taken effect although it is known to be due: by an
// earlier owner, or in a batch that was cut off. What is stored is looked at, and moved on if
// it is still that.
func (k *keeper) resolveDue(x *reminder) {
	key := subjects.KeyDue(x.id.object, x.id.name)
	again := func() {
		if k.reminders.get(x.id) == x {
			k.reminders.later(x)
		}
	}
	k.read(kbroker.OwnReadRequest{Keys: []string{key}}, func(_ time.Duration, found []kbroker.Stored, ok bool) {
		if !ok || k.reminders.get(x.id) != x {
			again()
			return
		}
		d, err := decodeDue(found[0].Value)
		if !found[0].Exists() || err != nil || d.Due != x.due.Due {
			k.reminders.put(x.id, nil)
			k.foundDue(found[0], nil)
			return
		}
		next := d.next(time.Now())
		w := kbroker.Write{Key: key, Expected: found[0].Revision}
		if next != nil {
			w.Value = next.encode()
		}
		k.write([]kbroker.Write{w}, writeWithin, func(_ time.Duration, w ownership.Written, _ kbroker.Revision) {
			if w == ownership.Accepted && k.reminders.get(x.id) == x {
				k.reminders.put(x.id, next)
				return
			}
			again()
		})
	})
}

// wantedReminders are those that the turn sets and ends.
func (t *turn) wantedReminders() map[string]*due {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.reminders)
}

// reminderWrites are the writes of what a turn wants of reminders. They are written over
// whatever is there, as the record in their batch is where its owner has left it: what guards
// them is a key that is never there.
func reminderWrites(o kbroker.Object, wanted map[string]*due) []kbroker.Write {
	var writes []kbroker.Write
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		w := kbroker.Write{Key: subjects.KeyDue(o, name), Guard: subjects.KeyOut(o, 0)}
		if d := wanted[name]; d != nil {
			w.Value = d.encode()
		}
		writes = append(writes, w)
	}
	return writes
}

// rescheduled is what a turn leaves of the reminder that has begun it.
func (c *heard) rescheduled(wanted map[string]*due, exists bool) map[string]*due {
	x := c.reminder
	if _, set := wanted[x.id.name]; set {
		return nil
	}
	next := map[string]*due{x.id.name: nil}
	if exists {
		next[x.id.name] = x.due.next(time.Now())
	}
	return next
}
