package ownership

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// simCaller is a session that makes one call after the other, each in attempts.
type simCaller struct {
	w      *world
	name   string
	far    bool // it does not reach who is cut from the store, or paused
	ageing bool // it says when it has sent: the age of its requests is known
	tells  bool // it confirms what was answered
	seq    uint64
	call   *attempt // the one that it waits for
	idle   func()   // for the end of a test: what follows the next answer
}

// attempt is a call with all that is sent for it.
type attempt struct {
	caller  *simCaller
	id      string
	object  kbroker.Object
	seq     uint64
	read    bool
	floor   int // it must show at least so many
	sent    int
	no      int // attempts that were answered as not executed
	last    Outcome
	over    bool
	doubted bool // an answer may be that of an owner that is no more
	expires time.Duration
	due     *simDue // it is the turn of a reminder
	message *told   // it is one of an outbox, or follows one that was refused
}

func (w *world) caller(n int) *simCaller {
	c := &simCaller{w: w, name: fmt.Sprintf("s%d", n), far: n%2 > 0, ageing: w.r.IntN(3) > 0, tells: w.r.IntN(3) > 0}
	w.after(w.between(0, 50*time.Millisecond), c.begin)
	return c
}

// begin makes the next call.
func (c *simCaller) begin() {
	w := c.w
	c.seq++
	a := &attempt{caller: c, seq: c.seq, object: w.objects[w.r.IntN(len(w.objects))], read: w.r.IntN(5) < 2, expires: w.now + w.between(300*time.Millisecond, 2*time.Second)}
	a.id = fmt.Sprintf("%s:%d", c.name, a.seq)
	a.floor = w.shown[a.object]
	if w.f.reading {
		a.read = w.r.IntN(20) > 0
	}
	c.call = a
	w.say("%s calls %s on %s (read: %t, %d shown)", c.name, a.id, a.object, a.read, a.floor)
	c.send(a)
}

// send makes an attempt, and sees to the next one.
func (c *simCaller) send(a *attempt) {
	w := c.w
	if a.over {
		return
	}
	if w.now >= a.expires {
		c.giveUp(a)
		return
	}
	a.sent++
	call := Call{Object: a.object, Session: c.name, Sequence: a.seq, Hash: 1, Confirmed: a.seq * uint64(b2i(c.tells)), ReadOnly: a.read, Data: a}
	w.deliver(&call, w.now, c.ageing)
	if w.f.dup && w.chance(0.3) { // another attempt, which travels for long
		a.sent++
		again, sent := call, w.now
		most := 9 * time.Second
		if !c.ageing {
			most = 17 * simTimes.Window / 10 // it is refused by a mark alone, which lives for two windows of a fast clock
		}
		w.after(w.between(0, most), func() { w.deliver(&again, sent, c.ageing) })
	}
	n := a.sent
	again := w.between(50*time.Millisecond, 200*time.Millisecond)
	switch {
	case w.f.hasty:
		again /= 10
	case w.f.patient:
		again *= 4
	}
	w.after(again, func() {
		if !a.over && a.sent == n {
			c.send(a)
		}
	})
}

// deliver brings a request to whoever hears the object's shard.
func (w *world) deliver(c *Call, sent time.Duration, ageing bool) {
	if w.f.lost && w.chance(0.03) {
		return
	}
	shard, far := c.Object.Shard(), false
	if a := c.Data.(*attempt); a.caller != nil {
		far = a.caller.far
	}
	w.after(w.hop(), func() {
		for _, o := range w.owners {
			if o.frozen || far && (o.apart() || w.f.reading && o.paused) {
				continue // what is sent to a machine that is paused is gone
			}
			for number, n := range o.subs {
				if n != shard || o.dead {
					continue
				}
				way := w.hop()
				o.last[number] = max(o.last[number], w.now+way)
				arrived := *c
				w.after(way, func() {
					o.do(byRequest, func() {
						if ageing {
							arrived.Age = w.now - sent
						}
						if o.readNow(&arrived) {
							return
						}
						o.o.Arrived(o.clock(), number, &arrived)
						o.effects()
					})
				})
			}
		}
	})
}

// answered takes an answer, if it is the one that is waited for.
func (c *simCaller) answered(a *attempt, r Reply) {
	w := c.w
	if a.over {
		return
	}
	a.last, a.doubted = r.Outcome, a.doubted || w.mayBeStale()
	switch r.Outcome {
	case Done, Again:
		n, err := strconv.Atoi(string(r.Data))
		if err != nil {
			w.fail("P2 %s is answered %q", a.id, r.Data)
		}
		w.took(a, n)
		c.end(a)
	case Failed, Broken: // what it did was taken back; another attempt may have been heard
		if a.no++; a.no == a.sent {
			c.deny(a)
		}
		c.end(a)
	case Moved, Overloaded, TooLate, Crossed:
		a.no++
		n := a.sent
		w.after(w.between(time.Millisecond, 20*time.Millisecond), func() {
			if !a.over && a.sent == n {
				c.send(a)
			}
		})
	case Misused:
		w.fail("P2 %s is answered as misused", a.id)
	case Expired, Unknown:
	}
}

// took holds what an answer says against what is stored, and what was said before.
func (w *world) took(a *attempt, n int) {
	if w.f.interval {
		w.tookEarly(a)
		return
	}
	has := w.store.now(a.object)
	if a.read {
		w.reads++
		if n < a.floor && !w.mayBeStale() {
			w.fail("P4 stale read %s of %s: %d, but %d was shown before it was sent", a.id, a.object, n, a.floor)
		}
		if n > len(has) {
			w.fail("P4 dirty read %s of %s: %d, but the store has %d", a.id, a.object, n, len(has))
		}
		w.shown[a.object] = max(w.shown[a.object], n)
		return
	}
	w.acked++
	switch {
	case n < 1 || n > len(has) || !strings.HasPrefix(has[n-1]+">", a.id+">"):
		w.fail("P2 %s on %s was acknowledged as number %d, but the store has %v", a.id, a.object, n, has)
	case n <= a.floor:
		w.fail("P3 %s on %s is number %d, but %d was shown before it was sent", a.id, a.object, n, a.floor)
	}
	w.shown[a.object] = max(w.shown[a.object], n)
}

// giveUp ends a call at its deadline.
func (c *simCaller) giveUp(a *attempt) {
	told := a.no == a.sent
	if !ruleCallExecuted {
		told = a.last == Moved || a.last == Overloaded || a.last == TooLate || a.last == Crossed
	}
	if told {
		c.deny(a)
	}
	c.end(a)
}

// deny tells the caller that its call was not executed.
func (c *simCaller) deny(a *attempt) {
	w := c.w
	if a.read || a.doubted {
		return
	}
	w.say("%s is told that %s was not executed", c.name, a.id)
	w.denied[a.id] = true
	if slices.ContainsFunc(w.store.now(a.object), func(did string) bool { return strings.HasPrefix(did+">", a.id+">") }) {
		w.fail("P2 %s took effect on %s, although its caller is told that it did not", a.id, a.object)
	}
}

func (c *simCaller) end(a *attempt) {
	a.over = true
	if c.idle != nil {
		c.idle()
		return
	}
	c.w.after(c.w.between(0, 30*time.Millisecond), c.begin)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
