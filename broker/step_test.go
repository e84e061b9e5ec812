package broker

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

// peers builds a group: a name ending in "?" is not current.
func peers(names ...string) []peer {
	var ps []peer
	for _, n := range names {
		current := n[len(n)-1] != '?'
		if !current {
			n = n[:len(n)-1]
		}
		ps = append(ps, peer{name: n, current: current})
	}
	return ps
}

func TestStep(t *testing.T) {
	r1 := func(name string) stream { return stream{name: name, replicas: 1, peers: peers("a")} }
	r3 := func(name string) stream { return stream{name: name, replicas: 3, peers: peers("a", "b", "c")} }
	for _, c := range []struct {
		name string
		o    observation
		want action
	}{
		{
			"without a meta leader nothing is done",
			observation{host: "a", founder: true, witness: true, size: 4, peers: peers("a", "b", "c", "a.witness")},
			action{},
		},
		{
			"one host keeps its witness",
			observation{host: "a", founder: true, witness: true, leader: "a", size: 2, peers: peers("a", "a.witness")},
			action{},
		},
		{
			"one host never takes an unseen witness for a removed one",
			observation{host: "a", founder: true, witness: true, leader: "a", size: 2, peers: peers("a")},
			action{},
		},
		{
			"two hosts keep the witness and one replica",
			observation{host: "a", founder: true, witness: true, leader: "b", size: 3, peers: peers("a", "b", "a.witness"), streamsKnown: true, streams: []stream{r1("s")}},
			action{},
		},
		{
			"a third core that is not current changes nothing",
			observation{host: "a", founder: true, witness: true, leader: "a", size: 4, peers: peers("a", "b", "c?", "a.witness")},
			action{},
		},
		{
			"a member whose name the leader does not know changes nothing",
			observation{host: "a", founder: true, witness: true, leader: "a", size: 5, peers: peers("a", "b", "c", "a.witness")},
			action{},
		},
		{
			"the founder removes the witness once three cores are current",
			observation{host: "a", founder: true, witness: true, leader: "c", size: 4, peers: peers("c", "a", "b", "a.witness")},
			action{deed: removeWitness},
		},
		{
			"nobody else removes it, not even the leader",
			observation{host: "b", leader: "b", size: 4, peers: peers("b", "a", "c", "a.witness"), streamsKnown: true, streams: []stream{r1("s")}},
			action{},
		},
		{
			"a witness that is no member is retired",
			observation{host: "a", founder: true, witness: true, leader: "b", size: 3, peers: peers("b", "a", "c")},
			action{deed: retireWitness},
		},
		{
			"it is not retired while the size disagrees with the members",
			observation{host: "a", founder: true, witness: true, leader: "b", size: 4, peers: peers("b", "a", "c")},
			action{},
		},
		{
			"a retired witness that is a member again is removed again",
			observation{host: "a", founder: true, leader: "b", size: 4, peers: peers("b", "a", "c", "a.witness?")},
			action{deed: removeWitness},
		},
		{
			"the leader's host raises the first stream by name",
			observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c"), streamsKnown: true, streams: []stream{r1("s2"), r1("s1"), r3("s0")}},
			action{deed: raiseStream, stream: "s1"},
		},
		{
			"other hosts raise nothing",
			observation{host: "a", founder: true, leader: "b", size: 3, peers: peers("b", "a", "c"), streamsKnown: true, streams: []stream{r1("s1")}},
			action{},
		},
		{
			"the next waits until all replicas of the last are current",
			observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c"), streamsKnown: true, streams: []stream{{name: "s0", replicas: 3, peers: peers("a", "b", "c?")}, r1("s1")}},
			action{},
		},
		{
			"the next waits while the last has too few replicas",
			observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c"), streamsKnown: true, streams: []stream{{name: "s0", replicas: 3, peers: peers("a")}, r1("s1")}},
			action{},
		},
		{
			"the next waits while the server still moves the last",
			observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c"), streamsKnown: true, streams: []stream{{name: "s0", replicas: 3, peers: peers("a", "b", "c"), moving: true}, r1("s1")}},
			action{},
		},
		{
			"nothing is raised while a stream is without a leader",
			observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c"), streamsKnown: true, streams: []stream{{name: "s0", replicas: 1}, r1("s1")}},
			action{},
		},
		{
			"nothing is raised while a stream did not answer",
			observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c"), streams: []stream{r1("s1")}},
			action{},
		},
		{
			"nothing is raised while a core is away",
			observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c?"), streamsKnown: true, streams: []stream{r1("s1")}},
			action{},
		},
		{
			"five cores with everything in order have nothing to do",
			observation{host: "b", leader: "b", size: 5, peers: peers("b", "a", "c", "d", "e"), streamsKnown: true, streams: []stream{r3("s1")}},
			action{},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := step(c.o); got != c.want {
				t.Errorf("step = %v, want %v", got, c.want)
			}
		})
	}
}

// Whatever is observed: no step while a core is not current, none beside the
// one change that the state allows, never below three replicas.
func TestStepIsNeverTakenFromADoubtfulObservation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := observation{
			host: "a", founder: rapid.Bool().Draw(t, "founder"), witness: rapid.Bool().Draw(t, "witness"),
			streamsKnown: rapid.Bool().Draw(t, "streams known"),
		}
		for _, n := range []string{"a", "b", "c", "d", "a.witness"} {
			if rapid.Bool().Draw(t, n+" is a member") {
				o.peers = append(o.peers, peer{name: n, current: rapid.Bool().Draw(t, n+" is current")})
				if rapid.Bool().Draw(t, n+" leads") {
					o.leader = n
				}
			}
		}
		o.size = len(o.peers) + rapid.IntRange(0, 1).Draw(t, "members without a name")
		for i := range rapid.IntRange(0, 3).Draw(t, "streams") {
			s := stream{name: fmt.Sprint("s", i), replicas: rapid.IntRange(1, 3).Draw(t, "replicas"), moving: rapid.Bool().Draw(t, "moving")}
			for range rapid.IntRange(0, 3).Draw(t, "peers") {
				s.peers = append(s.peers, peer{current: rapid.Bool().Draw(t, "current")})
			}
			o.streams = append(o.streams, s)
		}
		a := step(o)
		if a.deed == nothing {
			return
		}
		current := 0
		for _, c := range o.cores() {
			if !c {
				t.Fatalf("%v while a core is not current: %+v", a, o)
			}
			current++
		}
		if o.leader == "" || o.size != len(o.peers) || current < replicasWanted {
			t.Fatalf("%v from a doubtful observation: %+v", a, o)
		}
		if a.deed != raiseStream {
			if !o.founder && a.deed == removeWitness {
				t.Fatalf("a witness of another host removed: %+v", o)
			}
			return
		}
		if o.witnessPresent() || !o.leads() || !o.streamsKnown {
			t.Fatalf("%v beside another change, or elsewhere: %+v", a, o)
		}
		for _, s := range o.streams {
			if !s.settled() || s.name == a.stream && s.replicas >= replicasWanted {
				t.Fatalf("%v while stream %+v", a, s)
			}
		}
	})
}

func TestMembersDoNotCountTheWitness(t *testing.T) {
	o := observation{leader: "a", peers: peers("a", "b?", "a.witness"), size: 3}
	if got := fmt.Sprint(o.cores()); got != fmt.Sprint(map[kbroker.HostID]bool{"a": true, "b": false}) {
		t.Errorf("cores = %s, want a current and b not", got)
	}
	if !o.witnessPresent() {
		t.Error("the witness is not seen")
	}
}
