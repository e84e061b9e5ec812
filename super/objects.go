package super

import (
	"cmp"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// maxReminders bounds the reminders of an object that are named.
const maxReminders = 100

// owners is who owns the shards of an app, as it is stored.
type owners struct {
	assigned map[kbroker.Shard]ownership.Assignment
	wishes   kbroker.ObjectWishes
	wishedAt kbroker.Revision
	leases   map[kbroker.Incarnation]ownership.Lease
}

func newOwners() owners {
	return owners{assigned: map[kbroker.Shard]ownership.Assignment{}, leases: map[kbroker.Incarnation]ownership.Lease{}}
}

// readOwnership reads some records of it.
func (d *desk) readOwnership(ctx context.Context, k state.AppKey, o *owners, keys ...string) error {
	reply, err := d.store.OwnRead(ctx, k, 0, kbroker.OwnReadRequest{Keys: keys})
	for _, r := range reply.Records {
		o.see(r)
	}
	return err
}

// objectsOf is an app that has objects, of a kind if one is named.
func (d *desk) objectsOf(ctx context.Context, tenant kbroker.TenantID, name kbroker.AppName, kind kbroker.KindName) (*state.View, kbroker.App, state.AppKey, error) {
	v, _ := d.read(ctx)
	k := state.AppKey{Tenant: tenant, App: name}
	_, version, err := lookup(v, tenant, name)
	if err != nil {
		return nil, kbroker.App{}, k, err
	}
	app := version.App
	if kind != "" || !app.HasObjects() {
		if err := app.CheckKind(kind); err != nil {
			return nil, app, k, err
		}
	}
	app.ObjectStreams, err = d.objectStreams(k, "0")
	return v, app, k, err
}

// readOwners reads all of it.
func (d *desk) readOwners(ctx context.Context, k state.AppKey) (owners, error) {
	o := newOwners()
	if err := d.readOwnership(ctx, k, &o, subjects.KeyWishes); err != nil {
		return o, err
	}
	for _, match := range []string{subjects.MatchAssigns, subjects.MatchLeases} {
		below, err := d.store.OwnBelow(ctx, k, match)
		if err != nil {
			return o, err
		}
		for _, r := range below {
			o.see(r)
		}
	}
	return o, nil
}

// see takes a record; one that is not readable says nothing.
func (o *owners) see(r kbroker.Stored) {
	if r.Key == subjects.KeyWishes {
		o.wishedAt = r.Revision
	}
	if !r.Exists() {
		return
	}
	switch key := subjects.ParseOwnKey(r.Key); key.Table {
	case subjects.OwnAssign:
		var a ownership.Assignment
		if json.Unmarshal(r.Value, &a) == nil {
			o.assigned[key.Shard] = a
		}
	case subjects.OwnWishes:
		var w kbroker.ObjectWishes
		if json.Unmarshal(r.Value, &w) == nil {
			o.wishes = w
		}
	case subjects.OwnLease:
		var l ownership.Lease
		if json.Unmarshal(r.Value, &l) == nil {
			o.leases[key.Incarnation] = l
		}
	}
}

// lease is what the record of a start's lease says.
func (o owners) lease(i kbroker.Incarnation) string {
	switch l, ok := o.leases[i]; {
	case !ok:
		return "none"
	case l.Revoked:
		return "revoked"
	case l.Leaving:
		return "leaving"
	}
	return "held"
}

// objects lists what is stored.
func (d *desk) objects(ctx context.Context, tenant kbroker.TenantID, r kbroker.ObjectsRequest) (any, error) {
	_, app, k, err := d.objectsOf(ctx, tenant, r.App, r.Kind)
	if err != nil {
		return nil, err
	}
	if r.Limit < 1 || r.Limit > kbroker.MaxObjectRows {
		r.Limit = kbroker.MaxObjectRows
	}
	q := state.ObjectQuery{Kind: r.Kind, Prefix: r.Prefix, After: r.After, Limit: r.Limit, Placed: app.PlacedKinds()}
	if r.After == "" && slices.Contains(q.Placed, r.Kind) {
		q.After = listAllocated
	}
	if after, is := strings.CutPrefix(q.After, listAllocated); is {
		q.After = after
		return d.allocated(ctx, k, app, q)
	}
	if after, is := strings.CutPrefix(q.After, listKept); is {
		q.After = after
		return d.kept(ctx, k, app, q)
	}
	found, next, err := d.store.Objects(ctx, k, app.ObjectStreams, q)
	if err != nil {
		return nil, err
	}
	o, err := d.readOwners(ctx, k)
	if err != nil {
		return nil, err
	}
	reply := kbroker.ObjectsReply{Rows: []kbroker.ObjectRow{}, After: next}
	if next == "" && r.Kind == "" && len(q.Placed) > 0 {
		reply.After = listAllocated
	}
	for _, s := range found {
		if row := rowOf(r.App, subjects.ParseOwnKey(s.Key).Object, o); d.storedAs(&row, s) {
			reply.Rows = append(reply.Rows, row)
		}
	}
	return reply, nil
}

// storedAs says in a row what is stored of an object, and whether something is.
func (d *desk) storedAs(row *kbroker.ObjectRow, s kbroker.Stored) bool {
	if !s.Exists() {
		return false
	}
	rec, err := ownership.Decode(s.Value)
	if err != nil {
		d.log.Warn("an object is not readable", "object", row.Object, "err", err)
		return true
	}
	row.SizeBytes, row.Schema = len(rec.State), rec.Schema
	return rec.Exists
}

func rowOf(app kbroker.AppName, o kbroker.Object, own owners) kbroker.ObjectRow {
	return kbroker.ObjectRow{
		Object: string(app) + "/" + o.String(), Kind: o.Kind, ID: o.ID, Shard: o.Shard(), Placed: o.Placed, Owner: own.of(o).Owner.Instance(),
	}
}

// objectOwners says who owns the objects of an app, and asks them.
func (d *desk) objectOwners(ctx context.Context, tenant kbroker.TenantID, r kbroker.ListRequest) (any, error) {
	_, app, k, err := d.objectsOf(ctx, tenant, r.App, "")
	if err != nil {
		return nil, err
	}
	o, err := d.readOwners(ctx, k)
	if err != nil {
		return nil, err
	}
	reply := kbroker.ObjectOwnersReply{
		App: r.App, Kinds: []kbroker.ObjectKindRow{}, Owners: ownerRows(o), Moving: movingRows(o), Hot: []kbroker.ObjectHot{}, Quarantined: []kbroker.ObjectQuarantine{},
	}
	for n := range kbroker.Shard(kbroker.Shards) {
		if o.assigned[n].Owner == "" {
			reply.Unowned++
		}
	}
	var asked sync.WaitGroup
	for i := range reply.Owners {
		row := &reply.Owners[i]
		asked.Go(func() {
			says, err := d.keepers.ask(ctx, tenant, row.Incarnation, kbroker.KeeperRequest{}, seeWithin)
			if row.Seen = says.Keeper; err != nil {
				row.Silent = kbroker.AsError(err).Message
			}
		})
	}
	for _, s := range app.Services {
		for _, kind := range s.Objects {
			row := kbroker.ObjectKindRow{Kind: kind, Service: s.Name}
			stored, exact, failed := d.store.CountObjects(ctx, k, app.ObjectStreams, kind, app.PlacedKinds())
			if err = failed; err != nil {
				break
			}
			row.Stored, row.About = stored, !exact
			reply.Kinds = append(reply.Kinds, row)
		}
	}
	asked.Wait()
	if err != nil {
		return nil, err
	}
	gatherSeen(&reply)
	return reply, nil
}

// ownerRows are those who own something, or are offered it, or could own something.
func ownerRows(o owners) []kbroker.ObjectOwnerRow {
	of := map[kbroker.Incarnation]*kbroker.ObjectOwnerRow{}
	row := func(i kbroker.Incarnation) *kbroker.ObjectOwnerRow {
		if of[i] == nil {
			of[i] = &kbroker.ObjectOwnerRow{Instance: i.Instance(), Incarnation: i, Host: o.leases[i].Host, Lease: o.lease(i)}
		}
		return of[i]
	}
	for _, a := range o.assigned {
		if a.Owner != "" {
			row(a.Owner).Shards++
		}
		if a.Next != "" {
			row(a.Next).Arriving++
			row(a.Owner).Leaving++
		}
	}
	for i, l := range o.leases {
		if !l.Revoked && i != "" && !strings.HasPrefix(subjects.KeyLease(i), subjects.KeyAllocatorLease) {
			row(i)
		}
	}
	rows := []kbroker.ObjectOwnerRow{}
	for _, i := range slices.Sorted(maps.Keys(of)) {
		rows = append(rows, *of[i])
	}
	slices.SortStableFunc(rows, func(a, b kbroker.ObjectOwnerRow) int { return compareInstances(a.Instance, b.Instance) })
	return rows
}

// movingRows are the shards that are on their way, or wanted elsewhere.
func movingRows(o owners) []kbroker.ObjectMoving {
	rows, wished := []kbroker.ObjectMoving{}, map[kbroker.Shard]kbroker.Incarnation{}
	for to, shards := range o.wishes {
		for _, n := range shards {
			wished[n] = to
		}
	}
	for n := range kbroker.Shard(kbroker.Shards) {
		a, to := o.assigned[n], wished[n]
		asked := to != "" && to != a.Owner && o.lease(to) == "held"
		switch {
		case a.Next != "":
			rows = append(rows, kbroker.ObjectMoving{Shard: n, From: a.Owner.Instance(), To: a.Next.Instance(), Asked: asked && a.Next == to})
		case asked:
			rows = append(rows, kbroker.ObjectMoving{Shard: n, From: a.Owner.Instance(), To: to.Instance(), Asked: true})
		}
	}
	return rows
}

// gatherSeen puts together what the owners have said.
func gatherSeen(r *kbroker.ObjectOwnersReply) {
	for _, row := range r.Owners {
		if row.Seen == nil {
			continue
		}
		for i := range r.Kinds {
			r.Kinds[i].Active += row.Seen.Active[r.Kinds[i].Kind]
		}
		for _, h := range row.Seen.Hot {
			h.Instance = row.Instance
			r.Hot = append(r.Hot, h)
		}
		for _, q := range row.Seen.Quarantined {
			q.Instance = row.Instance
			r.Quarantined = append(r.Quarantined, q)
		}
		row.Seen.Hot, row.Seen.Quarantined = nil, nil
	}
	slices.SortFunc(r.Hot, func(a, b kbroker.ObjectHot) int {
		return cmp.Or(cmp.Compare(b.TurnsPerS, a.TurnsPerS), cmp.Compare(b.Mailbox, a.Mailbox), cmp.Compare(a.Object, b.Object))
	})
	r.Hot = r.Hot[:min(len(r.Hot), kbroker.MaxHotObjects)]
	slices.SortFunc(r.Quarantined, func(a, b kbroker.ObjectQuarantine) int { return cmp.Compare(a.Object, b.Object) })
}

// object says what is known of one object, with its state if that is wanted.
func (d *desk) object(withState bool) func(context.Context, kbroker.TenantID, kbroker.ObjectRequest) (any, error) {
	return func(ctx context.Context, tenant kbroker.TenantID, r kbroker.ObjectRequest) (any, error) {
		if err := (kbroker.Object{Kind: r.Kind, ID: r.ID}).Check(); err != nil {
			return nil, err
		}
		_, app, k, err := d.objectsOf(ctx, tenant, r.App, r.Kind)
		if err != nil {
			return nil, err
		}
		o := app.Object(r.Kind, r.ID)
		own, err := d.shardOf(ctx, k, o.Shard())
		if err != nil {
			return nil, err
		}
		a := own.of(o)
		out := kbroker.ObjectDetail{
			ObjectRow: rowOf(r.App, o, own), Incarnation: a.Owner, Host: own.leases[a.Owner].Host, Epoch: a.Epoch,
			Moving: a.Next.Instance(), Wanted: own.wishes.Of(o.Shard()).Instance(), Lease: own.lease(a.Owner), Reminders: []string{},
		}
		place(&out, a)
		at, err := d.store.OwnChanged(ctx, k, subjects.KeyAssign(o.Shard()))
		if err != nil {
			return nil, err
		}
		if !at.IsZero() && (a.Owner != "" || !o.Placed) {
			out.AssignedAt = &at
		}
		if err := d.stored(ctx, k, app.ObjectStreams, o, withState, &out); err != nil {
			return nil, err
		}
		if a.Owner == "" {
			if out.Silent = "no instance owns its shard"; o.Placed {
				out.Silent = "it is not allocated"
			}
			return out, nil
		}
		says, err := d.keepers.ask(ctx, tenant, a.Owner, kbroker.KeeperRequest{Kind: o.Kind, Object: o.ID}, seeWithin)
		if out.Seen = says.Object; err != nil {
			out.Silent = kbroker.AsError(err).Message
		}
		return out, nil
	}
}

// shardOf reads who owns one shard.
func (d *desk) shardOf(ctx context.Context, k state.AppKey, n kbroker.Shard) (owners, error) {
	o := newOwners()
	err := d.readOwnership(ctx, k, &o, subjects.KeyAssign(n), subjects.KeyWishes)
	if owner := o.assigned[n].Owner; err == nil && owner != "" {
		err = d.readOwnership(ctx, k, &o, subjects.KeyLease(owner))
	}
	return o, err
}

// stored reads what is stored of an object.
func (d *desk) stored(ctx context.Context, k state.AppKey, streams int, o kbroker.Object, withState bool, out *kbroker.ObjectDetail) error {
	reply, err := d.store.OwnRead(ctx, k, streams, kbroker.OwnReadRequest{Keys: []string{subjects.KeyState(o)}})
	if err != nil {
		return err
	}
	if s := reply.Records[0]; s.Exists() {
		rec, err := ownership.Decode(s.Value)
		if err != nil {
			return err
		}
		out.Stored, out.SizeBytes, out.Schema, out.InMemoryS = rec.Exists, len(rec.State), rec.Schema, rec.Age.Seconds()
		if withState && rec.Exists {
			out.State = shown(rec.State)
		}
	}
	if out.Outbox, err = d.store.CountBelow(ctx, k, streams, subjects.MatchOutsOf(o)); err != nil {
		return err
	}
	due, err := d.store.OwnRead(ctx, k, streams, kbroker.OwnReadRequest{Match: subjects.MatchDuesOf(o)})
	for _, r := range due.Records[:min(len(due.Records), maxReminders)] {
		name := subjects.ParseOwnKey(r.Key).Name
		out.Reminders = append(out.Reminders, name)
		is, err := ownership.DecodeReminder(r.Value)
		if err != nil {
			d.log.Warn("a reminder is not readable", "object", o, "reminder", name, "err", err)
			continue
		}
		out.Due = append(out.Due, kbroker.ObjectReminder{
			Name: name, Method: is.Method, Due: time.UnixMilli(is.Due).UTC(), EveryS: is.Every.Seconds(), CatchUp: is.CatchUp,
		})
	}
	slices.SortStableFunc(out.Due, func(a, b kbroker.ObjectReminder) int { return a.Due.Compare(b.Due) })
	return err
}

// shown is a state as JSON: as it is, as text, or in base64.
func shown(raw []byte) json.RawMessage {
	if json.Valid(raw) {
		return raw
	}
	var v any = raw
	if utf8.Valid(raw) {
		v = string(raw)
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic("super: a text does not marshal: " + err.Error())
	}
	return b
}
