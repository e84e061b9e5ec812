package ownership

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// driven is an owner whose store is the test: effects are answered one by one.
type driven struct {
	*Owner
	t   *testing.T
	now time.Duration
	rev kbroker.Revision
}

func drive(t *testing.T) *driven {
	d := &driven{Owner: NewOwner(OwnerConfig{Incarnation: "a.1", Times: Tuned}), t: t, now: time.Hour}
	d.Tick(d.now)
	d.renewed()
	return d
}

// take returns the one effect of a type that is wanted now.
func take[E Effect](d *driven) E {
	d.t.Helper()
	var found []E
	d.effects = slices.DeleteFunc(d.effects, func(e Effect) bool {
		if x, ok := e.(E); ok && len(found) == 0 {
			found = append(found, x)
			return true
		}
		return false
	})
	if len(found) == 0 {
		var none E
		d.t.Fatalf("no %T is wanted: %v", none, d.effects)
	}
	return found[0]
}

func (d *driven) renewed() Lease {
	d.t.Helper()
	e := take[Renew](d)
	d.rev++
	d.LeaseWritten(d.now, e.Sent, Accepted, d.rev)
	var l Lease
	if err := json.Unmarshal(e.Write.Value, &l); err != nil {
		d.t.Fatal(err)
	}
	return l
}

// goesOn lets a time pass in which the owner keeps its lease.
func (d *driven) goesOn(during time.Duration) {
	d.t.Helper()
	end := d.now + during
	for d.now+Tuned.Renew < end {
		d.now += Tuned.Renew
		d.Tick(d.now)
		d.renewed()
	}
	d.now = end
	d.Tick(d.now)
}

// serve has the owner serve the shard of an object, and run a first call of it.
func (d *driven) serve(o kbroker.Object, state []byte) (sub uint64, run Run) {
	d.t.Helper()
	d.Assigned(d.now, o.Shard(), Assignment{Owner: "a.1", Epoch: 1}, 10)
	listen := take[Listen](d)
	d.Listening(d.now, o.Shard(), listen.Number)
	d.Arrived(d.now, listen.Number, &Call{Object: o, Session: "s", Sequence: 1})
	load := take[Load](d)
	d.Loaded(d.now, o, load.Number, Record{Exists: state != nil, State: state}, 5, true)
	claim := take[Commit](d)
	d.Committed(d.now, claim.Stream, claim.Number, Accepted, 6)
	take[Activate](d)
	return listen.Number, take[Run](d)
}

var alice = kbroker.Object{Kind: "account", ID: "alice"}

// Found by the simulator (seed 1795832275213432171): what became of the release of an
// earlier epoch came when the shard was owned again, and took the epoch away from it.
func TestALateRefusalOfAReleaseIsNoneOfTheShardAsItIsNow(t *testing.T) {
	d := drive(t)
	s := alice.Shard()
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1}, 10)
	d.Listening(d.now, s, take[Listen](d).Number)
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1, Next: "b.1", NextEpoch: 2}, 11)
	d.Silent(d.now, s, take[Deafen](d).Number)
	release := take[WriteRelease](d)
	d.Assigned(d.now, s, Assignment{Owner: "b.1", Epoch: 2, Next: "a.1", NextEpoch: 3}, 12)
	d.Released(d.now, s, Release{Epoch: 2, To: "a.1", ToEpoch: 3}, 13)
	d.Listening(d.now, s, take[Listen](d).Number)
	d.ReleaseWritten(d.now, s, release.Number, Refused)
	if got := d.Owned(); got[s] != 3 {
		t.Errorf("owned are %v, want shard %d at epoch 3: %s", got, s, d)
	}
}

func TestWhoLeavesHoldsUntilAllIsMoved(t *testing.T) {
	d := drive(t)
	s := alice.Shard()
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1}, 10)
	d.Listening(d.now, s, take[Listen](d).Number)
	d.Leave(d.now)
	if l := d.renewed(); !l.Leaving {
		t.Errorf("the lease is %+v, want it to say that its holder leaves", l)
	}
	if d.Holds() != 1 || !d.Valid(d.now) {
		t.Errorf("holds %d shards, valid %t; want 1 and true: nobody else serves it yet", d.Holds(), d.Valid(d.now))
	}
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1, Next: "b.1", NextEpoch: 2}, 11)
	d.Silent(d.now, s, take[Deafen](d).Number)
	release := take[WriteRelease](d)
	if d.Holds() != 1 {
		t.Errorf("holds %d shards while the release is under way, want 1", d.Holds())
	}
	d.ReleaseWritten(d.now, s, release.Number, Accepted)
	if d.Holds() != 0 {
		t.Errorf("holds %d shards after the release, want none: %s", d.Holds(), d)
	}
}

func TestAStateThatIsTooLargeIsTakenBack(t *testing.T) {
	d := drive(t)
	sub, run := d.serve(alice, []byte("before"))
	d.Turned(d.now, alice, run.Activation, Turn{Reply: Reply{Outcome: Done}, Changed: true, Exists: true, State: make([]byte, kbroker.MaxObjectBytes)})
	if a := take[Answer](d).Answer; a.Outcome != TooLarge || !strings.Contains(a.Reason, "bytes") {
		t.Errorf("answered %+v, want too large with the sizes", a)
	}
	take[Put](d)
	d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2})
	take[Load](d) // anew, as it was
}

func TestAKindHasItsOwnMailbox(t *testing.T) {
	d := drive(t)
	d.cfg.Mailboxes = map[kbroker.KindName]int{"account": 2}
	sub, _ := d.serve(alice, nil)
	for n := range uint64(3) {
		d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2 + n})
	}
	if a := take[Answer](d); a.Answer.Outcome != Overloaded || a.Calls[0].Sequence != 4 {
		t.Errorf("call %d is answered %s, want overloaded for the third that waits", a.Calls[0].Sequence, a.Answer.Outcome)
	}
}

// TestShardsAreReleasedAFewAtATime: the others are served until their turn comes.
func TestShardsAreReleasedAFewAtATime(t *testing.T) {
	d := drive(t)
	const all = 3 * maxSilent
	for n := range kbroker.Shard(all) {
		d.Assigned(d.now, n, Assignment{Owner: "a.1", Epoch: 1}, 10)
		d.Listening(d.now, n, take[Listen](d).Number)
		take[ScanOut](d)
		d.ScannedOut(d.now, n, 1, nil, true)
	}
	for n := range kbroker.Shard(all) {
		d.Assigned(d.now, n, Assignment{Owner: "a.1", Epoch: 1, Next: "b.1", NextEpoch: 2}, 11)
	}
	silent := func() (some []Deafen) {
		for _, e := range d.Effects() {
			if e, ok := e.(Deafen); ok {
				some = append(some, e)
			}
		}
		return some
	}
	first := silent()
	if len(first) != maxSilent || len(d.Owned()) != all-maxSilent {
		t.Fatalf("%d shards fall silent and %d are served, want %d and %d", len(first), len(d.Owned()), maxSilent, all-maxSilent)
	}
	d.Silent(d.now, first[0].Shard, first[0].Number)
	d.ReleaseWritten(d.now, first[0].Shard, take[WriteRelease](d).Number, Accepted)
	if next := silent(); len(next) != 1 || d.Owned()[next[0].Shard] != 0 {
		t.Errorf("%d shards fall silent behind the first that was released, want 1: %v", len(next), next)
	}
	d.now += silentFor
	d.Tick(d.now)
	if next := silent(); len(next) != maxSilent {
		t.Errorf("%d shards fall silent when those before take long, want %d", len(next), maxSilent)
	}
}
