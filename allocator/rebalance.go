package allocator

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// rebalanceFor is how long shards are wanted where a rebalance has found them a place: 1,024
// of them move within seconds.
const rebalanceFor = time.Minute

// rebalance is the last one that was asked for: where shards are to be. The policy of the app
// sees what is left as wishes, until shards are there, or cannot be any more.
type rebalance struct {
	left    map[kbroker.Shard]kbroker.Incarnation
	number  int // that this allocator has done; 0: none
	dropped int
	until   time.Duration
}

// answerRebalance finds what an even load would move, and has it moved unless it is only asked
// for. A new one takes the place of one that is under way. Errors: Unavailable - loads are not
// known for long enough, or nobody may own shards; Refused - the app's own policy is refused.
func (a *Allocator) answerRebalance(dry bool) (*kbroker.Rebalance, error) {
	v, _ := a.look()
	a.shards.fillWished(&v)
	if v.Settling && a.byTurns(v) {
		left := (a.pace.turnsOver - (a.cfg.Clock() - a.began)).Round(time.Second)
		return nil, kbroker.Errorf(kbroker.Unavailable, "%s has begun to decide a moment ago, and does not know yet which shards are busy", a.own.Instance).
			WithHint("try again in %v", max(left, time.Second))
	}
	if len(v.Owners) == 0 {
		return nil, kbroker.Errorf(kbroker.Unavailable, "no instance of app %s may own shards now", a.own.App).
			WithHint("kbroker why %s says what its instances wait for", a.own.App)
	}
	v.Exact, v.Settling = true, false
	decision := a.policy(v)(v)
	if why := a.guard.why(); why != "" { // what decides instead does not move what that one has placed
		return nil, kbroker.Errorf(kbroker.Refused, "the policy of app %s is refused: %s", a.own.App, why).WithHint("kbroker allocator %s", a.own.App)
	}
	out := v.rebalance(a.shards.place(v, decision.Shards))
	if !dry {
		a.shards.beginRebalance(out.Moves)
	}
	return out, nil
}

// byTurns reports whether shards are placed by their turns.
func (a *Allocator) byTurns(v View) bool {
	return a.guard != nil || v.App.Policy == kbroker.PolicyBalanced || v.App.Policy == kbroker.PolicyPack
}

// rebalance is what changes if shards have these owners.
func (v View) rebalance(to map[kbroker.Shard]kbroker.Incarnation) *kbroker.Rebalance {
	out := &kbroker.Rebalance{Owners: []kbroker.RebalanceOwner{}, Moves: []kbroker.RebalanceMove{}}
	at := map[kbroker.Incarnation]int{}
	for _, i := range v.Owners {
		at[i] = len(out.Owners)
		row := kbroker.RebalanceOwner{Instance: i.Instance()}
		for _, x := range v.Instances {
			if x.Name == row.Instance {
				row.Host = x.Host
			}
		}
		out.Owners = append(out.Owners, row)
	}
	for n, s := range v.Shards {
		next, wanted := to[kbroker.Shard(n)]
		if !wanted {
			next = s.Owner
		}
		if k, is := at[s.Owner]; is {
			out.Owners[k].Now = with(out.Owners[k].Now, s.ShardLoad)
		}
		if k, is := at[next]; is {
			out.Owners[k].Then = with(out.Owners[k].Then, s.ShardLoad)
		}
		if next != s.Owner {
			out.Moves = append(out.Moves, kbroker.RebalanceMove{From: s.Owner, To: next, ShardLoad: kbroker.ShardLoad{
				Shard: kbroker.Shard(n), TurnsPerS: s.Turns, Work: s.Work, BytesPerS: s.Bytes,
			}})
		}
	}
	slices.SortStableFunc(out.Moves, func(a, b kbroker.RebalanceMove) int {
		return cmp.Or(cmp.Compare(b.Work, a.Work), cmp.Compare(b.TurnsPerS, a.TurnsPerS))
	})
	slices.SortStableFunc(out.Owners, func(a, b kbroker.RebalanceOwner) int { return strings.Compare(string(a.Instance), string(b.Instance)) })
	return out
}

// with is a share with a shard more.
func with(of kbroker.RebalanceShare, l ShardLoad) kbroker.RebalanceShare {
	return kbroker.RebalanceShare{Shards: of.Shards + 1, TurnsPerS: of.TurnsPerS + l.Turns, Work: of.Work + l.Work, BytesPerS: of.BytesPerS + l.Bytes}
}

func (s *shards) beginRebalance(moves []kbroker.RebalanceMove) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rebalance = rebalance{left: map[kbroker.Shard]kbroker.Incarnation{}, number: s.rebalance.number + 1, until: s.alloc.cfg.Judge() + rebalanceFor}
	for _, m := range moves {
		s.rebalance.left[m.Shard] = m.To
	}
	s.now.ring()
}

func (s *shards) endRebalance() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rebalance = rebalance{}
}

// rebalanced takes out what has come to an end of a rebalance: shards that are there, and those
// whose place is gone, or that an operator wants elsewhere; after a while all of them. The caller
// holds mu.
func (s *shards) rebalanced() {
	r := &s.rebalance
	if len(r.left) == 0 {
		return
	}
	now := s.alloc.cfg.Judge()
	live, at, moving := map[kbroker.Incarnation]bool{}, s.assigner.Owners(), s.assigner.Moving()
	for _, i := range s.assigner.Live(now, nil) {
		live[i] = true
	}
	for n, to := range r.left {
		asked := s.wishes.Of(n)
		switch {
		case at[n] == to && !moving[n]:
			delete(r.left, n)
		case !live[to] || asked != "" && asked != to && live[asked] || now >= r.until:
			r.dropped++
			delete(r.left, n)
		}
	}
}

// rebalancing is how far the last rebalance is.
func (s *shards) rebalancing(epoch uint64) *kbroker.Rebalancing {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rebalanced()
	if s.rebalance.number == 0 {
		return nil
	}
	return &kbroker.Rebalancing{Epoch: epoch, Number: s.rebalance.number, Left: len(s.rebalance.left), Dropped: s.rebalance.dropped}
}
