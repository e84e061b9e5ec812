package ownership

import (
	"cmp"
	"slices"

	"github.com/kbroker/kbroker"
)

// Spread gives every shard an owner, evenly, and moves as few as it can from where they
// are now. A shard that is wished somewhere is there, if that one is live, and counts: who
// has more than an even share by wishes has nothing else. Pure: the same answer whatever the
// order of live. With nobody live it is empty.
func Spread(now map[kbroker.Shard]kbroker.Incarnation, live []kbroker.Incarnation, wished map[kbroker.Shard]kbroker.Incarnation) map[kbroker.Shard]kbroker.Incarnation {
	out := make(map[kbroker.Shard]kbroker.Incarnation, kbroker.Shards)
	if len(live) == 0 {
		return out
	}
	live = slices.Sorted(slices.Values(live))
	fixed := map[kbroker.Incarnation]int{}
	for n := range kbroker.Shard(kbroker.Shards) {
		if i := wished[n]; slices.Contains(live, i) {
			out[n] = i
			fixed[i]++
		}
	}
	has := map[kbroker.Incarnation][]kbroker.Shard{}
	var free []kbroker.Shard
	for n := range kbroker.Shard(kbroker.Shards) {
		if _, done := out[n]; done {
			continue
		}
		if i, ok := now[n]; ok && slices.Contains(live, i) {
			has[i] = append(has[i], n)
		} else {
			free = append(free, n)
		}
	}
	share := shares(live, has, fixed)
	for _, i := range live {
		if over := len(has[i]) - share[i]; over > 0 {
			free = append(free, has[i][share[i]:]...)
			has[i] = has[i][:share[i]]
		}
	}
	slices.Sort(free)
	for _, i := range live {
		for _, n := range has[i] {
			out[n] = i
		}
		take := min(share[i]-len(has[i]), len(free))
		for _, n := range free[:take] {
			out[n] = i
		}
		free = free[take:]
	}
	return out
}

// shares are how many shards each is to have beside those that are fixed: those that have
// most keep one more, where it does not come out even.
func shares(live []kbroker.Incarnation, has map[kbroker.Incarnation][]kbroker.Shard, fixed map[kbroker.Incarnation]int) map[kbroker.Incarnation]int {
	share, among, all := map[kbroker.Incarnation]int{}, slices.Clone(live), kbroker.Shards
	slices.SortStableFunc(among, func(a, b kbroker.Incarnation) int {
		return cmp.Compare(len(has[b])+fixed[b], len(has[a])+fixed[a])
	})
	for {
		clear(share)
		for k, i := range among {
			share[i] = all/len(among) - fixed[i]
			if k < all%len(among) {
				share[i]++
			}
		}
		full := slices.IndexFunc(among, func(i kbroker.Incarnation) bool { return share[i] < 0 })
		if full < 0 {
			return share
		}
		all -= fixed[among[full]] // by what is fixed it has more than its share: it takes no part
		among = slices.Delete(among, full, full+1)
	}
}
