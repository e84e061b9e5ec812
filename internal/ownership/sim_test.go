package ownership

import (
	"container/heap"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// The simulated world: one app with a few objects, hosts whose processes are started,
// paused and killed, two allocators, callers, and a store whose answers come late or
// never. Everything is drawn from one seed. Time is that of nobody in particular; every
// process has a clock of its own.

// faults are what can go wrong in a world; each world has some of them.
type faults struct {
	crash, pause, agentless bool
	late, lost, outage      bool // writes that are applied late, answers that are lost, a store that is away
	drift                   bool
	dup, slowNet            bool
	moves, duel             bool
	leaves                  bool // incarnations leave, and allocators have a floor for epochs
	often                   bool // more of that
	patient                 bool // callers wait long before they send again
	hasty                   bool // or send again soon, and allocators look often
	busy                    bool // more callers
	solo                    bool // owners are paused one at a time, and for long
	interval                bool // objects are stored a while after the answer
	reminds                 bool // turns set reminders
	tells                   bool // turns send messages to other objects
	cut                     bool // batches are cut off before their first record, as on one core
	crossing                bool // calls that wait are refused, as they cross others
	stall                   bool // a commit is under way for as long as who has sent it is paused
	apart                   bool // an owner is cut from the store, and from every second caller
	frozen                  bool // a host's clock stands still while its processes do
	partings                bool // who has released a shard, or is to have it, ends as it does
	idle                    bool // objects that have nothing to do are put away
	reading                 bool // callers read, and write little
	quiet                   bool // a caller alone
	unheard                 bool // every second announcement is lost
	placed                  bool // objects are placed, released and allocated again
	eager                   bool // allocators act on what they hear, and read seldom
}

// simTimes are short, so that much happens in little time: ratios are those of the product.
var simTimes = Times{
	Renew: 100 * time.Millisecond, RenewAttempt: 30 * time.Millisecond, HolderStops: 500 * time.Millisecond, ObserverActs: 650 * time.Millisecond,
	OutageGrace: 150 * time.Millisecond, Window: 2 * time.Second, WindowMargin: 500 * time.Millisecond, MoveDeadline: 400 * time.Millisecond,
}

const (
	allocKey = subjects.KeyAllocatorLease
	hosts    = 3
)

// event of a world.
type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

type world struct {
	seed    uint64
	r       *rand.Rand
	f       faults
	now     time.Duration
	queue   events
	seq     int
	healing bool // faults are over: everything is to come to rest

	store    simStore
	objects  []kbroker.Object
	owners   []*simOwner // every incarnation that there was
	allocs   []*simAlloc
	callers  []*simCaller
	decoded  map[*byte]any
	starts   [hosts]int
	shown    map[kbroker.Object]int // what callers have seen
	told     int                    // messages that had their outcome
	reminded int                    // turns that reminders led to
	torn     map[dueKey]bool        // reminders that a batch has changed which was cut off
	denied   map[string]bool        // calls of which it was said that they were not executed
	early    []early                // what was answered and may not be stored
	ends     []time.Duration        // when owners ended
	thawed   time.Duration          // when an owner whose clock stood still went on last; 0: none did
	serving  map[served]kbroker.Incarnation
	healed   time.Duration // when the faults were over
	refused  int           // calls that cross others
	acked    int
	reads    int
	gated    int // of them, by the gates of objects

	failed  string
	tracing bool
	trace   []string
}

func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.queue, event{w.now + d, w.seq, do})
}

func (w *world) say(format string, args ...any) {
	if w.tracing {
		w.trace = append(w.trace, fmt.Sprintf("%9.1f ms  ", float64(w.now)/1e6)+fmt.Sprintf(format, args...))
	}
}

func (w *world) fail(format string, args ...any) {
	if w.failed == "" {
		w.failed = fmt.Sprintf(format, args...)
		w.say("BROKEN  %s", w.failed)
	}
}

func (w *world) chance(p float64) bool { return !w.healing && w.r.Float64() < p }

// rare is a probability of this world.
func (w *world) rare(p float64) float64 {
	if w.f.often {
		return 6 * p
	}
	return p
}

func (w *world) between(a, b time.Duration) time.Duration {
	return a + time.Duration(w.r.Int64N(int64(b-a)+1))
}

// hop is a way over the network.
func (w *world) hop() time.Duration {
	if w.f.slowNet && w.chance(w.rare(0.02)) {
		return w.between(time.Millisecond, 300*time.Millisecond)
	}
	return w.between(100*time.Microsecond, 2*time.Millisecond)
}

// newWorld draws a world: what can go wrong in it, and who is there.
func newWorld(seed uint64, tracing bool, only *faults) *world {
	w := &world{seed: seed, r: rand.New(rand.NewPCG(seed, 1)), tracing: tracing, shown: map[kbroker.Object]int{}, denied: map[string]bool{}, decoded: map[*byte]any{}, serving: map[served]kbroker.Incarnation{}, torn: map[dueKey]bool{}}
	some := func() bool { return w.r.IntN(3) > 0 }
	w.f = faults{
		crash: some(), pause: some(), agentless: some(), late: some(), lost: some(), outage: w.r.IntN(4) == 0,
		drift: some(), dup: some(), slowNet: some(), moves: some(), duel: w.r.IntN(4) == 0,
		often: w.r.IntN(4) == 0, patient: some(),
		busy: seed%25 == 0, solo: seed%4 == 0, stall: seed%5 == 0, leaves: seed%3 > 0, interval: seed%10 == 7, crossing: seed%6 == 4, tells: seed%3 == 1 && seed%10 != 7, cut: seed%2 == 0,
		apart: seed%7 == 3, frozen: seed%11 == 5, partings: seed%4 == 1, idle: seed%8 > 4, reading: (seed%7 == 3 || seed%11 == 5) && seed%3 == 0, eager: seed%9 > 4, placed: seed%4 == 2, unheard: seed%13 == 6, hasty: seed%14 == 3, reminds: seed%3 == 2 && seed%10 != 7, // not drawn: the worlds of seeds stay what they were
	}
	if only != nil {
		w.f = *only
	}
	w.say("seed %d: %+v", seed, w.f)
	w.store = simStore{w: w, recs: map[string]storedRecord{}}
	w.objects = []kbroker.Object{{Kind: "a", ID: "1"}, {Kind: "a", ID: "2"}}
	for n := range w.objects {
		w.objects[n].Placed = w.f.placed
	}
	for n := 3; len(w.objects) < 3; n++ { // one more in the shard of the first
		if o := (kbroker.Object{Kind: "a", ID: fmt.Sprint(n)}); w.f.placed || o.Shard() == w.objects[0].Shard() {
			o.Placed = w.f.placed
			w.objects = append(w.objects, o)
		}
	}
	for h := range hosts {
		w.start(h)
	}
	for n := range 2 {
		w.allocs = append(w.allocs, w.allocator(n))
	}
	callers := 3
	switch {
	case w.f.busy:
		callers = 10
	case w.f.quiet:
		callers = 1
	}
	for n := range callers {
		w.callers = append(w.callers, w.caller(n))
	}
	w.after(0, w.trouble)
	return w
}

const (
	simTime  = 3 * time.Second // with faults
	healTime = 2 * time.Second // after them
	maxSteps = 400_000         // of one world: a livelock is one too
	restWait = 3 * time.Second // in which every object must answer at the end
)

// run lets the world live, then come to rest; the reason why it is broken, or nothing.
func (w *world) run() string {
	w.steps(simTime)
	w.healing = true
	w.store.away = false
	for _, o := range w.owners {
		o.resume()
	}
	for _, a := range w.allocs {
		a.resume()
	}
	w.healed = w.now
	w.say("the faults are over")
	w.steps(simTime + healTime)
	w.rest()
	w.lost()
	w.delivered()
	w.remembered()
	return w.failed
}

// steps goes on until a time.
func (w *world) steps(until time.Duration) {
	for n := 0; w.failed == "" && len(w.queue) > 0 && w.queue[0].at <= until; n++ {
		if n > maxSteps {
			w.fail("P5 %d events without an end", n)
			return
		}
		e := heap.Pop(&w.queue).(event)
		w.now = e.at
		e.do()
	}
	w.now = max(w.now, until)
}

// rest holds that every object answers, soon, when nothing goes wrong any more.
func (w *world) rest() {
	if w.failed != "" {
		return
	}
	done := map[kbroker.Object]bool{}
	for n, o := range w.objects {
		c := &simCaller{w: w, name: fmt.Sprintf("end%d", n), seq: 1}
		a := &attempt{caller: c, seq: 1, object: o, id: c.name + ":1", floor: w.shown[o], expires: w.now + restWait}
		c.idle = func() { done[o] = a.last == Done || a.last == Again }
		c.send(a)
	}
	for until := w.now + restWait; w.failed == "" && len(done) < len(w.objects) && w.now < until; {
		w.steps(w.now + 50*time.Millisecond)
	}
	for _, o := range w.objects {
		if !done[o] && w.failed == "" {
			var state []string
			for _, x := range w.owners {
				if !x.dead {
					state = append(state, x.o.String())
				}
			}
			w.fail("P5 %s does not answer when all is well again: %s; store %v", o, strings.Join(state, " | "), slices.Sorted(maps.Keys(w.store.recs)))
		}
	}
}
