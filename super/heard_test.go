package super

import (
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// TestHeardAfterAPause: a core that was paused has heard nobody meanwhile, itself
// included, and judges nobody until it has listened long enough to call somebody
// suspect: the founder of two judges alone.
func TestHeardAfterAPause(t *testing.T) {
	now := time.Hour
	h := newHeard("h1", func() time.Duration { return now }, state.Tuned.Suspect)
	beat := func(host kbroker.HostID) { h.beat(kbroker.Heartbeat{Host: host}) }
	c := newCluster(t, 1)
	c.view.Hosts["h2"] = kbroker.Host{Name: "h2", Role: kbroker.RoleCore, State: kbroker.HostReady}
	judge := func() Verdict {
		return Judge(&c.view, Hearing{Answers: []kbroker.HeardReply{h.answer(heardAsk{}, Members{Witness: true})}}, state.Tuned)
	}
	for range 10 {
		now += time.Second
		beat("h1")
		beat("h2")
	}
	if v := judge(); v.Blind || v.States["h2"] != kbroker.HostReady {
		t.Errorf("before the pause: blind %t, h2 %s", v.Blind, v.States["h2"])
	}
	now += 20 * time.Second // paused; then it is asked before it hears anything
	if v := judge(); !v.Blind {
		t.Errorf("at the end of the pause h2 is %s", v.States["h2"])
	}
	for second := range state.Tuned.Lost / time.Second {
		beat("h1")
		v, want := judge(), kbroker.HostSuspect
		if after := second * time.Second; after < state.Tuned.Suspect && !v.Blind || after >= state.Tuned.Suspect && (v.Blind || v.States["h2"] != want) {
			t.Errorf("%v after the pause: blind %t, h2 %s", after, v.Blind, v.States["h2"])
		}
		now += time.Second
	}
	beat("h1")
	if v := judge(); v.States["h2"] != kbroker.HostLost {
		t.Errorf("h2 is %s although it was silent long enough since the pause", v.States["h2"])
	}
}
