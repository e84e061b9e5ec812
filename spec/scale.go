package spec

import (
	"fmt"

	"github.com/kbroker/kbroker"
)

// Hints for the keys of a scale.
const (
	busyHint     = "the part of what an instance works on at once that is under way, e.g. 0.7; leave it out for no such target"
	loadHint     = "the part of the cores that an instance reserves, e.g. 0.7; leave it out for no such target"
	requestsHint = "requests of an instance in a second, e.g. 200; leave it out for no such target"
	mailboxHint  = "calls of objects that wait at an instance, e.g. 10; leave it out for no such target"
	objectsHint  = "objects in the memory of an instance, e.g. 10000; leave it out for no such target"
	downHint     = "write for how long fewer must have been enough, e.g. 10m; leave it out for 5m"
)

// scale holds the rules of what an app's allocator counts instances by. 0 is no target, or
// the default.
func (c *checker) scale(service string, s *kbroker.Service) {
	if s.Scale == nil {
		return
	}
	path, of := service+".scale", *s.Scale
	if n := s.Count; n.Min == n.Max {
		c.found = append(c.found, finding{
			path: path, key: true, with: service + ".count", hint: "write `count: {min: 2, max: 20}` for the bounds that it decides within, or remove scale",
			message: fmt.Sprintf("%s has nothing to decide, count is %d", label(path), n.Max),
		})
	}
	for _, t := range []struct {
		key, hint string
		is, most  float64
		objects   bool // only of a service that has objects
	}{
		{"busy", busyHint, of.Busy, MaxBusy, false},
		{"cpu", loadHint, of.CPU, MaxLoad, false},
		{"requests", requestsHint, of.Requests, MaxTarget, false},
		{"mailbox", mailboxHint, of.Mailbox, MaxTarget, true},
		{"objects", objectsHint, of.Objects, MaxTarget, true},
	} {
		at := path + "." + t.key
		switch {
		case t.is == 0:
		case !(t.is > 0 && t.is <= t.most):
			c.add(at, t.hint, "%s is %v, want more than 0, at most %.0f", label(at), t.is, t.most)
		case t.objects && len(s.Objects) == 0:
			c.found = append(c.found, finding{
				path: at, with: service + ".objects", hint: "remove it, or name the kinds of the service: `objects: [account]`",
				message: fmt.Sprintf("%s is %v, and the service has no objects", label(at), t.is),
			})
		}
	}
	if n := of.Buffer; n < 0 || n > MaxInstances {
		c.add(path+".buffer", "instances beyond what the targets need", "%s.buffer is %d, want 0 to %d", label(path), n, MaxInstances)
	}
	if d := of.Down; d != 0 && (d < MinDown || d > MaxDown) {
		c.add(path+".down", downHint, "%s.down is %v, want %v to %v", label(path), d, MinDown, MaxDown)
	}
}
