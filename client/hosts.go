package client

import (
	"context"
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Drain has a host emptied: it takes nothing new, and what it runs is replaced
// first, one by one; with force, what no other host can take is stopped. It
// returns when that is wanted, FollowDrain when it has happened. Errors:
// NotFound; Refused - the host is lost; NoLeader, Unavailable.
func (c *Client) Drain(ctx context.Context, host kbroker.HostID, force bool) (kbroker.HostReply, error) {
	var r kbroker.HostReply
	return r, c.write(ctx, subjects.VerbDrain, kbroker.DrainRequest{Host: host, Force: force}, &r)
}

// Key is one that the caller has made. What the cluster signs for it is for who proves to
// have it.
type Key interface {
	Key() string // its public half
	Prove(claim kbroker.Claim) ([]byte, error)
}

// Develop has a credential signed for a program that runs beside the cluster, with a key of
// its own: it holds no longer than that of the client. Errors: Invalid, Refused,
// Unavailable.
func (c *Client) Develop(ctx context.Context, r kbroker.DevelopRequest, own Key) (credential string, err error) {
	r.Tenant, r.Key = c.tenant, own.Key()
	if r.Credential, err = c.signed(); err != nil {
		return "", err
	}
	if r.Proof, err = own.Prove(r.Claim()); err != nil {
		return "", err
	}
	var reply kbroker.SignReply
	err = c.read(ctx, subjects.VerbDevelop, r, &reply)
	return reply.Credential, err
}

// Undrain lets a host take instances again. Errors: NotFound, NoLeader,
// Unavailable.
func (c *Client) Undrain(ctx context.Context, host kbroker.HostID) (kbroker.HostReply, error) {
	var r kbroker.HostReply
	return r, c.write(ctx, subjects.VerbDrain, kbroker.DrainRequest{Host: host, Undrain: true}, &r)
}

// Remove takes a host out of the cluster for good. Errors: NotFound; Refused -
// it still runs something, or its store is needed; NoLeader, Unavailable.
func (c *Client) Remove(ctx context.Context, host kbroker.HostID) (kbroker.HostReply, error) {
	var r kbroker.HostReply
	return r, c.write(ctx, subjects.VerbRemove, kbroker.RemoveRequest{Host: host}, &r)
}

// DrainProgress is one look at a host that drains.
type DrainProgress struct {
	Host      kbroker.HostRow
	Instances []kbroker.InstanceRow // that are on it
	Waiting   []string              // why instances find no other host
}

// FollowDrain calls show (may be nil) until the last instance has left a
// draining host, then returns nil. Errors: Refused when the host is not draining
// any more; NotFound when it was removed; DeadlineExceeded when ctx ended first -
// the drain goes on; Unavailable.
func (c *Client) FollowDrain(ctx context.Context, host kbroker.HostID, show func(DrainProgress)) error {
	var since time.Time // when it was first seen not to drain: a core may be behind
	return c.poll(ctx, "the drain of "+string(host), "kbroker hosts", func() (bool, error) {
		p, err := c.drainProgress(ctx, host)
		if err != nil {
			return false, err
		}
		if show != nil {
			show(p)
		}
		if p.Host.State != kbroker.HostReady {
			since = time.Time{}
		} else if since.IsZero() {
			since = time.Now()
		}
		switch {
		case !since.IsZero():
			if time.Since(since) < c.pace.verdictHold {
				return false, nil
			}
			return false, kbroker.Errorf(kbroker.Refused, "host %s is not draining any more", host)
		case p.Host.State == kbroker.HostLost:
			return false, kbroker.Errorf(kbroker.Refused, "host %s was lost while it drained", host).
				WithHint("what it ran is placed elsewhere; kbroker remove %s takes it out for good", host)
		}
		return p.Host.Instances+p.Host.Leaving == 0, nil
	})
}

func (c *Client) drainProgress(ctx context.Context, host kbroker.HostID) (DrainProgress, error) {
	p := DrainProgress{}
	hosts, err := c.Hosts(ctx, false)
	if err != nil {
		return p, err
	}
	for _, h := range hosts {
		if h.Name == host {
			p.Host = h
		}
	}
	if p.Host.Name == "" {
		return p, kbroker.Errorf(kbroker.NotFound, "there is no host %q any more", host)
	}
	rows, err := c.Instances(ctx, "", false)
	if err != nil {
		return p, err
	}
	for _, r := range rows {
		switch {
		case r.Host != nil && *r.Host == host:
			p.Instances = append(p.Instances, r)
		case r.Host == nil && r.Message != "":
			p.Waiting = append(p.Waiting, fmt.Sprintf("%s/%s: %s", r.App, r.Service, r.Message))
		}
	}
	return p, nil
}
