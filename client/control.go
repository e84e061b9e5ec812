package client

import (
	"context"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Deploy makes app the wanted version. Its artifacts must have been put
// before. Errors: Invalid (a constraint that no known host meets, an artifact
// that is not there), NoLeader, Unavailable.
func (c *Client) Deploy(ctx context.Context, app kbroker.App) (kbroker.DeployReply, error) {
	return c.deploy(ctx, kbroker.DeployRequest{Tenant: c.tenant, App: app})
}

// Check answers as Deploy would and changes nothing. Services may still be
// without their artifact.
func (c *Client) Check(ctx context.Context, app kbroker.App) (kbroker.DeployReply, error) {
	return c.deploy(ctx, kbroker.DeployRequest{Tenant: c.tenant, App: app, DryRun: true})
}

func (c *Client) deploy(ctx context.Context, req kbroker.DeployRequest) (kbroker.DeployReply, error) {
	var r kbroker.DeployReply
	return r, c.write(ctx, subjects.VerbDeploy, req, &r)
}

// Scale sets the number of instances of a service (empty: of the app's only
// one) by a new version. Errors: NotFound, Invalid, NoLeader, Unavailable.
func (c *Client) Scale(ctx context.Context, app kbroker.AppName, service kbroker.ServiceName, count int) (kbroker.DeployReply, error) {
	var r kbroker.DeployReply
	req := kbroker.ScaleRequest{Tenant: c.tenant, App: app, Service: service, Count: count}
	return r, c.write(ctx, subjects.VerbScale, req, &r)
}

// Stop ends all instances of an app; its spec and versions stay. It returns
// when that is wanted, not when it has happened. Errors: NotFound, NoLeader,
// Unavailable.
func (c *Client) Stop(ctx context.Context, app kbroker.AppName) error {
	return c.write(ctx, subjects.VerbStop, kbroker.StopRequest{Tenant: c.tenant, App: app}, nil)
}

// Apps lists the tenant's apps. Never nil.
func (c *Client) Apps(ctx context.Context) ([]kbroker.AppRow, error) {
	rows := []kbroker.AppRow{}
	err := c.read(ctx, subjects.VerbApps, kbroker.ListRequest{Tenant: c.tenant}, &rows)
	return rows, err
}

// App is one app's row. NotFound when there is none of that name.
func (c *Client) App(ctx context.Context, name kbroker.AppName) (kbroker.AppRow, error) {
	var rows []kbroker.AppRow
	if err := c.read(ctx, subjects.VerbApps, kbroker.ListRequest{Tenant: c.tenant, App: name}, &rows); err != nil {
		return kbroker.AppRow{}, err
	}
	for _, r := range rows {
		if r.App == name {
			return r, nil
		}
	}
	return kbroker.AppRow{}, kbroker.Errorf(kbroker.NotFound, "there is no app %q", name).WithHint("`kbroker apps` lists them")
}

// Instances lists the wanted instances and what still runs; with app only
// those of one app, with all the ended ones too. Never nil.
func (c *Client) Instances(ctx context.Context, app kbroker.AppName, all bool) ([]kbroker.InstanceRow, error) {
	rows := []kbroker.InstanceRow{}
	err := c.read(ctx, subjects.VerbInstances, kbroker.ListRequest{Tenant: c.tenant, App: app, All: all}, &rows)
	return rows, err
}

// Measured is Instances with the figures of what runs.
func (c *Client) Measured(ctx context.Context, app kbroker.AppName, all bool) ([]kbroker.InstanceRow, error) {
	rows := []kbroker.InstanceRow{}
	err := c.read(ctx, subjects.VerbInstances, kbroker.ListRequest{Tenant: c.tenant, App: app, All: all, Wide: true}, &rows)
	return rows, err
}

// Figures are what one core knows of hosts and instances now, with app of the instances
// of one app: cheaper than the lists, for who asks each second, and maybe a moment behind
// them.
func (c *Client) Figures(ctx context.Context, app kbroker.AppName) (kbroker.FiguresReply, error) {
	var r kbroker.FiguresReply
	err := c.read(ctx, subjects.VerbFigures, kbroker.ListRequest{Tenant: c.tenant, App: app}, &r)
	return r, err
}

// Hosts lists the hosts of the cluster; with all those that were removed, too.
// Never nil.
func (c *Client) Hosts(ctx context.Context, all bool) ([]kbroker.HostRow, error) {
	rows := []kbroker.HostRow{}
	err := c.read(ctx, subjects.VerbHosts, kbroker.ListRequest{Tenant: c.tenant, All: all}, &rows)
	return rows, err
}

// Status is the health of the cluster as one core sees it.
func (c *Client) Status(ctx context.Context) (kbroker.StatusReply, error) {
	var r kbroker.StatusReply
	err := c.read(ctx, subjects.VerbStatus, kbroker.ListRequest{Tenant: c.tenant}, &r)
	return r, err
}

// Version is the stored version of the app that is wanted now. NotFound.
func (c *Client) Version(ctx context.Context, app kbroker.AppName) (kbroker.AppVersion, error) {
	var r kbroker.AppVersion
	err := c.read(ctx, subjects.VerbVersion, kbroker.ListRequest{Tenant: c.tenant, App: app}, &r)
	return r, err
}
