package broker

import (
	"cmp"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// What the membership loop sees and what it does next. Everything here is a
// function of one observation; crashes and lost answers are cured by the next.
//
//	founding          two hosts            three hosts
//	{a, w}    b->    {a, w, b}    c->    {a, w, b, c} -> {a, b, c}
//	streams R1        R1                  R1              R1 -> R3, one by one
//
// Members and replicas change one at a time, and only while every member is
// there and current. Nothing is ever lowered or removed but the witness.

// replicasWanted of every stream once there are that many cores.
const replicasWanted = 3

// peer is a server as the leader of a raft group sees it.
type peer struct {
	name    string
	current bool // caught up and heard lately
}

// stream is a stream as its leader sees it.
type stream struct {
	name     string
	replicas int    // wanted
	peers    []peer // leader included; empty: it has no leader
	moving   bool   // the server is still changing its peers
}

// settled: all its replicas are there and current.
func (s stream) settled() bool {
	return !s.moving && len(s.peers) == s.replicas && !slices.ContainsFunc(s.peers, func(p peer) bool { return !p.current })
}

// observation is what one round saw.
type observation struct {
	host kbroker.HostID
	// founder: the cluster's witness is this host's; witness: it runs.
	founder, witness bool
	// leader is the server that leads the meta group, empty if none is known.
	// What follows is true only if the leader itself said so, and zero
	// otherwise.
	leader string
	size   int
	peers  []peer // of the meta group, leader included

	// streams are all of the account, if they are known: every one of them
	// answered.
	streams      []stream
	streamsKnown bool
}

// leads: the leader of the meta group is in this process.
func (o observation) leads() bool {
	return o.leader != "" && (o.leader == string(o.host) || o.leader == witnessName(o.host))
}

// witnessPresent: some witness is a member of the meta group.
func (o observation) witnessPresent() bool {
	return slices.ContainsFunc(o.peers, func(p peer) bool { return isWitness(p.name) })
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

// lowestReplicas over all streams; 0 if not known or there are none.
func (o observation) lowestReplicas() int {
	if !o.streamsKnown || len(o.streams) == 0 {
		return 0
	}
	return slices.MinFunc(o.streams, func(a, b stream) int { return cmp.Compare(a.replicas, b.replicas) }).replicas
}

func isWitness(server string) bool { return strings.HasSuffix(server, witnessSuffix) }

// deed is what a step does.
type deed int

const (
	nothing deed = iota
	// removeWitness from the meta group.
	removeWitness
	// retireWitness: it is no member any more; stop it, remember, delete it.
	retireWitness
	// raiseStream to replicasWanted.
	raiseStream
)

// action is a deed and, for raiseStream, its stream.
type action struct {
	deed   deed
	stream string
}

// step says what the core that made the observation does next. Pure.
func step(o observation) action {
	cores := o.cores()
	if o.leader == "" || o.size != len(o.peers) || len(cores) < replicasWanted {
		return action{}
	}
	for _, current := range cores {
		if !current {
			return action{}
		}
	}
	switch {
	case o.witnessPresent():
		// Three current cores are a quorum of the four, whether the witness
		// lives or not: a removal may come back after it was seen.
		if o.founder {
			return action{deed: removeWitness}
		}
	case o.witness:
		return action{deed: retireWitness}
	case o.leads() && o.streamsKnown:
		return raise(o.streams)
	}
	return action{}
}

// raise picks the next stream to raise: none while one is not settled.
func raise(streams []stream) action {
	next := ""
	for _, s := range streams {
		if !s.settled() {
			return action{}
		}
		if s.replicas < replicasWanted && (next == "" || s.name < next) {
			next = s.name
		}
	}
	if next == "" {
		return action{}
	}
	return action{deed: raiseStream, stream: next}
}

// String names the step for the log.
func (a action) String() string {
	switch a.deed {
	case removeWitness:
		return "remove the witness"
	case retireWitness:
		return "retire the witness"
	case raiseStream:
		return "raise " + a.stream
	default:
		return "nothing"
	}
}
