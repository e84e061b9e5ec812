package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// peer is a server as the leader of a raft group sees it.
type peer struct {
	name    string
	current bool   // caught up and heard lately
	lag     uint64 // entries that it lacks
}

// stream is a stream as its leader sees it.
type stream struct {
	name     string
	replicas int    // wanted
	peers    []peer // leader first; empty: it has no leader, or did not answer
	moving   bool   // the server is still changing its peers
	// copied: a mirror can follow it (what it holds is on disk, and ends by
	// limits alone).
	copied  bool
	last    uint64 // sequence
	bytes   uint64
	created time.Time
	origin  string // its configuration, in a form that can be compared
	// mirror is set if it is the mirror of another.
	mirror *mirror
}

// mirror is what a mirror is besides a stream.
type mirror struct {
	source string
	host   kbroker.HostID // it is pinned to
	lag    uint64         // as it was told by the source
	silent time.Duration  // since it was; below 0: never
}

// settled: all its replicas are there and current.
func (s stream) settled() bool {
	return !s.moving && len(s.peers) == s.replicas && s.whole()
}

// whole: it has a leader, and all its peers are current.
func (s stream) whole() bool { return len(s.peers) > 0 && s.currentPeers() == len(s.peers) }

func (s stream) currentPeers() (n int) {
	for _, p := range s.peers {
		if p.current {
			n++
		}
	}
	return n
}

// observation is what one round saw.
type observation struct {
	host kbroker.HostID
	// founder: the cluster's witness is this host's; witness: it runs.
	founder, witness bool
	// removed are the cores that the operator has removed.
	removed []kbroker.HostID
	// leader is the server that leads the meta group, empty if none is known.
	// What follows is true only if the leader itself said so, and zero
	// otherwise.
	leader string
	size   int
	peers  []peer // of the meta group, leader included

	// streams are all of the account, if they are listed: one that did not
	// answer has a name only.
	streams []stream
	listed  bool
}

// leads: the leader of the meta group is in this process.
func (o observation) leads() bool { return o.leader != "" && coreOf(o.leader) == o.host }

// coreOf the core or witness of that name.
func coreOf(server string) kbroker.HostID {
	return kbroker.HostID(strings.TrimSuffix(server, witnessSuffix))
}

// witnessPresent: some witness is a member of the meta group.
func (o observation) witnessPresent() bool {
	return slices.ContainsFunc(o.peers, func(p peer) bool { return isWitness(p.name) })
}

// member: a server of that name is one of the meta group.
func (o observation) member(server string) bool {
	return slices.ContainsFunc(o.peers, func(p peer) bool { return p.name == server })
}

// cores are the members that store data, and whether each is current.
func (o observation) cores() map[kbroker.HostID]bool {
	cores := map[kbroker.HostID]bool{}
	for _, p := range o.peers {
		if !isWitness(p.name) {
			cores[kbroker.HostID(p.name)] = p.current
		}
	}
	return cores
}

// whole: the meta group has exactly the members that the leader names, and all
// of them are current.
func (o observation) whole() bool {
	return o.leader != "" && o.size == len(o.peers) && !slices.ContainsFunc(o.peers, func(p peer) bool { return !p.current })
}

// leaving is the first by name of the members that the operator has removed;
// empty if there is none.
func (o observation) leaving() kbroker.HostID {
	first := kbroker.HostID("")
	for _, h := range o.removed {
		if o.member(string(h)) && (first == "" || h < first) {
			first = h
		}
	}
	return first
}

// originals are the streams that are no mirrors, by name.
func (o observation) originals() []stream {
	return o.pick(func(s stream) bool { return s.mirror == nil })
}

// mirrors are the others.
func (o observation) mirrors() []stream {
	return o.pick(func(s stream) bool { return s.mirror != nil })
}

func (o observation) pick(take func(stream) bool) []stream {
	var out []stream
	for _, s := range o.streams {
		if take(s) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b stream) int { return cmp.Compare(a.name, b.name) })
	return out
}

// known: every stream that is no mirror has a leader that answered.
func (o observation) known() bool {
	return o.listed && !slices.ContainsFunc(o.originals(), func(s stream) bool { return len(s.peers) == 0 })
}

// lowestReplicas over all streams; 0 if not known or there are none.
func (o observation) lowestReplicas() int {
	originals := o.originals()
	if !o.known() || len(originals) == 0 {
		return 0
	}
	return slices.MinFunc(originals, func(a, b stream) int { return cmp.Compare(a.replicas, b.replicas) }).replicas
}

// unsettled says why a change of members, or the stop of a core, should wait;
// empty if nothing speaks against it.
func (o observation) unsettled() string {
	cores := o.cores()
	switch {
	case o.leader == "":
		return "the meta group has no leader"
	case o.size != len(o.peers):
		return fmt.Sprintf("the meta group has %d members, and %d of them are known", o.size, len(o.peers))
	}
	for _, p := range o.peers {
		if !p.current {
			return fmt.Sprintf("%s is not current", p.name)
		}
	}
	switch {
	case o.leaving() != "":
		return fmt.Sprintf("host %s is being removed", o.leaving())
	case o.witnessPresent() && len(cores) >= replicasWanted:
		return "the witness is being replaced"
	case !o.listed:
		return "the streams are not known"
	}
	for _, s := range o.originals() {
		switch wanted := max(s.replicas, o.replicasWanted()); {
		case len(s.peers) == 0:
			return fmt.Sprintf("stream %s has no leader", s.name)
		case s.currentPeers() < wanted:
			return fmt.Sprintf("stream %s has %d of %d replicas current", s.name, s.currentPeers(), wanted)
		case !s.settled():
			return fmt.Sprintf("stream %s is being moved", s.name)
		}
	}
	return ""
}

// replicasWanted of every stream, with the cores that there are.
func (o observation) replicasWanted() int {
	if len(o.cores()) < replicasWanted {
		return 1
	}
	return replicasWanted
}

// mirrorOf the stream, on the other of two cores; nil if there is none that
// follows.
func (o observation) mirrorOf(s stream) *stream {
	for _, m := range o.mirrors() {
		if m.mirror.source == s.name && o.mirrorWanted(m) {
			return &m
		}
	}
	return nil
}

// mirrored: there are two cores, and every stream that can be copied has a
// mirror on the core that does not hold it, which has nearly all.
func (o observation) mirrored() bool {
	if len(o.cores()) != 2 || !o.known() {
		return false
	}
	for _, s := range o.originals() {
		if !s.copied || s.replicas != 1 {
			continue
		}
		if m := o.mirrorOf(s); m == nil || !m.follows(s) {
			return false
		}
	}
	return true
}

// follows: the mirror has all but the very last of what is in s.
func (m stream) follows(s stream) bool {
	if len(m.peers) == 0 {
		return false
	}
	return m.last >= s.last || m.mirror.lag <= mirrorBehind && m.mirror.silent >= 0 && m.mirror.silent < mirrorSilent
}

// behind is how many messages a mirror of s lacks.
func (m stream) behind(s stream) uint64 {
	switch {
	case m.last >= s.last:
		return 0
	case m.mirror.silent >= 0 && m.mirror.silent < mirrorSilent:
		return m.mirror.lag
	default:
		return s.last - m.last
	}
}

// calm: there is nothing to do and nothing to wait for.
func (o observation) calm() bool {
	return o.unsettled() == "" && (len(o.cores()) != 2 || o.mirrored()) && step(o).deed == nothing
}

func isWitness(server string) bool { return strings.HasSuffix(server, witnessSuffix) }
