package ownership

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/kbroker/kbroker"
)

// Nobody is the next of a placed object that is to be released.
const Nobody kbroker.Incarnation = "-.-"

// Assignment says who owns a shard: the record subjects.KeyAssign, written by the app's
// active allocator.
type Assignment struct {
	Owner kbroker.Incarnation `json:"owner,omitempty"`
	Epoch uint64              `json:"epoch"`
	// Next is offered the shard at NextEpoch, once the owner has released it.
	Next      kbroker.Incarnation `json:"next,omitempty"`
	NextEpoch uint64              `json:"next_epoch,omitempty"`
	// Placed is the object that the shard is of; nil: it is one of many.
	Placed *Placed `json:"placed,omitempty"`
}

// Placed is a placed object, as it was allocated.
type Placed struct {
	Kind kbroker.KindName `json:"kind"`
	ID   string           `json:"id"`
	kbroker.Demanded
	Labels map[string]string `json:"labels,omitempty"`
}

// Object is the one.
func (p Placed) Object() kbroker.Object {
	return kbroker.Object{Kind: p.Kind, ID: p.ID, Placed: true}
}

// Release says that the owner of Epoch serves the shard no more, and whom it has left it
// to: the record subjects.KeyRelease, written by that owner.
type Release struct {
	Epoch   uint64              `json:"epoch"`
	To      kbroker.Incarnation `json:"to,omitempty"`
	ToEpoch uint64              `json:"to_epoch,omitempty"`
}

// isOf reports whether a release is what the next of an assignment waits for.
func (r Release) isOf(a Assignment) bool {
	return r.Epoch == a.Epoch && a.Next != "" && (!ruleReleaseNames || r.To == a.Next && r.ToEpoch == a.NextEpoch)
}

// Lease is the authority of an incarnation: the record lease.<incarnation>, written by
// it, and by the allocator that revokes it.
type Lease struct {
	Incarnation kbroker.Incarnation `json:"incarnation"`
	Service     kbroker.ServiceName `json:"service,omitempty"`
	Host        kbroker.HostID      `json:"host,omitempty"`
	Number      uint64              `json:"number"` // of the renewal
	// Leaving: it serves what it owns until that is moved away, and is given nothing more.
	Leaving bool `json:"leaving,omitempty"`
	Revoked bool `json:"revoked,omitempty"`
}

// Record is what is stored of an object.
type Record struct {
	Epoch uint64              `json:"epoch"`
	Owner kbroker.Incarnation `json:"owner"`
	// Commit names the batch that wrote it last; a claim keeps it.
	Commit string `json:"commit,omitempty"`
	// Sent is the number of the last message of its outbox: one with a higher number is
	// what a batch has left that was not written to its end, and was never sent.
	Sent uint64 `json:"sent,omitempty"`
	// Age is for how long it has been owned by incarnations that had it in memory.
	Age   time.Duration `json:"age,omitempty"`
	Ring  []Entry       `json:"ring,omitempty"`
	Marks []Mark        `json:"marks,omitempty"`
	// Forgot is the age at which the last mark of an outbox was made that is forgotten, and
	// a nanosecond; 0: none is.
	Forgot time.Duration `json:"forgot,omitempty"`
	// Exists: it has a state. Without one it was never written, or deleted.
	Exists bool   `json:"exists,omitempty"`
	Schema int    `json:"schema,omitempty"` // of the state, as the application counts
	State  []byte `json:"-"`
}

// Encode makes the stored form: a line of JSON, then the state as it is. It fails for
// nothing.
func Encode(r Record) []byte {
	b, err := json.Marshal(r)
	if err != nil {
		panic("ownership: a record does not marshal: " + err.Error()) // strings and numbers only
	}
	return append(append(b, '\n'), r.State...)
}

// maxRecordBytes bounds a record, less what a claim by another owner may add.
const maxRecordBytes = kbroker.MaxObjectBytes - 4<<10

// fits reports whether a record can be stored.
func (r Record) fits() bool {
	return len(r.State)+recordHead(r) <= maxRecordBytes || len(Encode(r)) <= maxRecordBytes
}

// recordHead is how many bytes a record has at most beside its state: counted as if all had
// to be escaped.
func recordHead(r Record) int {
	most := 1 << 10
	for _, e := range r.Ring {
		most += 6*(len(e.Session)+len(e.Once)) + 2*len(e.Reply) + 128
	}
	for _, m := range r.Marks {
		most += 6*len(m.Session) + 2*len(m.Refused) + 96
	}
	return most
}

// Decode reads what Encode made; the state shares the memory of b.
func Decode(b []byte) (Record, error) {
	head, state, _ := bytes.Cut(b, []byte("\n"))
	var r Record
	if err := json.Unmarshal(head, &r); err != nil {
		return Record{}, kbroker.Errorf(kbroker.Internal, "the record of an object is not readable: %v", err)
	}
	r.State = state
	return r, nil
}

// encode is the stored form of a record of ownership.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("ownership: a record does not marshal: " + err.Error()) // strings and numbers only
	}
	return b
}
