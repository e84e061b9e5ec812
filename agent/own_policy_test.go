package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// TestAnAllocatorSaysThatItIsOne: a program of an app's own policy that is something else would
// take the place of those that decide.
func TestAnAllocatorSaysThatItIsOne(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	c.startAgent(t.TempDir())
	p := placement("shop-allocator-1", "answer")
	p.Service, p.Spec.Health = kbroker.AllocatorService, kbroker.Health{
		Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: 100 * time.Millisecond}, Start: time.Second,
	}
	c.want(p)
	c.await("shop-allocator-1", 20*time.Second, "killed as no allocator", func(s kbroker.Status) bool {
		if s.State == kbroker.StateReady {
			t.Error("it is ready")
		}
		return strings.Contains(s.Message, "it is no allocator: the program of an app's own policy calls allocator.Run")
	})
	for name, of := range map[string]kbroker.Placement{
		"the built-in one": {Service: kbroker.AllocatorService, Spec: kbroker.Service{Artifact: kbroker.Artifact{Builtin: kbroker.BuiltinAllocator}}},
		"a service":        {Service: "web", Spec: kbroker.Service{Artifact: kbroker.Artifact{SHA256: "one"}}},
	} {
		if ownPolicy(of) {
			t.Errorf("%s has to say that it is an allocator", name)
		}
	}
}
