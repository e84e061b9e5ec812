package super

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
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

// develop signs for a program that runs beside the cluster, for who has a credential of
// the key asks: that says who they are and for how long, also when this core has not heard
// of them yet.
func (d *desk) develop(tenant kbroker.TenantID, r kbroker.DevelopRequest, asks string) (any, error) {
	r.Tenant = tenant
	err := errors.Join(kbroker.CheckName("app", string(r.App)), kbroker.CheckName("service", string(r.Service)), isStart(r.Instance, r.Incarnation))
	if err != nil {
		return nil, err
	}
	if d.cfg.Develop == nil {
		return nil, signsNothing(d.cfg.Host)
	}
	credential, err := d.cfg.Develop(r, asks)
	return signed(r.Instance, credential, err)
}

func (d *desk) signed(p kbroker.Placement, r kbroker.SignRequest) (any, error) {
	if d.cfg.Sign == nil {
		return nil, signsNothing(d.cfg.Host)
	}
	if err := isStart(p.Instance, r.Incarnation); err != nil {
		return nil, err
	}
	credential, err := d.cfg.Sign(p, r)
	return signed(r.Instance, credential, err)
}

func isStart(instance kbroker.InstanceID, i kbroker.Incarnation) error {
	start, ok := strings.CutPrefix(string(i), string(instance)+".")
	if !ok || start == "" || strings.Contains(start, ".") {
		return kbroker.Errorf(kbroker.Invalid, "%q is not a start of instance %s", i, instance)
	}
	return nil
}

func signed(instance kbroker.InstanceID, credential string, err error) (any, error) {
	if err != nil {
		return nil, unsigned(err, "instance %s: %v", instance, err)
	}
	return kbroker.SignReply{Credential: credential}, nil
}

func signsNothing(host kbroker.HostID) error {
	return kbroker.Errorf(kbroker.Unavailable, "core %s signs nothing", host)
}

// unsigned says why something is not signed: invalid, unless err has a code of its own. Of
// that the hint stays as well.
func unsigned(err error, format string, args ...any) error {
	code, hint := kbroker.Invalid, ""
	if e, ok := errors.AsType[*kbroker.Error](err); ok {
		code, hint = e.Code, e.Hint
	}
	return kbroker.Errorf(code, format, args...).WithHint("%s", hint)
}
