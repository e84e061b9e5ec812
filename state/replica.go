package state

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// replica is one bucket, decoded, in memory. Safe for concurrent use.
type replica struct {
	clock   Clock
	log     *slog.Logger
	keyOf   func(subject string) (string, bool)
	changed func() // called after records changed
	nudge   func(seq uint64)

	mu     sync.Mutex
	tables *tables
	seq    uint64
	proven bool          // the tables are a state that the store really had
	moved  chan struct{} // closed, and replaced, when any of these changes
	cached *View         // nil when a record has changed since it was made
}

func newReplica(clock Clock, log *slog.Logger, keyOf func(string) (string, bool), changed func()) *replica {
	return &replica{clock: clock, log: log, keyOf: keyOf, changed: changed, tables: newTables(), moved: make(chan struct{})}
}

// publish is what the follower calls.
func (r *replica) publish(batch []message, reset bool, seq uint64, proven bool) {
	records := make([]record, 0, len(batch))
	for _, m := range batch {
		records = append(records, decode(m, r.keyOf))
	}
	if r.take(records, reset, seq, proven) {
		r.changed()
	}
}

func (r *replica) take(records []record, reset bool, seq uint64, proven bool) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.clock()
	if reset {
		r.tables, changed = newTables(), true
	}
	for _, rec := range records {
		changed = r.tables.apply(rec, now, r.log) || changed
	}
	if changed {
		r.tables.prune(now)
		r.cached = nil
	}
	r.seq, r.proven = seq, proven
	close(r.moved)
	r.moved = make(chan struct{})
	return changed
}

// await returns when the replica has applied seq and, with proven, holds a
// state that the store really had. It ends with ctx.
func (r *replica) await(ctx context.Context, seq uint64, proven bool) error {
	for {
		there, moved := r.at(seq, proven)
		if there {
			return nil
		}
		if err := r.waitMoved(ctx, moved, seq); err != nil {
			return err
		}
	}
}

func (r *replica) at(seq uint64, proven bool) (bool, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seq >= seq && (!proven || r.proven), r.moved
}

// waitMoved waits for a change of the replica; when none comes for a moment,
// the follower is told to look for seq.
func (r *replica) waitMoved(ctx context.Context, moved <-chan struct{}, seq uint64) error {
	for {
		patience, cancel := context.WithTimeout(ctx, nudgeAfter)
		select {
		case <-moved:
			cancel()
			return nil
		case <-patience.Done():
			cancel()
			if ctx.Err() != nil {
				return ctx.Err()
			}
			r.nudge(seq)
		}
	}
}

// snapshot returns a view of the tables. Views share their maps until a record
// changes.
func (r *replica) snapshot() *View {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cached == nil {
		t := r.tables
		r.cached = &View{
			Apps: maps.Clone(t.apps), Versions: maps.Clone(t.versions), Placements: maps.Clone(t.placements),
			Heads: maps.Clone(t.heads), Hosts: maps.Clone(t.hosts), Demands: maps.Clone(t.demands),
			Tokens: maps.Clone(t.tokens), Users: maps.Clone(t.users), audits: maps.Clone(t.audits), Statuses: maps.Clone(t.statuses), Revoked: maps.Clone(t.revoked), Unreadable: maps.Clone(t.unreadable),
			revisions: maps.Clone(t.revisions), gone: maps.Clone(t.gone), hosted: &hosted{},
		}
	}
	v := *r.cached
	v.Sequence, v.Lease = r.seq, r.tables.lease
	return &v
}

func (r *replica) hosts() []kbroker.Host {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.SortedFunc(maps.Values(r.tables.hosts), func(a, b kbroker.Host) int { return cmp.Compare(a.Name, b.Name) })
}

func (r *replica) host(name kbroker.HostID) kbroker.Host {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tables.hosts[name]
}

func (r *replica) app(k AppKey) kbroker.AppRecord {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tables.apps[k]
}

// topics is how the events of an app are to be stored.
func (r *replica) topics(k AppKey) TopicsWanted {
	r.mu.Lock()
	defer r.mu.Unlock()
	version, ok := r.tables.versions[k][r.tables.apps[k].Version]
	if !ok {
		return TopicsWanted{}
	}
	return TopicsWanted{Limits: version.App.Topics, Revision: r.tables.revisions[subjects.KeyApp(k.Tenant, k.App)]}
}

// exited reports whether the last status of an instance says that it has ended.
func (r *replica) exited(k PlacementKey) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tables.statuses[k].State == kbroker.StateExited
}

// status is the last status of an instance.
func (r *replica) status(k PlacementKey) (kbroker.Status, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.tables.statuses[k]
	return s, ok
}

// placement is what is demanded of an instance.
func (r *replica) placement(k PlacementKey) (kbroker.Placement, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.tables.placements[k]
	return p, ok
}

func (r *replica) headRevision(host kbroker.HostID) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tables.heads[host].Revision
}
