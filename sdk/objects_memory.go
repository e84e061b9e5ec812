package sdk

import (
	"container/list"
	"math"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/kbroker/kbroker"
)

// Bounds of the memory that objects take.
const (
	// collectorShare of the limit that the agent enforces is what Go's collector is told.
	collectorShare = 0.9
	// pressedShare and easedShare of the process' limit are from where on objects are put
	// away, and down to where, in what lives.
	pressedShare = 0.6
	easedShare   = 0.5
	// leastEased is the share of the objects that is put away at a time at least.
	leastEased = 0.05
	// maxActiveTries bounds the objects that are looked at for one that has nothing to do.
	maxActiveTries = 16
)

// MaxActive bounds the objects of the kind that an instance has in memory: beyond it those
// that were used longest ago are put away, if they have nothing to do. Without it only the
// memory of the process bounds them: when what lives in it is more than 60 % of its limit
// (that of the service's spec where the host enforces it, or GOMEMLIMIT), they are put away
// as well. Either way they are loaded again by the next call.
func MaxActive(n int) KindOption { return func(k *kind) { k.maxActive = n } }

// pressure looks at the memory of the process.
type pressure struct {
	limit   float64 // 0: it has none
	samples []metrics.Sample
	cycle   uint64 // of the collector, at which objects were put away last
}

// Of runtime/metrics: what lived at the end of the collector's last cycle, and its number.
const (
	metricLive   = "/gc/heap/live:bytes"
	metricCycles = "/gc/cycles/total:gc-cycles"
)

func newPressure() pressure {
	p := pressure{samples: []metrics.Sample{{Name: metricLive}, {Name: metricCycles}}}
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		p.limit = float64(limit)
	}
	return p
}

// boundMemory tells Go's collector of the limit that the agent enforces, unless it was told
// of another: it would let the heap grow to twice of what lives, beyond the limit.
func boundMemory(i *kbroker.InstanceFile) {
	if i.MemoryLimitBytes > 0 && os.Getenv("GOMEMLIMIT") == "" && debug.SetMemoryLimit(-1) == math.MaxInt64 {
		debug.SetMemoryLimit(int64(collectorShare * float64(i.MemoryLimitBytes)))
	}
}

// relief is the share of the objects in memory that is to be put away now. What lives is
// known anew after each cycle of the collector, and they come often near the limit: so there
// is one relief for each at most.
func (p *pressure) relief() float64 {
	if p.limit == 0 {
		return 0
	}
	metrics.Read(p.samples)
	live, cycle := float64(p.samples[0].Value.Uint64()), p.samples[1].Value.Uint64()
	if live < pressedShare*p.limit || cycle == p.cycle {
		return 0
	}
	p.cycle = cycle
	return max(1-easedShare*p.limit/live, leastEased)
}

// relieve puts objects away when memory is short.
func (k *keeper) relieve(now time.Duration) {
	share := k.pressure.relief()
	if share == 0 {
		return
	}
	all := 0
	for _, of := range k.idle {
		all += of.Len()
	}
	put := 0
	for range int(math.Ceil(share * float64(all))) {
		oldest := k.idle.oldest()
		if oldest == nil {
			break
		}
		if k.putAway(now, oldest) {
			put++
		}
	}
	if k.eased == 0 || now-k.eased > time.Minute {
		k.eased = max(now, 1)
		k.log.Warn("memory is short: objects are put away that were not used for long", "put_away", put, "in_memory", all, "limit_bytes", int64(k.pressure.limit))
	}
}

// oldest is where the object is that was used longest ago.
func (i idling) oldest() *list.Element {
	var oldest *list.Element
	for _, all := range i {
		if last := all.Back(); last != nil && (oldest == nil || last.Value.(*use).at < oldest.Value.(*use).at) {
			oldest = last
		}
	}
	return oldest
}

// putAway puts one object away, and reports whether it did: one that is busy counts as used.
func (k *keeper) putAway(now time.Duration, at *list.Element) bool {
	object := at.Value.(*use).object
	a := k.active[object]
	if a == nil {
		k.idle[k.kinds[object.Kind]].Remove(at)
		return false
	}
	done := k.owner.PutAway(object)
	if !done {
		k.idle.use(a, now)
	}
	k.settle(now) // Put forgets it
	return done
}

// bound keeps the kinds that have grown to their MaxActive.
func (k *keeper) bound(now time.Duration) {
	grown := k.grown
	k.grown = nil
	for _, kind := range grown {
		for range maxActiveTries {
			if k.idle[kind].Len() <= kind.maxActive {
				break
			}
			k.putAway(now, k.idle[kind].Back())
		}
	}
}
