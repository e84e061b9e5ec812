package client

import (
	"context"
	"errors"
	"time"

	"github.com/kbroker/kbroker"
)

// followSilence is how long no core may answer before following ends: any
// election of a leader is over by then.
const followSilence = 30 * time.Second

// Progress is one look at an app.
type Progress struct {
	App       kbroker.AppRow
	Instances []kbroker.InstanceRow
}

// Follow calls show (may be nil) with the state of the app until the rollout of
// version is done, then returns nil. Errors: Failed with the reason when the
// rollout failed; Refused when another version or a stop overtook it;
// DeadlineExceeded when ctx ended first - the rollout goes on; Unavailable.
func (c *Client) Follow(ctx context.Context, app kbroker.AppName, version int, show func(Progress)) error {
	var verdict string
	var since time.Time
	return c.watch(ctx, app, show, func(p Progress) (bool, error) {
		done, err := judge(p.App, version)
		if err == nil {
			verdict = ""
			return done, nil
		}
		if verdict != err.Error() {
			verdict, since = err.Error(), time.Now()
		}
		if time.Since(since) < c.pace.verdictHold {
			return false, nil
		}
		return false, err
	})
}

// judge says what a row means for the rollout of a version.
func judge(row kbroker.AppRow, version int) (done bool, err error) {
	switch {
	case row.Version > version:
		return false, kbroker.Errorf(kbroker.Refused, "version %d of %s was overtaken by version %d", version, row.App, row.Version).
			WithHint("`kbroker apps` shows how far that one is")
	case row.Version < version:
		// A core that is behind, or an automatic return to the version before.
		if row.Rollout == kbroker.RolloutRunning || row.Reason == "" {
			return false, nil
		}
		return false, kbroker.Errorf(kbroker.Failed, "%s: %s", row.App, row.Reason).
			WithHint("version %d is wanted again", row.Version)
	case row.Stopped:
		return false, kbroker.Errorf(kbroker.Refused, "%s was stopped", row.App)
	case row.Rollout == kbroker.RolloutFailed:
		e := kbroker.Errorf(kbroker.Failed, "version %d of %s failed: %s", version, row.App, row.Reason)
		if len(row.Unplaced) > 0 {
			u := row.Unplaced[0]
			return false, e.WithHint("%d of %s/%s not placed: %s", u.Count, row.App, u.Service, u.Reason)
		}
		return false, e
	}
	return row.Rollout == kbroker.RolloutDone, nil
}

// FollowStop calls show (may be nil) until nothing of a stopped app runs any
// more, then returns nil. Errors: Refused when it was started again;
// DeadlineExceeded, Unavailable as Follow.
func (c *Client) FollowStop(ctx context.Context, app kbroker.AppName, show func(Progress)) error {
	var since time.Time
	return c.watch(ctx, app, show, func(p Progress) (bool, error) {
		if !p.App.Stopped {
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < c.pace.verdictHold {
				return false, nil
			}
			return false, kbroker.Errorf(kbroker.Refused, "%s was started again", app)
		}
		since = time.Time{}
		for _, r := range p.Instances {
			if r.State != kbroker.StateExited {
				return false, nil
			}
		}
		return true, nil
	})
}

// watch looks at an app until enough says so.
func (c *Client) watch(ctx context.Context, app kbroker.AppName, show func(Progress), enough func(Progress) (bool, error)) error {
	return c.poll(ctx, "the change to "+string(app), "kbroker ps "+string(app), func() (bool, error) {
		p, err := c.progress(ctx, app)
		if errors.Is(err, kbroker.NotFound) {
			// Of what was just written: a core that is behind.
			return false, kbroker.Errorf(kbroker.Unavailable, "%v", err)
		}
		if err != nil {
			return false, err
		}
		if show != nil {
			show(p)
		}
		return enough(p)
	})
}

// poll looks until it is done. That nobody answers is borne for followSilence.
// what goes on when ctx ends first, and command shows how far it is.
func (c *Client) poll(ctx context.Context, what, command string, look func() (done bool, err error)) error {
	heard := time.Now()
	tick := time.NewTicker(c.pace.followEvery)
	defer tick.Stop()
	for {
		done, err := look()
		switch {
		case err == nil:
			if heard = time.Now(); done {
				return nil
			}
		case errors.Is(err, kbroker.Unavailable):
			if time.Since(heard) > followSilence {
				return err
			}
		case ctx.Err() == nil:
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline passed; %s goes on", what).
				WithHint("%s shows how far it is", command)
		case <-tick.C:
		}
	}
}

func (c *Client) progress(ctx context.Context, app kbroker.AppName) (Progress, error) {
	row, err := c.App(ctx, app)
	if err != nil {
		return Progress{}, err
	}
	rows, err := c.Instances(ctx, app, false)
	return Progress{App: row, Instances: rows}, err
}
