package allocator

import (
	"cmp"
	"math"
	"slices"

	"github.com/kbroker/kbroker"
)

// Shard is what is known of one of the shards of an app's objects.
type Shard struct {
	// Owner is the start that owns it, or is to own it; empty: none.
	Owner kbroker.Incarnation
	// Wished is where an operator wants it; empty: anywhere.
	Wished kbroker.Incarnation
	Fresh  bool // it came to Owner in the last seconds, or is on its way
	// ShardLoad is what its objects have to do in a second, on average over the last half
	// minute or so.
	ShardLoad
}

const (
	// uneven is how far the load of an owner may be from the average, as a part of it,
	// before shards are moved; even how far it may still be when they have been, and while
	// others are coming to it. What is between them is not worth to begin with, and keeps
	// a move from being taken back as loads change.
	uneven, even = 0.2, 0.08
	// exact is both where it is asked for: what is left is not worth a move.
	exact = 0.02
	// idleWeight is what a shard weighs without any turn, as a part of the average: where
	// there is no load their numbers are even.
	idleWeight = 0.1
	// littleWork, littleBytes and littleCPU, of an owner, are as much work, as many bytes that
	// are stored, and cores, as count for half of what they count for where there is much more:
	// differences of little are not worth a move.
	littleWork, littleBytes, littleCPU = 0.1, 100e3, 0.1
	// grain: weights are multiples of its inverse, so that sums of them do not depend on the
	// order in which they are made.
	grain = 1024
	// gain is the part of the difference of two loads that a move has to take away which
	// turns it round.
	gain = 0.2
)

// balanced gives each shard to an owner so that all have about the same load, and moves as
// little as is needed for that. Pure; it is empty where nobody may own anything.
//
// Shards without an owner go to who has least, the heaviest first (longest processing time
// first: R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969). Others move only
// to or from those who have far less or more than the average, until these are near it:
// from who has most to who has least, the shard that brings the two nearest to each other,
// and only if that brings them nearer by some part. So the sum of the squares of all loads
// falls with each move: there is an end of moves, and none is ever taken back.
func balanced(v View) []kbroker.Incarnation {
	b := newBalance(v)
	if b == nil {
		return nil
	}
	b.settle()
	b.group()
	for !v.Settling && b.move() {
	}
	return b.out
}

// balance is a placement that is being made.
type balance struct {
	out    []kbroker.Incarnation
	names  []kbroker.Incarnation
	load   map[kbroker.Incarnation]float64
	weight []float64
	fixed  []bool
	gets   map[kbroker.Incarnation]bool // it has been given some lately
	uneven float64
	even   float64
	of     map[kbroker.Incarnation][]int // its shards that may move
}

func newBalance(v View) *balance {
	b := &balance{names: v.Owners, load: map[kbroker.Incarnation]float64{}, of: map[kbroker.Incarnation][]int{}, gets: map[kbroker.Incarnation]bool{}}
	if len(b.names) == 0 || len(v.Shards) == 0 {
		return nil
	}
	if b.uneven, b.even = uneven, even; v.Exact {
		b.uneven, b.even = exact, exact
	}
	var total ShardLoad
	for _, s := range v.Shards {
		total = total.plus(s.ShardLoad, 1)
	}
	much := max(total.Turns, float64(len(v.Shards)))
	idle := idleWeight * much / float64(len(v.Shards))
	// Where there is much of them, all work, all bytes and all processor time weigh as much as
	// all turns.
	perWork := much / (total.Work + littleWork*float64(len(b.names)))
	perByte := much / (total.Bytes + littleBytes*float64(len(b.names)))
	perCPU := much / (total.CPU + littleCPU*float64(len(b.names)))
	for _, n := range b.names {
		b.load[n] = 0
	}
	b.out, b.weight, b.fixed = make([]kbroker.Incarnation, len(v.Shards)), make([]float64, len(v.Shards)), make([]bool, len(v.Shards))
	for n, s := range v.Shards {
		b.weight[n] = math.Round((s.Turns+s.Work*perWork+s.Bytes*perByte+s.CPU*perCPU+idle)*grain) / grain
		if s.Fresh {
			b.gets[s.Owner] = true
		}
		for k, name := range []kbroker.Incarnation{s.Wished, s.Owner} {
			if _, live := b.load[name]; live {
				b.fixed[n] = k == 0
				b.give(n, name)
				break
			}
		}
	}
	return b
}

func (b *balance) give(n int, to kbroker.Incarnation) {
	b.out[n] = to
	b.load[to] += b.weight[n]
}

// settle gives away what nobody owns.
func (b *balance) settle() {
	var free []int
	for n, owner := range b.out {
		if owner == "" {
			free = append(free, n)
		}
	}
	slices.SortStableFunc(free, func(x, y int) int { return cmp.Compare(b.weight[y], b.weight[x]) })
	for _, n := range free {
		_, least := b.extremes()
		b.give(n, least)
	}
}

// extremes are who has most and who has least; of equals the first.
func (b *balance) extremes() (most, least kbroker.Incarnation) {
	most, least = b.names[0], b.names[0]
	for _, name := range b.names[1:] {
		if b.load[name] > b.load[most] {
			most = name
		}
		if b.load[name] < b.load[least] {
			least = name
		}
	}
	return most, least
}

func (b *balance) average() float64 {
	sum := 0.0
	for _, name := range b.names {
		sum += b.load[name]
	}
	return sum / float64(len(b.names))
}

// group notes who has which shards that may move.
func (b *balance) group() {
	for n, owner := range b.out {
		if !b.fixed[n] {
			b.of[owner] = append(b.of[owner], n)
		}
	}
}

// off is how far one is from the average, as a part of it: above 0 it has more.
func (b *balance) off(name kbroker.Incarnation) float64 { return b.load[name]/b.average() - 1 }

// move brings those near the average that are far from it, and reports whether it could do
// anything. Others may be far from it then.
func (b *balance) move() (moved bool) {
	far := map[kbroker.Incarnation]bool{}
	for _, name := range b.names {
		if off := math.Abs(b.off(name)); off > b.uneven || off > b.even && b.gets[name] {
			far[name] = true
		}
	}
	for {
		most, least := b.extremes()
		if !(far[least] && b.off(least) < -b.even) && !(far[most] && b.off(most) > b.even) {
			return moved
		}
		gap := b.load[most] - b.load[least]
		// The nearest to half of the gap, of those that do not turn it round for nothing.
		best := -1
		for k, n := range b.of[most] {
			if w := b.weight[n]; 2*w-gap <= (1-gain)*gap && (best < 0 || math.Abs(w-gap/2) < math.Abs(b.weight[b.of[most][best]]-gap/2)) {
				best = k
			}
		}
		if best < 0 {
			return moved // what is left cannot be divided
		}
		n := b.of[most][best]
		b.of[most] = slices.Delete(b.of[most], best, best+1)
		b.of[least] = append(b.of[least], n)
		moved = true
		b.load[most] -= b.weight[n]
		b.give(n, least)
	}
}

// packed is as balanced, over so many owners: those that have most now. Pure.
func packed(v View, n int) []kbroker.Incarnation {
	b := newBalance(v)
	if b == nil {
		return nil
	}
	few := slices.Clone(v.Owners)
	slices.SortStableFunc(few, func(x, y kbroker.Incarnation) int { return cmp.Compare(b.load[y], b.load[x]) })
	v.Owners = few[:min(max(n, 1), len(few))]
	slices.Sort(v.Owners)
	return balanced(v)
}
