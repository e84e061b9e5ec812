package state

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// nudgeAfter is how long a view waits for the feed to bring its nonce before
// the stream is read.
const nudgeAfter = 30 * time.Millisecond

// View is an immutable snapshot; nobody writes to its maps.
type View struct {
	Sequence   uint64 // of the store, up to which it is complete
	Lease      Lease
	Apps       map[AppKey]kbroker.AppRecord
	Versions   map[AppKey]map[int]kbroker.AppVersion
	Placements map[PlacementKey]kbroker.Placement
	Heads      map[kbroker.HostID]kbroker.Head
	Hosts      map[kbroker.HostID]kbroker.Host
	Demands    map[AppKey]kbroker.Demand
	Tokens     map[string]kbroker.Token // by ID
	Users      map[UserKey]kbroker.User
	// Statuses are as last reported, not behind the barrier.
	Statuses map[PlacementKey]kbroker.Status
	// Revoked are users of credentials that were taken back, with the end of what was
	// signed for them; likewise.
	Revoked map[string]time.Time
	// Unreadable are the keys of records that exist and cannot be decoded, with
	// the reason. They are in none of the maps above, and are not absent:
	// Commit refuses changes that depend on them.
	Unreadable map[string]error

	audits    map[int]kbroker.AuditRecord
	revisions map[string]uint64
	gone      map[string]deletedKey
	hosted    *hosted
}

// AppKey names an app.
type AppKey struct {
	Tenant kbroker.TenantID
	App    kbroker.AppName
}

// UserKey names a user.
type UserKey struct {
	Tenant kbroker.TenantID
	Name   kbroker.UserName
}

// PlacementKey names an instance on a host.
type PlacementKey struct {
	Host     kbroker.HostID
	Tenant   kbroker.TenantID
	Instance kbroker.InstanceID
}

// hosted is an index of a view's placements, made when it is first needed and
// shared by all views with the same placements.
type hosted struct {
	once sync.Once
	by   map[kbroker.HostID][]kbroker.Placement
}

// On returns the placements of a host, tombstones included, sorted by tenant
// and instance. Nobody writes to the result.
func (v *View) On(host kbroker.HostID) []kbroker.Placement {
	if v.hosted == nil {
		return onHosts(v.Placements)[host]
	}
	v.hosted.once.Do(func() { v.hosted.by = onHosts(v.Placements) })
	return v.hosted.by[host]
}

func onHosts(placements map[PlacementKey]kbroker.Placement) map[kbroker.HostID][]kbroker.Placement {
	by := map[kbroker.HostID][]kbroker.Placement{}
	for k, p := range placements {
		by[k.Host] = append(by[k.Host], p)
	}
	for _, of := range by {
		slices.SortFunc(of, func(a, b kbroker.Placement) int {
			return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Instance, b.Instance))
		})
	}
	return by
}

// View returns everything that was written before View was called. Errors:
// Unavailable when the barrier could not be written or reached before ctx
// ended, or Run is not running.
func (s *Store) View(ctx context.Context) (*View, error) {
	seq, err := s.barrier.wait(ctx)
	if err != nil {
		return nil, unavailable(err, "the control store takes no writes")
	}
	if err := s.control.await(ctx, seq, true); err != nil {
		return nil, unavailable(err, "this core's replica of the control store is behind")
	}
	if err := s.reports.await(ctx, 0, true); err != nil {
		return nil, unavailable(err, "this core's replica of the status store is not there yet")
	}
	return s.Peek(), nil
}

// Peek returns what the replica holds now; for display and hints.
func (s *Store) Peek() *View {
	v := s.control.snapshot()
	r := s.reports.snapshot()
	v.Statuses, v.Revoked = r.Statuses, r.Revoked
	if len(r.Unreadable) > 0 {
		v.Unreadable = maps.Clone(v.Unreadable)
		maps.Copy(v.Unreadable, r.Unreadable)
	}
	return v
}

// HostView is the barriered view of one host; its placements hash to its head.
// Errors: Unavailable as View, and while a head is mended that a crash left
// behind. Internal when a record of the host is not readable.
func (s *Store) HostView(ctx context.Context, host kbroker.HostID) (kbroker.ViewReply, error) {
	v, err := s.View(ctx)
	if err != nil {
		return kbroker.ViewReply{}, err
	}
	for key, cause := range v.Unreadable {
		if k := subjects.ParseKey(key); k.Host == host && (k.Table == subjects.PlacementTable || k.Table == subjects.HeadTable) {
			return kbroker.ViewReply{}, kbroker.Errorf(kbroker.Internal, "the record %s is not readable: %v", key, cause)
		}
	}
	reply := kbroker.ViewReply{Head: v.Heads[host], Placements: slices.Clone(v.On(host))}
	if !v.whole(host) {
		return kbroker.ViewReply{}, unavailable(nil, "the %d placements of host %s are not the %d of its head %d", len(reply.Placements), host, reply.Head.Count, reply.Head.Revision)
	}
	if reply.Head.Revision == 0 {
		reply.Head = kbroker.Head{Host: host, Hash: kbroker.PlacementsHash(nil)}
	}
	return reply, nil
}

// Hosts returns the hosts that this core knows now, sorted by name; un-barriered
// and cheap, for every heartbeat.
func (s *Store) Hosts() []kbroker.Host { return s.control.hosts() }

// Host is a host as this core knows it now; the zero Host if it does not.
func (s *Store) Host(host kbroker.HostID) kbroker.Host { return s.control.host(host) }

// App is the record of an app as this core knows it now; the zero AppRecord if it does not.
func (s *Store) App(k AppKey) kbroker.AppRecord { return s.control.app(k) }

// Placement is what is demanded of an instance, as this core's replica has it
// now; false: nothing.
func (s *Store) Placement(k PlacementKey) (kbroker.Placement, bool) { return s.control.placement(k) }

// HeadRevision is the revision of the host's head that the replica holds now,
// 0 for none: what a heartbeat is answered with.
func (s *Store) HeadRevision(host kbroker.HostID) uint64 { return s.control.headRevision(host) }
