package kbroker

import (
	"fmt"
	"hash/fnv"
	"strings"
	"unicode/utf8"
)

// Shards is how many shards the objects of an app are in: a constant of the wire
// protocol.
const Shards = 1024

// Shard is what an allocator gives to an owner: one of the buckets of an app's objects, from
// 0 to Shards-1, or a placed object, which is a shard of its own with a number from Shards
// on, below 2^53: every JSON has it as it is.
type Shard uint64

// OfOne reports whether the shard is that of one placed object.
func (s Shard) OfOne() bool { return s >= Shards }

// KindName names a kind of objects of an app; see CheckName.
type KindName string

// MaxObjectIDBytes bounds the id of an object.
const MaxObjectIDBytes = 200

// Object names an object within its app: any id of valid UTF-8, of 1 to
// MaxObjectIDBytes bytes.
type Object struct {
	Kind KindName
	ID   string
	// Placed: its kind is; see Service.Placed. It is said by who knows the app's spec.
	Placed bool
}

// String is "kind:id".
func (o Object) String() string { return string(o.Kind) + ":" + o.ID }

// MaxShard is beyond all shards.
const MaxShard Shard = Shards + 1<<placedBits

// placedBits is how many bits the number of a placed object's shard has beyond Shards.
const placedBits = 52

// Shard is the one that the object is in, for ever: FNV-1a of "kind:id" (64 bits,
// http://www.isthe.com/chongo/tech/comp/fnv), its halves folded by XOR, modulo Shards. Of a
// placed object it is Shards and placedBits of the hash, its upper ones folded in likewise.
func (o Object) Shard() Shard {
	h := fnv.New64a()
	_, _ = h.Write([]byte(o.String())) // never fails
	sum := h.Sum64()
	if o.Placed {
		return Shards + Shard((sum>>placedBits^sum)&(1<<placedBits-1))
	}
	return Shard((sum>>32 ^ sum) % Shards)
}

// Check reports why it names no object, or nil. The error has code Invalid and a hint.
func (o Object) Check() error {
	if err := CheckName("kind", string(o.Kind)); err != nil {
		return err
	}
	switch {
	case o.ID == "":
		return Errorf(Invalid, "the id of a %s is empty", o.Kind).WithHint(objectHint)
	case len(o.ID) > MaxObjectIDBytes:
		return Errorf(Invalid, "the id %.20q... of a %s has %d bytes, at most %d are allowed", o.ID, o.Kind, len(o.ID), MaxObjectIDBytes).
			WithHint("an id of 1 to %d bytes", MaxObjectIDBytes)
	case !utf8.ValidString(o.ID):
		return Errorf(Invalid, "the id %.40q of a %s is not UTF-8", o.ID, o.Kind).WithHint(objectHint)
	}
	return nil
}

const objectHint = "an object is app/kind:id, as in bank/account:alice"

// ParseObject reads "app/kind:id"; the id may have any further slash and colon. The
// error has code Invalid and a hint.
func ParseObject(s string) (AppName, Object, error) {
	app, rest, slash := strings.Cut(s, "/")
	kind, id, colon := strings.Cut(rest, ":")
	if !slash || !colon {
		return "", Object{}, Errorf(Invalid, "%.80q does not name an object", s).WithHint(objectHint)
	}
	if err := CheckName("app", app); err != nil {
		return "", Object{}, err
	}
	o := Object{Kind: KindName(kind), ID: id}
	if err := o.Check(); err != nil {
		return "", Object{}, err
	}
	return AppName(app), o, nil
}

// Revision is where a record is in its stream; 0: there is none.
type Revision uint64

// Write is one record of a batch that an app's ownership or its objects are changed by.
type Write struct {
	Key string `json:"key"`
	// Expected is the revision of what it takes the place of; 0: there is none.
	Expected Revision `json:"expected,omitempty"`
	// Guard is another key, not written in the batch, that must be at GuardAt; Expected
	// does not count then: a record has one of both.
	Guard   string   `json:"guard,omitempty"`
	GuardAt Revision `json:"guard_at,omitempty"`
	// Value is what is written; none takes the record away, as no record is empty.
	Value []byte `json:"-"`
}

// Bounds of a batch and of what it is read by.
const (
	MaxBatchWrites = 256
	MaxBatchBytes  = 768 << 10 // values, keys and guards; a message has 1 MiB at most
	MaxReadKeys    = 256
	// MaxObjectBytes bounds a record of an object, with all that goes with its state.
	MaxObjectBytes = 512 << 10
)

// Stored is a record as it is read: through the leader of its stream.
type Stored struct {
	Key      string   `json:"key"`
	Revision Revision `json:"revision,omitempty"` // 0: there is none
	// Value is never empty, but where the record was taken away, by the write at Revision.
	// An hour later, of messages and reminders a minute, there is none.
	Value []byte `json:"-"`
}

// Exists reports whether there is a record.
func (s Stored) Exists() bool { return len(s.Value) > 0 }

func (w Write) String() string {
	if w.Guard != "" {
		return fmt.Sprintf("%s while %s@%d", w.Key, w.Guard, w.GuardAt)
	}
	return fmt.Sprintf("%s@%d", w.Key, w.Expected)
}
