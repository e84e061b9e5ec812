package super

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// decision is what a write comes to: its changes and its answer.
type decision struct {
	changes []state.Change
	reply   any
}

// decide parses a write and decides on it, in the light of v.
func (t *term) decide(ctx context.Context, v *state.View, verb string, tenant kbroker.TenantID, body []byte) (decision, error) {
	if err := knownTenant(tenant); err != nil {
		return decision{}, err
	}
	now := time.Now().UTC()
	switch verb {
	case subjects.VerbDeploy:
		var r kbroker.DeployRequest
		if err := parse(body, &r, &r.Tenant, tenant); err != nil {
			return decision{}, err
		}
		d, err := decideDeploy(v, r, now)
		if err != nil || len(d.changes) == 0 {
			return d, err
		}
		if err := t.checkArtifacts(ctx, r); err != nil {
			return decision{}, err
		}
		return d, t.ensureStreams(ctx, d.changes)
	case subjects.VerbScale:
		var r kbroker.ScaleRequest
		if err := parse(body, &r, &r.Tenant, tenant); err != nil {
			return decision{}, err
		}
		return decideScale(v, r, now)
	case subjects.VerbStop:
		var r kbroker.StopRequest
		if err := parse(body, &r, &r.Tenant, tenant); err != nil {
			return decision{}, err
		}
		return decideStop(v, r)
	case subjects.VerbRollback:
		var r kbroker.RollbackRequest
		if err := parse(body, &r, &r.Tenant, tenant); err != nil {
			return decision{}, err
		}
		return t.rollback(ctx, v, r, now)
	case subjects.VerbRestart:
		var r kbroker.RestartRequest
		if err := parse(body, &r, &r.Tenant, tenant); err != nil {
			return decision{}, err
		}
		return decideRestart(v, r, now)
	case subjects.VerbDemand:
		var r kbroker.DemandRequest
		if err := parse(body, &r, &r.Demand.Tenant, tenant); err != nil {
			return decision{}, err
		}
		return decideDemand(v, r.Demand)
	case subjects.VerbJoin:
		var r kbroker.JoinRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		return t.join(ctx, v, r, now)
	case subjects.VerbDrain:
		var r kbroker.DrainRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		return decideDrain(v, r, now)
	case subjects.VerbRemove:
		var r kbroker.RemoveRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		return t.remove(ctx, v, r, now)
	case subjects.VerbMaintain:
		var r kbroker.MaintainRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		return t.maintain(ctx, v, r, now)
	case subjects.VerbToken:
		var r kbroker.TokenRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		return decideToken(v, r, t.cfg.Root, now)
	case subjects.VerbRevoke:
		var r kbroker.RevokeRequest
		if err := json.Unmarshal(body, &r); err != nil {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
		return decideRevoke(v, r, now)
	case subjects.VerbUser:
		var r kbroker.UserRequest
		if err := parse(body, &r, &r.Tenant, tenant); err != nil {
			return decision{}, err
		}
		return t.user(v, r, now)
	case subjects.VerbUserRevoke:
		var r kbroker.RevokeUserRequest
		if err := parse(body, &r, &r.Tenant, tenant); err != nil {
			return decision{}, err
		}
		return decideRevokeUser(v, r, now)
	}
	return decision{}, kbroker.Errorf(kbroker.Invalid, "super does not know %q", verb)
}

// ensureStreams makes the streams of an app that a deploy is about exist.
func (t *term) ensureStreams(ctx context.Context, changes []state.Change) error {
	for _, c := range changes {
		put, ok := c.(state.PutApp)
		if !ok {
			continue
		}
		k := state.AppKey{Tenant: put.Record.Tenant, App: put.Record.App}
		if err := t.store.EnsureApp(ctx, k); err != nil {
			return err
		}
		if err := t.store.EnsureObjects(ctx, k, put.Record.ObjectStreams); err != nil {
			return err
		}
	}
	return nil
}

// knownTenant refuses tenants that nobody made: streams are made per tenant.
func knownTenant(t kbroker.TenantID) error {
	if t != kbroker.DefaultTenant {
		return kbroker.Errorf(kbroker.NotFound, "there is no tenant %q", t)
	}
	return nil
}

// parse reads a request whose tenant is the one in the subject.
func parse(body []byte, into any, field *kbroker.TenantID, tenant kbroker.TenantID) error {
	if err := json.Unmarshal(body, into); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	*field = tenant
	return nil
}

// checkArtifacts refuses an app whose programs have not been uploaded.
func (t *term) checkArtifacts(ctx context.Context, r kbroker.DeployRequest) error {
	artifacts, err := t.store.Artifacts(ctx, r.Tenant)
	if err != nil {
		return err
	}
	for _, s := range append(slices.Clone(r.App.Services), AllocatorSpec(r.App)) {
		if s.Artifact.Builtin != "" {
			continue
		}
		have, err := artifacts.Has(ctx, s.Artifact.SHA256)
		if err != nil {
			return err
		}
		if !have {
			return kbroker.Errorf(kbroker.Invalid, "service %s: artifact %.12s has not been uploaded", s.Name, s.Artifact.SHA256).
				WithHint("deploy with `kbroker deploy`, which uploads it first")
		}
	}
	return nil
}

// decideDeploy makes an app the wanted version, as a new version unless it is
// what is wanted already. A dry run has no changes.
func decideDeploy(v *state.View, r kbroker.DeployRequest, now time.Time) (decision, error) {
	if err := spec.Validate(&r.App); err != nil {
		return decision{}, err
	}
	for _, s := range r.App.Services {
		if s.Artifact.Builtin != "" && s.Artifact.Builtin != kbroker.BuiltinHello {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "service %s: there is no built-in program %q to deploy", s.Name, s.Artifact.Builtin)
		}
		if err := possible(v, s); err != nil {
			return decision{}, err
		}
	}
	if err := possible(v, AllocatorSpec(r.App)); err != nil {
		return decision{}, err
	}
	k := state.AppKey{Tenant: r.Tenant, App: r.App.Name}
	rec, known := v.Apps[k]
	var err error
	if r.App.ObjectStreams, err = objectStreams(rec, r.App); err != nil {
		return decision{}, err
	}
	if err := cmp.Or(unread(rec, r.App), misplaced(v, k, r.App)); err != nil {
		return decision{}, err
	}
	r.App.Services = keepRestarts(r.App.Services, v.Versions[k][rec.Version].App)
	if known && rec.Rollout.State != kbroker.RolloutFailed && sameApp(v.Versions[k][rec.Version].App, r.App) {
		reply := kbroker.DeployReply{Version: rec.Version, Unchanged: !rec.Stopped}
		if !rec.Stopped || r.DryRun {
			return decision{reply: reply}, nil
		}
		if err := unmoved(v, k, r.CheckIndex); err != nil {
			return decision{}, err
		}
		rec.Stopped = false
		rec.Rollout = kbroker.Rollout{State: kbroker.RolloutRunning, From: lastGood(rec), Started: now}
		return decision{[]state.Change{state.PutApp{Record: rec}}, reply}, nil
	}
	if r.DryRun {
		return decision{reply: kbroker.DeployReply{Version: rec.Latest + 1}}, nil
	}
	if err := unmoved(v, k, r.CheckIndex); err != nil {
		return decision{}, err
	}
	return newVersion(v, k, r.App, "deploy", now), nil
}

// objectStreams is in how many streams the objects of a spec are; 0: it has none. Where
// the app has had objects before it is as it was: an object's shard says where it is.
func objectStreams(rec kbroker.AppRecord, app kbroker.App) (int, error) {
	switch was, is := rec.ObjectStreams, app.ObjectStreams; {
	case !app.HasObjects():
		return 0, nil
	case was != 0 && is != 0 && was != is:
		return 0, kbroker.Errorf(kbroker.Refused, "the objects of app %q are in %d streams, and object_streams is %d", app.Name, was, is).
			WithHint("the number is fixed by the first version with objects: write %d, or leave object_streams out", was)
	default:
		return cmp.Or(was, is, kbroker.DefaultObjectStreams), nil
	}
}

// possible refuses a service that no known host could ever run.
func possible(v *state.View, s kbroker.Service) error {
	var why []string
	for _, h := range sortedHosts(v) {
		if !judged(h) {
			continue
		}
		u := unfit(h, s)
		if u == "" {
			return nil
		}
		why = append(why, fmt.Sprintf("%s: %s", h.Name, u))
	}
	if len(why) == 0 {
		return nil // no host has been seen yet: nothing is known to be impossible
	}
	return kbroker.Errorf(kbroker.Invalid, "service %s: no known host can ever run it", s.Name).
		WithHint("%s", strings.Join(why[:min(len(why), maxRefusals)], "; "))
}

// sameApp compares what two specs ask for, whoever built them and where.
func sameApp(a, b kbroker.App) bool {
	plain := func(a kbroker.App) kbroker.App {
		a.Services = slices.Clone(a.Services)
		for i := range a.Services {
			a.Services[i].Build, a.Services[i].Run, a.Services[i].Artifact.Path = "", "", ""
		}
		if a.Own != nil {
			own := *a.Own
			own.Build, own.Run, own.Artifact.Path = "", "", ""
			a.Own = &own
		}
		return a
	}
	x, errX := json.Marshal(plain(a))
	y, errY := json.Marshal(plain(b))
	return errX == nil && errY == nil && string(x) == string(y)
}

// newVersion makes app the next version and begins its rollout.
func newVersion(v *state.View, k state.AppKey, app kbroker.App, cause string, now time.Time) decision {
	rec := v.Apps[k]
	from := lastGood(rec)
	rec.Tenant, rec.App, rec.Stopped = k.Tenant, k.App, false
	for n := range v.Versions[k] {
		rec.Latest = max(rec.Latest, n) // stored by a batch of which only the beginning was written
	}
	rec.Latest++
	rec.Version = rec.Latest
	rec.WriteSchemas = writeSchemas(v, k, v.Apps[k], app)
	rec.ObjectStreams = max(rec.ObjectStreams, app.ObjectStreams) // versions with objects have the same
	rec.Rollout = kbroker.Rollout{State: kbroker.RolloutRunning, From: from, Started: now}
	return decision{
		changes: []state.Change{
			state.PutApp{Record: rec},
			state.PutVersion{Version: kbroker.AppVersion{Tenant: k.Tenant, Version: rec.Version, App: app, Created: now, Cause: cause}},
		},
		reply: kbroker.DeployReply{Version: rec.Version},
	}
}

// lookup finds an app and its wanted version.
func lookup(v *state.View, tenant kbroker.TenantID, app kbroker.AppName) (kbroker.AppRecord, kbroker.AppVersion, error) {
	k := state.AppKey{Tenant: tenant, App: app}
	rec, ok := v.Apps[k]
	if !ok {
		return rec, kbroker.AppVersion{}, kbroker.Errorf(kbroker.NotFound, "there is no app %q", app).WithHint("`kbroker apps` lists them")
	}
	version, ok := v.Versions[k][rec.Version]
	if !ok {
		return rec, version, kbroker.Errorf(kbroker.Internal, "version %d of app %q cannot be read", rec.Version, app)
	}
	return rec, version, nil
}

// decideScale makes a new version that differs in one service's count. A count of one
// number has no scale.
func decideScale(v *state.View, r kbroker.ScaleRequest, now time.Time) (decision, error) {
	rec, version, err := lookup(v, r.Tenant, r.App)
	if err != nil {
		return decision{}, err
	}
	app := version.App
	app.Services = slices.Clone(app.Services)
	if r.Service == "" && len(app.Services) == 1 {
		r.Service = app.Services[0].Name
	}
	if r.Service == "" {
		return decision{}, kbroker.Errorf(kbroker.Invalid, "app %q has %d services", r.App, len(app.Services)).WithHint("name one: APP/SERVICE")
	}
	s, ok := app.Service(r.Service)
	if !ok {
		return decision{}, kbroker.Errorf(kbroker.NotFound, "app %q has no service %q", r.App, r.Service).WithHint("it has %s", serviceList(app))
	}
	if s.Count == (kbroker.Count{Min: r.Count, Max: r.Count}) && !rec.Stopped {
		return decision{reply: kbroker.DeployReply{Version: rec.Version, Unchanged: true}}, nil
	}
	s.Count, s.Scale = kbroker.Count{Min: r.Count, Max: r.Count}, nil
	if err := spec.Validate(&app); err != nil {
		return decision{}, err
	}
	return newVersion(v, state.AppKey{Tenant: r.Tenant, App: r.App}, app, "scale", now), nil
}

// decideStop stops an app; stopping a stopped one changes nothing.
func decideStop(v *state.View, r kbroker.StopRequest) (decision, error) {
	rec, ok := v.Apps[state.AppKey{Tenant: r.Tenant, App: r.App}]
	if !ok {
		return decision{}, kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App).WithHint("`kbroker apps` lists them")
	}
	reply := kbroker.DeployReply{Version: rec.Version, Unchanged: rec.Stopped}
	if rec.Stopped {
		return decision{reply: reply}, nil
	}
	rec.Stopped = true
	return decision{[]state.Change{state.PutApp{Record: rec}}, reply}, nil
}

// decideDemand takes what an app's active allocator wants.
func decideDemand(v *state.View, d kbroker.Demand) (decision, error) {
	k := state.AppKey{Tenant: d.Tenant, App: d.App}
	if _, ok := v.Apps[k]; !ok {
		return decision{}, kbroker.Errorf(kbroker.NotFound, "there is no app %q", d.App)
	}
	was := v.Demands[k]
	if d.Epoch < was.Epoch {
		return decision{}, kbroker.Errorf(kbroker.Refused, "demand of epoch %d, but an allocator of epoch %d has spoken", d.Epoch, was.Epoch)
	}
	for service, n := range d.Wanted {
		if n < 0 {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "service %s: %d instances wanted, want 0 or more", service, n)
		}
	}
	for i, n := range d.Holds {
		if n < 0 {
			return decision{}, kbroker.Errorf(kbroker.Invalid, "instance %.80q holds %d, want 0 or more", i, n)
		}
	}
	if reflect.DeepEqual(was, d) {
		return decision{reply: struct{}{}}, nil
	}
	return decision{[]state.Change{state.PutDemand{Demand: d}}, struct{}{}}, nil
}

// errorOf makes any error one that can be sent.
func errorOf(err error) *kbroker.Error {
	var findings spec.Errors
	if errors.As(err, &findings) {
		return kbroker.Errorf(kbroker.Invalid, "%s", findings.Error())
	}
	return kbroker.AsError(err)
}
