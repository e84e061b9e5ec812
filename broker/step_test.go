package broker

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
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

// r1 and r3 are settled streams.
func r1(name string, on string) stream {
	return stream{name: name, replicas: 1, peers: peers(on), copied: true}
}

func r3(name string, on ...string) stream {
	if len(on) == 0 {
		on = []string{"a", "b", "c"}
	}
	return stream{name: name, replicas: 3, peers: peers(on...), copied: true}
}

// copyOf a stream, on a host.
func copyOf(source, host string) stream {
	return stream{
		name: subjects.MirrorOf(source, kbroker.HostID(host)), replicas: 1, peers: peers(host),
		mirror: &mirror{source: source, host: kbroker.HostID(host)},
	}
}

// silent is a stream that does not answer.
func silent(s stream) stream { s.peers = nil; return s }

func TestStep(t *testing.T) {
	solo := observation{host: "a", founder: true, witness: true, leader: "a", size: 2, peers: peers("a", "a.witness"), listed: true}
	two := observation{host: "a", founder: true, witness: true, leader: "a", size: 3, peers: peers("a", "b", "a.witness"), listed: true}
	three := observation{host: "b", leader: "b", size: 3, peers: peers("b", "a", "c"), listed: true}
	with := func(o observation, edit func(*observation)) observation { edit(&o); return o }
	streams := func(o observation, s ...stream) observation { o.streams = s; return o }
	removed := func(o observation, hosts ...kbroker.HostID) observation { o.removed = hosts; return o }
	members := func(o observation, names ...string) observation {
		o.peers, o.size = peers(names...), len(names)
		return o
	}
	moving := r3("s0")
	moving.moving = true
	grown := copyOf("s", "b")
	grown.bytes = mirrorSlackBytes + 1
	changed := copyOf("s", "b")
	changed.origin = "other"
	remade := r1("s", "a")
	remade.created = time.Unix(1, 0)
	uncopied := r1("s", "a")
	uncopied.copied = false

	for _, c := range []struct {
		name string
		o    observation
		want action
	}{
		{"without a meta leader nothing is done", with(three, func(o *observation) { o.leader = "" }), action{}},
		{"one host keeps its witness", streams(solo, r1("s", "a")), action{}},
		{"one host never takes an unseen witness for a removed one", with(solo, func(o *observation) { o.peers = peers("a") }), action{}},
		{"a third core that is not current changes nothing", members(two, "a", "b", "c?", "a.witness"), action{}},
		{"a member whose name the leader does not know changes nothing", with(members(two, "a", "b", "c", "a.witness"), func(o *observation) { o.size = 5 }), action{}},
		{"the founder removes the witness once three cores are current", members(two, "a", "b", "c", "a.witness"), action{deed: removeWitness}},
		{"nobody else removes it, not even the leader", members(streams(three, r1("s", "a")), "b", "a", "c", "a.witness"), action{}},
		{"a witness that is no member is retired", members(two, "a", "b", "c"), action{deed: retireWitness}},
		{"it is not retired while the size disagrees with the members", with(members(two, "a", "b", "c"), func(o *observation) { o.size = 4 }), action{}},
		{
			"a retired witness that is a member again is removed again",
			with(members(two, "b", "a", "c", "a.witness?"), func(o *observation) { o.witness, o.leader = false, "b" }),
			action{deed: removeWitness},
		},

		{"the leader's host raises the first stream by name", streams(three, r1("s2", "a"), r1("s1", "a"), r3("s0")), action{deed: raiseStream, stream: "s1"}},
		{"two replicas are too few as well", streams(three, stream{name: "s", replicas: 2, peers: peers("a", "b")}), action{deed: raiseStream, stream: "s"}},
		{"other hosts raise nothing", with(streams(three, r1("s1", "a")), func(o *observation) { o.host = "a" }), action{}},
		{"the next waits until all replicas of the last are current", streams(three, r3("s0", "a", "b", "c?"), r1("s1", "a")), action{}},
		{"the next waits while the last has too few replicas", streams(three, r3("s0", "a"), r1("s1", "a")), action{}},
		{"the next waits while the server still moves the last", streams(three, moving, r1("s1", "a")), action{}},
		{"nothing is raised while a stream is without a leader", streams(three, silent(r1("s0", "a")), r1("s1", "a")), action{}},
		{"nothing is raised while the streams are not listed", with(streams(three, r1("s1", "a")), func(o *observation) { o.listed = false }), action{}},
		{"nothing is raised while a core is away", members(streams(three, r1("s1", "a")), "b", "a", "c?"), action{}},
		{"a mirror that does not answer does not stop a raise", streams(three, r1("s", "a"), silent(copyOf("s", "b"))), action{deed: raiseStream, stream: "s"}},
		{"mirrors stay until all is raised and settled", streams(three, r3("s0"), r3("s1", "a", "b", "c?"), copyOf("s0", "b")), action{}},
		{"then they go", streams(three, r3("s0"), r3("s1"), copyOf("s1", "b"), copyOf("s0", "b")), action{deed: dropMirror, stream: "MIRROR_b_s0"}},
		{"the copy of a stream that is gone stays", streams(three, r3("s1"), copyOf("s0", "b")), action{}},
		{"five cores with everything in order have nothing to do", members(streams(three, r3("s")), "b", "a", "c", "d", "e"), action{}},

		{"with two cores a stream is mirrored to the other", streams(two, r1("s", "a")), action{deed: makeMirror, stream: "s", host: "b"}},
		{"whichever that is", streams(two, r1("s", "b")), action{deed: makeMirror, stream: "s", host: "a"}},
		{"one at a time, by name", streams(two, r1("s2", "a"), r1("s1", "a"), r1("s0", "a"), copyOf("s0", "b")), action{deed: makeMirror, stream: "s1", host: "b"}},
		{"only the leader's host does", with(streams(two, r1("s", "a")), func(o *observation) { o.host = "b" }), action{}},
		{"a leading witness's host is one", with(streams(two, r1("s", "a")), func(o *observation) { o.leader = "a.witness" }), action{deed: makeMirror, stream: "s", host: "b"}},
		{"a mirrored stream is left alone", streams(two, r1("s", "a"), copyOf("s", "b")), action{}},
		{"a mirror that does not answer yet is left alone", streams(two, r1("s", "a"), silent(copyOf("s", "b"))), action{}},
		{"mirrors wait for a stream without a leader", streams(two, silent(r1("s0", "a")), r1("s1", "a")), action{}},
		{"mirrors wait for a core that is not current", members(streams(two, r1("s", "a")), "a", "b?", "a.witness"), action{}},
		{"a mirror beside its source is dropped", streams(two, r1("s", "a"), copyOf("s", "a")), action{deed: dropMirror, stream: "MIRROR_a_s"}},
		{"a mirror on a core that is gone is dropped, answer or not", members(streams(two, r1("s", "a"), copyOf("s", "d"), silent(copyOf("s", "c"))), "a", "b", "a.witness"), action{deed: dropMirror, stream: "MIRROR_c_s"}},
		{"also when one core is left", streams(solo, r1("s", "a"), silent(copyOf("s", "b"))), action{deed: dropMirror, stream: "MIRROR_b_s"}},
		{"a mirror that has grown too large is dropped", streams(two, r1("s", "a"), grown), action{deed: dropMirror, stream: "MIRROR_b_s"}},
		{"a mirror of an earlier configuration is dropped", streams(two, r1("s", "a"), changed), action{deed: dropMirror, stream: "MIRROR_b_s"}},
		{"a mirror of an earlier stream of that name is dropped", streams(two, remade, copyOf("s", "b")), action{deed: dropMirror, stream: "MIRROR_b_s"}},
		{"what cannot be copied is not mirrored", streams(two, uncopied), action{}},
		{"two replicas are not mirrored", streams(two, stream{name: "s", replicas: 2, peers: peers("a", "b"), copied: true}), action{}},

		{"before a core is removed its mirrors are dropped", removed(streams(two, r1("s", "a"), copyOf("s", "b")), "b"), action{deed: dropMirror, stream: "MIRROR_b_s"}},
		{"whether it answers or not", removed(members(streams(two, r1("s", "a"), silent(copyOf("s", "b"))), "a", "b?", "a.witness"), "b"), action{deed: dropMirror, stream: "MIRROR_b_s"}},
		{"then it is removed", removed(streams(two, r1("s", "a")), "b"), action{deed: removeCore, host: "b"}},
		{"the only holder of a stream is not, but the stream is copied", removed(streams(two, r1("s", "b")), "b"), action{deed: makeMirror, stream: "s", host: "a"}},
		{"nor the witness's host", removed(streams(two, r1("s", "b")), "a"), action{}},
		{"not even with its witness at four members", removed(members(with(streams(two, r1("s", "b")), func(o *observation) { o.host, o.leader, o.founder, o.witness = "b", "b", false, false }), "a", "b", "c", "a.witness"), "a"), action{}},
		{"a dead core of three is removed", removed(members(streams(three, r3("s", "b", "a", "c?")), "b", "a", "c?"), "c"), action{deed: removeCore, host: "c"}},
		{"a live one too", removed(streams(three, r3("s")), "c"), action{deed: removeCore, host: "c"}},
		{"not while another member is away", removed(members(streams(three, r3("s")), "b", "a?", "c", "d"), "c"), action{}},
		{"not while a stream has too few other replicas", removed(streams(three, r3("s", "b", "c")), "c"), action{}},
		{"not while another replica is behind", removed(streams(three, r3("s", "b", "a?", "c")), "c"), action{}},
		{"not while a replica elsewhere is behind", removed(members(streams(three, r3("s", "b", "a", "d?")), "b", "a", "c", "d"), "c"), action{}},
		{"not while a stream is moved", removed(streams(three, moving), "c"), action{}},
		{"a stream that waits for the dead core does not keep it", removed(members(streams(three, stream{name: "s0", replicas: 3, peers: peers("a", "b", "c?"), moving: true}), "b", "a", "c?"), "c"), action{deed: removeCore, host: "c"}},
		{"not while a stream does not answer", removed(streams(three, silent(r3("s"))), "c"), action{}},
		{"not while the size disagrees with the members", removed(with(streams(three, r3("s")), func(o *observation) { o.size = 4 }), "c"), action{}},
		{"not when two would be left without a quorum", removed(members(streams(three, r3("s", "a", "b")), "a", "b"), "a"), action{}},
		{"two dead ones of five are removed one after the other", removed(members(streams(three, r3("s", "b", "a", "d?")), "b", "a", "c", "d?", "e?"), "e", "d"), action{deed: removeCore, host: "d"}},
		{"one dead and one removed of five wait for the dead one", removed(members(streams(three, r3("s")), "b", "a", "c", "d?", "e?"), "e"), action{}},
		{"a live leader is removed by the first of the others", removed(with(members(streams(three, r3("s")), "c", "a", "b"), func(o *observation) { o.host, o.leader = "a", "c" }), "c"), action{deed: removeCore, host: "c"}},
		{"and by nobody else", removed(with(members(streams(three, r3("s")), "c", "a", "b"), func(o *observation) { o.host, o.leader = "b", "c" }), "c"), action{}},
		{"not by itself", removed(with(members(streams(three, r3("s")), "c", "a", "b"), func(o *observation) { o.host, o.leader = "c", "c" }), "c"), action{}},
		{"one that is no member is not removed again", removed(streams(three, r3("s")), "z"), action{}},
		{"a core that was removed and is a member again is removed before the witness", removed(members(streams(two, r1("s", "a")), "a", "b", "c", "a.witness"), "c"), action{deed: removeCore, host: "c"}},
		{"no mirror goes to a removed core", removed(members(streams(two, stream{name: "s2", replicas: 2, peers: peers("a", "b")}, r1("s", "a")), "a", "b", "a.witness"), "b"), action{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := step(c.o); got != c.want {
				t.Errorf("step = %v, want %v", got, c.want)
			}
		})
	}
}

// drawn is any observation of up to five cores.
func drawn(t *rapid.T) observation {
	hosts := []string{"a", "b", "c", "d", "e"}
	o := observation{
		host: "a", founder: rapid.Bool().Draw(t, "founder"), witness: rapid.Bool().Draw(t, "witness"),
		listed: rapid.Bool().Draw(t, "streams listed"),
	}
	mostly := rapid.SampledFrom([]bool{true, true, true, false})
	for _, n := range append(hosts, "a.witness") {
		if rapid.Bool().Draw(t, n+" is a member") {
			o.peers = append(o.peers, peer{name: n, current: mostly.Draw(t, n+" is current")})
			if o.leader == "" || rapid.Bool().Draw(t, n+" leads") {
				o.leader = n
			}
		}
		if !isWitness(n) && !mostly.Draw(t, n+" is not removed") {
			o.removed = append(o.removed, kbroker.HostID(n))
		}
	}
	o.size = len(o.peers) + rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "members without a name")
	for i := range rapid.IntRange(0, 3).Draw(t, "streams") {
		s := stream{name: fmt.Sprint("s", i), replicas: rapid.IntRange(1, 3).Draw(t, "replicas"), moving: !mostly.Draw(t, "at rest"), copied: true}
		on := rapid.Permutation(hosts).Draw(t, "on")
		for _, h := range on[:rapid.IntRange(0, s.replicas).Draw(t, "peers")] {
			s.peers = append(s.peers, peer{name: h, current: mostly.Draw(t, "current")})
		}
		o.streams = append(o.streams, s)
		if rapid.Bool().Draw(t, "mirrored") {
			o.streams = append(o.streams, copyOf(s.name, rapid.SampledFrom(hosts).Draw(t, "mirror on")))
		}
	}
	return o
}

// Whatever is observed: members and replicas change only while the observation
// is whole and all that stay are current, and nothing goes that holds something
// alone.
func TestStepIsNeverTakenFromADoubtfulObservation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := drawn(t)
		a := step(o)
		if a.deed == nothing {
			return
		}
		if o.leader == "" || o.size != len(o.peers) {
			t.Fatalf("%v from a doubtful observation: %+v", a, o)
		}
		current := 0
		for host, c := range o.cores() {
			if !c && !slices.Contains(o.removed, host) {
				t.Fatalf("%v while core %s is not current: %+v", a, host, o)
			}
			if c {
				current++
			}
		}
		switch a.deed {
		case removeWitness, retireWitness:
			if current < replicasWanted || a.deed == removeWitness && !o.founder {
				t.Fatalf("%v with %d cores, founder %t", a, current, o.founder)
			}
			return
		case removeCore:
			lostBy(t, o, a.host)
		case dropMirror:
			if _, _, ok := subjects.ParseMirror(a.stream); !ok {
				t.Fatalf("%v deletes what is no mirror", a)
			}
		case raiseStream:
			if o.witnessPresent() || !o.leads() {
				t.Fatalf("%v beside another change, or elsewhere: %+v", a, o)
			}
			for _, s := range o.originals() {
				if !s.settled() || s.name == a.stream && s.replicas >= replicasWanted {
					t.Fatalf("%v while stream %+v", a, s)
				}
			}
		case makeMirror:
			if !o.leads() || len(o.cores()) != 2 || slices.Contains(o.removed, a.host) {
				t.Fatalf("%v from %+v", a, o)
			}
		}
		if !o.known() {
			t.Fatalf("%v while a stream does not answer: %+v", a, o)
		}
	})
}

// lostBy fails if the removal of a core takes a stream's, or the meta group's,
// majority or its last copy.
func lostBy(t *rapid.T, o observation, gone kbroker.HostID) {
	if gone == o.host || !slices.Contains(o.removed, gone) || !o.member(string(gone)) {
		t.Fatalf("%s is removed by %s; the operator removed %v", gone, o.host, o.removed)
	}
	majority := func(what string, ps []peer, of int) {
		holds, others := false, 0
		for _, p := range ps {
			holds = holds || p.name == string(gone)
			if p.current && p.name != string(gone) {
				others++
			}
		}
		if holds && 2*others <= of {
			t.Fatalf("removing %s leaves %s %d current of %d", gone, what, others, of)
		}
	}
	majority("the meta group", o.peers, len(o.peers))
	for _, s := range o.originals() {
		majority(s.name, s.peers, s.replicas)
	}
	for _, m := range o.mirrors() {
		if m.mirror.host == gone {
			t.Fatalf("%s is removed with %s on it", gone, m.name)
		}
	}
}

// With two cores whose streams lie anywhere, steps that are carried out end,
// and then every stream has one mirror on the core that does not hold it.
func TestStepsOfTwoCoresEndInMirrors(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := observation{host: "a", founder: true, witness: true, leader: "a", size: 3, peers: peers("a", "b", "a.witness"), listed: true}
		for i := range rapid.IntRange(0, 4).Draw(t, "streams") {
			s := r1(fmt.Sprint("s", i), rapid.SampledFrom([]string{"a", "b"}).Draw(t, "on"))
			o.streams = append(o.streams, s)
			for _, h := range []string{"a", "b", "x"} {
				if rapid.Bool().Draw(t, "mirror on "+h) {
					o.streams = append(o.streams, copyOf(s.name, h))
				}
			}
		}
		for range 20 {
			switch a := step(o); a.deed {
			case makeMirror:
				o.streams = append(o.streams, copyOf(a.stream, string(a.host)))
			case dropMirror:
				o.streams = slices.DeleteFunc(o.streams, func(s stream) bool { return s.name == a.stream })
			case nothing:
				if !o.mirrored() || !o.calm() || len(o.streams) != 2*len(o.originals()) {
					t.Fatalf("ended, not mirrored: %+v", o.streams)
				}
				return
			default:
				t.Fatalf("%v with two cores", a)
			}
		}
		t.Fatalf("no end after 20 steps: %+v", o.streams)
	})
}

func TestUnsettled(t *testing.T) {
	three := observation{host: "a", leader: "a", size: 3, peers: peers("a", "b", "c"), listed: true, streams: []stream{r3("s")}}
	for _, c := range []struct {
		name string
		edit func(*observation)
		want string
	}{
		{"nothing speaks against it", func(*observation) {}, ""},
		{"no leader", func(o *observation) { o.leader = "" }, "the meta group has no leader"},
		{"a core is away", func(o *observation) { o.peers = peers("a", "b?", "c") }, "b is not current"},
		{"a member is unknown", func(o *observation) { o.size = 4 }, "the meta group has 4 members, and 3 of them are known"},
		{"a core is removed", func(o *observation) { o.removed = []kbroker.HostID{"b"} }, "host b is being removed"},
		{"the witness is there still", func(o *observation) { o.peers, o.size = peers("a", "b", "c", "a.witness"), 4 }, "the witness is being replaced"},
		{"the streams are not listed", func(o *observation) { o.listed = false }, "the streams are not known"},
		{"one replica", func(o *observation) { o.streams = []stream{r1("s", "a")} }, "stream s has 1 of 3 replicas current"},
		{"a replica is behind", func(o *observation) { o.streams = []stream{r3("s", "a", "b", "c?")} }, "stream s has 2 of 3 replicas current"},
		{"no leader of a stream", func(o *observation) { o.streams = []stream{silent(r3("s"))} }, "stream s has no leader"},
		{"two cores hold one replica each", func(o *observation) {
			o.peers, o.size, o.streams = peers("a", "b", "a.witness"), 3, []stream{r1("s", "a")}
		}, ""},
		{"two cores of three", func(o *observation) { o.peers, o.size, o.streams = peers("a", "b"), 2, []stream{r3("s", "a", "b")} }, "stream s has 2 of 3 replicas current"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := three
			c.edit(&o)
			if got := o.unsettled(); got != c.want {
				t.Errorf("unsettled = %q, want %q", got, c.want)
			}
			if m := membersOf(o); m.Settled != (c.want == "") || m.Unsettled != c.want {
				t.Errorf("members = %+v, want unsettled %q", m, c.want)
			}
		})
	}
}

func TestMembersSayHowFarAMirrorIs(t *testing.T) {
	s, m := r1("s", "a"), copyOf("s", "b")
	s.last, m.last = 5000, 1000
	for _, c := range []struct {
		name     string
		last     uint64
		lag      uint64
		silent   time.Duration
		mirrored bool
		behind   uint64
	}{
		{"all there, however silent", 5000, 9, -1, true, 0},
		{"a little behind and told so", 1000, 40, time.Second, true, 40},
		{"far behind", 1000, mirrorBehind + 1, time.Second, false, mirrorBehind + 1},
		{"little behind when it was told last", 1000, 40, mirrorSilent, false, 4000},
		{"never told", 1000, 0, -1, false, 4000},
	} {
		t.Run(c.name, func(t *testing.T) {
			m.last, m.mirror = c.last, &mirror{source: "s", host: "b", lag: c.lag, silent: c.silent}
			o := observation{host: "a", leader: "a", size: 3, peers: peers("a", "b", "a.witness"), listed: true, streams: []stream{s, m}}
			got := membersOf(o)
			if got.Mirrored != c.mirrored || len(got.Streams) != 1 || got.Streams[0].Mirror != "b" || got.Streams[0].MirrorLag != c.behind {
				t.Errorf("members = %+v, want mirrored %t, %d behind", got, c.mirrored, c.behind)
			}
		})
	}
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
