package ownership

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// renewals are those that an owner wants sent.
func renewals(t *testing.T, o *Owner) (all []Renew, leases []Lease) {
	t.Helper()
	for _, e := range o.Effects() {
		if r, ok := e.(Renew); ok {
			var l Lease
			if err := json.Unmarshal(r.Write.Value, &l); err != nil {
				t.Fatal(err)
			}
			all, leases = append(all, r), append(leases, l)
		}
	}
	return all, leases
}

// one is the only one.
func one(t *testing.T, o *Owner) (Renew, Lease) {
	t.Helper()
	all, leases := renewals(t, o)
	if len(all) != 1 {
		t.Fatalf("%d renewals, want one", len(all))
	}
	return all[0], leases[0]
}

func begun(t *testing.T) *Owner {
	t.Helper()
	o := NewOwner(OwnerConfig{Incarnation: "w-1.a", Times: simTimes})
	o.Tick(time.Millisecond)
	r, _ := one(t, o)
	o.LeaseWritten(2*time.Millisecond, r.Sent, Accepted, 1)
	return o
}

func TestWhoLeavesSaysSoAtOnce(t *testing.T) {
	const ms = time.Millisecond
	o := begun(t)
	o.Leave(5 * ms)
	o.Leave(5 * ms)
	r, l := one(t, o)
	if !l.Leaving || r.Write.Expected != 1 {
		t.Fatalf("renewed as %+v behind %d", l, r.Write.Expected)
	}
	o.LeaseWritten(6*ms, r.Sent, Accepted, 2)
	o.Tick(7 * ms)
	if all, _ := renewals(t, o); len(all) != 0 || !o.Valid(7*ms) {
		t.Fatalf("%d more renewals, valid %t: it has said so and serves on", len(all), o.Valid(7*ms))
	}
	o.Tick(7*ms + simTimes.Renew)
	if _, l := one(t, o); !l.Leaving {
		t.Errorf("the next renewal takes it back: %+v", l)
	}
}

func TestWhoLeavesSaysSoBehindWhatIsUnderWay(t *testing.T) {
	const ms = time.Millisecond
	at := simTimes.Renew + 2*ms
	underWay := func(t *testing.T) (*Owner, Renew, Lease) {
		o := begun(t)
		o.Tick(at)
		r, l := one(t, o)
		o.Leave(at + ms)
		if all, _ := renewals(t, o); len(all) != 0 || l.Leaving {
			t.Fatalf("%d renewals beside the one that is under way, which says %+v", len(all), l)
		}
		return o, r, l
	}
	t.Run("that is accepted", func(t *testing.T) {
		o, r, before := underWay(t)
		o.LeaseWritten(at+2*ms, r.Sent, Accepted, 2)
		if r, l := one(t, o); !l.Leaving || l.Number <= before.Number || r.Write.Expected != 2 {
			t.Errorf("renewed as %+v behind %d", l, r.Write.Expected)
		}
	})
	t.Run("that was accepted, which nobody heard", func(t *testing.T) {
		o, _, before := underWay(t)
		o.Tick(at + simTimes.RenewAttempt)
		r, l := one(t, o)
		if !l.Leaving || r.Write.Expected != 1 {
			t.Fatalf("the next attempt is %+v behind %d", l, r.Write.Expected)
		}
		o.LeaseWritten(at+simTimes.RenewAttempt+ms, r.Sent, Refused, 0)
		o.Effects()
		o.LeaseRead(at+simTimes.RenewAttempt+2*ms, before, 2)
		if r, l := one(t, o); !l.Leaving || r.Write.Expected != 2 {
			t.Errorf("renewed as %+v behind %d: what is stored does not say it", l, r.Write.Expected)
		}
	})
	t.Run("that was lost", func(t *testing.T) {
		o, _, _ := underWay(t)
		o.Tick(at + simTimes.RenewAttempt)
		r, _ := one(t, o)
		o.LeaseWritten(at+simTimes.RenewAttempt+ms, r.Sent, Accepted, 2)
		o.Tick(at + simTimes.RenewAttempt + 2*ms)
		if all, _ := renewals(t, o); len(all) != 0 {
			t.Errorf("%d more renewals, want none", len(all))
		}
	})
}

// A store that takes long is not asked ever more: what it is asked for is one renewal, now and then
// a second one, and no read, as the answers come.
func TestRenewalsOfASlowStore(t *testing.T) {
	for name, c := range map[string]struct {
		takes  time.Duration
		writes float64 // for each term that is accepted, at most
	}{
		"fast":                    {simTimes.RenewAttempt / 10, 1},
		"a little late":           {simTimes.RenewAttempt * 3 / 2, 2},
		"three times":             {simTimes.RenewAttempt * 3, 3},
		"nearly half of the term": {simTimes.HolderStops * 9 / 20, 6},
	} {
		t.Run(name, func(t *testing.T) {
			type pending struct {
				due  time.Duration
				sent Renew
			}
			o, rev := begun(t), kbroker.Revision(1)
			var under []pending
			writes, accepted := 0, 0
			const step = time.Millisecond
			for now := simTimes.Renew; now < 100*simTimes.Renew; now += step {
				for len(under) > 0 && under[0].due <= now {
					p := under[0]
					under = under[1:]
					if p.sent.Write.Expected != rev {
						o.LeaseWritten(now, p.sent.Sent, Refused, 0)
						continue
					}
					rev++
					accepted++
					o.LeaseWritten(now, p.sent.Sent, Accepted, rev)
				}
				o.Tick(now)
				for _, e := range o.Effects() {
					switch e := e.(type) {
					case Renew:
						writes++
						under = append(under, pending{now + c.takes, e})
					case ReadLease:
						t.Fatalf("after %v the lease is read, though answers come", now)
					case Over:
						t.Fatalf("after %v: %s", now, e.Reason)
					}
				}
			}
			if t.Logf("%d writes for %d renewals", writes, accepted); float64(writes) > c.writes*float64(accepted)+1 || accepted < 15 {
				t.Errorf("%d writes for %d renewals", writes, accepted)
			}
		})
	}
}
