package ownership

import "github.com/kbroker/kbroker"

// Seen is what an owner knows of an object.
type Seen struct {
	Serves  bool // it owns the shard
	Active  bool // the object is in memory
	Phase   string
	Waiting int // calls, without the one that runs
	// Sends counts the messages of its outbox; Sending: they are known, which is soon after it
	// has come into memory.
	Sends   int
	Sending bool
}

// See looks at an object. It changes nothing.
func (o *Owner) See(id kbroker.Object) Seen {
	s := o.shards[id.Shard()]
	if s == nil || o.ended {
		return Seen{}
	}
	seen := Seen{Serves: s.role == owning}
	if x := s.objects[id]; x != nil {
		seen.Active, seen.Phase, seen.Waiting = true, x.phase.String(), len(x.queue)
		seen.Sends, seen.Sending = len(x.out.messages), x.out.known
	}
	return seen
}
