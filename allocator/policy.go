package allocator

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// View is what a policy decides on: an app at one time. It must not be changed.
type View struct {
	App     kbroker.App
	Version int // of the spec
	// Instances are those that are to run, sorted by name.
	Instances []Instance
	// Owners may be given shards, sorted: their leases are there, and they stay. Shards are
	// those of the app's objects; none, in an app without objects.
	Owners []kbroker.Incarnation
	Shards []Shard
	// Rooms are those of Owners, in their order, in an app with placed objects. Waiting are the
	// placed objects that are to get a place now, at most MostPlaced: those whose owner is lost
	// or leaves, then those that were asked for, the oldest first. Missing is what all that wait
	// take together.
	Rooms   []Room
	Waiting []Placed
	Missing kbroker.Demanded
	// Wanted is what super has been told last, under this lease: it falls only after a while.
	Wanted map[kbroker.ServiceName]int
	// Settling: the turns of shards are not known for long enough, as this allocator has just
	// begun. What another one has placed by them is not moved yet.
	Settling bool
	// Exact: an operator wants to know, or have, what is even, whatever has to move for it.
	Exact bool
}

// Of are the instances of a service.
func (v View) Of(s kbroker.ServiceName) []Instance {
	return slices.DeleteFunc(slices.Clone(v.Instances), func(i Instance) bool { return i.Service != s })
}

// Instance is one of the app.
type Instance struct {
	Name    kbroker.InstanceID
	Service kbroker.ServiceName
	Host    kbroker.HostID
	Ready   bool // it answers, and does not leave
	Leaving bool // it has been asked to leave
	Load    Load
}

// Load is what an instance has had to do in the last second or two. What is not known is 0.
type Load struct {
	// Known: it has said so itself, lately. Measured: its agent has. Of one that says nothing
	// itself CPU and Requests are all that can be known.
	Known    bool
	Measured bool
	Busy     float64 // see kbroker.Scale
	CPU      float64 // cores
	Requests float64 // in a second, those that were refused among them
	Refused  float64 // in a second, as they were too many at once; 0 until it is known of a second
	Waiting  int     // calls of objects
	Objects  int     // in memory
	Turns    float64 // of objects, in a second, reads among them
}

// Decision is what a policy wants.
type Decision struct {
	// Wanted is how many instances each service is to have. One that is left out has the
	// lower end of its count.
	Wanted map[kbroker.ServiceName]int
	// Why says why of the services of which it is worth to be said, in a few words.
	Why map[kbroker.ServiceName]string
	// Holds is how much each instance has that has to move if it leaves: where fewer are wanted,
	// those of least go first, of equals those that super thinks best. One that is left out has
	// nothing. The built-in policies count placed objects, and shards of objects as one.
	Holds map[kbroker.InstanceID]int
	// Shards is which owner each is to have, in their order; nil: they are spread evenly by
	// their number. An empty name: the one that it has.
	Shards []kbroker.Incarnation
	// Placed is which owner each of those that wait is to have, in their order, none beyond its
	// room; nil: as of Spread. An empty name: it goes on to wait.
	Placed []kbroker.Incarnation
}

// Policy decides for an app. It is pure and fast: the same view gives the same answer, without
// clock or I/O, and it may be called at any time, one call after the other. It need not know
// that instances are drained only after a while: the allocator keeps to that.
//
// An app's own policy is refused where it panics, takes longer than a second, wants a number of
// instances that the count of a service does not allow or a service that the spec does not
// have, places shards at who may not own any, or objects where there is no room for them: the
// one that the spec names decides then.
type Policy func(View) Decision

// Spread is the policy of an app that names none: each service has as many instances as its
// load needs, by its kbroker.Scale, and each of its owners about as many shards.
// Placed objects go where there is most room.
func Spread(v View) Decision {
	d := scaled(v)
	d.Placed = fitted(v, emptiest)
	return d
}

// Balance is as Spread, but owners have about the same load in place of the same number of
// shards: turns of objects, how long they ran, and bytes that they have changed. Placed objects go where there is most room, and not
// too much to do.
func Balance(v View) Decision {
	d := scaled(v)
	d.Shards, d.Placed = balanced(v), fitted(v, calmest)
	return d
}

// Pack has as few owners as the load needs own shards, those that have most of them now, with
// about the same load; placed objects go where there is least room that is enough. The others
// are there for load that comes, or are drained.
func Pack(v View) Decision {
	d := scaled(v)
	d.Placed = fitted(v, fullest)
	for _, s := range v.App.Services {
		if len(s.Objects) > 0 {
			wanted, told := v.Wanted[s.Name]
			if !told {
				wanted = v.owning() // another allocator has decided so
			}
			// Not as often as the load changes.
			d.Shards = packed(v, max(bounded(s, d.Wanted[s.Name]), wanted))
		}
	}
	return d
}

// owning is how many of those that may own shards do.
func (v View) owning() int {
	own := map[kbroker.Incarnation]bool{}
	for _, s := range v.Shards {
		if slices.Contains(v.Owners, s.Owner) {
			own[s.Owner] = true
		}
	}
	return len(own)
}

// builtin is a policy by its name in a spec.
func builtin(name string) Policy {
	switch name {
	case kbroker.PolicyBalanced:
		return Balance
	case kbroker.PolicyPack:
		return Pack
	}
	return Spread
}

// policy is the one that decides for the app: its own, guarded, or the one that its spec names.
func (a *Allocator) policy(v View) Policy {
	if a.guard != nil {
		return func(v View) Decision { return a.guard.decide(v, v.App.Policy) }
	}
	return builtin(v.App.Policy)
}

// look is the view of now; false if it lacks what a decision depends on.
func (a *Allocator) look() (View, bool) {
	v, ok := a.view()
	if !ok {
		return v, false
	}
	known := false
	v.Instances, known = a.loads.instances(a.cfg.Clock())
	a.shards.fill(&v)
	v.Settling = a.cfg.Clock()-a.began < a.pace.turnsOver
	if d := a.demanding.Load(); d != nil {
		v.Wanted = d.told().Wanted
	}
	return v, known || !slices.ContainsFunc(v.App.Services, scales)
}

// scaled is how many instances the services' loads need.
func scaled(v View) Decision {
	d := Decision{Wanted: make(map[kbroker.ServiceName]int, len(v.App.Services)), Why: map[kbroker.ServiceName]string{}, Holds: v.holds()}
	for _, s := range v.App.Services {
		if !scales(s) {
			d.Wanted[s.Name] = s.Count.Min
			continue
		}
		n, why := need(s, v.Of(s.Name), v.targets(s)...)
		d.want(s, n, why)
	}
	return d
}

// holds is Decision.Holds of the built-in policies.
func (v View) holds() map[kbroker.InstanceID]int {
	owns, of := map[kbroker.InstanceID]int{}, map[kbroker.InstanceID]int{}
	for _, s := range v.Shards {
		if s.Owner != "" {
			owns[s.Owner.Instance()] = 1
		}
	}
	for _, r := range v.Rooms {
		owns[r.Instance] += r.Objects
	}
	for _, i := range v.Instances { // others may be gone
		if n := owns[i.Name]; n > 0 {
			of[i.Name] = n
		}
	}
	return of
}

// leaving is what of holds concerns the services that lose instances.
func (v View) leaving(d Decision) map[kbroker.InstanceID]int {
	there := map[kbroker.ServiceName]int{}
	for _, i := range v.Instances {
		if !i.Leaving {
			there[i.Service]++
		}
	}
	var of map[kbroker.InstanceID]int
	for _, i := range v.Instances {
		if n := d.Holds[i.Name]; n > 0 && !i.Leaving && d.Wanted[i.Service] < there[i.Service] {
			if of == nil {
				of = map[kbroker.InstanceID]int{}
			}
			of[i.Name] = n
		}
	}
	return of
}

// scales reports whether the number of a service's instances is to be decided at all.
func scales(s kbroker.Service) bool { return s.Count.Max > s.Count.Min }

// Wanted is the policy's answer for exactly the services of the spec, each within its
// count. A service that the policy leaves out gets the lower end, one that the spec does not
// have is dropped.
func Wanted(p Policy, v View) Decision {
	answer := p(v)
	d := Decision{Wanted: make(map[kbroker.ServiceName]int, len(v.App.Services)), Why: map[kbroker.ServiceName]string{}, Holds: answer.Holds}
	for _, s := range v.App.Services {
		d.want(s, answer.Wanted[s.Name], answer.Why[s.Name])
	}
	return d
}

// want has a service have n instances, or as many of them as its count allows, for a reason.
func (d *Decision) want(s kbroker.Service, n int, why string) {
	d.Wanted[s.Name] = bounded(s, n)
	if why == "" {
		return
	}
	if d.Wanted[s.Name] != n {
		why += fmt.Sprintf("; its count is %d to %d", s.Count.Min, s.Count.Max)
	}
	d.Why[s.Name] = why
}

// bounded is n within the count of a service. A spec in which Max is below Min is read as
// {Min, Min}.
func bounded(s kbroker.Service, n int) int { return max(s.Count.Min, min(n, s.Count.Max)) }

// reason is why a decision is as it is, in one line.
func (d Decision) reason() string {
	var parts []string
	for _, s := range slices.Sorted(maps.Keys(d.Why)) {
		parts = append(parts, fmt.Sprintf("%s: %s", s, d.Why[s]))
	}
	return strings.Join(parts, "; ")
}
