package client

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// History lists the stored versions of an app, newest first. NotFound.
func (c *Client) History(ctx context.Context, app kbroker.AppName) ([]kbroker.HistoryRow, error) {
	rows := []kbroker.HistoryRow{}
	err := c.read(ctx, subjects.VerbHistory, kbroker.ListRequest{Tenant: c.tenant, App: app}, &rows)
	return rows, err
}

// Rollback makes a new version with the content of an old one (0: of the one
// before what is wanted now). Errors: NotFound (no such version), Refused (its
// program is gone), Invalid (no known host can run it), NoLeader, Unavailable.
func (c *Client) Rollback(ctx context.Context, app kbroker.AppName, version int) (kbroker.DeployReply, error) {
	var r kbroker.DeployReply
	req := kbroker.RollbackRequest{Tenant: c.tenant, App: app, Version: version, Request: rand.Text()}
	return r, c.write(ctx, subjects.VerbRollback, req, &r)
}

// Restart has instances replaced by new ones that are started in the same way:
// those of the app, of a service, or with instance that one alone. A stopped app
// is started. Errors: NotFound, Refused, NoLeader, Unavailable.
func (c *Client) Restart(ctx context.Context, app kbroker.AppName, service kbroker.ServiceName, instance kbroker.InstanceID) (kbroker.DeployReply, error) {
	var r kbroker.DeployReply
	req := kbroker.RestartRequest{Tenant: c.tenant, App: app, Service: service, Instance: instance, Request: rand.Text()}
	return r, c.write(ctx, subjects.VerbRestart, req, &r)
}

// FollowReplaced calls show (may be nil) until an instance that is to be
// replaced has gone and the app has what it wants, then returns nil. Errors:
// Refused when the app was stopped; DeadlineExceeded, Unavailable as Follow.
func (c *Client) FollowReplaced(ctx context.Context, app kbroker.AppName, instance kbroker.InstanceID, show func(Progress)) error {
	var since time.Time
	return c.watch(ctx, app, show, func(p Progress) (bool, error) {
		if p.App.Stopped {
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < c.pace.verdictHold {
				return false, nil
			}
			return false, kbroker.Errorf(kbroker.Refused, "%s was stopped", app)
		}
		since = time.Time{}
		for _, r := range p.Instances {
			if r.Instance != nil && *r.Instance == instance && r.State != kbroker.StateExited {
				return false, nil
			}
		}
		return p.App.Ready >= p.App.Wanted, nil
	})
}

// Plan says what deploying app would do; services may be without a digest.
// Errors as Check.
func (c *Client) Plan(ctx context.Context, app kbroker.App) (kbroker.PlanReply, error) {
	var r kbroker.PlanReply
	err := c.ask(ctx, c.slowRead(subjects.VerbPlan), kbroker.PlanRequest{Tenant: c.tenant, App: app}, &r)
	return r, err
}

// DeployPlanned is Deploy for what was planned: Refused when the app is no
// longer as it was when the plan of that check index was made.
func (c *Client) DeployPlanned(ctx context.Context, app kbroker.App, checkIndex uint64) (kbroker.DeployReply, error) {
	return c.deploy(ctx, kbroker.DeployRequest{Tenant: c.tenant, App: app, CheckIndex: checkIndex})
}

// Why says why an app, or one of its instances, is as it is. NotFound.
func (c *Client) Why(ctx context.Context, app kbroker.AppName, instance kbroker.InstanceID) (kbroker.WhyReply, error) {
	var r kbroker.WhyReply
	err := c.ask(ctx, c.slowRead(subjects.VerbWhy), kbroker.WhyRequest{Tenant: c.tenant, App: app, Instance: instance}, &r)
	return r, err
}

// slowRead is a read that a core may have to think about.
func (c *Client) slowRead(verb string) question {
	q := c.readOf(verb)
	q.attempt = c.pace.writeAttempt
	q.budget = 2 * q.attempt
	return q
}
