package node

import (
	"context"
	"time"

	"github.com/kbroker/kbroker/super"
)

const (
	// revokeEvery is how often it is looked at which credentials were taken back.
	revokeEvery = 500 * time.Millisecond
	// revokeAtMost once in this time the broker is told: it goes through all of its
	// clients then, and JetStream's API is not there for a moment. With revokeEvery,
	// and what a report takes, it is within five seconds.
	revokeAtMost = 3 * time.Second
	// revokeAhead is how long before the end of a revocation that was put off the
	// broker is told the later one.
	revokeAhead = time.Minute
)

// isRevoked reports whether the credentials of a user were taken back, as far as this core
// knows.
func (c *core) isRevoked(user string) bool {
	_, out := c.allRevoked()[user]
	return out
}

// allRevoked are the users that this core's disk or its store knows to be out.
func (c *core) allRevoked() map[string]time.Time {
	all := c.revoked.all()
	s := c.planner.Load()
	if s == nil {
		return all
	}
	return latest(all, s.Revoked())
}

// latest is all that is known of some, of each user the latest end.
func latest(some ...map[string]time.Time) map[string]time.Time {
	all := map[string]time.Time{}
	for _, known := range some {
		for user, until := range known {
			if until.After(all[user]) {
				all[user] = until
			}
		}
	}
	return all
}

// told is what the broker was told last of who is to be kept out.
type told struct {
	at    time.Time // when, by the monotonic clock; zero: never while it ran
	until map[string]time.Time
}

// behind reports whether the broker lets somebody in who is out by now: one that it does
// not know, or one whose end was put off and is near. What has ended is no reason: it
// goes with the next that is one.
func (t told) behind(all map[string]time.Time, now time.Time) bool {
	for user, until := range all {
		at, known := t.until[user]
		if !known || at.Before(until) && at.Before(now.Add(revokeAhead)) {
			return true
		}
	}
	return false
}

// revoke keeps the broker from those whose credentials were taken back, until ctx ends.
func (c *core) revoke(ctx context.Context, s *super.Super) error {
	tick := time.NewTicker(revokeEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := c.keepOut(s.Revoked(), false); err != nil {
			c.cfg.Log.Error("credentials that were taken back still hold here; trying again", "component", "node", "err", err)
		}
	}
}

// keepOut has this core's disk, and the broker, know more users that are out: the broker
// when it was told long enough ago, as whoever calls calls again; or at once.
func (c *core) keepOut(more map[string]time.Time, once bool) error {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	if _, err := c.revoked.add(more); err != nil {
		c.cfg.Log.Warn("which credentials were taken back is not stored; a restart will ask the other cores", "component", "node", "err", err)
	}
	all := c.revoked.all()
	if !c.told.behind(all, c.id.now()) || !once && !c.told.at.IsZero() && time.Since(c.told.at) < revokeAtMost {
		return nil
	}
	// From its end on: a server that is slow must not be asked again while it works.
	err := c.broker.Revoke(all)
	c.told.at = time.Now()
	if err == nil {
		c.told.until = all
	}
	return err
}
