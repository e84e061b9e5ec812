package super

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// maxHistory bounds the versions that a history lists: the newest ones.
const maxHistory = 500

// historyRows are the stored versions of an app, newest first.
func historyRows(v *state.View, k state.AppKey) ([]kbroker.HistoryRow, error) {
	rec, _, err := lookup(v, k.Tenant, k.App)
	if err != nil {
		return nil, err
	}
	running := map[int]int{}
	for _, p := range v.Placements {
		if p.Tenant == k.Tenant && p.App == k.App && !p.Stop && p.Service != kbroker.AllocatorService {
			running[p.Version]++
		}
	}
	good := lastGood(rec)
	out := []kbroker.HistoryRow{}
	numbers := slices.Sorted(maps.Keys(v.Versions[k]))
	for i, n := range slices.Backward(numbers) {
		if len(out) == maxHistory {
			break
		}
		version := v.Versions[k][n]
		before := kbroker.App{}
		if i > 0 {
			before = v.Versions[k][numbers[i-1]].App
		}
		out = append(out, kbroker.HistoryRow{
			Version: n, Created: version.Created, Cause: version.Cause, Changes: differences(before, version.App),
			Wanted: n == rec.Version && !rec.Stopped, Good: n == good, Running: running[n],
		})
	}
	return out, nil
}

// keepRestarts returns the services with the restarts that were asked for in
// app: a spec does not know of them, and no change undoes them.
func keepRestarts(services []kbroker.Service, app kbroker.App) []kbroker.Service {
	services = slices.Clone(services)
	for i := range services {
		services[i].Restart = 0
		if was, ok := app.Service(services[i].Name); ok {
			services[i].Restart = was.Restart
		}
	}
	return services
}

// madeBy finds the version that a request made when it was sent before.
func madeBy(v *state.View, k state.AppKey, request string) (int, bool) {
	for n, version := range v.Versions[k] {
		if request != "" && version.Request == request {
			return n, true
		}
	}
	return 0, false
}

// rollback decides on a rollback, and checks that the programs are still there.
func (t *term) rollback(ctx context.Context, v *state.View, r kbroker.RollbackRequest, now time.Time) (decision, error) {
	d, err := decideRollback(v, r, now)
	if err != nil || len(d.changes) == 0 {
		return d, err
	}
	for _, c := range d.changes {
		put, ok := c.(state.PutVersion)
		if !ok {
			continue
		}
		if err := t.checkArtifacts(ctx, kbroker.DeployRequest{Tenant: r.Tenant, App: put.Version.App}); err != nil {
			if e := kbroker.AsError(err); e.Code == kbroker.Invalid {
				return decision{}, kbroker.Errorf(kbroker.Refused, "the program of that version is gone: %s", e.Message).
					WithHint("deploy its spec again with `kbroker deploy`, which uploads the program")
			}
			return decision{}, err
		}
	}
	return d, nil
}

// decideRollback makes a new version with the content of an old one.
func decideRollback(v *state.View, r kbroker.RollbackRequest, now time.Time) (decision, error) {
	k := state.AppKey{Tenant: r.Tenant, App: r.App}
	rec, wanted, err := lookup(v, r.Tenant, r.App)
	if err != nil {
		return decision{}, err
	}
	if n, made := madeBy(v, k, r.Request); made {
		return decision{reply: kbroker.DeployReply{Version: n}}, nil
	}
	to := r.Version
	if to == 0 {
		if to = versionBefore(v, k, rec); to == 0 {
			return decision{}, kbroker.Errorf(kbroker.NotFound, "app %q has no version before %d that is another", r.App, rec.Version).
				WithHint("`kbroker history %s` lists the versions", r.App)
		}
	}
	old, ok := v.Versions[k][to]
	if !ok {
		return decision{}, kbroker.Errorf(kbroker.NotFound, "app %q has no version %d", r.App, to).
			WithHint("it has %s; `kbroker history %s` says what they are", versionList(v, k), r.App)
	}
	app := old.App
	if err := unread(rec, app); err != nil {
		return decision{}, err
	}
	app.Services = keepRestarts(app.Services, wanted.App)
	if sameApp(wanted.App, app) && !rec.Stopped && rec.Rollout.State != kbroker.RolloutFailed {
		return decision{reply: kbroker.DeployReply{Version: rec.Version, Unchanged: true}}, nil
	}
	for _, s := range append(slices.Clone(app.Services), AllocatorSpec(app)) {
		if err := possible(v, s); err != nil {
			return decision{}, err
		}
	}
	return request(newVersion(v, k, app, fmt.Sprintf("rollback to %d", to), now), r.Request), nil
}

// request notes in the version that a decision stores which request made it.
func request(d decision, name string) decision {
	for i, c := range d.changes {
		if put, ok := c.(state.PutVersion); ok {
			put.Version.Request = name
			d.changes[i] = put
		}
	}
	return d
}

// versionBefore is the version that a rollback without a number returns to: the
// one before the wanted one, or the highest lower one that is not the same; 0
// when there is none. Where the wanted version came from another way back, that
// of its rollout may be the higher one and is no way back.
func versionBefore(v *state.View, k state.AppKey, rec kbroker.AppRecord) int {
	wanted := v.Versions[k][rec.Version].App
	other := func(n int) bool {
		version, ok := v.Versions[k][n]
		if !ok || n >= rec.Version {
			return false
		}
		app := version.App
		app.Services = keepRestarts(app.Services, wanted)
		return !sameApp(wanted, app)
	}
	if other(rec.Rollout.From) {
		return rec.Rollout.From
	}
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(v.Versions[k]))) {
		if other(n) {
			return n
		}
	}
	return 0
}

// maxListed bounds the versions that a hint names.
const maxListed = 10

// versionList names the newest versions of an app.
func versionList(v *state.View, k state.AppKey) string {
	numbers := slices.Sorted(maps.Keys(v.Versions[k]))
	var out []string
	if n := len(numbers) - maxListed; n > 0 {
		numbers = numbers[n:]
		out = append(out, "older ones")
	}
	for _, n := range numbers {
		out = append(out, fmt.Sprint(n))
	}
	return strings.Join(out, ", ")
}

// decideRestart replaces instances by new ones: all of an app or a service by a
// new version, a single one by a mark in its placement.
func decideRestart(v *state.View, r kbroker.RestartRequest, now time.Time) (decision, error) {
	k := state.AppKey{Tenant: r.Tenant, App: r.App}
	rec, wanted, err := lookup(v, r.Tenant, r.App)
	if err != nil {
		return decision{}, err
	}
	if r.Instance != "" {
		return decideReplace(v, r, rec)
	}
	if n, made := madeBy(v, k, r.Request); made {
		return decision{reply: kbroker.DeployReply{Version: n}}, nil
	}
	app := wanted.App
	app.Services = slices.Clone(app.Services)
	found := false
	for i := range app.Services {
		if r.Service == "" || app.Services[i].Name == r.Service {
			app.Services[i].Restart++
			found = true
		}
	}
	switch {
	case !found && r.Service == kbroker.AllocatorService:
		return decision{}, kbroker.Errorf(kbroker.Refused, "the allocator of app %q has no version of its own", r.App).
			WithHint("restart its instances one by one: APP/%s/INSTANCE", kbroker.AllocatorService)
	case !found:
		return decision{}, kbroker.Errorf(kbroker.NotFound, "app %q has no service %q", r.App, r.Service).
			WithHint("it has %s", serviceList(app))
	}
	return request(newVersion(v, k, app, "restart", now), r.Request), nil
}

func serviceList(app kbroker.App) string {
	var names []string
	for _, s := range app.Services {
		names = append(names, string(s.Name))
	}
	return strings.Join(names, ", ")
}

// decideReplace marks one instance. A tombstone would take its capacity away
// until the new one is ready; marked, it is rolled like one of an old version:
// the new one is placed first, under the service's update rules, and the old
// one leaves, drained, when that one has settled.
func decideReplace(v *state.View, r kbroker.RestartRequest, rec kbroker.AppRecord) (decision, error) {
	reply := kbroker.DeployReply{Version: rec.Version}
	p, ok := placementOf(v, r.Tenant, r.Instance)
	switch {
	case !ok || p.App != r.App || r.Service != "" && p.Service != r.Service:
		return decision{}, kbroker.Errorf(kbroker.NotFound, "app %q has no instance %q", r.App, r.Instance).
			WithHint("`kbroker ps %s` lists them", r.App)
	case p.Stop || p.Replace != "" && p.Replace != togetherReason:
		return decision{reply: reply}, nil // it is on its way out already
	case rec.Stopped:
		return decision{}, kbroker.Errorf(kbroker.Refused, "app %q is stopped", r.App).WithHint("`kbroker restart %s` starts it", r.App)
	case rec.Rollout.State == kbroker.RolloutFailed:
		return decision{}, kbroker.Errorf(kbroker.Refused, "version %d of app %q failed; nothing is replaced until that is settled", rec.Version, r.App).
			WithHint("deploy a fix, or `kbroker rollback %s`", r.App)
	}
	p.Replace = "restarted"
	return decision{[]state.Change{state.PutPlacement{Placement: p}}, reply}, nil
}

// placementOf finds what is placed of an instance; a tombstone only when there
// is nothing else.
func placementOf(v *state.View, tenant kbroker.TenantID, instance kbroker.InstanceID) (kbroker.Placement, bool) {
	var found []kbroker.Placement
	for k, p := range v.Placements {
		if k.Tenant == tenant && k.Instance == instance {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return kbroker.Placement{}, false
	}
	return slices.MinFunc(found, func(a, b kbroker.Placement) int {
		return cmp.Or(compareBools(a.Stop, b.Stop), cmp.Compare(a.Host, b.Host))
	}), true
}

// compareBools orders false before true.
func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
