package ownership

import (
	"fmt"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

// What an owner knew of a shard's messages and reminders ends as it stops to hear it: when the
// move is called off it looks through the shard again, at the same epoch.
func TestAShardThatIsHeardAgainIsLookedThroughAgain(t *testing.T) {
	d := drive(t)
	s := alice.Shard()
	mine := Assignment{Owner: "a.1", Epoch: 1}
	d.Assigned(d.now, s, mine, 10)
	d.Listening(d.now, s, take[Listen](d).Number)
	d.ScannedOut(d.now, s, take[ScanOut](d).Epoch, nil, true)
	d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1, Next: "b.1", NextEpoch: 2}, 11)
	d.Silent(d.now, s, take[Deafen](d).Number)
	release := take[WriteRelease](d)
	d.Assigned(d.now, s, mine, 12)
	d.ReleaseWritten(d.now, s, release.Number, Refused)
	take[ReadShard](d)
	d.Assigned(d.now, s, mine, 12)
	d.Listening(d.now, s, take[Listen](d).Number)
	if e := take[ScanOut](d); e.Shard != s || e.Epoch != 1 {
		t.Errorf("looked through is %+v, want shard %d at epoch 1", e, s)
	}
}

// Its refusal would be lost: the message is removed when the turn that follows was there.
func TestAMessageWhoseRefusalWaitsForLongIsNotFollowed(t *testing.T) {
	d := drive(t)
	sub, run := d.serve(alice, []byte("0"))
	sends := done("1")
	sends.Sends = []Send{{To: "bob", Value: []byte("x")}}
	d.Turned(d.now, alice, run.Activation, sends)
	c := take[Commit](d)
	d.Committed(d.now, c.Stream, c.Number, Accepted, 7)
	m := take[Relay](d)
	d.Arrived(d.now, sub, &Call{Object: alice, Session: "s", Sequence: 2})
	run = take[Run](d) // and goes on for long
	follow := func() *Call { return &Call{Object: alice, Session: "f.alice", Sequence: m.Message.Number} }
	d.Relayed(d.now, alice, m.Activation, m.Message.Number, false, follow())
	d.goesOn(Tuned.Window - Tuned.WindowMargin + 1)
	d.Turned(d.now, alice, run.Activation, Turn{Reply: Reply{Outcome: Done}, Exists: true, State: []byte("1")})
	d.goesOn(relayMost)
	nothing[Remove](d, "the turn that follows was not there")
	again := take[Relay](d)
	second := follow()
	d.Relayed(d.now, alice, again.Activation, again.Message.Number, false, second)
	if run := take[Run](d); run.Call != second {
		t.Errorf("%+v runs, want the call that follows the refusal", run.Call)
	}
}

// A batch that a core refuses as too large would be sent again for ever.
func TestEveryBatchIsOneThatACoreTakes(t *testing.T) {
	for name, c := range map[string]struct{ objects, state, sends, value int }{
		"many small ones":                {400, 10, 0, 0},
		"many that fill a batch":         {300, 2_900, 0, 0},
		"large ones":                     {5, 300_000, 0, 0},
		"with messages":                  {100, 2_000, 10, 300},
		"one with as many as it may":     {1, 400_000, 64, 1_500},
		"one with more than a batch has": {1, 500_000, 64, 5_000},
	} {
		t.Run(name, func(t *testing.T) {
			d := drive(t)
			var objects []kbroker.Object
			for n := 0; len(objects) < c.objects; n++ {
				objects = append(objects, kbroker.Object{Kind: "account", ID: fmt.Sprintf("%s-%d", strings.Repeat("x", 100), n)})
			}
			ears := map[kbroker.Shard]uint64{}
			for _, o := range objects {
				if s := o.Shard(); ears[s] == 0 {
					d.Assigned(d.now, s, Assignment{Owner: "a.1", Epoch: 1}, 10)
					listen := take[Listen](d)
					ears[s] = listen.Number
					d.Listening(d.now, s, listen.Number)
				}
			}
			var runs []Run
			for _, o := range objects {
				d.Arrived(d.now, ears[o.Shard()], &Call{Object: o, Session: "s", Sequence: 1})
				runs = append(runs, d.store()...)
			}
			if len(runs) != c.objects {
				t.Fatalf("%d turns, want %d", len(runs), c.objects)
			}
			for _, r := range runs { // all wait behind the first batch
				turn := Turn{Reply: Reply{Outcome: Done}, Changed: true, Exists: true, State: make([]byte, c.state)}
				for range c.sends {
					turn.Sends = append(turn.Sends, Send{To: "x/y:z", Value: make([]byte, c.value)})
				}
				d.Turned(d.now, r.Object, r.Activation, turn)
			}
			d.store()
			for _, o := range objects {
				if x := d.object(o); x != nil && x.phase == committing {
					t.Fatalf("%s still waits to be stored", o)
				}
			}
		})
	}
}

// store takes all that is to be stored, as a core does, until nothing is wanted any more; the
// turns that are to be run are returned.
func (d *driven) store() (runs []Run) {
	d.t.Helper()
	for len(d.effects) > 0 {
		e := d.effects[0]
		d.effects = d.effects[1:]
		switch e := e.(type) {
		case Load:
			d.Loaded(d.now, e.Object, e.Number, Record{}, 0, true)
		case Commit:
			if err := (kbroker.OwnWriteRequest{Writes: e.Writes}).Check(); err != nil {
				d.t.Fatalf("a batch of %d: %v", len(e.Writes), err)
			}
			first := d.rev + 1
			d.rev += kbroker.Revision(len(e.Writes))
			d.Committed(d.now, e.Stream, e.Number, Accepted, first)
		case Run:
			runs = append(runs, e)
		}
	}
	return runs
}
