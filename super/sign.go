package super

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// sign answers an agent that starts what this core knows to be placed on its host. It
// takes no quorum: this core's own copy is enough, as a placement that it does not
// know of yet is asked for again.
func (d *desk) sign(_ context.Context, m *nats.Msg) (any, error) {
	host, ok := subjects.HostOf(m.Subject)
	if !ok {
		return nil, kbroker.Errorf(kbroker.Invalid, "subject %q names no host", m.Subject)
	}
	var r kbroker.SignRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	v := d.store.Peek()
	p, placed := v.Placements[state.PlacementKey{Host: host, Tenant: r.Tenant, Instance: r.Instance}]
	_, revoked := v.Revoked[r.Key]
	switch h, known := v.Hosts[host]; {
	case known && !h.Member():
		return nil, removedError(host)
	case revoked:
		return nil, kbroker.Errorf(kbroker.Refused, "the key of instance %s was taken back", r.Instance)
	case !placed || p.Epoch < r.Epoch:
		return nil, kbroker.Errorf(kbroker.NotFound, "instance %s is not placed on host %s, as far as core %s knows", r.Instance, host, d.cfg.Host)
	case p.Stop || p.Epoch > r.Epoch:
		return nil, kbroker.Errorf(kbroker.Refused, "instance %s is not to run on host %s any more", r.Instance, host)
	}
	return d.signed(p, r)
}

// develop signs for a program that runs beside the cluster, for who has a key.
func (d *desk) develop(tenant kbroker.TenantID, r kbroker.DevelopRequest, by string) (any, error) {
	p := kbroker.Placement{Tenant: tenant, App: r.App, Service: r.Service, Instance: r.Instance, Host: developmentHost}
	p.Spec.Calls = []string{spec.AllServices} // as who runs it may
	var until time.Time
	for _, u := range d.store.Peek().Users {
		if u.Key == by {
			until = u.Expires // what is not on record never ends
		}
	}
	err := errors.Join(kbroker.CheckName("app", string(r.App)), kbroker.CheckName("service", string(r.Service)))
	if err != nil {
		return nil, err
	}
	return d.signed(p, kbroker.SignRequest{Tenant: tenant, Instance: r.Instance, Incarnation: r.Incarnation, Key: r.Key, By: by, Until: until})
}

// developmentHost is in the credentials of programs that run on no host of the
// cluster: no host has this name.
const developmentHost kbroker.HostID = "_"

func (d *desk) signed(p kbroker.Placement, r kbroker.SignRequest) (any, error) {
	if d.cfg.Sign == nil {
		return nil, kbroker.Errorf(kbroker.Unavailable, "core %s signs nothing", d.cfg.Host)
	}
	start, ok := strings.CutPrefix(string(r.Incarnation), string(p.Instance)+".")
	if !ok || start == "" || strings.Contains(start, ".") {
		return nil, kbroker.Errorf(kbroker.Invalid, "%q is not a start of instance %s", r.Incarnation, p.Instance)
	}
	credential, err := d.cfg.Sign(p, r)
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "instance %s: %v", r.Instance, err)
	}
	return kbroker.SignReply{Credential: credential}, nil
}
