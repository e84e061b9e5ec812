package state

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// markerTTL is how long the marker of a deleted key stays in the stream. A
// replica that was away for longer reads everything again.
const markerTTL = time.Hour

// tables are the decoded records of one bucket.
type tables struct {
	apps       map[AppKey]kbroker.AppRecord
	versions   map[AppKey]map[int]kbroker.AppVersion // inner maps are replaced, never changed
	placements map[PlacementKey]kbroker.Placement
	heads      map[kbroker.HostID]kbroker.Head
	hosts      map[kbroker.HostID]kbroker.Host
	demands    map[AppKey]kbroker.Demand
	tokens     map[string]kbroker.Token // by ID
	users      map[UserKey]kbroker.User
	statuses   map[PlacementKey]kbroker.Status
	revoked    map[string]time.Time        // users, with the end of what was signed for them
	audits     map[int]kbroker.AuditRecord // changes that the audit trail is to tell, by slot
	lease      Lease

	revisions  map[string]uint64     // of the keys that exist
	gone       map[string]deletedKey // keys of which only a marker may be left
	unreadable map[string]error      // keys that exist and cannot be decoded
}

// deletedKey is what is left of a key.
type deletedKey struct {
	revision uint64
	at       time.Duration // clock, when it was applied
}

func newTables() *tables {
	return &tables{
		apps:       map[AppKey]kbroker.AppRecord{},
		versions:   map[AppKey]map[int]kbroker.AppVersion{},
		placements: map[PlacementKey]kbroker.Placement{},
		heads:      map[kbroker.HostID]kbroker.Head{},
		hosts:      map[kbroker.HostID]kbroker.Host{},
		demands:    map[AppKey]kbroker.Demand{},
		tokens:     map[string]kbroker.Token{},
		users:      map[UserKey]kbroker.User{},
		statuses:   map[PlacementKey]kbroker.Status{},
		revoked:    map[string]time.Time{},
		audits:     map[int]kbroker.AuditRecord{},
		revisions:  map[string]uint64{},
		gone:       map[string]deletedKey{},
		unreadable: map[string]error{},
	}
}

// record is one decoded message of a bucket.
type record struct {
	key   string
	id    subjects.Key
	seq   uint64
	gone  bool
	value any // nil if gone, ignored or unreadable
	err   error
}

// decode reads a message of a bucket; keyOf finds the key in its subject.
func decode(m message, keyOf func(string) (string, bool)) record {
	key, ok := keyOf(m.subject)
	if !ok {
		return record{}
	}
	r := record{key: key, id: subjects.ParseKey(key), seq: m.seq, gone: deleted(m.header)}
	if r.gone {
		return r
	}
	switch r.id.Table {
	case subjects.LeaseTable:
		r.value, r.err = decodeAs(m.data, func(leaseRecord) bool { return true })
	case subjects.AppTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.AppRecord) bool { return v.Tenant == r.id.Tenant && v.App == r.id.App })
	case subjects.VersionTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.AppVersion) bool {
			return v.Tenant == r.id.Tenant && v.App.Name == r.id.App && v.Version == r.id.Version
		})
	case subjects.PlacementTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.Placement) bool {
			return v.Host == r.id.Host && v.Tenant == r.id.Tenant && v.Instance == r.id.Instance
		})
	case subjects.HeadTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.Head) bool { return v.Host == r.id.Host })
	case subjects.HostTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.Host) bool { return v.Name == r.id.Host })
	case subjects.DemandTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.Demand) bool { return v.Tenant == r.id.Tenant && v.App == r.id.App })
	case subjects.TokenTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.Token) bool { return v.ID == r.id.Token })
	case subjects.UserTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.User) bool { return v.Tenant == r.id.Tenant && v.Name == r.id.Name })
	case subjects.AuditTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.AuditRecord) bool { return AuditSlot(v.Changes) == r.id.Slot })
	case subjects.StatusTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.Status) bool {
			return v.Host == r.id.Host && v.Tenant == r.id.Tenant && v.Instance == r.id.Instance
		})
	case subjects.RevokedTable:
		r.value, r.err = decodeAs(m.data, func(v kbroker.Revocation) bool { return v.User == r.id.User })
	}
	return r
}

// decodeAs decodes a record and checks that it is the one its key names.
func decodeAs[T any](data []byte, matches func(T) bool) (any, error) {
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		return nil, err
	}
	if !matches(v) {
		return nil, fmt.Errorf("the %T is that of another key", v)
	}
	return v, nil
}

// apply takes one record in the order of the stream. It reports whether
// somebody who plans or shows must look again.
func (t *tables) apply(r record, now time.Duration, log *slog.Logger) (changed bool) {
	switch r.id.Table {
	case subjects.UnknownTable, subjects.NonceTable, subjects.CanaryTable, subjects.ReportTable:
		return false
	case subjects.LeaseTable:
		if l, ok := r.value.(leaseRecord); ok {
			t.lease = l.lease()
		}
		return false
	}
	delete(t.unreadable, r.key)
	delete(t.gone, r.key)
	if r.gone || r.err != nil {
		t.forget(r.id)
	}
	switch {
	case r.gone:
		delete(t.revisions, r.key)
		t.gone[r.key] = deletedKey{revision: r.seq, at: now}
		return true
	case r.err != nil:
		log.Error("unreadable record; nothing that depends on it is changed", "object", r.key, "rev", r.seq, "err", r.err)
		t.unreadable[r.key] = r.err
	default:
		t.put(r.value)
	}
	t.revisions[r.key] = r.seq
	return true
}

func (t *tables) put(value any) {
	switch v := value.(type) {
	case kbroker.AppRecord:
		t.apps[AppKey{v.Tenant, v.App}] = v
	case kbroker.AppVersion:
		k := AppKey{v.Tenant, v.App.Name}
		of := maps.Clone(t.versions[k])
		if of == nil {
			of = map[int]kbroker.AppVersion{}
		}
		of[v.Version] = v
		t.versions[k] = of
	case kbroker.Placement:
		t.placements[PlacementKey{v.Host, v.Tenant, v.Instance}] = v
	case kbroker.Head:
		t.heads[v.Host] = v
	case kbroker.Host:
		t.hosts[v.Name] = v
	case kbroker.Demand:
		t.demands[AppKey{v.Tenant, v.App}] = v
	case kbroker.Token:
		t.tokens[v.ID] = v
	case kbroker.User:
		t.users[UserKey{v.Tenant, v.Name}] = v
	case kbroker.AuditRecord:
		t.audits[AuditSlot(v.Changes)] = v
	case kbroker.Status:
		t.statuses[PlacementKey{v.Host, v.Tenant, v.Instance}] = v
	case kbroker.Revocation:
		t.revoked[v.User] = v.Until
	}
}

// forget drops the decoded record of a key.
func (t *tables) forget(k subjects.Key) {
	switch k.Table {
	case subjects.AppTable:
		delete(t.apps, AppKey{k.Tenant, k.App})
	case subjects.VersionTable:
		app := AppKey{k.Tenant, k.App}
		of := maps.Clone(t.versions[app])
		delete(of, k.Version)
		if t.versions[app] = of; len(of) == 0 {
			delete(t.versions, app)
		}
	case subjects.PlacementTable:
		delete(t.placements, PlacementKey{k.Host, k.Tenant, k.Instance})
	case subjects.HeadTable:
		delete(t.heads, k.Host)
	case subjects.HostTable:
		delete(t.hosts, k.Host)
	case subjects.DemandTable:
		delete(t.demands, AppKey{k.Tenant, k.App})
	case subjects.TokenTable:
		delete(t.tokens, k.Token)
	case subjects.UserTable:
		delete(t.users, UserKey{k.Tenant, k.Name})
	case subjects.AuditTable:
		delete(t.audits, k.Slot)
	case subjects.StatusTable:
		delete(t.statuses, PlacementKey{k.Host, k.Tenant, k.Instance})
	case subjects.RevokedTable:
		delete(t.revoked, k.User)
	}
}

// prune forgets keys whose markers have long left the stream.
func (t *tables) prune(now time.Duration) {
	for key, g := range t.gone {
		if now-g.at > 2*markerTTL {
			delete(t.gone, key)
		}
	}
}
