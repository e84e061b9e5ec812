package allocator

import (
	"cmp"
	"slices"

	"github.com/kbroker/kbroker"
)

const (
	// MostPlaced bounds View.Waiting.
	MostPlaced = 1000
	// tooBusy is the part of what an instance does at once from which on it is given placed
	// objects only where no other has room.
	tooBusy = 0.9
	// rounding is more than what sums of cores are off by.
	rounding = 1e-6
)

// Room is what an owner has for placed objects.
type Room struct {
	Owner    kbroker.Incarnation
	Instance kbroker.InstanceID
	Host     kbroker.HostID
	// Has is what it has in all; of what is 0 it is not counted. Used is what those take that
	// are on it, or on their way to it, Objects how many these are.
	Has, Used kbroker.Demanded
	Objects   int
	Load      Load
}

// Fits reports whether there is room for what takes d.
func (r Room) Fits(d kbroker.Demanded) bool {
	u := r.Used.Plus(d)
	return (d.Slots == 0 || r.Has.Slots == 0 || u.Slots <= r.Has.Slots) && (d.CPU == 0 || r.Has.CPU == 0 || u.CPU <= r.Has.CPU+rounding) &&
		(d.MemoryBytes == 0 || r.Has.MemoryBytes == 0 || u.MemoryBytes <= r.Has.MemoryBytes)
}

// Full is how much of it is used, of what there is least: 1 is all.
func (r Room) Full() float64 {
	full := 0.0
	if r.Has.Slots > 0 {
		full = float64(r.Used.Slots) / float64(r.Has.Slots)
	}
	if r.Has.CPU > 0 {
		full = max(full, r.Used.CPU/r.Has.CPU)
	}
	if r.Has.MemoryBytes > 0 {
		full = max(full, float64(r.Used.MemoryBytes)/float64(r.Has.MemoryBytes))
	}
	return full
}

// Placed is a placed object that is to get a place.
type Placed struct {
	Object kbroker.Object
	kbroker.Demanded
	Labels map[string]string
	// Instance and Host are where it is wished to be; empty: anywhere.
	Instance kbroker.InstanceID
	Host     kbroker.HostID
	// Owner has it, and is lost or leaves; empty: it is new.
	Owner kbroker.Incarnation
}

// fitted gives a place to those that wait, where there is room for it: where it is wished, else
// where better says. Pure. Of equals it takes the first.
func fitted(v View, better func(a, b Room) int) []kbroker.Incarnation {
	if len(v.Waiting) == 0 {
		return nil
	}
	rooms, out := slices.Clone(v.Rooms), make([]kbroker.Incarnation, len(v.Waiting))
	for n, w := range v.Waiting {
		best, wished := -1, 0
		for i, r := range rooms {
			is := w.wishes(r)
			if r.Fits(w.Demanded) && (best < 0 || is > wished || is == wished && better(r, rooms[best]) < 0) {
				best, wished = i, is
			}
		}
		if best >= 0 {
			rooms[best].Used = rooms[best].Used.Plus(w.Demanded)
			rooms[best].Objects++
			out[n] = rooms[best].Owner
		}
	}
	return out
}

// wishes is how much a place is wished for: more than 0, if it is.
func (p Placed) wishes(r Room) int {
	switch {
	case p.Instance != "" && p.Instance == r.Instance:
		return 2
	case p.Host != "" && p.Host == r.Host:
		return 1
	}
	return 0
}

// emptiest, calmest and fullest compare rooms: the first is the better one.
func emptiest(a, b Room) int {
	return cmp.Or(cmp.Compare(a.Full(), b.Full()), cmp.Compare(a.Objects, b.Objects))
}

func calmest(a, b Room) int { return cmp.Or(busier(a, b), emptiest(a, b)) }

func fullest(a, b Room) int { return cmp.Or(busier(a, b), emptiest(b, a)) }

// busier puts those last that have too much to do.
func busier(a, b Room) int {
	rank := func(r Room) int {
		if r.Load.Busy > tooBusy {
			return 1
		}
		return 0
	}
	return cmp.Compare(rank(a), rank(b))
}

// targets are what a service is scaled by beside its load: what its placed objects take, and
// those that wait for a place.
func (v View) targets(s kbroker.Service) []target {
	if len(s.Placed) == 0 {
		return nil
	}
	total := v.Missing
	for _, r := range v.Rooms {
		total = total.Plus(r.Used)
	}
	return []target{
		{"slots", float64(total.Slots), float64(s.Slots), true},
		{"cores of placed objects", total.CPU, s.Resources.CPU, true},
		{"bytes of placed objects", float64(total.MemoryBytes), float64(s.Resources.MemoryBytes), true},
	}
}
