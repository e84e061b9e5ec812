package state

import (
	"fmt"
	"time"

	"github.com/kbroker/kbroker/internal/boottime"
)

// Times are the bounds of leases and of liveness, all on the boottime clock.
type Times struct {
	Heartbeat time.Duration // an agent says that it is there
	Suspect   time.Duration // not heard for this long
	Lost      time.Duration // not heard for this long by any core of a majority

	LeaseRenew   time.Duration // a holder renews this often
	LeaseTerm    time.Duration
	HolderStops  time.Duration // after the SEND of the last renewal that was acknowledged, or read to be there
	ObserverActs time.Duration // after the lease's revision was first seen unchanged
	RenewAttempt time.Duration // one attempt to renew times out
	OutageGrace  time.Duration // nobody is judged this soon after the store came back
}

// Tuned are the times that go with the broker's tuned raft timing, Stock those
// of the stock one.
var (
	Tuned = Times{
		Heartbeat: time.Second, Suspect: 3 * time.Second, Lost: 5 * time.Second,
		LeaseRenew: time.Second, LeaseTerm: 6 * time.Second, HolderStops: 5 * time.Second,
		ObserverActs: 6500 * time.Millisecond, RenewAttempt: 300 * time.Millisecond, OutageGrace: 1500 * time.Millisecond,
	}
	Stock = Times{
		Heartbeat: time.Second, Suspect: 3 * time.Second, Lost: 10 * time.Second,
		LeaseRenew: 2 * time.Second, LeaseTerm: 14 * time.Second, HolderStops: 13 * time.Second,
		ObserverActs: 14500 * time.Millisecond, RenewAttempt: 300 * time.Millisecond, OutageGrace: 3 * time.Second,
	}
)

// Clock is the time since boot, suspended time included.
type Clock func() time.Duration

// Boottime is the Clock of this machine.
func Boottime() time.Duration { return boottime.Now() }

// check refuses times with which two could hold a lease at once.
func (t Times) check() error {
	if t.RenewAttempt <= 0 || t.LeaseRenew <= 0 || t.HolderStops <= t.LeaseRenew || t.ObserverActs <= t.HolderStops {
		return fmt.Errorf("state: impossible times: renew %v (attempt %v) < holder stops %v < observer acts %v must hold",
			t.LeaseRenew, t.RenewAttempt, t.HolderStops, t.ObserverActs)
	}
	return nil
}
