package super

import (
	"fmt"
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
		for range n/2 + 1 {
			words = append(words, answer(time.Hour, heard))
		}
		v := Judge(&c.view, Hearing{Answers: answers(words...)}, state.Tuned)
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
