package ownership

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// In worlds with reminders a turn may set one, move it, or end it: the object's list says so,
// as "id>name@due", with 0 for one that is ended. A turn that one has led to is
// "r:name@due>next". The owner knows those of the shards that it serves, as the SDK does:
// what it finds when it scans, and what its turns leave since.

// dueKey names a reminder.
type dueKey struct {
	object kbroker.Object
	name   string
}

// simDue is one that an owner knows.
type simDue struct {
	key    dueKey
	due    time.Duration
	of     string // the call that has set it: the calls that it leads to are a session of their own
	unsure bool   // it was found before the object was claimed
}

// is reports whether it is due then, by that setting: hosts whose clocks differ may set one that is
// due before another that has had its turn.
func (x *simDue) is(y simDue) bool { return x.due == y.due && x.of == y.of }

// simRemind is after how long a reminder is called again whose turn failed.
const simRemind = 50 * time.Millisecond

// following is when a reminder is due that had its turn; 0: never again. Those of one of
// the names are due again and again.
func (w *world) following(x *simDue) time.Duration {
	const every = 120 * time.Millisecond
	if x.key.name == "once" {
		return 0
	}
	return x.due + ((w.now-x.due)/every+1)*every
}

// reminders draws what a turn of a call wants of one.
func (w *world) reminders(o kbroker.Object, did string) (string, []simDue) {
	if !w.f.reminds || !w.chance(0.2) {
		return did, nil
	}
	x := simDue{key: dueKey{o, []string{"once", "every"}[w.r.IntN(2)]}, of: did}
	if !w.chance(0.3) {
		x.due = w.now + w.between(1, 400*time.Millisecond)
	}
	return fmt.Sprintf("%s>%s@%d", did, x.key.name, x.due), []simDue{x}
}

// dueWrites store what a turn wants, over whatever is there.
func dueWrites(wanted []simDue) (writes []kbroker.Write) {
	for _, x := range wanted {
		w := kbroker.Write{Key: subjects.KeyDue(x.key.object, x.key.name), Guard: subjects.KeyOut(x.key.object, 0)}
		if x.due != 0 {
			w.Value = []byte(fmt.Sprintf("%d %s", x.due, x.of))
		}
		writes = append(writes, w)
	}
	return writes
}

// storedDue is what is stored of a reminder; it is due at 0: nothing.
func storedDue(k dueKey, r storedRecord) simDue {
	due, of, _ := strings.Cut(string(r.value), " ")
	n, _ := strconv.ParseInt(due, 10, 64)
	return simDue{key: k, due: time.Duration(n), of: of}
}

// putDue makes a time what the owner knows of a reminder; 0: there is none.
func (o *simOwner) putDue(x simDue) {
	if touched := o.scanning[x.key.object.Shard()]; touched != nil {
		touched[x.key] = true
	}
	delete(o.dues, x.key)
	if x.due != 0 {
		known := &x
		o.dues[x.key] = known
		o.after(max(0, x.due-o.w.now), func() { o.remind(known) })
	}
}

// releaseDues forgets those of a shard.
func (o *simOwner) releaseDues(n kbroker.Shard) {
	delete(o.scanning, n)
	for k := range o.dues {
		if k.object.Shard() == n {
			delete(o.dues, k)
		}
	}
}

// scanDues finds those of a shard.
func (o *simOwner) scanDues(n kbroker.Shard) {
	w := o.w
	if !w.f.reminds {
		return
	}
	if o.scanning[n] == nil {
		o.scanning[n] = map[dueKey]bool{}
	}
	keys := w.store.below(subjects.MatchDues(n) + ".")
	w.store.readAll(o.proc, simWithin, keys, func(found []storedRecord, ok bool) {
		touched := o.scanning[n]
		if touched == nil {
			return
		}
		if !ok {
			o.after(simRemind, func() {
				if o.scanning[n] != nil {
					o.scanDues(n)
				}
			})
			return
		}
		delete(o.scanning, n)
		for i, r := range found {
			k := subjects.ParseOwnKey(keys[i])
			if id := (dueKey{k.Object, k.Name}); !touched[id] && o.dues[id] == nil {
				x := storedDue(id, r)
				x.unsure = true
				o.putDue(x)
			}
		}
	})
}

// remind begins the turn of one that is due.
func (o *simOwner) remind(x *simDue) {
	if o.dues[x.key] != x {
		return
	}
	at := uint64(x.due)
	began := o.o.Begin(o.clock(), &Call{
		Object: x.key.object, Session: "r." + x.key.object.String() + "." + x.key.name + "." + x.of, Sequence: at, Hash: 1, Confirmed: at,
		Data: &attempt{id: fmt.Sprintf("r:%s@%d", x.key.name, x.due), object: x.key.object, due: x, over: true},
	})
	if !began {
		delete(o.dues, x.key)
	}
	o.effects()
}

// runDue is the turn that a reminder leads to.
func (o *simOwner) runDue(e Run, a *activation, call *attempt) {
	w, x := o.w, call.due
	if o.dues[x.key] != x || x.unsure { // a turn in front of it has ended it, or moved it, or may have
		o.o.Turned(o.clock(), e.Object, e.Activation, Turn{Reply: Reply{Outcome: Done}, Exists: len(a.list) > 0})
		return
	}
	w.say("%s runs %s on %s", o.name, call.id, e.Object)
	o.after(w.between(0, 2*time.Millisecond), func() {
		turn := Turn{Reply: Reply{Outcome: Failed}}
		if !w.chance(0.1) {
			next := simDue{key: x.key, due: w.following(x), of: x.of}
			o.wanted[e.Call] = []simDue{next}
			a.list = append(a.list[:len(a.list):len(a.list)], fmt.Sprintf("%s>%d", call.id, next.due))
			turn = Turn{Reply: Reply{Outcome: Done}, Changed: true, Exists: true, State: []byte(strings.Join(a.list, ",")), After: dueWrites(o.wanted[e.Call])}
		}
		o.o.Turned(o.clock(), e.Object, e.Activation, turn)
		o.effects()
	})
}

// turned does what a turn that is stored has wanted of reminders.
func (o *simOwner) turned(c *Call, r Reply) {
	if r.Outcome == Done {
		for _, x := range o.wanted[c] {
			o.putDue(x)
		}
	}
	delete(o.wanted, c)
}

// reminded is the end of a turn that a reminder has led to.
func (o *simOwner) reminded(x *simDue, r Reply) {
	switch {
	case o.dues[x.key] != x:
	case r.Outcome == Again || r.Outcome == Expired:
		o.resolveDue(x)
	case r.Outcome == Done && x.unsure:
		o.makeSure(x)
	default:
		o.after(simRemind, func() { o.remind(x) })
	}
}

// makeSure looks at what is stored when the object is claimed.
func (o *simOwner) makeSure(x *simDue) {
	o.w.store.read(o.proc, simWithin, subjects.KeyDue(x.key.object, x.key.name), func(r storedRecord, ok bool) {
		switch {
		case o.dues[x.key] != x:
		case !ok:
			o.after(simRemind, func() { o.remind(x) })
		case !x.is(storedDue(x.key, r)):
			o.putDue(storedDue(x.key, r))
		default:
			x.unsure = false
			o.remind(x)
		}
	})
}

// resolveDue is for a reminder that had its turn although it is known to be due.
func (o *simOwner) resolveDue(x *simDue) {
	w := o.w
	key := subjects.KeyDue(x.key.object, x.key.name)
	again := func() { o.after(simRemind, func() { o.remind(x) }) }
	w.store.read(o.proc, simWithin, key, func(r storedRecord, ok bool) {
		switch {
		case o.dues[x.key] != x:
		case !ok:
			again()
		case !x.is(storedDue(x.key, r)):
			o.putDue(storedDue(x.key, r))
		default:
			next := simDue{key: x.key, due: w.following(x), of: x.of}
			write := dueWrites([]simDue{next})[0]
			write.Guard, write.Expected = "", r.rev
			w.store.write(o.proc, simWithin, []kbroker.Write{write}, func(out Written, _ kbroker.Revision) {
				switch {
				case o.dues[x.key] != x:
				case out == Accepted:
					o.putDue(next)
				default:
					again()
				}
			})
		}
	})
}

// isDue goes through what took effect on an object, and returns what its reminders are due at
// then; each of those that had a turn was due. What only a batch has set that was cut off
// before the object's record may have a turn, or not.
func (w *world) isDue(o kbroker.Object) map[dueKey]time.Duration {
	now, ever := map[dueKey]time.Duration{}, map[simDue]bool{}
	set := func(k dueKey, at string) time.Duration {
		n, _ := strconv.ParseInt(at, 10, 64)
		now[k] = time.Duration(n)
		ever[simDue{key: k, due: now[k]}] = true
		return now[k]
	}
	for _, did := range w.store.now(o) {
		id, rest, _ := strings.Cut(did, ">")
		turn, of, led := strings.Cut(id, "r:")
		if !led || turn != "" {
			if name, at, ok := strings.Cut(rest, "@"); ok {
				set(dueKey{o, name}, at)
			}
			continue
		}
		name, at, _ := strings.Cut(of, "@")
		k := dueKey{o, name}
		n, _ := strconv.ParseInt(at, 10, 64)
		if due := time.Duration(n); now[k] != due && (!w.f.cut || ever[simDue{key: k, due: due}]) {
			w.fail("P1 %s of %s led to a turn, and it was ended or moved: due is %d", id, o, now[k])
		}
		w.reminded++
		set(k, rest)
	}
	return now
}

// remembered holds, at the end, that each reminder that a stored turn has set led to a turn,
// and none that a stored turn has ended, or moved.
func (w *world) remembered() {
	if w.failed != "" || !w.f.reminds {
		return
	}
	late := func() (all []dueKey) {
		w.reminded = 0
		for _, o := range w.objects {
			for k, due := range w.isDue(o) {
				if due != 0 && due < w.now-300*time.Millisecond && !w.torn[k] {
					all = append(all, k)
				}
			}
		}
		return all
	}
	for until := w.now + 2*restWait; w.failed == "" && len(late()) > 0 && w.now < until; {
		w.steps(w.now + 50*time.Millisecond)
	}
	if all := late(); len(all) > 0 && w.failed == "" {
		w.fail("P5 reminders %v lead to no turn when all is well again", all)
	}
}

// tear notes which reminders a batch has changed, and whether it was cut off before the record
// of their object: until another one changes them it is not said what becomes of them.
func (w *world) tear(writes []kbroker.Write, cut bool) {
	stored := map[kbroker.Object]bool{}
	for _, x := range writes {
		if k := subjects.ParseOwnKey(x.Key); k.Table == subjects.OwnState {
			stored[k.Object] = true
		}
	}
	for _, x := range writes {
		if k := subjects.ParseOwnKey(x.Key); k.Table == subjects.OwnDue {
			w.torn[dueKey{k.Object, k.Name}] = cut && !stored[k.Object]
		}
	}
}
