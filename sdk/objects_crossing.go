package sdk

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// Calls that cross: the turn of A, begun by one call, calls B, while the turn of B, begun by
// another, calls A. Both would wait until their deadlines; as would a ring of more. Whoever
// owns an object knows what waits there, and for which turn, not for what that turn waits
// elsewhere. So probes chase the edges of who waits for whom (K. M. Chandy, J. Misra,
// L. M. Haas: Distributed Deadlock Detection, ACM TOCS 1(2), 1983), here against their
// direction, which is where messages can go: to who waits for the answer.
//
//	B: the turn t of the root R waits for an answer, and q for t: a probe (R, B) goes to
//	   whose turn has sent q, and from there to whose turn waits for that, and so on
//	A: that turn runs in A. What waits for it in A,
//	   - of R and called by the turn of B: the ring is closed, and is refused;
//	   - of a root that is not younger than R: a probe goes on to who has sent it;
//	   - of a younger one: it has a probe of its own.
//
// So of every ring the youngest root is refused, and nobody else; all compare alike. What is
// refused has not run. The turn that has called it gets the error and, mostly, ends with it:
// what it did to its object is taken back, and whoever began the root sends it again, with
// its age. A probe that comes too late, or twice, refuses at worst a call that would have
// run: that one is sent again as well. One that is lost is sent again while the call waits.
const (
	// probeAgain and probeSeldom are how soon a probe is repeated first, and how seldom.
	probeAgain  = 100 * time.Millisecond
	probeSeldom = time.Second
	// probeLasts is how long a turn remembers a probe, for what comes after it.
	probeLasts = 2*probeSeldom + probeAgain
	// maxProbes bounds those that a turn remembers, maxProbeHops the way of one.
	maxProbes    = 64
	maxProbeHops = maxChain
)

// probe says: whoever waits for you waits for the turn that a root runs in an object.
type probe struct {
	root root
	held string // the object, as in a chain
	hops int
}

// isProbe reports whether a message to who waits for an answer is none.
func isProbe(m *nats.Msg) bool {
	_, is := m.Header[subjects.HeaderWaits]
	return is
}

// String is as in subjects.HeaderWaits.
func (p probe) String() string {
	return strconv.Itoa(p.hops) + " " + p.root.String() + " " + p.held
}

func parseProbe(s string) (probe, bool) {
	hops, rest, _ := strings.Cut(s, " ")
	of, held, _ := strings.Cut(rest, " ")
	p := probe{held: held}
	var err error
	var ok bool
	p.hops, err = strconv.Atoi(hops)
	p.root, ok = parseRoot(of)
	return p, err == nil && ok && p.hops >= 0 && held != ""
}

// isCrossing reports whether an error is of a call that crossed another.
func isCrossing(m *nats.Msg, e *kbroker.Error) bool {
	return e.Code == kbroker.Deadlock && m.Header.Get(subjects.HeaderCrossing) == "1"
}

// markCrossing has who began the call send it again, if what it is answered comes of a
// crossing.
func markCrossing(m *nats.Msg, e *kbroker.Error, crossed bool) {
	if crossed && e.Code == kbroker.Deadlock {
		m.Header[subjects.HeaderCrossing] = []string{"1"}
	}
}

// goOnAs has the next attempts of a root be as old as the first.
func (c *call) goOnAs() {
	if c.crossed {
		return
	}
	c.crossed = true
	begun := c.deadline.Add(-c.timeout)
	c.header[subjects.HeaderRoot] = []string{root{begun.UnixMicro(), c.id}.String()}
}

// inChain reports whether objects wait for what the request does.
func (r *request) inChain() bool { return r != nil && (r.turn != nil || r.chain != "") }

// crosses notes that a call of the request was refused, as it crossed another.
func (r *request) crosses() {
	if r != nil {
		r.crossed.Store(true)
	}
}

// wait counts the calls that a turn waits for.
func (r *request) wait(more int64) {
	t := r.turn
	if t == nil || t.waits.Add(more) == 0 || more < 0 {
		return
	}
	if t.apart.CompareAndSwap(true, false) {
		t.keeper.post(func(time.Duration) { t.keeper.crossings.begun(t.heard) })
	}
	t.keeper.post(func(now time.Duration) { t.keeper.chase(now, t.object) })
}

// probed is a probe to a call of the request.
func (r *request) probed(m *nats.Msg) {
	p, ok := parseProbe(m.Header.Get(subjects.HeaderWaits))
	switch {
	case r == nil || !ok:
	case r.turn != nil:
		t := r.turn
		t.keeper.post(func(now time.Duration) { t.keeper.probed(now, t.heard, p) })
	case r.out != nil:
		p.send(r.out, r.replyTo)
	}
}

// send sends the probe to who waits for an answer.
func (p probe) send(t transport, to string) {
	if p.hops++; p.hops <= maxProbeHops {
		_ = t.publish(&nats.Msg{Subject: to, Header: nats.Header{subjects.HeaderWaits: {p.String()}}}) // it is repeated
	}
}

// crossings are the turns of objects that run, and the objects in which calls of turns wait.
type crossings struct {
	runs   map[kbroker.Object][]*heard
	queued map[kbroker.Object]bool
}

func newCrossings() crossings {
	return crossings{map[kbroker.Object][]*heard{}, map[kbroker.Object]bool{}}
}

// waits is what is known of a call: of one that runs, the probes to it; of one that does
// not, when it was probed for.
type waits struct {
	probes map[string]probeHeard // by the object that is held
	next   time.Duration
	pause  time.Duration
	of     *heard // the turn that was probed of
}

type probeHeard struct {
	probe
	at time.Duration
}

func (c crossings) begun(h *heard) {
	if !h.over {
		c.runs[h.turn.object] = append(c.runs[h.turn.object], h)
	}
}

func (c crossings) over(h *heard) {
	h.over = true
	o := h.turn.object
	if c.runs[o] = slices.DeleteFunc(c.runs[o], func(r *heard) bool { return r == h }); len(c.runs[o]) == 0 {
		delete(c.runs, o)
	}
}

// arrived is for a call that may wait now.
func (k *keeper) arrived(now time.Duration, c *ownership.Call) {
	if c.Data.(*heard).chain != "" && slices.Contains(k.owner.Waiting(c.Object), c) {
		k.crossings.queued[c.Object] = true
		k.chaseOf(now, c)
	}
}

// lookForCrossings repeats what may have been lost.
func (k *keeper) lookForCrossings(now time.Duration) {
	for o := range k.crossings.queued {
		k.chase(now, o)
	}
}

// chase sends, or repeats, the probes of what waits in an object.
func (k *keeper) chase(now time.Duration, o kbroker.Object) {
	if !k.crossings.queued[o] {
		return
	}
	some := false
	for _, q := range k.owner.Waiting(o) {
		if h := q.Data.(*heard); h.chain != "" && h.probes {
			some = true
			k.chaseOf(now, q)
		}
	}
	if !some {
		delete(k.crossings.queued, o)
	}
}

// chaseOf is for one call that waits: at once for another turn than the last time.
func (k *keeper) chaseOf(now time.Duration, q *ownership.Call) {
	h := q.Data.(*heard)
	runs := slices.DeleteFunc(slices.Clone(k.crossings.runs[q.Object]), func(r *heard) bool { return r.turn.waits.Load() == 0 })
	switch {
	case len(runs) == 0 || h.waits.of == runs[0] && now < h.waits.next:
		return
	case h.waits.of != runs[0]:
		h.waits = waits{of: runs[0], pause: probeAgain}
	}
	h.waits.next, h.waits.pause = now+h.waits.pause, min(2*h.waits.pause, probeSeldom)
	for _, r := range runs {
		if !h.root.younger(r.root) {
			probe{root: r.root, held: inChain(k.own.App, q.Object)}.send(k.t, h.reply)
		}
		for _, p := range r.waits.probes {
			if now-p.at < probeLasts && k.meets(now, q, p.probe) {
				return
			}
		}
	}
}

// probed is a probe to a turn, through a call that it waits for.
func (k *keeper) probed(now time.Duration, h *heard, p probe) {
	if !slices.Contains(k.crossings.runs[h.turn.object], h) {
		return // it is over
	}
	if h.waits.of != nil || h.waits.probes == nil {
		h.waits = waits{probes: map[string]probeHeard{}}
	}
	if len(h.waits.probes) >= maxProbes {
		maps.DeleteFunc(h.waits.probes, func(_ string, old probeHeard) bool { return now-old.at >= probeLasts })
	}
	if len(h.waits.probes) < maxProbes {
		h.waits.probes[p.held] = probeHeard{p, now}
	}
	if h.probes { // whoever waits for this turn waits, too
		p.send(k.t, h.reply)
	}
	for _, q := range k.owner.Waiting(h.turn.object) {
		k.meets(now, q, p)
	}
}

// meets has a call that waits for a turn meet a probe to that, and reports whether it was
// refused.
func (k *keeper) meets(now time.Duration, q *ownership.Call, p probe) bool {
	h := q.Data.(*heard)
	switch {
	case h.chain == "":
	case h.root == p.root && h.chain.has(p.held):
		return k.owner.Refuse(now, q, p.held+" is in the turn that has called it")
	case h.probes && !h.root.younger(p.root):
		p.send(k.t, h.reply)
	}
	return false
}
