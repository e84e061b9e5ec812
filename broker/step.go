package broker

import (
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// What the membership loop does next, from what it saw. Everything here is a
// function of one observation; crashes and lost answers are cured by the next.
//
//	founding          two hosts            three hosts
//	{a, w}    b->    {a, w, b}    c->    {a, w, b, c} -> {a, b, c}
//	streams R1        R1 and a mirror     R1              R1 -> R3, one by one
//	                                                      then no mirrors
//
// Members, mirrors and replicas change one at a time, and members and replicas
// only while every member is there and current. Nothing is ever lowered;
// nothing is removed but the witness, a mirror that is not needed, and a core
// that the operator has removed.

// replicasWanted of every stream once there are that many cores.
const replicasWanted = 3

// Bounds of a mirror.
const (
	// mirrorBehind messages at most lacks a mirror that follows: it is told of
	// them asynchronously.
	mirrorBehind = 1000
	// mirrorSilent is the time after which one that was told nothing, not even
	// that there is nothing, does not follow. The source says so every second.
	mirrorSilent = 3 * time.Second
	// A mirror does not follow purges. One that is larger than twice its
	// source and this much is made again.
	mirrorSlackBytes = 64 << 20
)

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
	// makeMirror of a stream on a host.
	makeMirror
	// dropMirror deletes a mirror.
	dropMirror
	// removeCore from the meta group.
	removeCore
)

// action is a deed with its stream and its host, where it has them.
type action struct {
	deed   deed
	stream string
	host   kbroker.HostID
}

// step says what the core that made the observation does next. Pure.
func step(o observation) action {
	if o.leader == "" || o.size != len(o.peers) {
		return action{}
	}
	if gone := o.leaving(); gone != "" {
		if a := remove(o, gone); a.deed != nothing {
			return a
		}
	}
	cores := o.cores()
	for _, current := range cores {
		if !current {
			return action{}
		}
	}
	switch {
	case len(cores) < replicasWanted:
		return copyStreams(o)
	case o.witnessPresent():
		// Three current cores are a quorum of the four, whether the witness
		// lives or not: a removal may come back after it was seen.
		if o.founder {
			return action{deed: removeWitness}
		}
	case o.witness:
		return action{deed: retireWitness}
	case o.leads() && o.known():
		return raise(o)
	}
	return action{}
}

// raise picks the next stream to raise: none while one is not settled. When
// all are raised the mirrors go.
func raise(o observation) action {
	next := ""
	for _, s := range o.originals() {
		if !s.settled() {
			return action{}
		}
		if s.replicas < replicasWanted && next == "" {
			next = s.name
		}
	}
	if next != "" {
		return action{deed: raiseStream, stream: next}
	}
	return dropUnwanted(o)
}

// dropUnwanted picks a mirror that is not needed. The copy of a stream that is
// not there any more stays: it may be the last.
func dropUnwanted(o observation) action {
	for _, m := range o.mirrors() {
		if _, there := o.source(m); there && !o.mirrorWanted(m) {
			return action{deed: dropMirror, stream: m.name}
		}
	}
	return action{}
}

// copyStreams picks the next mirror to drop or to make.
func copyStreams(o observation) action {
	if !o.leads() || !o.known() {
		return action{}
	}
	if a := dropUnwanted(o); a.deed != nothing {
		return a
	}
	for _, s := range o.originals() {
		if host := o.mirrorHost(s); host != "" && o.mirrorOf(s) == nil {
			return action{deed: makeMirror, stream: s.name, host: host}
		}
	}
	return action{}
}

// mirrorHost is the core that a mirror of s belongs on: the other of two. Empty
// if s is to have none.
func (o observation) mirrorHost(s stream) kbroker.HostID {
	cores := o.cores()
	if len(cores) != 2 || !s.copied || s.replicas != 1 || len(s.peers) != 1 || !o.member(s.peers[0].name) {
		return ""
	}
	for host := range cores {
		if string(host) != s.peers[0].name && !slices.Contains(o.removed, host) {
			return host
		}
	}
	return ""
}

// mirrorWanted: the mirror is on the right host and follows the stream that is
// there now.
func (o observation) mirrorWanted(m stream) bool {
	s, there := o.source(m)
	if !there || o.mirrorHost(s) != m.mirror.host {
		return false
	}
	if len(m.peers) == 0 {
		return true // it may be young
	}
	return !s.created.After(m.created) && m.origin == s.origin && m.bytes <= 2*s.bytes+mirrorSlackBytes
}

func (o observation) source(m stream) (stream, bool) {
	i := slices.IndexFunc(o.streams, func(s stream) bool { return s.mirror == nil && s.name == m.mirror.source })
	if i < 0 {
		return stream{}, false
	}
	return o.streams[i], true
}

// remove is the next step of the removal of a core that the operator has
// removed: first its mirrors, then itself. It waits until all that stay are
// current, and until the meta group and every stream that it holds have a
// quorum without it.
func remove(o observation, gone kbroker.HostID) action {
	if !o.removes(gone) || !o.known() || o.member(witnessName(gone)) {
		return action{}
	}
	if current, well := o.without(o.peers, gone); !well || current < o.size/2+1 {
		return action{}
	}
	for _, s := range o.originals() {
		current, well := o.without(s.peers, gone)
		holds := slices.ContainsFunc(s.peers, func(p peer) bool { return p.name == string(gone) })
		if !well || holds && current < s.replicas/2+1 || s.moving && o.cores()[gone] {
			return action{}
		}
	}
	for _, m := range o.mirrors() {
		if m.mirror.host == gone {
			return action{deed: dropMirror, stream: m.name}
		}
	}
	return action{deed: removeCore, host: gone}
}

// without counts the current ones of a group besides gone. It is well if those
// that stay all are; what the operator has removed as well may be dead.
func (o observation) without(group []peer, gone kbroker.HostID) (current int, well bool) {
	well = true
	for _, p := range group {
		switch {
		case p.name == string(gone):
		case p.current:
			current++
		case !slices.Contains(o.removed, kbroker.HostID(p.name)):
			well = false
		}
	}
	return current, well
}

// removes: it is this core that removes gone: the one that leads, or where gone
// itself leads, the first by name of the others.
func (o observation) removes(gone kbroker.HostID) bool {
	if coreOf(o.leader) != gone {
		return o.leads()
	}
	for host, current := range o.cores() {
		if current && host < o.host && !slices.Contains(o.removed, host) {
			return false
		}
	}
	return o.cores()[o.host] && !slices.Contains(o.removed, o.host)
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
	case makeMirror:
		return "mirror " + a.stream + " to " + string(a.host)
	case dropMirror:
		return "drop " + a.stream
	case removeCore:
		return "remove " + string(a.host)
	default:
		return "nothing"
	}
}
