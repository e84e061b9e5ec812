package super

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

type quiet map[kbroker.HostID]time.Duration

// answers are the words of h1, h2 and so on.
func answers(words ...kbroker.HeardReply) []kbroker.HeardReply {
	for i := range words {
		words[i].Core = kbroker.HostID(fmt.Sprintf("h%d", i+1))
	}
	return words
}

func answer(looking time.Duration, a quiet) kbroker.HeardReply {
	return kbroker.HeardReply{Looking: looking, Age: a}
}

// TestJudgeWhileACoreIsDeaf: what it has not heard says nothing, and whom it has
// heard is alive. h5 died, h4 was paused.
func TestJudgeWhileACoreIsDeaf(t *testing.T) {
	silent := quiet{"h1": 0, "h2": 0, "h3": 0, "h5": 6 * time.Second}
	three := answers(answer(time.Hour, silent), answer(time.Hour, silent), answer(time.Hour, silent))
	for name, tc := range map[string]struct {
		others int
		h4     kbroker.HeardReply
		want   kbroker.HostState // of h5
		blind  bool
	}{
		"at the end of its pause":           {3, answer(time.Hour, quiet{"h1": time.Minute, "h5": time.Minute}), kbroker.HostLost, false},
		"after it":                          {3, answer(time.Second, quiet{"h1": 0}), kbroker.HostLost, false},
		"when it has heard h5 since":        {3, answer(time.Second, quiet{"h5": time.Second}), kbroker.HostReady, false},
		"when two of five would be with it": {2, answer(time.Second, quiet{"h1": 0}), kbroker.HostReady, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 5)
			tc.h4.Core, tc.h4.Deaf = "h4", true
			v := Judge(&c.view, Hearing{Answers: append(slices.Clone(three[:tc.others]), tc.h4)}, state.Tuned)
			if v.States["h5"] != tc.want || v.Blind != tc.blind {
				t.Errorf("h5 is %s (blind %t), want %s (blind %t)", v.States["h5"], v.Blind, tc.want, tc.blind)
			}
		})
	}
}

func TestJudge(t *testing.T) {
	const long = time.Hour
	for name, tc := range map[string]struct {
		answers []kbroker.HeardReply
		h3      kbroker.HostState // recorded
		want    kbroker.HostState // of h3
		blind   bool
	}{
		"heard by one core is enough": {
			answers: answers(answer(long, quiet{"h1": 0, "h2": 0, "h3": long}), answer(long, quiet{"h1": 0, "h2": 0, "h3": time.Second})),
			h3:      kbroker.HostReady, want: kbroker.HostReady,
		},
		"silent for a moment is suspect": {
			answers: answers(answer(long, quiet{"h1": 0, "h2": 0, "h3": 4 * time.Second}), answer(long, quiet{"h1": 0, "h2": 0, "h3": 3 * time.Second})),
			h3:      kbroker.HostReady, want: kbroker.HostSuspect,
		},
		"silent for the bound at a majority is lost": {
			answers: answers(answer(long, quiet{"h1": 0, "h2": 0, "h3": 5 * time.Second}), answer(long, quiet{"h1": 0, "h2": 0, "h3": 6 * time.Second})),
			h3:      kbroker.HostReady, want: kbroker.HostLost,
		},
		"a minority's word changes nothing": {
			answers: answers(answer(long, quiet{"h1": 0, "h3": long})),
			h3:      kbroker.HostReady, want: kbroker.HostReady, blind: true,
		},
		"never heard by cores that began a moment ago says nothing": {
			answers: answers(answer(time.Second, quiet{"h1": 0, "h2": 0}), answer(long, quiet{"h1": 0, "h2": 0})),
			h3:      kbroker.HostReady, want: kbroker.HostReady,
		},
		"a core that began a moment ago may have heard it from its predecessor": {
			answers: answers(answer(long, quiet{"h1": 0, "h2": 0, "h3": 6 * time.Second}), answer(time.Second, quiet{"h1": 0, "h2": 0})),
			h3:      kbroker.HostReady, want: kbroker.HostReady,
		},
		"a core that answers is not silent, whatever its clock jumped over": {
			answers: answers(answer(long, quiet{"h1": 0, "h3": 0}), answer(long, quiet{"h1": 0, "h3": 0}), answer(long, quiet{"h1": long, "h2": 0, "h3": long})),
			h3:      kbroker.HostReady, want: kbroker.HostReady,
		},
		"a stranger's word does not make a majority": {
			answers: []kbroker.HeardReply{{Core: "h1", Looking: long, Age: quiet{"h3": long}}, {Core: "h9", Looking: long, Age: quiet{"h3": long}}},
			h3:      kbroker.HostReady, want: kbroker.HostReady, blind: true,
		},
		"a lost host that is heard again is ready": {
			answers: answers(answer(long, quiet{"h1": 0, "h2": 0, "h3": 0}), answer(long, quiet{"h1": 0, "h2": 0, "h3": long})),
			h3:      kbroker.HostLost, want: kbroker.HostReady,
		},
		"a lost host stays lost while it is silent": {
			answers: answers(answer(time.Second, quiet{"h1": 0, "h2": 0}), answer(time.Second, quiet{"h1": 0, "h2": 0})),
			h3:      kbroker.HostLost, want: kbroker.HostLost,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 3)
			h3 := c.view.Hosts["h3"]
			h3.State = tc.h3
			c.view.Hosts["h3"] = h3
			v := Judge(&c.view, Hearing{Answers: tc.answers}, state.Tuned)
			if v.States["h3"] != tc.want || v.Blind != tc.blind {
				t.Errorf("h3 is %s (blind %t), want %s (blind %t)", v.States["h3"], v.Blind, tc.want, tc.blind)
			}
		})
	}
}

// TestJudgeWithTheWitness: the core beside which the witness runs has two of the
// broker's votes. Of two cores it alone can write, and so it alone judges.
func TestJudgeWithTheWitness(t *testing.T) {
	const long = time.Hour
	word := func(core kbroker.HostID, witness bool, silent quiet) kbroker.HeardReply {
		return kbroker.HeardReply{Core: core, Witness: witness, Looking: long, Age: silent}
	}
	for name, tc := range map[string]struct {
		cores   int
		answers []kbroker.HeardReply
		silent  kbroker.HostID
		want    kbroker.HostState
		blind   bool
	}{
		"the founder of two": {
			cores: 2, answers: []kbroker.HeardReply{word("h1", true, quiet{"h2": long})},
			silent: "h2", want: kbroker.HostLost,
		},
		"the founder of two that began a moment ago": {
			cores: 2, answers: []kbroker.HeardReply{{Core: "h1", Witness: true, Looking: time.Second}},
			silent: "h2", want: kbroker.HostReady,
		},
		"the second of two": {
			cores: 2, answers: []kbroker.HeardReply{word("h2", false, quiet{"h1": long})},
			silent: "h1", want: kbroker.HostReady, blind: true,
		},
		"one of two without a witness": {
			cores: 2, answers: []kbroker.HeardReply{word("h1", false, quiet{"h2": long})},
			silent: "h2", want: kbroker.HostReady, blind: true,
		},
		"the founder of three while the witness is replaced": {
			cores: 3, answers: []kbroker.HeardReply{word("h1", true, quiet{"h2": long, "h3": long})},
			silent: "h3", want: kbroker.HostReady, blind: true,
		},
		"the founder and another of three while the witness is replaced": {
			cores: 3, answers: []kbroker.HeardReply{word("h1", true, quiet{"h3": long}), word("h2", false, quiet{"h3": long})},
			silent: "h3", want: kbroker.HostLost,
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, tc.cores)
			v := Judge(&c.view, Hearing{Answers: tc.answers}, state.Tuned)
			if v.States[tc.silent] != tc.want || v.Blind != tc.blind {
				t.Errorf("%s is %s (blind %t), want %s (blind %t)", tc.silent, v.States[tc.silent], v.Blind, tc.want, tc.blind)
			}
		})
	}
}

// TestJudgeAHostOnLeave: for the time that a restart takes it is suspect at most,
// and does not keep others from being lost; then it is judged as any other.
func TestJudgeAHostOnLeave(t *testing.T) {
	for name, tc := range map[string]struct {
		silent  time.Duration // h3, which has leave
		leave   time.Duration // for how long it has it
		asked   time.Duration // how long it said that it may be silent
		h4, h5  time.Duration // silent, without leave
		want    map[kbroker.HostID]kbroker.HostState
		alarmed bool
	}{
		"it restarts":                         {silent: 6 * time.Second, leave: 10 * time.Second, want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostSuspect}},
		"it restarts slowly":                  {silent: restartSilence - time.Second, leave: time.Minute, want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostSuspect}},
		"it does not come back":               {silent: restartSilence, leave: time.Minute, want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostLost}},
		"it is on trial":                      {silent: 44 * time.Second, asked: 45 * time.Second, leave: time.Minute, want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostSuspect}},
		"it is on trial, and does not return": {silent: 45 * time.Second, asked: 45 * time.Second, leave: time.Minute, want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostLost}},
		"it asked for less than a restart":    {silent: restartSilence - time.Second, asked: time.Second, leave: time.Minute, want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostSuspect}},
		"it is silent when its leave lapses":  {silent: 6 * time.Second, leave: kbroker.MaintenanceLimit, want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostLost}},
		"another is lost while it restarts": {
			silent: 6 * time.Second, leave: 10 * time.Second, h4: 6 * time.Second,
			want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostSuspect, "h4": kbroker.HostLost},
		},
		"another is lost and it does not come back": {
			silent: restartSilence, leave: time.Minute, h4: 6 * time.Second, alarmed: true,
			want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostSuspect, "h4": kbroker.HostSuspect},
		},
		"two others are silent while it restarts": {
			silent: 6 * time.Second, leave: 10 * time.Second, h4: 6 * time.Second, h5: 6 * time.Second, alarmed: true,
			want: map[kbroker.HostID]kbroker.HostState{"h3": kbroker.HostSuspect, "h4": kbroker.HostSuspect, "h5": kbroker.HostSuspect},
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t, 5)
			c.leave("h3")
			heard := quiet{"h1": 0, "h2": 0, "h3": tc.silent, "h4": tc.h4, "h5": tc.h5}
			words := answers(answer(time.Hour, heard), answer(time.Hour, heard), answer(time.Hour, heard))
			words[2].Core = "h4" // h3, which answers nobody, is not asked
			if tc.h4 > 0 {
				words[2].Core = "h5"
			}
			if tc.h5 > 0 {
				c.view.Hosts["h5"] = kbroker.Host{Name: "h5", Role: kbroker.RoleWorker, State: kbroker.HostReady}
				c.view.Hosts["h4"] = kbroker.Host{Name: "h4", Role: kbroker.RoleWorker, State: kbroker.HostReady}
				words = words[:2]
			}
			h3 := c.view.Hosts["h3"]
			h3.Maintenance.Silent = tc.asked
			c.view.Hosts["h3"] = h3
			v := Judge(&c.view, Hearing{Answers: words, LeaveFor: map[kbroker.HostID]time.Duration{"h3": tc.leave}}, state.Tuned)
			for host, want := range tc.want {
				if v.States[host] != want {
					t.Errorf("%s is %s, want %s", host, v.States[host], want)
				}
			}
			if v.Blind || (len(v.Alarms) > 0) != tc.alarmed {
				t.Errorf("blind %t, alarms %v; want alarms: %t", v.Blind, v.Alarms, tc.alarmed)
			}
		})
	}
}

// TestAnUpgradeMovesNothing: a host that has leave and is silent for longer than
// any other may be keeps its instances.
func TestAnUpgradeMovesNothing(t *testing.T) {
	c := newCluster(t, 3)
	c.deploy(service(6))
	c.settle()
	before := fmt.Sprint(c.names("h1"), c.names("h2"), c.names("h3"))
	c.leave("h2")
	c.down["h2"] = true
	for range 2 * int(state.Tuned.Lost/time.Second) {
		if changes := c.step(); len(changes) > 0 {
			t.Fatalf("planned %v while h2 restarts, want nothing", changes)
		}
	}
	c.down["h2"] = false
	c.settle()
	if after := fmt.Sprint(c.names("h1"), c.names("h2"), c.names("h3")); after != before {
		t.Errorf("instances are %s, want those of before: %s", after, before)
	}
}

// TestJudgeBeyondTheShare: who is dead is known, and the alarm says what an
// operator can do about it.
func TestJudgeBeyondTheShare(t *testing.T) {
	c, m := newCluster(t, 3), &Members{Current: map[kbroker.HostID]bool{}}
	c.dead(m, "h3", "w1")
	c.silent["w1"] = state.Tuned.Suspect // not for long enough
	v := c.world().Verdict
	if !v.Dead["h3"] || v.Dead["w1"] || v.States["h3"] != kbroker.HostSuspect {
		t.Errorf("dead are %v, h3 is %s; want h3 dead and suspect", v.Dead, v.States["h3"])
	}
	if len(v.Alarms) != 1 || !strings.Contains(v.Alarms[0], "kbroker remove h3") || strings.Contains(v.Alarms[0], "w1") {
		t.Errorf("alarms are %v, want one that names the removal of h3", v.Alarms)
	}
	c.down["h2"] = true
	if v := c.world().Verdict; !v.Blind || len(v.Dead) > 0 {
		t.Errorf("blind %t, dead %v; want nobody dead while blind", v.Blind, v.Dead)
	}
}

// TestJudgeShare: whatever is heard, no more hosts become lost than the share.
func TestJudgeShare(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(r, "hosts")
		c := newCluster(t, n)
		heard := quiet{}
		lost := 0
		for _, h := range sortedHosts(&c.view) {
			heard[h.Name] = time.Duration(rapid.IntRange(0, 8).Draw(r, "age")) * time.Second
			if rapid.IntRange(0, 5).Draw(r, "lost") == 0 {
				h.State = kbroker.HostLost
				c.view.Hosts[h.Name] = h
				lost++
			}
		}
		var words []kbroker.HeardReply
		for range rapid.IntRange(n/2, n/2+1).Draw(r, "answers") {
			words = append(words, answer(time.Hour, heard))
		}
		v := Judge(&c.view, Hearing{Answers: answers(words...)}, state.Tuned)
		for name := range v.Dead {
			if v.Blind || heard[name] < state.Tuned.Lost || v.States[name] == kbroker.HostReady {
				r.Fatalf("%s is dead (blind %t): it is %s, heard %v ago", name, v.Blind, v.States[name], heard[name])
			}
		}
		fresh, bad := 0, 0
		for name, s := range v.States {
			if s == kbroker.HostLost && c.view.Hosts[name].State != kbroker.HostLost {
				fresh++
			}
			if s != kbroker.HostReady {
				bad++
			}
		}
		if share := max(1, n/3); fresh > 0 && bad > share {
			r.Fatalf("%d hosts newly lost while %d of %d are lost or suspect, at most %d may be", fresh, bad, n, share)
		}
	})
}
