package allocator

import "github.com/kbroker/kbroker"

// View is what a policy decides on. It must not be changed.
type View struct {
	App     kbroker.App
	Version int // of the spec
}

// Policy says how many instances of each service the app should have. It is
// pure: the same view gives the same answer, without clock or I/O, and it may
// be called at any time. It need not know the bounds of the spec: Wanted keeps
// them.
type Policy func(View) map[kbroker.ServiceName]int

// Keep is the policy of an app that names none: each service has its count, or
// the lower end of its range.
func Keep(v View) map[kbroker.ServiceName]int {
	wanted := make(map[kbroker.ServiceName]int, len(v.App.Services))
	for _, s := range v.App.Services {
		wanted[s.Name] = s.Count.Min
	}
	return wanted
}

// Wanted is what the allocator asks super for: the policy's answer for exactly
// the services of the spec, each within its count. A service that the policy
// leaves out gets the lower end, one that the spec does not have is dropped.
func Wanted(p Policy, v View) map[kbroker.ServiceName]int {
	answer := p(v)
	wanted := make(map[kbroker.ServiceName]int, len(v.App.Services))
	for _, s := range v.App.Services {
		// A spec in which Max is below Min is read as {Min, Min}.
		wanted[s.Name] = max(s.Count.Min, min(answer[s.Name], s.Count.Max))
	}
	return wanted
}
