package ownership

import (
	"time"

	"github.com/kbroker/kbroker"
)

// Effect is what a machine wants done. Whoever drives it does it, and tells the machine
// what became of it by the event that is named with each.
type Effect interface{ effect() }

// Effects of an Owner.
type (
	// Renew has the lease written: LeaseWritten.
	Renew struct {
		Write kbroker.Write
		Sent  time.Duration
	}
	// ReadLease has the own lease read: LeaseRead.
	ReadLease struct{ Asked time.Duration }
	// ReadShard has the assignment and the release of a shard read: Assigned, Released.
	ReadShard struct{ Shard kbroker.Shard }
	// Listen has the requests of a shard heard, under a number that is never used
	// again: Listening when all that is sent from then on is.
	Listen struct {
		Shard  kbroker.Shard
		Number uint64
	}
	// Deafen ends it: Silent when nothing more can arrive under the number.
	Deafen struct {
		Shard  kbroker.Shard
		Number uint64
	}
	// WriteRelease has the release of a shard written: ReleaseWritten.
	WriteRelease struct {
		Shard  kbroker.Shard
		Number uint64
		Write  kbroker.Write
	}
	// Load has the record of an object read: Loaded.
	Load struct {
		Object kbroker.Object
		Number uint64
	}
	// Commit has a batch written: Committed. The same batch may come again, under
	// the same number, when it was not known what became of it.
	Commit struct {
		Stream int
		Number uint64
		Try    int
		Writes []kbroker.Write
	}
	// Inspect has the records of a batch read that was refused: Inspected.
	Inspect struct {
		Stream int
		Number uint64
		Keys   []string
	}
	// ScanOut has the objects of a shard found that have messages stored: ScannedOut.
	ScanOut struct {
		Shard kbroker.Shard
		Epoch uint64
	}
	// LoadOut has the messages of an object read: OutLoaded.
	LoadOut struct {
		Object kbroker.Object
		Number uint64
	}
	// Relay has a message sent to its receiver, under the session of the object's outbox
	// and its number: Relayed.
	Relay struct {
		Object     kbroker.Object
		Activation uint64
		Message    Message
		First      bool // nobody has relayed it before
	}
	// Remove has messages removed that were taken: Removed.
	Remove struct {
		Stream int
		Number uint64
		Writes []kbroker.Write
	}
	// Activate gives an object the state that it goes on from.
	Activate struct {
		Object     kbroker.Object
		Activation uint64
		Record     Record
	}
	// Lend has calls that only read come to an object by its gate from now on, where that is
	// open: ReadersLeft.
	Lend struct {
		Object     kbroker.Object
		Activation uint64
		Epoch      uint64
		Gate       *Gate
	}
	// Run has a call executed: Turned, or ReadDone for one that only reads.
	Run struct {
		Object     kbroker.Object
		Activation uint64
		Epoch      uint64
		Call       *Call
	}
	// Put takes an object's state away.
	Put struct {
		Object     kbroker.Object
		Activation uint64
	}
	// Answer sends the outcome of a call to all who wait for it.
	Answer struct {
		Calls  []*Call
		Answer Reply
	}
	// Over says that the lease is lost: there will be no further effects.
	Over struct{ Reason string }
)

func (Renew) effect()        {}
func (ReadLease) effect()    {}
func (ReadShard) effect()    {}
func (Listen) effect()       {}
func (Deafen) effect()       {}
func (WriteRelease) effect() {}
func (Load) effect()         {}
func (Commit) effect()       {}
func (Inspect) effect()      {}
func (ScanOut) effect()      {}
func (LoadOut) effect()      {}
func (Relay) effect()        {}
func (Remove) effect()       {}
func (Activate) effect()     {}
func (Lend) effect()         {}
func (Run) effect()          {}
func (Put) effect()          {}
func (Answer) effect()       {}
func (Over) effect()         {}

// Call is one request, as it arrived.
type Call struct {
	Object    kbroker.Object
	Session   string
	Sequence  uint64
	Once      string // what it is known by as well, if a turn makes it that may be repeated
	Hash      uint64 // of method and payload
	Confirmed uint64 // all of the session below it are over
	Age       time.Duration
	ReadOnly  bool
	// Linearizable: a read that is to be confirmed by a write.
	Linearizable bool
	Expires      time.Duration // on the clock of the owner
	Data         any           // the driver's own
	removes      uint64        // the message whose refusal it follows
	since        time.Duration // when Age was so much
}

// Reply is the outcome of a call.
type Reply struct {
	Outcome Outcome
	Data    []byte // of Done and Failed: what the application answered; of Again: what it answered then
	Cut     bool   // of Again: the answer was too large to be kept
	Refused []byte // of Done and Again: what a message of an outbox was refused with
	Reason  string
}

// Outcome of a call.
type Outcome int

// Outcomes: what they say of this attempt.
const (
	Done       Outcome = iota // it ran, and what it did is stored
	Again                     // it has taken effect before
	Failed                    // it ran and answered an error: what it did was taken back
	Broken                    // it broke while it ran: what it did was taken back
	Moved                     // not executed: another incarnation owns the object
	Overloaded                // not executed: no room
	Misused                   // not executed: another call took effect under its id
	Expired                   // it is too old to tell whether it was executed
	TooLate                   // not executed: its deadline passed before its turn
	Unknown                   // it may have been executed
	Crossed                   // not executed: it waits for a turn that waits for it
	TooLarge                  // it ran, and its state is more than is stored: what it did was taken back
)

func (o Outcome) String() string {
	return [...]string{"done", "again", "failed", "broken", "moved", "overloaded", "misused", "expired", "too late", "unknown", "crossed", "too large"}[o]
}

// Written is what became of a batch.
type Written int

// What becomes of a batch.
const (
	Accepted     Written = iota
	Refused              // nothing was written by this attempt, nor will be
	NotKnown             // it may have been written, or may yet be
	NotAttempted         // nothing was sent
)
