package ownership

import "time"

// Figures are what an owner has counted since it began. Nothing is decided by them.
type Figures struct {
	Turns       uint64 // that have ended, those of an owner whose lease is lost left out
	Reads       uint64 // calls that only read, likewise
	Refused     uint64 // calls that were refused: not executed, or too late to tell
	Activations uint64 // objects that came into memory

	Commits        uint64 // batches that were written, with what one or more turns did, or claims
	CommitsRefused uint64 // those that were not, as something in them was not where it was expected

	// Taken are shards that the owner has begun to serve, TakenFor how long that took, all in
	// all: from when it was to, till it heard their requests. Released are those that it has
	// left to another, and ReleasedFor how long: from when it began to hear no more, till the
	// release was stored.
	Taken, Released       uint64
	TakenFor, ReleasedFor time.Duration

	// Of now: messages of the outboxes of objects in memory that wait to be taken, and calls
	// that wait for their object.
	Messages, Waiting int
}

// Figures are those of now.
func (o *Owner) Figures() Figures { return o.figures }

// ReadByGates counts calls that came by gates.
func (o *Owner) ReadByGates(n uint64) { o.figures.Reads += n }

// served notes that a shard's requests are heard.
func (s *shard) served(now time.Duration) {
	if s.role == owning && s.taking != 0 {
		s.owner.figures.Taken++
		s.owner.figures.TakenFor += now - s.taking
		s.taking = 0
	}
}

// left notes that the release of a shard is stored.
func (s *shard) left(now time.Duration) {
	if s.leaving != 0 {
		s.owner.figures.Released++
		s.owner.figures.ReleasedFor += now - s.leaving
		s.leaving = 0
	}
}

// refuses reports whether a call of this outcome was not executed.
func (o Outcome) refuses() bool {
	switch o {
	case Moved, Overloaded, Misused, Expired, TooLate, Crossed:
		return true
	}
	return false
}
