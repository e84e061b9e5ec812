package ownership

import (
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// simStore is what JetStream is to the protocol: batches that are taken whole or not at
// all, by compare-and-set. What is sent may be written at any later time, and what is
// written need not be told.
type simStore struct {
	w     *world
	seq   kbroker.Revision
	recs  map[string]storedRecord
	away  bool
	heard []func(key string, value []byte, rev kbroker.Revision) // who hears of changes
}

type storedRecord struct {
	value []byte
	rev   kbroker.Revision
}

// write makes one attempt. done is called once, in p's time; what comes after the timeout
// is not heard.
func (s *simStore) write(p *proc, timeout time.Duration, writes []kbroker.Write, done func(Written, kbroker.Revision)) {
	w, over := s.w, false
	finish := func(o Written, first kbroker.Revision) {
		p.do(byAnswer, func() {
			if !over {
				over = true
				done(o, first)
			}
		})
	}
	p.after(timeout, func() { finish(NotKnown, 0) })
	way := w.hop()
	often := 0.05
	if w.f.reading { // there are few
		often = 0.3
	}
	if w.f.stall && subjects.ParseOwnKey(writes[len(writes)-1].Key).Table == subjects.OwnState && w.chance(often) {
		way = w.between(600*time.Millisecond, time.Second)
		p.pause(way + w.between(0, 30*time.Millisecond))
	}
	if w.f.late && w.chance(w.rare(0.04)) {
		way = w.between(0, 1500*time.Millisecond)
	}
	if w.f.lost && w.chance(0.02) {
		return // it never gets there
	}
	if p.apart() {
		if !w.f.late {
			return
		}
		way += p.cutUntil - w.now // it is sent when it can be
	}
	var arrive func()
	arrive = func() {
		if s.away {
			if w.f.late {
				w.after(w.between(10*time.Millisecond, 400*time.Millisecond), arrive)
			}
			return
		}
		first, ok := s.apply(p.name, writes)
		if ok && first == 0 || p.apart() || w.f.lost && w.chance(0.04) {
			w.say("store: the answer to %s is lost", p.name)
			return
		}
		w.after(w.hop(), func() {
			if ok {
				finish(Accepted, first)
			} else {
				finish(Refused, 0)
			}
		})
	}
	w.after(way, arrive)
}

func (s *simStore) apply(from string, writes []kbroker.Write) (first kbroker.Revision, ok bool) {
	for _, x := range writes {
		key, at := x.Key, x.Expected
		if x.Guard != "" {
			key, at = x.Guard, x.GuardAt
		}
		if !ruleAssignCAS && subjects.ParseOwnKey(key).Table == subjects.OwnAssign {
			continue
		}
		if !ruleReleaseGuard && subjects.ParseOwnKey(key).Table == subjects.OwnRelease && len(writes) == 1 {
			continue
		}
		if s.recs[key].rev != at {
			s.w.say("store: refuses %s %v: %s is at %d", from, writes, key, s.recs[key].rev)
			return 0, false
		}
	}
	first = s.seq + 1
	if w := s.w; w.f.cut && subjects.ParseOwnKey(writes[0].Key).OfObject() && len(writes) > 1 && w.chance(0.1) {
		writes, first = writes[:1+w.r.IntN(len(writes)-1)], 0
		w.say("store: a batch of %s is cut off behind %d", from, len(writes))
	}
	if s.w.f.reminds {
		s.w.tear(writes, first == 0)
	}
	for _, x := range writes {
		s.seq++
		if subjects.ParseOwnKey(x.Key).Table == subjects.OwnState {
			s.w.check(from, x, s.recs[x.Key])
		} else {
			s.w.say("store: %s is now %s @%d (%s)", x.Key, x.Value, s.seq, from)
		}
		s.recs[x.Key] = storedRecord{x.Value, s.seq}
		k := subjects.ParseOwnKey(x.Key)
		if len(x.Value) == 0 && !(k.Shard.OfOne() && !k.OfObject()) { // of those the marker is seen
			delete(s.recs, x.Key)
			continue
		}
		s.w.checkOwned(k)
		if x.Key != allocKey {
			for _, hear := range s.heard {
				hear(x.Key, x.Value, s.seq)
			}
		}
	}
	return first, true
}

// read asks the leader for a key.
func (s *simStore) read(p *proc, timeout time.Duration, key string, done func(storedRecord, bool)) {
	w, over := s.w, false
	finish := func(r storedRecord, ok bool) {
		p.do(byAnswer, func() {
			if !over {
				over = true
				done(r, ok)
			}
		})
	}
	p.after(timeout, func() { finish(storedRecord{}, false) })
	w.after(w.hop(), func() {
		if s.away || p.apart() || w.f.lost && w.chance(0.02) {
			return
		}
		r := s.recs[key]
		w.after(w.hop(), func() { finish(r, true) })
	})
}

// readAll asks for several, each at a time of its own.
func (s *simStore) readAll(p *proc, timeout time.Duration, keys []string, done func([]storedRecord, bool)) {
	found, left, failed := make([]storedRecord, len(keys)), len(keys), false
	for i, key := range keys {
		s.read(p, timeout, key, func(r storedRecord, ok bool) {
			found[i] = r
			failed = failed || !ok
			if left--; left == 0 {
				done(found, !failed)
			}
		})
	}
	if len(keys) == 0 {
		done(nil, true)
	}
}

func (s *simStore) below(prefix string) []string {
	var keys []string
	for k := range s.recs {
		if strings.HasPrefix(k, prefix) && k != allocKey {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

// list is what an object of the simulated application holds: the names of the calls that
// took effect, in order.
func list(state []byte) []string {
	if len(state) == 0 {
		return nil
	}
	return strings.Split(string(state), ",")
}

// check holds what must be true of every write of an object's record.
func (w *world) check(from string, x kbroker.Write, before storedRecord) {
	next, err := Decode(x.Value)
	if err != nil {
		w.fail("P0 %s wrote an unreadable record: %v", from, err)
		return
	}
	var last Record
	if before.rev != 0 {
		last, _ = Decode(before.value)
	}
	w.say("store: %s is now e%d of %s [%s] commit %s @%d", x.Key, next.Epoch, next.Owner, next.State, next.Commit, w.store.seq)
	switch {
	case next.Epoch < last.Epoch:
		w.fail("P0 stale effect: %s wrote %s with epoch %d over epoch %d", from, x.Key, next.Epoch, last.Epoch)
	case next.Epoch == last.Epoch && next.Owner != last.Owner && last.Owner != "":
		w.fail("P0 two owners of %s at epoch %d: %s and %s", x.Key, next.Epoch, last.Owner, next.Owner)
	}
	was, is := list(last.State), list(next.State)
	if len(is) < len(was) || !slices.Equal(is[:len(was)], was) {
		w.fail("P2 %s lost an update of %s: %v after %v", from, x.Key, is, was)
		return
	}
	for _, id := range is[len(was):] {
		if slices.Contains(was, id) {
			w.fail("P1 %s took effect twice on %s", id, x.Key)
		}
		if name, _, _ := strings.Cut(id, ">"); w.denied[name] {
			w.fail("P2 %s took effect on %s, although its caller was told that it did not", id, x.Key)
		}
	}
}

// now are the effects of an object, as the store has them.
func (s *simStore) now(o kbroker.Object) []string {
	r, ok := s.recs[subjects.KeyState(o)]
	if !ok {
		return nil
	}
	d, _ := Decode(r.value)
	return list(d.State)
}

// decodeAs reads a record of ownership. A world reads the same ones again and again.
func decodeAs[T any](w *world, b []byte) (v T) {
	if len(b) == 0 {
		return v
	}
	if known, ok := w.decoded[&b[0]].(T); ok {
		return known
	}
	if err := json.Unmarshal(b, &v); err != nil {
		panic(err)
	}
	w.decoded[&b[0]] = v
	return v
}
