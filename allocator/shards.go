package allocator

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// moveDeadline bounds a planned move: its owner has to come to rest, which a turn that
	// takes long keeps it from.
	moveDeadline = 10 * time.Second
	// againLeast is the pause after a batch that was not taken, doubling to retryMost: a
	// release or a renewal that came first is seen by then.
	againLeast = 10 * time.Millisecond
	// freshFor is how long a shard is new to its owner: several rounds of moves.
	freshFor = 10 * time.Second
	// maxConflicts in a row are more than releases and renewals that came first.
	maxConflicts = 5
)

// shards is what is known of who owns the shards of the app's objects, and what is done
// about it. Reads and announcements fill the view in both allocators; the active one
// plans on it.
//
//	announced, read ---> view ---> plan ---> batch behind the lease ---> view
//	                                  ^--- refused, or not known: read what it was about
type shards struct {
	alloc      *Allocator
	now        bell // plan again
	lookLeases bell
	lookShards bell
	lookPlaced bell

	// Until which revisions it is known who owns what, and what was released; of readShards.
	assigns, releases kbroker.Revision
	anew              atomic.Bool // these may be of another store

	mu         sync.Mutex
	assigner   *ownership.Assigner
	leases     bool // they were read once
	owners     bool // assignments and releases were
	unreadable map[kbroker.Shard]bool
	turns      turns
	placing    placing
	wishes     kbroker.ObjectWishes
	wishedAt   kbroker.Revision
	rebalance  rebalance
}

func newShards(a *Allocator) *shards {
	t := a.cfg.Times
	return &shards{
		alloc: a, now: newBell(), lookLeases: newBell(), lookShards: newBell(), lookPlaced: newBell(), placing: newPlacing(), unreadable: map[kbroker.Shard]bool{},
		assigner: ownership.NewAssigner(ownership.AssignerConfig{MovesPerS: a.pace.movesPerS, Times: ownership.Times{
			Renew: t.LeaseRenew, RenewAttempt: t.RenewAttempt, HolderStops: t.HolderStops, ObserverActs: t.ObserverActs,
			OutageGrace: t.OutageGrace, MoveDeadline: moveDeadline,
		}}),
	}
}

// kinds are the services whose instances own objects: none, in an app without them.
func (s *shards) kinds() map[kbroker.ServiceName]bool {
	v, _ := s.alloc.view()
	of := map[kbroker.ServiceName]bool{}
	for _, x := range v.App.Services {
		if len(x.Objects) > 0 {
			of[x.Name] = true
		}
	}
	return of
}

// readLeases reads the leases of incarnations: they are judged by what was read alone.
// Those that own something are read by name, as it counts that they are not there.
func (s *shards) readLeases(ctx context.Context) error {
	if len(s.kinds()) == 0 {
		return nil
	}
	asked := s.alloc.cfg.Judge()
	found, err := s.alloc.readBelow(ctx, subjects.MatchLeases)
	if err == nil {
		var named []kbroker.Stored
		if named, err = s.alloc.readKeys(ctx, s.absent(found)); err == nil {
			found = append(found, named...)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.alloc.cfg.Judge()
	if err != nil {
		if ctx.Err() == nil {
			s.assigner.Outage(at)
		}
		return err
	}
	for _, r := range found {
		s.see(asked, at, r)
	}
	s.leases = true
	s.saw()
	s.assigner.Forget(at)
	if due, ok := s.assigner.Due(at); ok && due-at < s.alloc.pace.lookLeases {
		// Objects of who is out wait for this look.
		time.AfterFunc(due-at, s.lookLeases.ring)
	}
	return nil
}

// absent are the keys of leases that were not found, of incarnations that shards are on.
func (s *shards) absent(found []kbroker.Stored) []string {
	is := map[string]bool{}
	for _, r := range found {
		is[r.Key] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, i := range s.assigner.Named() {
		if key := subjects.KeyLease(i); !is[key] {
			keys = append(keys, key)
		}
	}
	return keys
}

// readShards reads who owns what, and what was released.
func (s *shards) readShards(ctx context.Context) error {
	if len(s.kinds()) == 0 {
		return nil
	}
	if s.anew.Swap(false) {
		s.assigns, s.releases = 0, 0
	}
	assigns, assignsAt, err := s.alloc.readSince(ctx, subjects.MatchAssigns, s.assigns)
	if err != nil {
		return err
	}
	releases, releasesAt, err := s.alloc.readSince(ctx, subjects.MatchReleases, s.releases)
	if err != nil {
		return err
	}
	wishes, err := s.alloc.readKeys(ctx, []string{subjects.KeyWishes})
	if err != nil && !errors.Is(err, kbroker.Invalid) { // that is a core of an earlier build, which has none
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.alloc.cfg.Judge()
	for _, r := range slices.Concat(assigns, releases, wishes) {
		s.see(0, at, r)
	}
	s.owners, s.assigns, s.releases = true, assignsAt, releasesAt
	s.saw()
	return nil
}

// saw notes that all has been read, and has it planned on. The caller holds mu.
func (s *shards) saw() {
	if v, _ := s.alloc.view(); s.leases && s.owners && (s.placing.read || !slices.ContainsFunc(v.App.Services, places)) {
		s.assigner.SawAll()
		s.now.ring()
	}
}

// onOwned takes a change that was announced.
func (s *shards) onOwned(m *nats.Msg) {
	_, _, key, ok := subjects.OwnershipKey(m.Subject)
	rev, err := strconv.ParseUint(m.Header.Get(subjects.HeaderSequence), 10, 64)
	if !ok || err != nil {
		return
	}
	if key == subjects.KeyAllocatorLease {
		s.alloc.leaseNews.Heard(kbroker.Revision(rev), s.alloc.cfg.Clock())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.see(0, s.alloc.cfg.Judge(), kbroker.Stored{Key: key, Revision: kbroker.Revision(rev), Value: m.Data}) {
		s.now.ring()
	}
}

// onReaped takes that starts have ended: what they owned is free at once.
func (s *shards) onReaped(m *nats.Msg) {
	var r kbroker.Reaped
	if err := json.Unmarshal(m.Data, &r); err != nil {
		s.alloc.log.Debug("it is not readable which starts have ended", "err", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, i := range r.Incarnations {
		s.assigner.Reaped(i)
	}
	s.now.ring()
}

// see takes a record as it was read, asked for at a time; 0: it was heard of. It reports
// whether there may be something to do. The caller holds mu.
func (s *shards) see(asked, at time.Duration, r kbroker.Stored) bool {
	switch k := subjects.ParseOwnKey(r.Key); k.Table {
	case subjects.OwnLease:
		l, ok := decode[ownership.Lease](s, r)
		if r.Exists() {
			l.Incarnation = k.Incarnation
		}
		l.Leaving = l.Leaving || !ok // who it is for cannot be told
		return s.assigner.SawLease(asked, at, k.Incarnation, l, r.Revision)
	case subjects.OwnAssign:
		as, ok := decode[ownership.Assignment](s, r)
		if k.Shard.OfOne() {
			was := s.assigner.Placed(k.Shard)
			if ok = ok && s.assigner.SawShard(at, k.Shard, as, r.Revision); ok {
				s.sawPlaced(was, as)
			}
			return ok
		}
		if s.unreadable[k.Shard] = !ok; !ok {
			return false
		}
		return s.assigner.SawShard(at, k.Shard, as, r.Revision)
	case subjects.OwnRelease:
		release, _ := decode[ownership.Release](s, r)
		news := s.assigner.SawRelease(k.Shard, release, r.Revision)
		if news && k.Shard.OfOne() && s.alloc.demanding.Load() != nil {
			s.forward(r, k.Shard)
		}
		return news
	case subjects.OwnWishes:
		return s.sawWishes(r)
	}
	return false // of this allocator's own lease, or of a later build
}

// decode reads the value of a record; the zero value if there is none.
func decode[T any](s *shards, r kbroker.Stored) (v T, ok bool) {
	if !r.Exists() {
		return v, true
	}
	if err := json.Unmarshal(r.Value, &v); err != nil {
		s.alloc.log.Warn("a record of who owns objects is not readable; it is left as it is", "object", r.Key, "rev", r.Revision, "err", err)
		return *new(T), false
	}
	return v, true
}

// plan is the next batch of a holder of the lease.
func (s *shards) plan(epoch uint64) ownership.Batch {
	if len(s.kinds()) == 0 {
		return ownership.Batch{}
	}
	v, _ := s.alloc.look() // shards have owners however much is known of loads
	decision := s.alloc.policy(v)(v)
	placed := s.place(v, decision.Shards)
	s.mu.Lock()
	defer s.mu.Unlock()
	// Where nobody is to have a shard it stays, and a move that has begun comes to its end.
	want := s.assigner.Owners()
	maps.Copy(want, placed)
	maps.DeleteFunc(want, func(n kbroker.Shard, _ kbroker.Incarnation) bool { return s.unreadable[n] })
	b := s.assigner.Plan(s.alloc.cfg.Judge(), epoch, want)
	if len(b.Writes) > 0 {
		return b
	}
	placing := s.planPlaced(epoch, v, decision.Placed)
	placing.Again = b.Again
	return placing
}

// place is which owner each shard is to have, of those that the policy of the app gives one.
func (s *shards) place(v View, placed []kbroker.Incarnation) map[kbroker.Shard]kbroker.Incarnation {
	now, wished := map[kbroker.Shard]kbroker.Incarnation{}, map[kbroker.Shard]kbroker.Incarnation{}
	for n, of := range v.Shards {
		if of.Owner != "" {
			now[kbroker.Shard(n)] = of.Owner
		}
		if of.Wished != "" {
			wished[kbroker.Shard(n)] = of.Wished
		}
	}
	if placed == nil {
		return ownership.Spread(now, v.Owners, wished)
	}
	out := map[kbroker.Shard]kbroker.Incarnation{}
	for n, to := range placed {
		if slices.Contains(v.Owners, to) {
			out[kbroker.Shard(n)] = to
		}
	}
	return out
}

// fill adds to a view who may own shards, and where they are.
func (s *shards) fill(v *View) {
	kinds := s.kinds()
	if len(kinds) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rebalanced()
	v.Owners = s.assigner.Live(s.alloc.cfg.Judge(), func(l ownership.Lease) bool { return kinds[l.Service] })
	v.Shards = make([]Shard, kbroker.Shards)
	for n, owner := range s.assigner.Owners() {
		v.Shards[n].Owner = owner
	}
	for n := range s.assigner.Fresh(s.alloc.cfg.Judge() - freshFor) {
		v.Shards[n].Fresh = true
	}
	for _, wanted := range []map[kbroker.Shard]kbroker.Incarnation{s.rebalance.left, s.wished()} {
		for n, to := range wanted {
			v.Shards[n].Wished = to
		}
	}
	s.turns.fill(v)
	s.fillPlaced(v)
}

// assign gives the shards to who is there, batch by batch, until ctx ends or the lease is
// lost.
func (s *shards) assign(ctx context.Context, h *state.AllocatorHolding) {
	s.lookShards.ring() // announcements may have been lost
	s.lookPlaced.ring()
	defer s.forgetAsked()
	defer s.endRebalance()
	pause, failures := againLeast, 0
	var done ownership.Counts
	for ctx.Err() == nil {
		b := s.plan(h.Epoch())
		if len(b.Writes) == 0 {
			s.tell(h.Epoch(), &done)
			late := s.alloc.pace.lookLeases // a move may be
			if b.Again > 0 {
				late = min(late, b.Again)
			}
			await(ctx, s.now, late)
			continue
		}
		reply, err := h.Write(ctx, b.Writes)
		switch {
		case err == nil:
			s.wrote(b, reply)
			done.Add(b.Counts)
			pause, failures = againLeast, 0
			continue
		case ctx.Err() != nil:
		case errors.Is(err, kbroker.Refused):
			s.alloc.log.Info("a batch of who owns objects is refused: the lease is lost", "epoch", h.Epoch(), "err", err)
			return
		default:
			failures++
			if conflict := errors.Is(err, kbroker.Conflict); !conflict && failures == 1 || conflict && failures == maxConflicts {
				s.alloc.log.Warn("who owns objects was not written; planned again", "epoch", h.Epoch(), "err", err)
			}
		}
		if err := s.again(ctx, b); err != nil {
			s.alloc.log.Debug("what a batch was about is not read", "err", err)
			s.lookShards.ring()
			s.lookLeases.ring()
		}
		await(ctx, nil, jitter(pause))
		pause = min(2*pause, s.alloc.pace.retryMost)
	}
	s.tell(h.Epoch(), &done)
}

// wrote takes what an accepted batch has written.
func (s *shards) wrote(b ownership.Batch, reply kbroker.OwnWriteReply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.alloc.cfg.Judge()
	before := map[kbroker.Shard]ownership.Assignment{}
	for _, n := range b.Shards {
		if n.OfOne() {
			before[n] = s.assigner.Placed(n)
		}
	}
	all := make([]kbroker.Stored, len(b.Writes))
	for i, w := range b.Writes {
		all[i] = kbroker.Stored{Key: w.Key, Revision: reply.At(i), Value: w.Value}
		s.see(0, at, all[i])
	}
	s.tellOwners(before, all)
}

// again reads what a batch was about.
func (s *shards) again(ctx context.Context, b ownership.Batch) error {
	var keys []string
	for _, n := range b.Shards {
		keys = append(keys, subjects.KeyAssign(n), subjects.KeyRelease(n))
	}
	for _, i := range b.Leases {
		keys = append(keys, subjects.KeyLease(i))
	}
	asked := s.alloc.cfg.Judge()
	found, err := s.alloc.readKeys(ctx, keys)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.alloc.cfg.Judge()
	for _, r := range found {
		s.see(asked, at, r)
	}
	return nil
}

// tell says what was done since it was called last.
func (s *shards) tell(epoch uint64, done *ownership.Counts) {
	if c := *done; c.Assigned+c.Taken+c.Moved+c.Kept+c.Released > 0 {
		s.alloc.log.Info("shards have other owners", "epoch", epoch, "assigned", c.Assigned, "taken", c.Taken, "moved", c.Moved, "kept", c.Kept, "released", c.Released)
	}
	*done = ownership.Counts{}
}

// await waits for the bell, for a time at most.
func await(ctx context.Context, b bell, d time.Duration) {
	tick := time.NewTimer(d)
	defer tick.Stop()
	select {
	case <-ctx.Done():
	case <-b:
	case <-tick.C:
	}
}
