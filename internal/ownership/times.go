package ownership

import (
	"fmt"
	"time"
)

// Times are the bounds of leases and retries, on the boottime clock of whoever counts.
type Times struct {
	Renew        time.Duration // a lease is renewed this often
	RenewAttempt time.Duration // an attempt that is not answered is repeated
	HolderStops  time.Duration // after the SENDING of the last renewal that was accepted
	ObserverActs time.Duration // after the revision was first seen unchanged
	OutageGrace  time.Duration // nobody is judged this soon after the store was away
	Window       time.Duration // a request is known for this long
	WindowMargin time.Duration // and refused by its age this much earlier
	MoveDeadline time.Duration // a move that takes longer is cancelled
}

// Tuned are the times that go with the broker's tuned raft timing, Stock those of the
// stock one: their leases are as those of the cluster's leader.
var (
	Tuned = Times{
		Renew: time.Second, RenewAttempt: 300 * time.Millisecond, HolderStops: 5 * time.Second, ObserverActs: 6500 * time.Millisecond,
		OutageGrace: 1500 * time.Millisecond, Window: time.Minute, WindowMargin: 10 * time.Second, MoveDeadline: 10 * time.Second,
	}
	Stock = Times{
		Renew: 2 * time.Second, RenewAttempt: 300 * time.Millisecond, HolderStops: 13 * time.Second, ObserverActs: 14500 * time.Millisecond,
		OutageGrace: 3 * time.Second, Window: time.Minute, WindowMargin: 10 * time.Second, MoveDeadline: 10 * time.Second,
	}
)

// Check refuses times with which two could hold a lease at once, or a request could
// outlive what is known of it.
func (t Times) Check() error {
	if t.RenewAttempt <= 0 || t.Renew <= 0 || t.HolderStops <= t.Renew || t.ObserverActs <= t.HolderStops {
		return fmt.Errorf("ownership: impossible times: renew %v (attempt %v) < holder stops %v < observer acts %v must hold",
			t.Renew, t.RenewAttempt, t.HolderStops, t.ObserverActs)
	}
	if t.WindowMargin <= 0 || t.Window <= t.WindowMargin || t.MoveDeadline <= 0 {
		return fmt.Errorf("ownership: impossible times: window %v (margin %v), move %v", t.Window, t.WindowMargin, t.MoveDeadline)
	}
	return nil
}

// term is the holder's side of a lease.
type term struct {
	times Times
	since time.Duration // the sending of the last renewal that was accepted
	held  bool
	lost  bool
}

// accepted notes a renewal that was sent then; answered is when that was heard.
func (t *term) accepted(sent, answered time.Duration) {
	if t.lost {
		return
	}
	if !ruleTermFromSend {
		sent = answered
	}
	if !t.held || sent > t.since {
		t.held, t.since = true, sent
	}
}

// valid reports whether the lease is held now.
func (t *term) valid(now time.Duration) bool {
	return t.held && !t.lost && now-t.since < t.times.HolderStops
}

// over reports whether it was held, and is no more.
func (t *term) over(now time.Duration) bool {
	return !t.lost && t.held && now-t.since >= t.times.HolderStops
}
