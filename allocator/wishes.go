package allocator

import (
	"context"
	"errors"
	"maps"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// wish is where an operator wants a shard: nowhere, if it was taken back.
type wish struct {
	to  kbroker.Incarnation
	rev kbroker.Revision
}

// readWishes reads what operators want. known is what was known before that.
func (s *shards) readWishes(ctx context.Context) (known map[kbroker.Shard]wish, found []kbroker.Stored, err error) {
	s.mu.Lock()
	known = maps.Clone(s.wishes)
	s.mu.Unlock()
	found, err = s.alloc.readBelow(ctx, subjects.MatchWishes)
	if errors.Is(err, kbroker.Invalid) {
		return nil, nil, nil // a core of an earlier build, which has none
	}
	return known, found, err
}

// sawWishes takes all wishes that were read: what was known before and is not there any
// more was taken back, and nobody has heard of it. The caller holds mu.
func (s *shards) sawWishes(known map[kbroker.Shard]wish, found []kbroker.Stored) {
	for _, r := range found {
		key := subjects.ParseOwnKey(r.Key)
		delete(known, key.Shard)
		s.sawWish(key.Shard, r)
	}
	for n, w := range known {
		if s.wishes[n] == w {
			delete(s.wishes, n)
		}
	}
}

// sawWish takes one, and reports whether it is news. The caller holds mu.
func (s *shards) sawWish(n kbroker.Shard, r kbroker.Stored) bool {
	if r.Revision <= s.wishes[n].rev {
		return false
	}
	w, _ := decode[kbroker.ObjectWish](s, r)
	s.wishes[n] = wish{w.To, r.Revision}
	return true
}

// wished are the shards that are wanted somewhere. The caller holds mu.
func (s *shards) wished() map[kbroker.Shard]kbroker.Incarnation {
	out := map[kbroker.Shard]kbroker.Incarnation{}
	for n, w := range s.wishes {
		if w.to != "" {
			out[n] = w.to
		}
	}
	return out
}
