package sdk

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
)

// gates are those of objects in memory by which calls that only read are run without a word
// to the loop, which is a seventh of the processor time of such a call.
//
//	the loop: a call that reads has ended --> lent --a turn fails, the object is put away--> gone
//	a read:   hears, enters the gate, runs, answers, leaves; what is counted of it the loop
//	          collects at its next tick
//
// Safe for concurrent use.
type gates struct {
	running atomic.Int64

	mu   sync.RWMutex
	lent map[kbroker.Object]*lent

	usedMu sync.Mutex
	used   []*lent // since the last tick

	owned map[kbroker.Object]ownership.Lend // of the loop: what the machine has lent
}

func newGates() gates {
	return gates{lent: map[kbroker.Object]*lent{}, owned: map[kbroker.Object]ownership.Lend{}}
}

// lent is an object that can be read by its gate.
type lent struct {
	ownership.Lend
	active *active // opened
	count  atomic.Int64
	noted  atomic.Bool // it is among those that were used
}

// busy is the part of their bound of the reads that run.
func (g *gates) busy() float64 { return float64(g.running.Load()) / maxTurns }

func (g *gates) get(o kbroker.Object) *lent {
	g.mu.RLock()
	defer g.mu.RUnlock()
	return g.lent[o]
}

// lend lets an object be read by its gate, if it has one, as its value is now. On the loop.
func (g *gates) lend(a *active) {
	if a.value == nil || a.err != nil {
		return
	}
	e, ok := g.owned[a.object]
	if l := g.get(a.object); !ok || e.Activation != a.number || l != nil && l.active == a {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.lent[a.object] = &lent{Lend: e, active: a}
}

// withdraw ends that, until the next read has ended. Who is in stays. On the loop.
func (g *gates) withdraw(o kbroker.Object) {
	if g.get(o) == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.lent, o)
}

// forget is for an object that is not in memory any more.
func (g *gates) forget(o kbroker.Object) {
	delete(g.owned, o)
	g.withdraw(o)
}

func (g *gates) clear() {
	g.mu.Lock()
	defer g.mu.Unlock()
	clear(g.lent)
	clear(g.owned)
}

// readNow runs a call that only reads, on a goroutine of its own, and reports whether it
// does: else it is the loop's. By whoever has heard it.
func (k *keeper) readNow(call *ownership.Call) bool {
	if !call.ReadOnly || call.Linearizable {
		return false
	}
	l := k.gates.get(call.Object)
	if l == nil || k.gates.running.Load() >= maxTurns || int64(k.now()) >= k.until.Load() || !l.Gate.Enter() {
		return false
	}
	if k.gates.get(call.Object) != l { // withdrawn meanwhile: its value is none that is stored
		k.leaveGate(l)
		return false
	}
	k.gates.running.Add(1)
	go k.gated(l, call.Data.(*heard))
	return true
}

// gated is one read.
func (k *keeper) gated(l *lent, c *heard) {
	began := time.Now()
	c.turn = &turn{object: l.Object, epoch: l.Epoch, readOnly: true, keeper: k, heard: c}
	c.turn.apart.Store(true)
	ctx := &request{
		base: k.base, client: k.app.client, id: c.id, deadline: c.deadline, chain: c.chain, root: c.root,
		turn: c.turn,
	}
	did := outcome{failure: kbroker.Errorf(kbroker.Internal, "%s of %s did not come to an end", c.method.name, l.Object)}
	did.failure.Executed = kbroker.ExecutedUnknown
	defer func() { // also if the method ends its goroutine
		ctx.end()
		c.crossed = ctx.crossed.Load()
		k.readDone(l, c, did, time.Since(began))
	}()
	did = k.perform(ctx, l.active, c)
}

// readDone answers a read, if what it shows still holds, and leaves the gate.
func (k *keeper) readDone(l *lent, c *heard, did outcome, busy time.Duration) {
	e := did.failure
	if !c.turn.apart.Swap(false) {
		k.post(func(time.Duration) { k.crossings.over(c) })
	}
	if did.panicked { // nobody is to begin a turn with what it has left
		defer k.post(func(now time.Duration) {
			k.readLeaves(now, l, c, did)
			k.leaveGate(l)
		})
	} else if e != nil || len(c.turn.said()) > 0 || len(c.turn.wanted()) > 0 {
		k.post(func(now time.Duration) { k.readLeaves(now, l, c, did) })
	}
	if !l.Gate.Dead() && int64(k.now()) < k.until.Load() {
		if e != nil {
			reply := errorReply(c.reply, k.heads[true], e)
			markCrossing(reply, e, c.crossed)
			k.send(reply)
		} else {
			k.send(&nats.Msg{Subject: c.reply, Header: k.heads[true], Data: did.turn.Reply.Data})
		}
	}
	c.method.count(busy, e)
	l.count.Add(1)
	if !l.noted.Swap(true) {
		k.gates.usedMu.Lock()
		k.gates.used = append(k.gates.used, l)
		k.gates.usedMu.Unlock()
	}
	k.gates.running.Add(-1)
	if !did.panicked {
		k.leaveGate(l)
	}
}

func (k *keeper) leaveGate(l *lent) {
	if l.Gate.Leave() {
		k.post(func(now time.Duration) { k.owner.ReadersLeft(now, l.Object, l.Activation) })
	}
}

// readLeaves does what a read leaves beside its answer, on the loop.
func (k *keeper) readLeaves(now time.Duration, l *lent, c *heard, did outcome) {
	current := k.active[l.Object] == l.active
	switch {
	case did.panicked:
		k.quarantine.panicked(now, l.Object)
		k.gates.forget(l.Object)
		if current {
			k.replace(l.active.afresh())
		}
	case did.failure == nil && !l.Gate.Dead():
		k.turnedWell(now, l.Object, c.turn)
	}
	if u := l.active.noted(); u != nil && current {
		u.failed(now, did.failure)
	}
}

// collect counts what was read by gates since the last tick.
func (k *keeper) collect(now time.Duration) {
	k.gates.usedMu.Lock()
	used := k.gates.used
	k.gates.used = nil
	k.gates.usedMu.Unlock()
	for _, l := range used {
		l.noted.Store(false)
		n := uint64(l.count.Swap(0))
		k.counted(now, l.Object, n, 0, 0)
		k.owner.ReadByGates(n)
		if k.active[l.Object] == l.active {
			k.idle.use(l.active, now)
			if u := l.active.noted(); u != nil {
				u.ended(now, n)
			}
		}
	}
}
