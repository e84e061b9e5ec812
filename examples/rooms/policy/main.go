// Policy is an app's own: rooms are on few instances, and what is ready for more of them grows
// with the evening.
//
//	allocator: {run: bin/policy, build: go build -o bin/policy ./policy, policy: pack}
package main

import (
	"fmt"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/allocator"
)

const (
	// spare is how many rooms more there is to be a slot for, as a part of those that there
	// are; few is how many at least.
	spare, few = 0.25, 2
)

func main() { allocator.Run(evening) }

// evening decides as the built-in policy, but for the placed objects.
func evening(v allocator.View) allocator.Decision {
	d := allocator.Spread(v)
	for _, s := range v.App.Services {
		if s.Slots > 0 && len(s.Placed) > 0 {
			used := v.Missing.Slots
			for _, r := range v.Rooms {
				used += r.Used.Slots
			}
			ready := max(few, int(spare*float64(used)))
			n := (used + ready + s.Slots - 1) / s.Slots
			d.Wanted[s.Name] = max(s.Count.Min, min(n, s.Count.Max))
			d.Why[s.Name] = fmt.Sprintf("%d slots are used, %d are to be ready beside, of %d each", used, ready, s.Slots)
		}
	}
	d.Placed = packed(v)
	return d
}

// packed gives each that waits a place on the fullest instance that has room for it, where it
// is wished to be if that has some; of equals on the first.
func packed(v allocator.View) []kbroker.Incarnation {
	out, rooms := make([]kbroker.Incarnation, len(v.Waiting)), append([]allocator.Room(nil), v.Rooms...)
	for n, w := range v.Waiting {
		best, most := -1, 0.0
		for i, r := range rooms {
			worth := 1 + r.Full()
			if w.Instance == r.Instance || w.Host != "" && w.Host == r.Host {
				worth += 2
			}
			if r.Fits(w.Demanded) && worth > most {
				best, most = i, worth
			}
		}
		if best >= 0 {
			rooms[best].Used = rooms[best].Used.Plus(w.Demanded)
			out[n] = rooms[best].Owner
		}
	}
	return out
}
