package state

import (
	"encoding/json"
	"errors"
	"math"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const rescuedTenant = kbroker.DefaultTenant

func controlMsg(key string, v any) *nats.Msg { return newRecord(subjects.Control(key), v) }

func hostMsg(h kbroker.Host) *nats.Msg { return controlMsg(subjects.KeyHost(h.Name), h) }

func placeMsg(p kbroker.Placement) *nats.Msg {
	return controlMsg(subjects.KeyPlacement(p.Host, p.Tenant, p.Instance), p)
}

// rescue changes all messages of one stream, and its end.
func rescue(t *testing.T, r *Rescue, stream string, in ...*nats.Msg) []*nats.Msg {
	t.Helper()
	var out []*nats.Msg
	for _, m := range append(in, nil) {
		changed, err := r.Change(stream, m)
		if err != nil {
			t.Fatalf("change %v: %v", m, err)
		}
		out = append(out, changed...)
	}
	return out
}

// bySubject decodes the one message of a subject.
func bySubject[T any](t *testing.T, all []*nats.Msg, subject string) (v T) {
	t.Helper()
	found := 0
	for _, m := range all {
		if m.Subject == subject {
			found++
			if err := json.Unmarshal(m.Data, &v); err != nil {
				t.Fatal(err)
			}
		}
	}
	if found != 1 {
		t.Fatalf("%d messages of %s, want 1", found, subject)
	}
	return v
}

func TestRescueOfOneRecord(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	drain, leave := &kbroker.Drain{Since: now.Add(-time.Hour)}, &kbroker.Maintenance{}
	before := now.Add(-24 * time.Hour)
	app := kbroker.AppRecord{Tenant: rescuedTenant, App: "shop", Version: 3, Latest: 4, NextInstance: 7}
	demand := kbroker.Demand{Tenant: rescuedTenant, App: "shop", Epoch: 5, Wanted: map[kbroker.ServiceName]int{"web": 2}}
	place := kbroker.Placement{Tenant: rescuedTenant, App: "shop", Service: "web", Instance: "shop-web-1", Host: "a", Epoch: 2, Template: "x"}
	newer, newerApp, newerDemand := place, app, demand
	newer.Epoch, newerApp.NextInstance, newerDemand.Epoch = 1_000_002, 1_007, 1_000_005
	for name, tc := range map[string]struct{ in, want *nats.Msg }{
		"another core is removed": {
			hostMsg(kbroker.Host{Name: "a", Role: kbroker.RoleCore, State: kbroker.HostReady, Since: before, Generation: 2, Drain: drain, Maintenance: leave}),
			hostMsg(kbroker.Host{Name: "a", Role: kbroker.RoleCore, State: kbroker.HostRemoved, Since: now, Generation: 2}),
		},
		"so is one that was joining": {
			hostMsg(kbroker.Host{Name: "c", Role: kbroker.RoleCore, State: kbroker.HostJoining, Generation: 1}),
			hostMsg(kbroker.Host{Name: "c", Role: kbroker.RoleCore, State: kbroker.HostRemoved, Since: now, Generation: 1}),
		},
		"one that had been removed stays as it was": {
			hostMsg(kbroker.Host{Name: "z", Role: kbroker.RoleCore, State: kbroker.HostRemoved, Since: before}),
			hostMsg(kbroker.Host{Name: "z", Role: kbroker.RoleCore, State: kbroker.HostRemoved, Since: before}),
		},
		"a worker stays": {
			hostMsg(kbroker.Host{Name: "w", Role: kbroker.RoleWorker, State: kbroker.HostLost, Since: before, Drain: drain}),
			hostMsg(kbroker.Host{Name: "w", Role: kbroker.RoleWorker, State: kbroker.HostLost, Since: before, Drain: drain}),
		},
		"the survivor stays, with its drain and without its leave": {
			hostMsg(kbroker.Host{Name: "b", Role: kbroker.RoleCore, State: kbroker.HostReady, Since: before, Generation: 3, Drain: drain, Maintenance: leave}),
			hostMsg(kbroker.Host{Name: "b", Role: kbroker.RoleCore, State: kbroker.HostReady, Since: before, Generation: 3, Drain: drain}),
		},
		"a placement is newer than any that was given away":     {placeMsg(place), placeMsg(newer)},
		"an app's next instance has a name that never was used": {controlMsg(subjects.KeyApp(rescuedTenant, "shop"), app), controlMsg(subjects.KeyApp(rescuedTenant, "shop"), newerApp)},
		"a demand is as new as the lease of its allocator": {
			controlMsg(subjects.KeyDemand(rescuedTenant, "shop"), demand), controlMsg(subjects.KeyDemand(rescuedTenant, "shop"), newerDemand),
		},
		"the super's lease is released": {
			controlMsg(subjects.KeySuperLease, leaseRecord{Holder: "a", Process: "p", Epoch: 9}),
			controlMsg(subjects.KeySuperLease, leaseRecord{Holder: "a", Process: "p", Epoch: 1_000_009, Released: true}),
		},
		"a join token is as good as it was": {
			controlMsg(subjects.KeyToken("a2b3c4d5e6f7"), kbroker.Token{ID: "a2b3c4d5e6f7", Hash: []byte{1}, Role: kbroker.RoleCore}),
			controlMsg(subjects.KeyToken("a2b3c4d5e6f7"), kbroker.Token{ID: "a2b3c4d5e6f7", Hash: []byte{1}, Role: kbroker.RoleCore}),
		},
		"a user that was revoked stays out": {
			controlMsg(subjects.KeyUser(rescuedTenant, "ann"), kbroker.User{Tenant: rescuedTenant, Name: "ann", Key: "U", Revoked: before}),
			controlMsg(subjects.KeyUser(rescuedTenant, "ann"), kbroker.User{Tenant: rescuedTenant, Name: "ann", Key: "U", Revoked: before}),
		},
		"a record that this build does not know is kept": {controlMsg("new.thing", "x"), controlMsg("new.thing", "x")},
		"the barrier of a core is dropped":               {controlMsg(subjects.KeyNonce("a"), "x"), nil},
		"the canary of a core is dropped":                {controlMsg(subjects.KeyCanary("b"), "x"), nil},
		"the marker of a deleted key is dropped":         {newMarker(subjects.Control(subjects.KeyHost("b"))), nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := NewRescue("b", now).Change(subjects.ControlStream, tc.in)
			if err != nil {
				t.Fatal(err)
			}
			var want []*nats.Msg
			if tc.want != nil {
				want = []*nats.Msg{tc.want}
			}
			if !slices.EqualFunc(got, want, func(a, b *nats.Msg) bool {
				return a.Subject == b.Subject && string(a.Data) == string(b.Data)
			}) {
				t.Errorf("%s %s became %v, want %v", tc.in.Subject, tc.in.Data, got, want)
			}
		})
	}
}

// The heads of the new cluster are those of its placements: an agent takes the
// view, and it is newer than the one that it holds.
func TestRescuedHeadsMatchTheirPlacements(t *testing.T) {
	place := func(host kbroker.HostID, name kbroker.InstanceID, epoch uint64) kbroker.Placement {
		return kbroker.Placement{Tenant: rescuedTenant, App: "shop", Service: "web", Instance: name, Host: host, Epoch: epoch, Template: string(name)}
	}
	member := hostMsg(kbroker.Host{Name: "b", Role: kbroker.RoleCore, State: kbroker.HostReady})
	lost := hostMsg(kbroker.Host{Name: "a", Role: kbroker.RoleCore, State: kbroker.HostReady})
	torn := kbroker.Head{Host: "a", Revision: 4, Count: 7, Hash: "of something else"}
	r := NewRescue("b", time.Time{})
	// The head comes before a placement: they are stored in the order of their
	// last writes. Host w has none at all.
	all := rescue(t, r, subjects.ControlStream, member, lost,
		placeMsg(place("a", "shop-web-1", 1)), controlMsg(subjects.KeyHead("a"), torn), placeMsg(place("a", "shop-web-2", 3)),
		controlMsg(subjects.KeyHead("b"), kbroker.Head{Host: "b", Revision: 6}), placeMsg(place("w", "shop-web-3", 1)))
	on := map[kbroker.HostID][]kbroker.Placement{
		"a": {place("a", "shop-web-1", 1_000_001), place("a", "shop-web-2", 1_000_003)}, "w": {place("w", "shop-web-3", 1_000_001)},
	}
	for host, revision := range map[kbroker.HostID]uint64{"a": 1_000_004, "b": 1_000_006, "w": 1_000_000} {
		want := kbroker.Head{Host: host, Revision: revision, Count: len(on[host]), Hash: kbroker.PlacementsHash(on[host])}
		if got := bySubject[kbroker.Head](t, all, subjects.Control(subjects.KeyHead(host))); got != want {
			t.Errorf("head of %s is %+v, want %+v", host, got, want)
		}
		for _, p := range on[host] {
			if got := bySubject[kbroker.Placement](t, all, subjects.Control(subjects.KeyPlacement(host, rescuedTenant, p.Instance))); !reflect.DeepEqual(got, p) {
				t.Errorf("placement is %+v, want %+v", got, p)
			}
		}
	}
	if lost := r.Lost(); !slices.Equal(lost, []kbroker.HostID{"a"}) {
		t.Errorf("lost are %v, want a", lost)
	}
}

func TestRescueOfOtherStreams(t *testing.T) {
	r := NewRescue("b", time.Time{})
	status := newRecord(subjects.Status(subjects.KeyStatus("b", rescuedTenant, "shop-web-1")), kbroker.Status{})
	if out := rescue(t, r, subjects.StatusStream, status); len(out) != 0 {
		t.Errorf("statuses are %v, want none", out)
	}
	event := newRecord(subjects.Event(rescuedTenant, "shop", ""), kbroker.Event{})
	if out := rescue(t, r, subjects.EventStream, event); len(out) != 1 || out[0] != event {
		t.Errorf("events are %v, want them as they were", out)
	}
	own, _ := subjects.Ownership(rescuedTenant, "shop")
	subject := subjects.AllocatorLease(rescuedTenant, "shop")
	out := rescue(t, r, own, newRecord(subject, leaseRecord{Holder: "i", Process: "p", Epoch: 2}))
	if got, want := bySubject[leaseRecord](t, out, subject), (leaseRecord{Holder: "i", Process: "p", Epoch: 1_000_002, Released: true}); got != want {
		t.Errorf("the allocator's lease is %+v, want %+v", got, want)
	}
	alice := subjects.KeyState(kbroker.Object{Kind: "account", ID: "alice"})
	for key, kept := range map[string]bool{
		subjects.KeyLease("shop-web-1.a"): false, subjects.KeyRelease(3): false, subjects.KeyAssign(3): true, subjects.KeyOwnershipHead: true, "unknown": true, alice: true,
	} {
		stream, prefix, _ := subjects.StoredAt(rescuedTenant, "shop", 4, key)
		m := newMsg(prefix+key, []byte("x"))
		if out := rescue(t, r, stream, m); (len(out) == 1 && out[0] == m) != kept {
			t.Errorf("of %s %v is left, want it kept: %t", key, out, kept)
		}
	}
}

func TestRescueIsRefused(t *testing.T) {
	own, _ := subjects.Ownership(rescuedTenant, "shop")
	b := kbroker.Host{Name: "b", Role: kbroker.RoleCore, State: kbroker.HostRemoved}
	for name, tc := range map[string]struct {
		stream string
		in     []*nats.Msg
	}{
		"an unreadable placement":          {subjects.ControlStream, []*nats.Msg{newMsg(subjects.Control(subjects.KeyPlacement("b", rescuedTenant, "x")), []byte("{"))}},
		"an unreadable lease":              {own, []*nats.Msg{newMsg(subjects.AllocatorLease(rescuedTenant, "shop"), []byte("{"))}},
		"an empty control store":           {subjects.ControlStream, []*nats.Msg{nil}},
		"a survivor that had been removed": {subjects.ControlStream, []*nats.Msg{hostMsg(b), nil}},
	} {
		r := NewRescue("b", time.Time{})
		var err error
		for _, m := range tc.in {
			if _, err = r.Change(tc.stream, m); err != nil {
				break
			}
		}
		if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || e.Hint == "" {
			t.Errorf("%s: %v, want refused with a hint", name, err)
		}
	}
}

// TestARescueForgetsNoRevocation: what was taken back stays so for as long as it was to,
// and with the lost cores goes what ran on them; workers say themselves what has ended.
func TestARescueForgetsNoRevocation(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	revoked := func(user string, until time.Time) *nats.Msg {
		m := newRecord(subjects.Status(subjects.KeyRevoked(user)), kbroker.Revocation{User: user, Until: until})
		m.Header.Set(jetstream.MsgTTLHeader, "72h0m0s")
		return m
	}
	runs := func(host kbroker.HostID, user string) *nats.Msg {
		instance := kbroker.InstanceID("shop-web-" + string(host))
		return newRecord(subjects.Status(subjects.KeyStatus(host, rescuedTenant, instance)),
			kbroker.Status{Tenant: rescuedTenant, Host: host, Instance: instance, User: user})
	}
	r := NewRescue("b", now)
	hosts := rescue(t, r, subjects.ControlStream,
		hostMsg(kbroker.Host{Name: "a", Role: kbroker.RoleCore, State: kbroker.HostReady, CredentialLife: 3 * time.Hour}),
		hostMsg(kbroker.Host{Name: "b", Role: kbroker.RoleCore, State: kbroker.HostReady}),
		hostMsg(kbroker.Host{Name: "w", Role: kbroker.RoleWorker, State: kbroker.HostReady, User: "Uw", Revoked: []string{"Uv"}, CredentialLife: math.MaxInt64}),
	)
	if w := bySubject[kbroker.Host](t, hosts, subjects.Control(subjects.KeyHost("w"))); w.User != "Uw" || !slices.Equal(w.Revoked, []string{"Uv"}) {
		t.Errorf("the worker's users are %q, and %q that were taken back", w.User, w.Revoked)
	}
	out := rescue(t, r, subjects.StatusStream,
		revoked("U1", now.Add(time.Minute)), revoked("U2", now.Add(-time.Minute)), newMarker(subjects.Status(subjects.KeyRevoked("U3"))),
		runs("a", "Ua"), runs("b", "Ub"), runs("w", "Uw1"), runs("a2", ""))
	if len(out) != 2 {
		t.Errorf("%d records are left: %v, want that of U1 and that of what ran on a", len(out), out)
	}
	for user, until := range map[string]time.Duration{"U1": time.Minute, "Ua": 3 * time.Hour} {
		subject := subjects.Status(subjects.KeyRevoked(user))
		if got, want := bySubject[kbroker.Revocation](t, out, subject), (kbroker.Revocation{User: user, Until: now.Add(until)}); got != want {
			t.Errorf("taken back is %+v, want %+v", got, want)
		}
		for _, m := range out {
			if ttl, err := time.ParseDuration(m.Header.Get(jetstream.MsgTTLHeader)); m.Subject == subject && (err != nil || ttl != until+revokedLonger) {
				t.Errorf("the record of %s is kept for %v (%v), want %v", user, ttl, err, until+revokedLonger)
			}
		}
	}
	_, err := NewRescue("b", now).Change(subjects.StatusStream, newMsg(subjects.Status(subjects.KeyRevoked("U1")), []byte("{")))
	if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || e.Hint == "" {
		t.Errorf("a revocation that cannot be read: %v, want refused with a hint", err)
	}
}
