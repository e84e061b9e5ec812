package super

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// movedWithin is how long the owner of an object that moves is looked for, movedAgain the
	// pause between.
	movedWithin = 2 * time.Second
	movedAgain  = 100 * time.Millisecond
)

// objectAct does something with an object, or says where shards are wanted. It is in the
// audit trail before it is done.
func (d *desk) objectAct(ctx context.Context, m *nats.Msg, tenant kbroker.TenantID) (any, error) {
	var r kbroker.ObjectActRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	o := kbroker.Object{Kind: r.Kind, ID: r.Object}
	if err := checkAct(r, o); err != nil {
		return nil, err
	}
	v, app, k, err := d.objectsOf(ctx, tenant, r.App, r.Kind)
	if err != nil {
		return nil, err
	}
	if o = app.Object(r.Kind, r.Object); o.Placed && r.Verb == kbroker.ObjectMove {
		return nil, kbroker.Errorf(kbroker.Refused, "%s is placed, and a placed object is not moved by hand", o).
			WithHint("it moves when its instance leaves: `kbroker drain` of its host, or `kbroker scale`")
	}
	what := "app " + string(r.App)
	if r.Kind != "" {
		what = "object " + string(r.App) + "/" + o.String()
	}
	tell := func(message string) error {
		if err := d.auditor.record(ctx, d.store, kbroker.AuditRecord{Actor: callerOf(m), Action: r.Verb, Object: what, Message: message}); err != nil {
			return kbroker.Errorf(kbroker.Unavailable, "the audit trail takes no record, so nothing is done with %s: %v", what, err)
		}
		return nil
	}
	if r.Verb == kbroker.ObjectRebalance {
		if err := tell("asked for, so that the load is even"); err != nil {
			return nil, err
		}
		return d.rebalance(ctx, k)
	}
	if r.Verb == kbroker.ObjectMove {
		own, err := d.readOwners(ctx, k)
		if err != nil {
			return nil, err
		}
		wishes, message, err := wishesOf(v, app, tenant, r, o, own)
		if err != nil {
			return nil, err
		}
		if err := tell(message); err != nil {
			return nil, err
		}
		return kbroker.ObjectActReply{Message: message, Moves: wishes}, d.wish(ctx, k, own, wishes)
	}
	reply, err := d.byOwner(ctx, k, r, o, tell)
	if err != nil {
		return nil, err
	}
	return kbroker.ObjectActReply{Message: string(r.App) + "/" + reply.Message}, nil
}

// byOwner has the owner of an object do something: the next one, where it has just moved.
func (d *desk) byOwner(ctx context.Context, k state.AppKey, r kbroker.ObjectActRequest, o kbroker.Object, tell func(string) error) (kbroker.KeeperReply, error) {
	var told kbroker.Incarnation
	for began := time.Now(); ; {
		own, err := d.shardOf(ctx, k, o.Shard())
		if err != nil {
			return kbroker.KeeperReply{}, err
		}
		owner := own.of(o).Owner
		if owner == "" && o.Placed {
			e := kbroker.Errorf(kbroker.NotFound, "%s is not allocated: nothing is done", o).WithHint("%s", allocateHint(r.App, o))
			e.Executed = kbroker.ExecutedNo
			return kbroker.KeeperReply{}, e
		}
		if owner == "" {
			e := kbroker.Errorf(kbroker.Unavailable, "no instance owns shard %d, in which %s is: nothing is done", o.Shard(), o).
				WithHint("`kbroker why %s` says what its instances wait for", r.App)
			e.Executed = kbroker.ExecutedNo
			return kbroker.KeeperReply{}, e
		}
		if owner != told {
			if err := tell(fmt.Sprintf("%s, by its owner %s", r.Verb, owner.Instance())); err != nil {
				return kbroker.KeeperReply{}, err
			}
			told = owner
		}
		reply, err := d.keepers.ask(ctx, k.Tenant, owner, kbroker.KeeperRequest{Verb: r.Verb, ID: r.ID, Kind: o.Kind, Object: o.ID}, actWithin)
		if !errors.Is(err, kbroker.Moved) || time.Since(began) > movedWithin {
			return reply, err
		}
		select {
		case <-ctx.Done():
			return reply, err
		case <-time.After(movedAgain):
		}
	}
}

func allocateHint(app kbroker.AppName, o kbroker.Object) string {
	return fmt.Sprintf("sdk.Allocate of %s/%s gives it an owner; what is stored of it stays", app, o)
}

func checkAct(r kbroker.ObjectActRequest, o kbroker.Object) error {
	ofObject := r.Verb == kbroker.ObjectDeactivate || r.Verb == kbroker.ObjectRelease || r.Verb == kbroker.ObjectRemove
	switch {
	case r.Verb == kbroker.ObjectRebalance && (o != kbroker.Object{} || r.Shard != nil || r.From != "" || r.To != "" || r.Even):
		return kbroker.Errorf(kbroker.Invalid, "a rebalance is of all shards of an app")
	case r.Verb == kbroker.ObjectRebalance:
		return kbroker.CheckName("request", r.ID)
	case !ofObject && r.Verb != kbroker.ObjectMove:
		return kbroker.Errorf(kbroker.Invalid, "a core does not know how to %.40q an object", r.Verb)
	case ofObject || r.Kind != "" || r.Object != "":
		if err := o.Check(); err != nil {
			return err
		}
	}
	if ofObject {
		return kbroker.CheckName("request", r.ID)
	}
	of := 0
	for _, is := range []bool{r.Kind != "", r.Shard != nil, r.From != "", r.Even} {
		if is {
			of++
		}
	}
	switch {
	case of != 1:
		return kbroker.Errorf(kbroker.Invalid, "what is to move is an object, a shard, or all shards of an instance: one of them")
	case r.Shard != nil && *r.Shard >= kbroker.Shards:
		return kbroker.Errorf(kbroker.Invalid, "there is no shard %d", *r.Shard).WithHint("shards are from 0 to %d", kbroker.Shards-1)
	case r.To == "" && r.From == "" && !r.Even:
		return kbroker.Errorf(kbroker.Invalid, "it is not said to which instance the shard is to move")
	}
	return nil
}

// wishesOf are the wishes that a move comes to, and what they mean. Pure.
func wishesOf(v *state.View, app kbroker.App, tenant kbroker.TenantID, r kbroker.ObjectActRequest, o kbroker.Object, own owners) (map[kbroker.Shard]kbroker.Incarnation, string, error) {
	if r.Even {
		wishes := map[kbroker.Shard]kbroker.Incarnation{}
		for _, shards := range own.wishes {
			for _, n := range shards {
				wishes[n] = ""
			}
		}
		return wishes, fmt.Sprintf("the shards of %s are spread evenly: %d that were moved by hand are free again", r.App, len(wishes)), nil
	}
	var to kbroker.Incarnation
	var err error
	if r.To != "" {
		if to, err = ownerNamed(v, app, tenant, r.To, own); err != nil {
			return nil, "", err
		}
	}
	if r.From != "" {
		return emptied(v, app, tenant, r, to, own)
	}
	n := o.Shard()
	if r.Shard != nil {
		n = *r.Shard
	}
	message := fmt.Sprintf("shard %d of %s moves to %s", n, r.App, r.To)
	if r.Kind != "" {
		message += fmt.Sprintf(", %s and all else that is in it", o)
	}
	return map[kbroker.Shard]kbroker.Incarnation{n: to}, message, nil
}

// emptied has an instance own nothing: as the others are to have an even share, all of the
// shards get a wish.
func emptied(v *state.View, app kbroker.App, tenant kbroker.TenantID, r kbroker.ObjectActRequest, to kbroker.Incarnation, own owners) (map[kbroker.Shard]kbroker.Incarnation, string, error) {
	from, err := ownerNamed(v, app, tenant, r.From, own)
	if err != nil {
		return nil, "", err
	}
	has := map[kbroker.Incarnation]int{}
	for i := range own.leases {
		if i != from && own.lease(i) == "held" && (to == "" || i == to) && runsAs(v, tenant, i) {
			has[i] = 0
		}
	}
	if len(has) == 0 {
		return nil, "", kbroker.Errorf(kbroker.Refused, "there is no other instance that could own what %s does", r.From).WithHint("`kbroker scale` makes one")
	}
	wishes, leave := map[kbroker.Shard]kbroker.Incarnation{}, []kbroker.Shard{}
	for n := range kbroker.Shard(kbroker.Shards) {
		a := own.assigned[n]
		at := cmp.Or(a.Next, a.Owner)
		if _, stays := has[at]; stays {
			wishes[n] = at
			has[at]++
			continue
		}
		if at == from || at == "" {
			leave = append(leave, n)
		}
	}
	targets := slices.Sorted(maps.Keys(has))
	for _, n := range leave {
		next := slices.MinFunc(targets, func(a, b kbroker.Incarnation) int { return cmp.Compare(has[a], has[b]) })
		wishes[n] = next
		has[next]++
	}
	message := fmt.Sprintf("all %d shards of %s move to %d other instances", len(leave), r.From, len(has))
	if slices.ContainsFunc(app.Services, func(s kbroker.Service) bool { return len(s.Placed) > 0 }) {
		message += "; placed objects stay where they are"
	}
	return wishes, message, nil
}

// ownerNamed is the start of an instance of an app that may own objects now.
func ownerNamed(v *state.View, app kbroker.App, tenant kbroker.TenantID, name kbroker.InstanceID, own owners) (kbroker.Incarnation, error) {
	p, ok := placementOf(v, tenant, name)
	switch {
	case !ok:
		return "", kbroker.Errorf(kbroker.NotFound, "there is no instance %q", name).WithHint("`kbroker ps %s` lists them", app.Name)
	case p.App != app.Name:
		return "", kbroker.Errorf(kbroker.Invalid, "%s is an instance of app %s, not of %s", name, p.App, app.Name).WithHint("`kbroker ps %s` lists those of %s", app.Name, app.Name)
	}
	if s, ok := app.Service(p.Service); !ok || len(s.Objects) == 0 {
		return "", kbroker.Errorf(kbroker.Invalid, "%s is an instance of service %s, which has no objects", name, p.Service)
	}
	start := v.Statuses[keyOf(p)].Incarnation
	if lease := own.lease(start); lease != "held" {
		return "", kbroker.Errorf(kbroker.Refused, "%s owns no objects now: its lease is %q", name, lease).WithHint("`kbroker why %s/%s` says what it waits for", app.Name, name)
	}
	return start, nil
}

// runsAs reports whether a start is the one that runs of its instance.
func runsAs(v *state.View, tenant kbroker.TenantID, i kbroker.Incarnation) bool {
	p, ok := placementOf(v, tenant, i.Instance())
	return ok && !p.Stop && v.Statuses[keyOf(p)].Incarnation == i
}

// wish stores wishes, among those that were there and whose starts live: the app's allocator
// moves the shards, one after another. Empty takes one away. Conflict: somebody else has
// wished meanwhile, and nothing was stored.
func (d *desk) wish(ctx context.Context, k state.AppKey, own owners, moves map[kbroker.Shard]kbroker.Incarnation) error {
	all := kbroker.ObjectWishes{}
	for to, shards := range own.wishes {
		if own.lease(to) != "held" {
			continue
		}
		for _, n := range shards {
			if _, anew := moves[n]; !anew {
				all[to] = append(all[to], n)
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(moves)) {
		if to := moves[n]; to != "" {
			all[to] = append(all[to], n)
		}
	}
	w := kbroker.Write{Key: subjects.KeyWishes, Expected: own.wishedAt}
	if len(all) > 0 {
		var err error
		if w.Value, err = json.Marshal(all); err != nil {
			return kbroker.Errorf(kbroker.Internal, "encode wishes: %v", err)
		}
	}
	_, err := d.store.OwnWrite(ctx, k, 0, kbroker.OwnWriteRequest{Writes: []kbroker.Write{w}})
	return err
}

// objectNamed is the object, or the app, that a request is about, in words; empty: none.
func objectNamed(body []byte) string {
	var r kbroker.ObjectActRequest
	if json.Unmarshal(body, &r) != nil || kbroker.CheckName("app", string(r.App)) != nil {
		return ""
	}
	if o := (kbroker.Object{Kind: r.Kind, ID: r.Object}); r.Object != "" && o.Check() == nil {
		return "object " + string(r.App) + "/" + o.String()
	}
	return "app " + string(r.App)
}
