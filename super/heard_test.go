package super

import (
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// TestHeardAfterAPause: a core that was paused has heard nobody meanwhile, itself
// included, and calls nobody silent for that: the founder of two judges alone.
func TestHeardAfterAPause(t *testing.T) {
	now := time.Hour
	h := newHeard("h1", func() time.Duration { return now }, state.Tuned.Suspect)
	beat := func(host kbroker.HostID) { h.beat(kbroker.Heartbeat{Host: host}) }
	silent := func() time.Duration {
		return silence([]kbroker.HeardReply{h.answer(heardAsk{}, Members{Witness: true})}, "h2")
	}
	for range 10 {
		now += time.Second
		beat("h1")
		beat("h2")
	}
	now += 20 * time.Second // paused; then it is asked before it hears anything
	if age := silent(); age >= state.Tuned.Suspect {
		t.Errorf("h2 was silent for %v at the end of the pause", age)
	}
	beat("h1")
	if age := silent(); age >= state.Tuned.Suspect {
		t.Errorf("h2 was silent for %v after the pause", age)
	}
	for range state.Tuned.Lost / time.Second {
		now += time.Second
		beat("h1")
	}
	if age := silent(); age < state.Tuned.Lost {
		t.Errorf("h2 was silent for %v, want the time since the pause", age)
	}
}
