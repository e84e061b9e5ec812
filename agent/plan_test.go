package agent

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

func TestPlan(t *testing.T) {
	want := func(epoch uint64, change ...func(*kbroker.Placement)) []kbroker.Placement {
		p := kbroker.Placement{Tenant: "default", Instance: "a", Epoch: epoch, Version: 1, Template: "t"}
		for _, c := range change {
			c(&p)
		}
		return []kbroker.Placement{p}
	}
	stop := func(p *kbroker.Placement) { p.Stop = true }
	is := func(ph phase, epoch uint64) []have {
		return []have{{Key: kbroker.StatusKey{Tenant: "default", Instance: "a"}, Phase: ph, Epoch: epoch, Version: 1, Template: "t"}}
	}
	with := func(h []have, change func(*have)) []have { change(&h[0]); return h }
	const now = 1000 * time.Second
	for _, tt := range []struct {
		name     string
		want     []kbroker.Placement
		unproven bool
		have     []have
		do       verb
		wake     time.Duration
	}{
		{name: "nothing wanted, nothing there"},
		{name: "a new instance is started", want: want(1), do: doStart},
		{name: "a new instance is not started without the bus", want: want(1), unproven: true},
		{name: "what runs as wanted is left alone", want: want(1), have: is(phaseUp, 1)},
		{name: "a crashed instance is started again when due", want: want(1), have: is(phaseIdle, 1), do: doStart},
		{name: "a crashed instance is started again without the bus", want: want(1), have: is(phaseIdle, 1), unproven: true, do: doStart},
		{name: "a crashed instance waits for its delay", want: want(1), have: with(is(phaseIdle, 1), func(h *have) { h.NextStart = now + 1 }), wake: now + 1},
		{name: "a newer epoch does not wait for the delay of the old one", want: want(2), have: with(is(phaseIdle, 1), func(h *have) { h.NextStart = now + 1 }), do: doStart},
		{name: "a placement that is absent from a complete view is stopped", have: is(phaseUp, 1), do: doStop},
		{name: "absence without the bus stops nothing", have: is(phaseUp, 1), unproven: true},
		{name: "absence calls off a launch", have: is(phaseLaunching, 1), do: doStop},
		{name: "a tombstone stops", want: want(2, stop), have: is(phaseUp, 1), do: doStop},
		{name: "a tombstone stops without the bus too", want: want(2, stop), have: is(phaseUp, 1), unproven: true, do: doStop},
		{name: "a tombstone calls off a launch", want: want(2, stop), have: is(phaseLaunching, 1), do: doStop},
		{name: "a tombstone older than the process demands nothing", want: want(1, stop), have: is(phaseUp, 2)},
		{name: "a tombstone of what is not there is confirmed", want: want(2, stop), do: doConclude},
		{name: "a tombstone of what waits to be started is confirmed", want: want(2, stop), have: is(phaseIdle, 1), do: doConclude},
		{name: "a tombstone of what was stopped for another reason is confirmed", want: want(2, stop), have: is(phaseStopped, 1), do: doConclude},
		{name: "a confirmed tombstone needs nothing more", want: want(2, stop), have: with(is(phaseStopped, 2), func(h *have) { h.Tombstone = true })},
		{name: "who is stopping is not stopped again", want: want(2, stop), have: is(phaseStopping, 1)},
		{name: "a newer epoch replaces the process", want: want(2), have: is(phaseUp, 1), do: doStop},
		{name: "the replaced is started when its predecessor has gone", want: want(2), have: is(phaseStopped, 1), do: doStart},
		{name: "an older placement demands nothing", want: want(1), have: is(phaseUp, 2)},
		{name: "an older placement starts nothing", want: want(1), have: is(phaseStopped, 2)},
		{name: "another template replaces the process", want: want(1, func(p *kbroker.Placement) { p.Template = "u" }), have: is(phaseUp, 1), do: doStop},
		{name: "a version alone is an update", want: want(1, func(p *kbroker.Placement) { p.Version = 2 }), have: is(phaseUp, 1), do: doUpdate},
		{name: "a process whose record was lost takes over the placement of its epoch", want: want(1), have: with(is(phaseUp, 1), func(h *have) { h.Template = "" }), do: doUpdate},
		{name: "super has dropped a stopped instance", have: is(phaseStopped, 2), do: doForget},
		{name: "super has dropped an instance that waited to be started", have: is(phaseIdle, 1), do: doForget},
		{name: "a stopped instance is not forgotten without the bus", have: is(phaseStopped, 2), unproven: true},
		{name: "an ended instance that is wanted again is started", want: want(3), have: is(phaseEnded, 0), do: doStart},
		{name: "nothing is started while files are removed", want: want(3), have: is(phaseTidying, 0)},
		{name: "output of an ended instance is kept for a while", have: with(is(phaseEnded, 0), func(h *have) { h.EndedAt = now }), wake: now + keepEnded},
		{name: "old output is removed", have: with(is(phaseEnded, 0), func(h *have) { h.EndedAt = now - keepEnded }), do: doPurge},
		{name: "60 s of health settle the crashes", want: want(1), have: with(is(phaseUp, 1), func(h *have) { h.Crashes, h.ReadySince = 3, now-healthyAfter }), do: doSettle},
		{name: "less health does not", want: want(1), have: with(is(phaseUp, 1), func(h *have) { h.Crashes, h.ReadySince = 3, now-1 }), wake: now - 1 + healthyAfter},
	} {
		t.Run(tt.name, func(t *testing.T) {
			actions, wake := plan(tt.want, !tt.unproven, tt.have, now)
			var do verb
			if len(actions) > 0 {
				do = actions[0].Do
			}
			if len(actions) > 1 || do != tt.do || wake != tt.wake {
				t.Errorf("plan is %+v and wakes at %v, want action %d and %v", actions, wake, tt.do, tt.wake)
			}
		})
	}
}

func TestOnlyTheLatestEndedInstancesAreKept(t *testing.T) {
	var ended []have
	for i := range maxEnded + 3 {
		ended = append(ended, have{Key: kbroker.StatusKey{Tenant: "default", Instance: kbroker.InstanceID(fmt.Sprintf("i-%d", i))}, Phase: phaseEnded, EndedAt: time.Duration(i)})
	}
	actions, _ := plan(nil, true, ended, time.Second)
	var purged []kbroker.InstanceID
	for _, a := range actions {
		if a.Do != doPurge {
			t.Fatalf("action %+v", a)
		}
		purged = append(purged, a.Key.Instance)
	}
	if !slices.Equal(purged, []kbroker.InstanceID{"i-0", "i-1", "i-2"}) {
		t.Errorf("purged %v, want the three that ended first", purged)
	}
}

// apply is what the loop and the world make of one action, with everything that
// follows from it.
func apply(h map[kbroker.StatusKey]have, a action, now time.Duration) {
	i := h[a.Key]
	i.Key = a.Key
	take := func(p *kbroker.Placement) {
		i.Epoch, i.Version, i.Template, i.Tombstone = p.Epoch, p.Version, p.Template, p.Stop
	}
	switch a.Do {
	case doStart:
		take(a.Placement)
		i.Phase = phaseUp
	case doStop:
		if a.Placement != nil && a.Placement.Stop {
			take(a.Placement)
		}
		i.Phase = phaseStopped
	case doUpdate:
		take(a.Placement)
	case doConclude:
		take(a.Placement)
		i.Phase = phaseStopped
	case doSettle:
		i.Crashes = 0
	case doForget:
		i = have{Key: a.Key, Phase: phaseEnded, EndedAt: now}
	case doPurge:
		delete(h, a.Key)
		return
	}
	h[a.Key] = i
}

func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.Custom(func(t *rapid.T) kbroker.StatusKey {
			return kbroker.StatusKey{Tenant: "default", Instance: kbroker.InstanceID(rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "instance"))}
		})
		wanted := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) kbroker.Placement {
			k := key.Draw(t, "key")
			return kbroker.Placement{
				Tenant: k.Tenant, Instance: k.Instance, Epoch: uint64(rapid.IntRange(1, 3).Draw(t, "epoch")), Stop: rapid.Bool().Draw(t, "stop"),
				Version: rapid.IntRange(1, 2).Draw(t, "version"), Template: rapid.SampledFrom([]string{"t", "u"}).Draw(t, "template"),
			}
		}), 0, 4, keyOf).Draw(t, "wanted")
		instances := rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) have {
			return have{
				Key: key.Draw(t, "key"), Phase: phase(rapid.IntRange(int(phaseIdle), int(phaseEnded)).Draw(t, "phase")),
				Epoch: uint64(rapid.IntRange(1, 3).Draw(t, "epoch")), Version: rapid.IntRange(1, 2).Draw(t, "version"),
				Template: rapid.SampledFrom([]string{"", "t", "u"}).Draw(t, "template"), Tombstone: rapid.Bool().Draw(t, "tombstone"),
				NextStart: time.Duration(rapid.IntRange(0, 200).Draw(t, "next")), Crashes: rapid.IntRange(0, 2).Draw(t, "crashes"),
			}
		}), 0, 4, func(h have) kbroker.StatusKey { return h.Key }).Draw(t, "instances")
		proven := rapid.Bool().Draw(t, "proven")
		const now = 100 * time.Nanosecond

		actions, wake := plan(wanted, proven, instances, now)
		checkPlan(t, wanted, instances, proven, actions)

		otherWanted, otherInstances := slices.Clone(wanted), slices.Clone(instances)
		slices.Reverse(otherWanted)
		slices.Reverse(otherInstances)
		if again, w := plan(otherWanted, proven, otherInstances, now); !reflect.DeepEqual(again, actions) || w != wake {
			t.Fatalf("another order of the same gives %+v, was %+v", again, actions)
		}

		// Carried out, and everything due, the host comes to rest.
		state := make(map[kbroker.StatusKey]have)
		for _, h := range instances {
			h.NextStart = 0
			state[h.Key] = h
		}
		for range 5 {
			var all []have
			for _, h := range state {
				all = append(all, h)
			}
			slices.SortFunc(all, func(a, b have) int { return cmp.Compare(a.Key.Instance, b.Key.Instance) })
			if actions, _ = plan(wanted, proven, all, now); len(actions) == 0 {
				break
			}
			for _, a := range actions {
				apply(state, a, now)
			}
		}
		if len(actions) > 0 {
			t.Fatalf("planning what was carried out still gives %+v", actions)
		}
		for _, p := range wanted {
			h, ok := state[keyOf(p)]
			if settled := h.Phase != phaseStopping && h.Phase != phaseTidying && h.Epoch <= p.Epoch; ok && settled && p.Stop == (h.Phase == phaseUp) && h.Phase != phaseLaunching && (proven || h.Phase != phaseEnded) {
				t.Fatalf("at rest %+v, wanted %+v", h, p)
			}
		}
	})
}

// checkPlan holds what is true of any plan.
func checkPlan(t *rapid.T, wanted []kbroker.Placement, instances []have, proven bool, actions []action) {
	have := make(map[kbroker.StatusKey]have)
	for _, h := range instances {
		have[h.Key] = h
	}
	named := make(map[kbroker.StatusKey]kbroker.Placement)
	for _, p := range wanted {
		named[keyOf(p)] = p
	}
	for _, a := range actions {
		h, known := have[a.Key]
		p, placed := named[a.Key]
		switch {
		case a.Do == doStart && (!placed || p.Stop):
			t.Fatalf("starts %+v, which the plan does not want", a.Key)
		case a.Do == doStart && known && (h.Phase == phaseUp || h.Phase == phaseLaunching || h.Phase == phaseStopping):
			t.Fatalf("starts %+v beside itself", a.Key)
		case a.Do == doStart && !known && !proven:
			t.Fatalf("starts the new %+v without the bus", a.Key)
		case (a.Do == doStop || a.Do == doForget) && !placed && !proven:
			t.Fatalf("acts on the absence of %+v", a.Key)
		case a.Do == doStop && placed && p.Epoch < h.Epoch:
			t.Fatalf("stops %+v for an older placement", a.Key)
		}
	}
}

func TestRestartDelay(t *testing.T) {
	if d := restartDelay(1, 0.5); d != 0 {
		t.Errorf("the first restart waits %v", d)
	}
	for crashes, want := range map[int]time.Duration{2: 200 * time.Millisecond, 3: 400 * time.Millisecond, 9: 25600 * time.Millisecond, 10: 30 * time.Second, 5000: 30 * time.Second} {
		if d := restartDelay(crashes, 0.5); d != want {
			t.Errorf("after %d crashes %v, want %v", crashes, d, want)
		}
	}
	for _, random := range []float64{0, 1} {
		starts, passed := 1, time.Duration(0)
		for crashes := 1; passed < 5*time.Minute; crashes++ {
			passed += restartDelay(crashes, random)
			starts++
		}
		if starts > 20 {
			t.Errorf("a program that exits at once is started %d times in 5 minutes, at most 20 are allowed", starts)
		}
	}
}
