package super

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// The schemas in which states of objects are written (docs/schemas.md): what may still run,
// and what the app may return to, must be able to read them. They are decided on with each
// new version, for good: they never sink, as no record is known to be written in a lower one
// again.

// kindsOf are the kinds of an app with their schemas.
func kindsOf(app kbroker.App) map[kbroker.KindName]kbroker.Schema {
	all := map[kbroker.KindName]kbroker.Schema{}
	for _, s := range app.Services {
		for _, kind := range s.Objects {
			all[kind] = s.Schema(kind)
		}
	}
	return all
}

// unread is why a version of an app must not be the wanted one: the kinds whose states it
// cannot read; nil: there are none.
func unread(rec kbroker.AppRecord, app kbroker.App) error {
	kinds := kindsOf(app)
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		if has, written := kinds[kind].Number, rec.WriteSchemas[kind]; has < written {
			return kbroker.Errorf(kbroker.Refused, "the objects %s of app %q are written in schema %d, and this version reads schemas up to %d", kind, app.Name, written, has).
				WithHint("deploy a version with schema %d or higher; a version with `lowest` below its schema can be rolled back until the next program is deployed", written)
		}
	}
	return nil
}

// writeSchemas are those that an app's states are written in once app is its next version:
// the highest that its program, those that run, and those to return to can all read, but no
// lower than the program can write, nor than they are.
func writeSchemas(v *state.View, k state.AppKey, rec kbroker.AppRecord, app kbroker.App) map[kbroker.KindName]int {
	readers := []map[kbroker.KindName]kbroker.Schema{kindsOf(v.Versions[k][lastGood(rec)].App), kindsOf(programBefore(v, k, app))}
	for _, p := range v.Placements {
		if p.Tenant == k.Tenant && p.App == k.App && !p.Stop {
			readers = append(readers, kindsOf(kbroker.App{Services: []kbroker.Service{p.Spec}}))
		}
	}
	all := maps.Clone(rec.WriteSchemas)
	for kind, is := range kindsOf(app) {
		lowest := is.Number
		for _, r := range readers {
			if has, ok := r[kind]; ok {
				lowest = min(lowest, has.Number)
			}
		}
		if w := max(lowest, is.Lowest, rec.WriteSchemas[kind]); w > 1 {
			if all == nil {
				all = map[kbroker.KindName]int{}
			}
			all[kind] = w
		}
	}
	return all
}

// programBefore is the newest version of an app whose objects another program serves than
// app's: to that it may be rolled back. Where there is none it is empty.
func programBefore(v *state.View, k state.AppKey, app kbroker.App) kbroker.App {
	is := programOf(app)
	for _, n := range slices.Backward(slices.Sorted(maps.Keys(v.Versions[k]))) {
		if old := v.Versions[k][n].App; old.HasObjects() && programOf(old) != is {
			return old
		}
	}
	return kbroker.App{}
}

// programOf names the program that serves an app's objects.
func programOf(app kbroker.App) string {
	for _, s := range app.Services {
		if len(s.Objects) > 0 {
			return fmt.Sprintf("%s %s %s", s.Artifact.SHA256, s.Artifact.Builtin, s.Artifact.Command)
		}
	}
	return ""
}

// writesOf are the schemas that the instances of a service are told of.
func writesOf(rec *kbroker.AppRecord, s kbroker.Service) map[kbroker.KindName]int {
	var of map[kbroker.KindName]int
	for _, kind := range s.Objects {
		if n := rec.WriteSchemas[kind]; n > 0 {
			if of == nil {
				of = map[kbroker.KindName]int{}
			}
			of[kind] = n
		}
	}
	return of
}

// schemaWords says what differs in the schemas of the kinds that two forms of a service have.
func schemaWords(a, b kbroker.Service) (words []string) {
	for _, kind := range b.Objects {
		was, is := a.Schema(kind), b.Schema(kind)
		if !slices.Contains(a.Objects, kind) || was.Number == is.Number {
			continue
		}
		word := fmt.Sprintf("objects %s schema %d -> %d", kind, was.Number, is.Number)
		if is.Lowest > was.Number {
			word += ", which the old program cannot read: no way back"
		}
		words = append(words, word)
	}
	return words
}
