package ownership

import (
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

const second = time.Second

// driveKind is drive, with accounts of a durability.
func driveKind(t *testing.T, of Durability) *driven {
	d := drive(t)
	d.cfg.Durable = map[kbroker.KindName]Durability{alice.Kind: of}
	return d
}

// nothing holds that nothing of a type is wanted now.
func nothing[E Effect](d *driven, why string) {
	d.t.Helper()
	for _, e := range d.effects {
		if x, ok := e.(E); ok {
			d.t.Fatalf("%s: %+v is wanted", why, x)
		}
	}
}

func done(state string) Turn {
	return Turn{Reply: Reply{Outcome: Done}, Changed: true, Exists: true, State: []byte(state)}
}

// state is what a batch stores of its only object.
func state(t *testing.T, c Commit) string {
	t.Helper()
	r, err := Decode(c.Writes[len(c.Writes)-1].Value)
	if err != nil {
		t.Fatal(err)
	}
	return string(r.State)
}

func TestAnIntervalAnswersFirst(t *testing.T) {
	d := driveKind(t, Durability{Interval: 2 * second})
	sub, run := d.serve(alice, []byte("0"))
	d.Turned(d.now, alice, run.Activation, done("1"))
	if a := take[Answer](d); a.Answer.Outcome != Done {
		t.Fatalf("the answer is %+v", a.Answer)
	}
	nothing[Commit](d, "it is not due yet")
	d.now += second
	d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2})
	d.Turned(d.now, alice, take[Run](d).Activation, done("2"))
	take[Answer](d)
	// It is due from the first turn on, not from the last one.
	d.now += second
	d.Tick(d.now)
	c := take[Commit](d)
	if got := state(t, c); got != "2" {
		t.Errorf("stored is %q, want the newest state", got)
	}
	d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 3})
	nothing[Run](d, "it is being written")
	d.Committed(d.now, c.Stream, c.Number, Accepted, 7)
	take[Run](d)
}

func TestWhatIsToBeStoredFirstIs(t *testing.T) {
	read := &Call{Object: alice, Session: "s", Sequence: 2, ReadOnly: true, Linearizable: true}
	for _, c := range []struct {
		name  string
		call  *Call
		turn  Turn
		leave bool
	}{
		{"a turn with writes", &Call{Object: alice, Session: "s", Sequence: 2}, func() Turn {
			t := done("2")
			t.Writes = []kbroker.Write{{Key: "100.out.account.alice.1", Value: []byte("x")}}
			return t
		}(), false},
		{"a turn of one who leaves", &Call{Object: alice, Session: "s", Sequence: 2}, done("2"), true},
		{"a linearizable read", read, Turn{Reply: Reply{Outcome: Done}, Exists: true, State: []byte("1")}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := driveKind(t, Durability{Interval: 2 * second})
			sub, run := d.serve(alice, []byte("0"))
			d.Turned(d.now, alice, run.Activation, done("1"))
			take[Answer](d)
			if c.leave {
				d.Leave(d.now)
				saved := take[Commit](d)
				if got := state(t, saved); got != "1" {
					t.Errorf("who leaves stores %q", got)
				}
				d.Committed(d.now, saved.Stream, saved.Number, Accepted, 7)
			}
			d.Arrived(d.now, sub, c.call)
			d.Turned(d.now, alice, take[Run](d).Activation, c.turn)
			nothing[Answer](d, "it is not stored yet")
			commit := take[Commit](d)
			if got := state(t, commit); got != string(c.turn.State) {
				t.Errorf("stored is %q, want %q", got, c.turn.State)
			}
			d.Committed(d.now, commit.Stream, commit.Number, Accepted, 8)
			take[Answer](d)
			d.now += 3 * second
			d.Tick(d.now)
			nothing[Commit](d, "there is nothing left to store")
		})
	}
}

func TestATurnThatFailsGoesBackToWhatWasAnswered(t *testing.T) {
	for name, of := range map[string]Durability{"interval": {Interval: 2 * second}, "volatile": {Volatile: true}} {
		t.Run(name, func(t *testing.T) {
			d := driveKind(t, of)
			s := alice.Shard()
			d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1}, 10)
			sub := take[Listen](d).Number
			d.Listening(d.now, s, sub)
			d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 1})
			if !of.Volatile {
				d.Loaded(d.now, alice, take[Load](d).Number, Record{}, 0, true)
				claim := take[Commit](d)
				d.Committed(d.now, claim.Stream, claim.Number, Accepted, 6)
			}
			take[Activate](d)
			d.Turned(d.now, alice, take[Run](d).Activation, done("1"))
			take[Answer](d)
			wrote := done("2")
			wrote.Reply.Outcome = Broken
			if of.Volatile { // it must not have writes: they would be lost without a word
				wrote = done("2")
				wrote.Writes = []kbroker.Write{{Key: "x"}}
			}
			d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2})
			d.Turned(d.now, alice, take[Run](d).Activation, wrote)
			if a := take[Answer](d); a.Answer.Outcome != Broken {
				t.Errorf("the answer is %+v, want it to be broken", a.Answer)
			}
			take[Put](d)
			if a := take[Activate](d); string(a.Record.State) != "1" || !a.Record.Exists {
				t.Errorf("it goes on from %q, want what was answered", a.Record.State)
			}
			nothing[Load](d, "what is stored is older")
			// What was answered is known, what failed is not.
			d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 1})
			if a := take[Answer](d); a.Answer.Outcome != Again {
				t.Errorf("the first call again: %+v", a.Answer)
			}
			d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2})
			take[Run](d)
		})
	}
}

func TestACallThatWaitsIsRefused(t *testing.T) {
	d := drive(t)
	sub, run := d.serve(alice, []byte("0"))
	waits := &Call{Object: alice, Session: "t", Sequence: 1}
	d.Arrived(d.now, sub, waits)
	copied := &Call{Object: alice, Session: "t", Sequence: 1}
	d.Arrived(d.now, sub, copied)
	if d.Refuse(d.now, run.Call, "it runs") {
		t.Error("a call that runs is refused")
	}
	if got := d.Waiting(alice); len(got) != 1 || got[0] != waits {
		t.Fatalf("%d calls wait, want one", len(got))
	}
	if !d.Refuse(d.now, waits, "in a circle") || d.Refuse(d.now, waits, "twice") {
		t.Error("a call that waits is not refused, or twice")
	}
	if a := take[Answer](d); a.Answer.Outcome != Crossed || len(a.Calls) != 2 {
		t.Errorf("%d calls are answered %+v, want both copies", len(a.Calls), a.Answer)
	}
	// Who has lost its lease says nothing.
	d.Arrived(d.now, sub, waits)
	d.now += Tuned.HolderStops + second
	if d.Refuse(d.now, waits, "late") {
		t.Error("without a lease a call is refused")
	}
	nothing[Answer](d, "without a lease")
}
