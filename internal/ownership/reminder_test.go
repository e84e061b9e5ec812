package ownership

import (
	"reflect"
	"testing"
	"time"
)

func TestAReminderIsReadAsItWasWritten(t *testing.T) {
	for name, r := range map[string]Reminder{
		"once":                 {Method: "tick", Due: 1_700_000_000_000, CatchUp: "one", Data: []byte(`{"cents":1}`)},
		"again and again":      {Method: "tick", Due: 1, Every: time.Minute, CatchUp: "all", Data: []byte("1\n2\n")},
		"without an argument":  {Method: "tick", CatchUp: "none", Data: []byte{}},
		"argument of any kind": {Method: "tick", CatchUp: "one", Data: []byte{0, 0xff, '\n'}},
	} {
		if got, err := DecodeReminder(r.Encode()); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v is read as %+v (%v)", name, r, got, err)
		}
	}
	// What builds before this one have written.
	got, err := DecodeReminder([]byte(`{"method":"tick","due":1700000000000,"every":60000000000,"catch_up":"all"}` + "\n7"))
	if want := (Reminder{"tick", 1_700_000_000_000, time.Minute, "", "all", []byte("7")}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("a stored reminder is read as %+v (%v), want %+v", got, err, want)
	}
}

// Found by the simulator (seeds 1795874734500465962 and 1795875898968998993): a reminder
// whose object was not loaded for long was taken for one that had its turn, and moved on.
func TestAReminderThatHasWaitedForLongHasNotHadItsTurn(t *testing.T) {
	for name, within := range map[string]time.Duration{"without a deadline": 0, "with a late one": time.Hour} {
		t.Run(name, func(t *testing.T) {
			d := drive(t)
			s := alice.Shard()
			d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1}, 10)
			d.Listening(d.now, s, take[Listen](d).Number)
			begin := func() *Call {
				t.Helper()
				c := &Call{Object: alice, Session: "r.alice.once", Sequence: 7, Confirmed: 7}
				if within > 0 {
					c.Expires = d.now + within
				}
				if !d.Begin(d.now, c) {
					t.Fatal("it serves the object, and begins no call of it")
				}
				return c
			}
			waits := begin()
			load := take[Load](d)
			d.goesOn(Tuned.Window - Tuned.WindowMargin + 1) // the store is away
			d.Loaded(d.now, alice, load.Number, Record{Exists: true, State: []byte("0")}, 5, true)
			claim := take[Commit](d)
			d.Committed(d.now, claim.Stream, claim.Number, Accepted, 6)
			if a := take[Answer](d); a.Answer.Outcome != TooLate || a.Calls[0] != waits {
				t.Fatalf("what has waited for %v is answered %v, want %v: it did not run", Tuned.Window, a.Answer.Outcome, TooLate)
			}
			nothing[Run](d, "it is too old to tell whether it has taken effect")
			again := begin()
			run := take[Run](d)
			if run.Call != again {
				t.Fatalf("%+v runs, want what is begun again", run.Call)
			}
			d.Turned(d.now, alice, run.Activation, done("1"))
			c := take[Commit](d)
			d.Committed(d.now, c.Stream, c.Number, Accepted, 7)
			take[Answer](d)
			begin()
			if a := take[Answer](d); a.Answer.Outcome != Again {
				t.Errorf("one that has had its turn is answered %v, want %v", a.Answer.Outcome, Again)
			}
		})
	}
}

// FuzzDecodeReminder: what anybody has written is read or refused.
func FuzzDecodeReminder(f *testing.F) {
	f.Add(Reminder{Method: "tick", Due: 1, CatchUp: "one", Data: []byte("7")}.Encode())
	f.Add([]byte("due"))
	f.Add([]byte("{\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeReminder(b)
		if err != nil {
			return
		}
		if again, err := DecodeReminder(r.Encode()); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%q is %+v, and read again %+v (%v)", b, r, again, err)
		}
	})
}
