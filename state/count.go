package state

import (
	"context"
	"errors"
	"math"
	"slices"
	"sync"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// CountObjects counts what is stored of objects of a kind; those that were deleted count
// for as long as something is stored of them. Many are counted in some of the shards alone,
// which have as many as the others, give or take a few of a hundred: exact is false then.
// Of many of the placed kinds it is what is stored of all of them together, messages and
// reminders too. Error: Unavailable.
func (s *Store) CountObjects(ctx context.Context, k AppKey, streams int, kind kbroker.KindName, placed []kbroker.KindName) (stored int, exact bool, err error) {
	return s.countObjects(ctx, k, streams, kind, placed, fewObjects)
}

func (s *Store) countObjects(ctx context.Context, k AppKey, streams int, kind kbroker.KindName, placed []kbroker.KindName, few int) (stored int, exact bool, err error) {
	exact = true
	for n := range streams {
		stream, prefix := objectsAt(k, streams, n)
		c := counting{store: s, stream: stream, prefix: prefix, n: n, streams: streams, few: few, placed: placed}
		about, err := c.about(ctx, kind)
		if err == nil && about > 0 && about <= few {
			about, err = c.sum(ctx, []string{filterOf(kind)})
		} else if about > few {
			exact = false
		}
		if err != nil {
			return 0, false, unavailable(err, "count the objects of app %s", k.App)
		}
		stored += about
	}
	return stored, exact, nil
}

// counting counts the objects in the n-th of an app's streams; few are counted at once.
type counting struct {
	store          *Store
	stream, prefix string
	n, streams     int
	few            int
	placed         []kbroker.KindName // of the app: their objects are not in the shards
}

// about is how many objects of a kind, or of all, there are about: 0 only if there are none
// at all. If it is not more than few, there are not many more in fact, or fewer.
func (c counting) about(ctx context.Context, kind kbroker.KindName) (int, error) {
	stream, err := c.store.subjectsOf(ctx, c.stream, "", 0)
	all := stream.State.All
	if err != nil || all <= c.few || kind == "" && len(c.placed) > 0 {
		return all, err
	}
	// Some shards, of few subjects together: how many of these are of the kind.
	shards := kbroker.Shards / c.streams
	some := min(max((c.few*shards+all-1)/all, 1), shards)
	var of, among []string
	for i := range some {
		shard := kbroker.Shard(c.n + i*shards/some*c.streams)
		match := subjects.MatchStates(shard)
		if kind != "" {
			match = subjects.MatchKind(shard, kind)
		}
		of, among = append(of, match+".>"), append(among, subjects.MatchShard(shard)+".>")
	}
	found, err := c.sum(ctx, of)
	if err != nil {
		return 0, err
	}
	looked, err := c.sum(ctx, among)
	if err != nil {
		return 0, err
	}
	switch {
	case slices.Contains(c.placed, kind): // what is not in the shards, of which few may be an error
		if rest := all - looked*shards/some; rest > all/20 {
			return rest, nil
		}
		return 1, nil
	case len(c.placed) > 0:
		return max(found*shards/some, 1), nil
	}
	share := float64(found) / float64(max(looked, found, 1))
	return max(int(math.Round(float64(all)*share)), 1), nil
}

// sum is how many subjects some filters match.
func (c counting) sum(ctx context.Context, filters []string) (all int, err error) {
	for some := range slices.Chunk(filters, readsAtOnce) {
		counted, failed := make([]listing, len(some)), make([]error, len(some))
		var asked sync.WaitGroup
		for i, filter := range some {
			asked.Go(func() { counted[i], failed[i] = c.store.subjectsOf(ctx, c.stream, c.prefix+filter, beyond) })
		}
		asked.Wait()
		if err := errors.Join(failed...); err != nil {
			return 0, err
		}
		for _, l := range counted {
			all += l.Total
		}
	}
	return all, nil
}
