package allocator

import (
	"fmt"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/kbroker/kbroker"
)

// maxWhy bounds what a policy says of a service, in bytes: it is a part of the demand.
const maxWhy = 500

// check says what an own policy's decision on a view cannot be; nil: it can. The built-in ones
// are held to their bounds instead. Pure.
func check(v View, d Decision) error {
	for _, part := range []func(View, Decision) error{checkWanted, checkWhy, checkHolds, checkShards, checkPlaced} {
		if err := part(v, d); err != nil {
			return err
		}
	}
	return nil
}

// checkWanted holds the numbers of instances to the spec.
func checkWanted(v View, d Decision) error {
	for _, name := range slices.Sorted(maps.Keys(d.Wanted)) {
		s, ok := v.App.Service(name)
		switch n := d.Wanted[name]; {
		case !ok:
			return fmt.Errorf("it wants %d of service %.80q, which the spec does not have", n, name)
		case n < 0:
			return fmt.Errorf("it wants %d of service %s", n, name)
		case n < s.Count.Min:
			return fmt.Errorf("it wants %d of service %s, fewer than the %d of its count", n, name, s.Count.Min)
		case n > bounded(*s, n):
			return fmt.Errorf("it wants %d of service %s, more than the %d of its count", n, name, s.Count.Max)
		}
	}
	return nil
}

func checkWhy(v View, d Decision) error {
	for _, name := range slices.Sorted(maps.Keys(d.Why)) {
		why := d.Why[name]
		switch _, ok := v.App.Service(name); {
		case !ok:
			return fmt.Errorf("it says why of service %.80q, which the spec does not have", name)
		case len(why) > maxWhy:
			return fmt.Errorf("it says why of service %s in %d bytes, at most %d are taken", name, len(why), maxWhy)
		case !utf8.ValidString(why):
			return fmt.Errorf("what it says why of service %s is no text", name)
		}
	}
	return nil
}

// checkHolds takes any names: owners of the view may be gone from its instances, and who is
// none of these is not told.
func checkHolds(_ View, d Decision) error {
	for _, name := range slices.Sorted(maps.Keys(d.Holds)) {
		if n := d.Holds[name]; n < 0 {
			return fmt.Errorf("it says that %.80q holds %d", name, n)
		}
	}
	return nil
}

// checkShards has each shard end at somebody who may own it, where anybody may: one that
// stays where nobody is any more would serve nobody.
func checkShards(v View, d Decision) error {
	if d.Shards == nil {
		return nil
	}
	if len(d.Shards) != len(v.Shards) {
		return fmt.Errorf("it places %d shards, the app has %d", len(d.Shards), len(v.Shards))
	}
	live := make(map[kbroker.Incarnation]bool, len(v.Owners))
	for _, o := range v.Owners {
		live[o] = true
	}
	for n, to := range d.Shards {
		was := v.Shards[n].Owner
		switch {
		case to != "" && to != was && !live[to]:
			return fmt.Errorf("it gives shard %d to %.80q, which may own none", n, to)
		case len(live) == 0 || live[to] || to == "" && live[was]:
		case was == "":
			return fmt.Errorf("it leaves shard %d, which nobody owns, to nobody", n)
		default:
			return fmt.Errorf("it leaves shard %d to %s, which is out or leaves", n, was)
		}
	}
	return nil
}

// checkPlaced has each placed object be where there is room for it.
func checkPlaced(v View, d Decision) error {
	if d.Placed == nil {
		return nil
	}
	if len(d.Placed) != len(v.Waiting) {
		return fmt.Errorf("it places %d objects, %d wait", len(d.Placed), len(v.Waiting))
	}
	rooms := make(map[kbroker.Incarnation]Room, len(v.Rooms))
	for _, r := range v.Rooms {
		rooms[r.Owner] = r
	}
	for n, to := range d.Placed {
		if to == "" {
			continue
		}
		w := v.Waiting[n]
		r, ok := rooms[to]
		switch {
		case !ok:
			return fmt.Errorf("it places %s at %.80q, which may own none", w.Object, to)
		case !r.Fits(w.Demanded):
			return fmt.Errorf("it places %s at %s, which has no room for it", w.Object, r.Instance)
		}
		r.Used = r.Used.Plus(w.Demanded)
		rooms[to] = r
	}
	return nil
}

// clone is a decision that whoever made it cannot change any more.
func (d Decision) clone() Decision {
	d.Wanted, d.Why, d.Shards = maps.Clone(d.Wanted), maps.Clone(d.Why), slices.Clone(d.Shards)
	d.Placed, d.Holds = slices.Clone(d.Placed), maps.Clone(d.Holds)
	return d
}
