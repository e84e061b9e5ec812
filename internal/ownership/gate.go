package ownership

import (
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
)

// Gate lets calls that only read into an object in memory without a word to its owner, while
// the owner has nothing else to do with it:
//
//	open --a turn or a commit is to begin, the shard is left--> shut, nobody comes in
//	  ^                                                           |
//	  \---- nothing waits any more ------------------------------ / once the last has left
//
// It is safe for concurrent use. Who comes in looks at the lease first, and before the answer
// leaves; and whether the object was taken away meanwhile.
type Gate struct {
	state atomic.Int64 // how many are in, and the bits below
}

const (
	gateShut int64 = 1 << 62
	gateDead int64 = 1 << 61 // for good
)

// Enter lets one in, or reports that it is shut: then the call is one for the owner.
func (g *Gate) Enter() bool {
	for {
		n := g.state.Load()
		if n&(gateShut|gateDead) != 0 {
			return false
		}
		if g.state.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Leave is for who has entered. It reports whether the owner waits for it: ReadersLeft.
func (g *Gate) Leave() bool { return g.state.Add(-1)&^gateDead == gateShut }

// Dead reports whether the object was taken away: what was read is not answered.
func (g *Gate) Dead() bool { return g.state.Load()&gateDead != 0 }

// readers are how many are in.
func (g *Gate) readers() int64 { return g.state.Load() &^ (gateShut | gateDead) }

// shut lets nobody in, and reports whether nobody is.
func (g *Gate) shut() bool { return g.state.Or(gateShut)&^(gateShut|gateDead) == 0 }

func (g *Gate) open() { g.state.And(^gateShut) }

func (g *Gate) kill() { g.state.Or(gateShut | gateDead) }

// empty shuts the gate of an object, and reports whether nobody is in.
func (x *object) empty() bool { return x.gate == nil || x.gate.shut() }

// lend gives the object's gate to the driver, after a first call that only read.
func (x *object) lend() {
	if x.gate == nil && x.durability() == (Durability{}) {
		x.gate = &Gate{}
		x.gate.shut()
		x.owner().want(Lend{x.id, x.activation, x.shard.epoch, x.gate})
	}
}

// reopen opens the gate of an object that has nothing to do.
func (x *object) reopen() {
	if x.gate != nil && !x.gone && x.phase == idle && len(x.queue) == 0 && x.shard.role == owning {
		x.gate.open()
	}
}

// shutGates has the objects of a shard that is left be read by calls to its owner alone.
func (s *shard) shutGates() {
	for _, x := range s.objects {
		x.empty()
	}
}

// ReadersLeft says that all have left an object's gate for whom it was shut.
func (o *Owner) ReadersLeft(now time.Duration, id kbroker.Object, activation uint64) {
	if x := o.object(id); x != nil && !o.ended && x.activation == activation && x.phase == idle {
		if o.look(now); !o.ended {
			x.run(now)
		}
	}
}
