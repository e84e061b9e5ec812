package broker

import (
	"cmp"
	"slices"

	"github.com/kbroker/kbroker"
)

// Members is what the membership loop saw last.
type Members struct {
	// Leader: the meta group has one. If not, the rest is empty.
	Leader bool
	// Current has every core of the meta group; true if it is caught up and
	// was heard lately. The witness is not among them.
	Current map[kbroker.HostID]bool
	// Size of the meta group, the witness included.
	Size int
	// Witness: one is still a member.
	Witness bool
	// Replicas is the lowest number over all streams; 0 until it is known.
	Replicas int
	// Streams are all but the mirrors, by name.
	Streams []StreamMember
	// Settled: every stream has as many replicas as the cores allow, all
	// current, and no member is changing. With three cores or more it is safe
	// to take one down. Unsettled names what speaks against it.
	Settled   bool
	Unsettled string
	// Mirrored: there are two cores, and every stream has a copy that follows
	// on the core that does not hold it. Lag says how far it is behind.
	Mirrored bool
}

// StreamMember is a stream as its leader sees it.
type StreamMember struct {
	Name     string
	Replicas int            // wanted
	Current  int            // replicas that are there and caught up
	Lag      uint64         // entries that the replica furthest behind lacks
	Leader   kbroker.HostID // empty: it has none, or did not answer
	// Mirror is the core that holds its copy, where there are two; MirrorLag
	// the messages that the copy lacks.
	Mirror    kbroker.HostID
	MirrorLag uint64
}

func membersOf(o observation) Members {
	unsettled := o.unsettled()
	m := Members{
		Leader: o.leader != "", Size: o.size, Witness: o.witnessPresent(), Current: o.cores(), Replicas: o.lowestReplicas(),
		Settled: unsettled == "", Unsettled: unsettled, Mirrored: o.mirrored(),
	}
	if !o.listed || !m.Leader {
		return m
	}
	for _, s := range o.originals() {
		row := StreamMember{Name: s.name, Replicas: s.replicas, Current: s.currentPeers()}
		if len(s.peers) > 0 {
			row.Leader = kbroker.HostID(s.peers[0].name)
			row.Lag = slices.MaxFunc(s.peers, func(a, b peer) int { return cmp.Compare(a.lag, b.lag) }).lag
		}
		if c := o.mirrorOf(s); c != nil && len(c.peers) > 0 {
			row.Mirror, row.MirrorLag = c.mirror.host, c.behind(s)
		}
		m.Streams = append(m.Streams, row)
	}
	return m
}
