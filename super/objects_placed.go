package super

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// of is who owns an object: nobody, where the shard is that of another placed one.
func (o owners) of(object kbroker.Object) ownership.Assignment {
	a := o.assigned[object.Shard()]
	if object.Placed && (a.Placed == nil || a.Placed.Object() != object) {
		return ownership.Assignment{}
	}
	return a
}

// place says of a placed object how it was allocated.
func place(out *kbroker.ObjectDetail, a ownership.Assignment) {
	if a.Next == ownership.Nobody {
		out.Moving, out.Releasing = "", true
	}
	if a.Placed != nil {
		out.Takes, out.Labels = &a.Placed.Demanded, a.Placed.Labels
	}
}

// A list of objects has those of the shards, then the placed ones that are allocated, and then
// those that are stored alone: with what the place in the latter two begins.
const (
	listAllocated = "allocated:"
	listKept      = "kept:"
)

// allocated lists placed objects that are allocated, as far as they are stored or not.
func (d *desk) allocated(ctx context.Context, k state.AppKey, app kbroker.App, q state.ObjectQuery) (any, error) {
	own := newOwners()
	found, next, err := d.store.Allocated(ctx, k, q.After, q.Limit, func(r kbroker.Stored) bool {
		var a ownership.Assignment
		return json.Unmarshal(r.Value, &a) == nil && a.Placed != nil && (q.Kind == "" || a.Placed.Kind == q.Kind) && strings.HasPrefix(a.Placed.ID, q.Prefix)
	})
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, r := range found {
		own.see(r)
		keys = append(keys, subjects.KeyState(own.assigned[subjects.ParseOwnKey(r.Key).Shard].Placed.Object()))
	}
	stored, err := d.store.OwnRecords(ctx, k, app.ObjectStreams, keys)
	if err != nil {
		return nil, err
	}
	reply := kbroker.ObjectsReply{Rows: []kbroker.ObjectRow{}, After: listAllocated + next}
	if next == "" {
		reply.After = listKept
	}
	for _, key := range keys {
		row := rowOf(app.Name, subjects.ParseOwnKey(key).Object, own)
		row.Unstored = !d.storedAs(&row, stored[key])
		reply.Rows = append(reply.Rows, row)
	}
	return reply, nil
}

// kept lists placed objects that are stored, and not allocated.
func (d *desk) kept(ctx context.Context, k state.AppKey, app kbroker.App, q state.ObjectQuery) (any, error) {
	found, next, left, err := d.store.PlacedObjects(ctx, k, app.ObjectStreams, q)
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, s := range found {
		keys = append(keys, subjects.KeyAssign(subjects.ParseOwnKey(s.Key).Shard))
	}
	slices.Sort(keys)
	assigned, err := d.store.OwnRecords(ctx, k, app.ObjectStreams, slices.Compact(keys))
	if err != nil {
		return nil, err
	}
	own := newOwners()
	for _, r := range assigned {
		own.see(r)
	}
	reply := kbroker.ObjectsReply{Rows: []kbroker.ObjectRow{}, Incomplete: left}
	if next != "" {
		reply.After = listKept + next
	}
	for _, s := range found {
		row := rowOf(app.Name, subjects.ParseOwnKey(s.Key).Object, own)
		if row.Owner == "" && d.storedAs(&row, s) {
			reply.Rows = append(reply.Rows, row)
		}
	}
	return reply, nil
}

// misplaced is why a version of an app must not be the wanted one: a kind of which another
// version says otherwise whether its objects are placed, the newest one first; nil: there is none.
// A placed object is in a shard of its own, so that what is stored would not be found any more.
func misplaced(v *state.View, k state.AppKey, app kbroker.App) error {
	placed, kinds := app.PlacedKinds(), kindsOf(app)
	versions := v.Versions[k]
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		is := slices.Contains(placed, kind)
		for _, n := range slices.Backward(slices.Sorted(maps.Keys(versions))) {
			old := versions[n].App
			if _, had := kindsOf(old)[kind]; !had {
				continue
			}
			was := slices.Contains(old.PlacedKinds(), kind)
			if was == is {
				break // by then it was checked itself
			}
			words := map[bool]string{true: "placed", false: "not placed"}
			return kbroker.Errorf(kbroker.Refused, "the objects %s of app %q are %s in version %d, and %s in this one: what is stored of them would not be found any more", kind, app.Name, words[was], n, words[is]).
				WithHint("another name for the kind; or leave it %s", words[was])
		}
	}
	return nil
}
