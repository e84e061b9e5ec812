package ownership

import (
	"testing"
	"time"
)

// counts holds that what is counted of the objects in memory is what they have.
func (w *world) counts(o *Owner) {
	messages, calls := 0, 0
	for _, s := range o.shards {
		for _, x := range s.objects {
			messages, calls = messages+len(x.out.messages), calls+len(x.queue)
		}
	}
	if f := o.Figures(); f.Messages != messages || f.Waiting != calls {
		w.fail("%s counts %d messages and %d calls that wait, and has %d and %d", o.cfg.Incarnation, f.Messages, f.Waiting, messages, calls)
	}
}

func TestWhatAnOwnerCounts(t *testing.T) {
	d := drive(t)
	s := alice.Shard()
	is := func(what string, want Figures) {
		t.Helper()
		if got := d.Figures(); got != want {
			t.Fatalf("%s: %+v, want %+v", what, got, want)
		}
	}
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1}, 10)
	listen := take[Listen](d)
	is("given, not heard", Figures{})
	d.now += 20 * time.Millisecond
	d.Listening(d.now, s, listen.Number)
	d.Arrived(d.now, listen.Number, &Call{Object: alice, Session: "s", Sequence: 1})
	d.Loaded(d.now, alice, take[Load](d).Number, Record{Exists: true, State: []byte("0")}, 5, true)
	claim := take[Commit](d)
	d.Committed(d.now, claim.Stream, claim.Number, Accepted, 6)
	want := Figures{Activations: 1, Commits: 1, Taken: 1, TakenFor: 20 * time.Millisecond}
	is("loaded and claimed", want)

	turn := done("1")
	turn.Sends = []Send{{To: "x/y:z", Value: []byte("m")}}
	d.Turned(d.now, alice, take[Run](d).Activation, turn)
	c := take[Commit](d)
	d.Committed(d.now, c.Stream, c.Number, Refused, 0)
	found := []Found{{}, {Record: Record{Epoch: 1, Owner: "a.1"}, Revision: 6}}
	d.Inspected(d.now, c.Stream, take[Inspect](d).Number, found, true)
	c = take[Commit](d)
	d.Committed(d.now, c.Stream, c.Number, Accepted, 7)
	want.Turns, want.Commits, want.CommitsRefused, want.Messages = 1, 2, 1, 1
	is("a turn, whose batch was refused once", want)
	m := take[Relay](d)
	d.Relayed(d.now, alice, m.Activation, m.Message.Number, true, nil)
	want.Messages = 0
	is("its message is taken", want)

	d.Arrived(d.now, listen.Number, &Call{Object: alice, Session: "s", Sequence: 2, ReadOnly: true})
	run := take[Run](d)
	d.ReadDone(d.now, alice, run.Activation, run.Call, Reply{Outcome: Done})
	d.Arrived(d.now, listen.Number, &Call{Object: alice, Session: "s", Sequence: 1, Hash: 7})
	want.Reads, want.Refused = 1, 1
	is("a read, and an id that is used twice", want)

	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1, Next: "b.1", NextEpoch: 2}, 11)
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1}, 12)
	d.Silent(d.now, s, take[Deafen](d).Number)
	d.Listening(d.now, s, take[Listen](d).Number)
	is("a move that was called off", want)
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1, Next: "b.1", NextEpoch: 2}, 13)
	d.now += 30 * time.Millisecond
	d.Silent(d.now, s, take[Deafen](d).Number)
	d.now += 5 * time.Millisecond
	d.ReleaseWritten(d.now, s, take[WriteRelease](d).Number, Accepted)
	want.Released, want.ReleasedFor = 1, 35*time.Millisecond
	is("released", want)
	d.Assigned(d.now, s, Assignment{Owner: "b.1", Epoch: 2, Next: "a.1", NextEpoch: 3}, 14)
	d.now += time.Second // is the other's
	d.Released(d.now, s, Release{Epoch: 2, To: "a.1", ToEpoch: 3}, 15)
	d.now += 3 * time.Millisecond
	d.Listening(d.now, s, take[Listen](d).Number)
	want.Taken, want.TakenFor = 2, 23*time.Millisecond
	is("back again", want)
}

// An object that goes out of memory with what it has to send has none any more.
func TestMessagesOfAShardThatIsLostAreNotCounted(t *testing.T) {
	d := drive(t)
	_, run := d.serve(alice, []byte("0"))
	turn := done("1")
	turn.Sends = []Send{{To: "x/y:z", Value: []byte("m")}, {To: "x/y:z", Value: []byte("n")}}
	d.Turned(d.now, alice, run.Activation, turn)
	c := take[Commit](d)
	d.Committed(d.now, c.Stream, c.Number, Accepted, 7)
	if n := d.Figures().Messages; n != 2 {
		t.Fatalf("%d messages wait, want 2", n)
	}
	d.Assigned(d.now, alice.Shard(), Assignment{Owner: "b.1", Epoch: 2}, 11)
	if n := d.Figures().Messages; n != 0 {
		t.Errorf("%d messages wait in a shard that is another's", n)
	}
}

func TestCallsThatWaitAreCounted(t *testing.T) {
	d := drive(t)
	sub, run := d.serve(alice, []byte("0"))
	is := func(when string, want int) {
		t.Helper()
		if n := d.Figures().Waiting; n != want {
			t.Fatalf("%s: %d calls are counted that wait, want %d", when, n, want)
		}
	}
	is("the only call runs", 0)
	for n := range uint64(4) {
		d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2 + n, Expires: d.now + time.Duration(1+n)*time.Millisecond})
	}
	is("four came behind it", 4)
	d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2})
	is("a copy of one of them came", 4)
	d.now += time.Millisecond
	d.Tick(d.now)
	is("the deadline of one has passed", 3)
	if !d.Refuse(d.now, d.Owner.Waiting(alice)[0], "a test") {
		t.Fatal("a call that waits is not refused")
	}
	is("one was refused", 2)
	d.Turned(d.now, alice, run.Activation, done("0"))
	c := take[Commit](d)
	d.Committed(d.now, c.Stream, c.Number, Accepted, 7)
	is("the next one runs", 1)
	d.Turned(d.now, alice, take[Run](d).Activation, Turn{Reply: Reply{Outcome: Failed}})
	take[Load](d)
	is("the object is loaded once more, for the last one", 1)
	d.Assigned(d.now, alice.Shard(), Assignment{Owner: "b.1", Epoch: 2}, 11)
	is("another owns it", 0)
}
