package ownership

import (
	"encoding/json"
	"slices"
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
	d := &driven{Owner: NewOwner(OwnerConfig{Incarnation: "a.1", Times: simTimes}), t: t, now: time.Hour}
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
