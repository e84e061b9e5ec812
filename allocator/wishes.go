package allocator

import "github.com/kbroker/kbroker"

// sawWishes takes what operators want, and reports whether it is news. The caller holds mu.
func (s *shards) sawWishes(r kbroker.Stored) bool {
	if r.Revision <= s.wishedAt {
		return false
	}
	s.wishedAt = r.Revision
	s.wishes, _ = decode[kbroker.ObjectWishes](s, r)
	return true
}

// wished are the shards that are wanted somewhere by operators. The caller holds mu.
func (s *shards) wished() map[kbroker.Shard]kbroker.Incarnation {
	out := map[kbroker.Shard]kbroker.Incarnation{}
	for to, all := range s.wishes {
		for _, n := range all {
			out[n] = to
		}
	}
	return out
}

// fillWished sets who wants shards somewhere: operators alone.
func (s *shards) fillWished(v *View) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wished := s.wished()
	for n := range v.Shards {
		v.Shards[n].Wished = wished[kbroker.Shard(n)]
	}
}
