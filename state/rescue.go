package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Steps of a rescue.
const (
	// rescueEpochs are added to every epoch, and to the revision of every head:
	// the copy may lack the last ones that the lost cluster gave away, and what
	// acts by one of those must be older than all that follows.
	rescueEpochs = 1_000_000
	// rescueInstances are added to the number of an app's next instance for the
	// same reason: a name is used once.
	rescueInstances = 1_000
	// rescueLife is how long a credential may hold at least, for cores that have not
	// said for how long they sign.
	rescueLife = time.Hour
)

// Rescue decides what becomes of the records of a lost cluster in the one that
// is made of their copies. Pure, and for one pass over all streams: the control store
// before the statuses, as their names are.
//
//   - Every other core is removed; workers stay.
//   - Epochs, and the revisions of heads, are higher than any that was given
//     away: what still runs anywhere leaves, and is started again.
//   - Leases are released; those of starts of instances, and what these have released of
//     their shards, are dropped. Who owned what stays: an allocator counts its epochs from
//     that of its own lease, so that they are higher than those in any copy.
//   - Statuses and the numbers of reports are dropped: agents say them again.
//   - Credentials that were taken back stay so, and those of what ran on the other
//     cores are taken back: nobody will say that it is over.
//   - The audit trail goes on where its copy ends, behind a record of the rescue; changes
//     of the copy of the control store that it does not tell yet follow.
//   - Everything else, also what this build does not know, is as it was.
type Rescue struct {
	host kbroker.HostID // founds the new cluster
	now  time.Time      // wall clock, for display

	member  bool // a record says that the host was a member
	lost    []kbroker.HostID
	changes uint64              // as the control store numbers them
	audit   kbroker.AuditRecord // the last of the trail; zero: there is none
	heads   map[kbroker.HostID]kbroker.Head
	on      map[kbroker.HostID][]kbroker.Placement
	users   map[kbroker.HostID][]string // of what ran on a host
	life    time.Duration               // the longest that a core signs for
}

// NewRescue begins the rescue by a host.
func NewRescue(host kbroker.HostID, now time.Time) *Rescue {
	return &Rescue{
		host: host, now: now, life: rescueLife, heads: map[kbroker.HostID]kbroker.Head{},
		on: map[kbroker.HostID][]kbroker.Placement{}, users: map[kbroker.HostID][]string{},
	}
}

// Lost are the cores that the records seen so far have removed, by name.
func (r *Rescue) Lost() []kbroker.HostID { return slices.Sorted(slices.Values(r.lost)) }

// Change returns what to store in place of a stored message; with nil, at the
// end of each stream, what to store behind it. Refused: a record that must be
// changed is not readable, or the copy ends before the host had joined.
func (r *Rescue) Change(stream string, m *nats.Msg) ([]*nats.Msg, error) {
	switch {
	case stream == subjects.StatusStream && m == nil:
		return r.revoke(), nil
	case stream == subjects.StatusStream:
		return r.reported(m)
	case stream == subjects.ControlStream && m == nil:
		return r.end()
	case stream == subjects.AuditStream && m == nil:
		return r.endAudit(), nil
	case m == nil:
		return nil, nil
	case stream == subjects.AuditStream:
		if rec, err := decodeAudit(m.Data); err == nil {
			r.audit = rec
		}
		return []*nats.Msg{m}, nil
	case stream == subjects.ControlStream:
		return r.record(m)
	case subjects.IsAllocatorLease(m.Subject):
		return release(m)
	}
	if _, _, key, ok := subjects.OwnershipKey(m.Subject); ok {
		if t := subjects.ParseOwnKey(key).Table; t == subjects.OwnLease || t == subjects.OwnRelease {
			return nil, nil // of starts that end, and of epochs that are over
		}
	}
	return []*nats.Msg{m}, nil
}

// record changes one record of the control store.
func (r *Rescue) record(m *nats.Msg) ([]*nats.Msg, error) {
	rec := decode(message{subject: m.Subject, header: m.Header, data: m.Data}, subjects.ControlKey)
	switch {
	case rec.gone:
		return nil, nil // nobody has seen it in the new cluster
	case rec.err != nil:
		return nil, unreadable(m.Subject, rec.err)
	}
	switch rec.id.Table {
	case subjects.NonceTable, subjects.CanaryTable:
		return nil, nil // each core writes its own
	case subjects.LeaseTable:
		return release(m)
	}
	switch v := rec.value.(type) {
	case kbroker.AppRecord:
		v.NextInstance += rescueInstances
		return written(m, v), nil
	case kbroker.Demand:
		v.Epoch += rescueEpochs
		return written(m, v), nil
	case kbroker.Placement:
		v.Epoch += rescueEpochs
		r.on[v.Host] = append(r.on[v.Host], v)
		return written(m, v), nil
	case kbroker.Head:
		r.heads[v.Host] = v
		return nil, nil // follows when all placements are known
	case kbroker.Host:
		return written(m, r.judge(v)), nil
	case kbroker.AuditRecord:
		r.changes = max(r.changes, v.Changes)
	}
	return []*nats.Msg{m}, nil
}

// reported changes one record of the status bucket.
func (r *Rescue) reported(m *nats.Msg) ([]*nats.Msg, error) {
	rec := decode(message{subject: m.Subject, header: m.Header, data: m.Data}, subjects.StatusKey)
	switch v := rec.value.(type) {
	case kbroker.Revocation:
		return revocations([]kbroker.Revocation{v}, r.now), nil
	case kbroker.Status:
		if v.User != "" {
			r.users[v.Host] = append(r.users[v.Host], v.User)
		}
	}
	if rec.err != nil && rec.id.Table == subjects.RevokedTable {
		return nil, unreadable(m.Subject, rec.err)
	}
	return nil, nil
}

// revoke takes back what the lost cores had signed for what ran on them.
func (r *Rescue) revoke() []*nats.Msg {
	var out []kbroker.Revocation
	for _, host := range r.Lost() {
		for _, user := range r.users[host] {
			out = append(out, kbroker.Revocation{User: user, Until: r.now.Add(r.life).UTC().Truncate(time.Second)})
		}
	}
	return revocations(out, r.now)
}

// judge says what becomes of a host.
func (r *Rescue) judge(h kbroker.Host) kbroker.Host {
	r.life = max(r.life, h.SignsFor(h.CredentialLife))
	switch {
	case !h.Member():
	case h.Name == r.host:
		r.member = true
		h.Maintenance = nil // it was given by who is not there any more
	case h.Role == kbroker.RoleCore:
		r.lost = append(r.lost, h.Name)
		h.State, h.Since, h.Drain, h.Maintenance = kbroker.HostRemoved, r.now, nil, nil
	}
	return h
}

// end returns the heads of all hosts that had one, or have placements.
func (r *Rescue) end() ([]*nats.Msg, error) {
	if !r.member {
		return nil, kbroker.Errorf(kbroker.Refused, "the copy does not know host %s as a member: it was not whole yet", r.host).
			WithHint("nothing can be rescued from it")
	}
	for host := range r.on {
		if _, ok := r.heads[host]; !ok {
			r.heads[host] = kbroker.Head{Host: host}
		}
	}
	var out []*nats.Msg
	for _, host := range slices.Sorted(maps.Keys(r.heads)) {
		out = append(out, newRecord(subjects.Control(subjects.KeyHead(host)), kbroker.Head{
			Host: host, Revision: r.heads[host].Revision + rescueEpochs,
			Count: len(r.on[host]), Hash: kbroker.PlacementsHash(r.on[host]),
		}))
	}
	return out, nil
}

// endAudit links what the new cluster will tell to the copy of the trail. The copies of
// the two streams may end at different times: what the control store knows last is what
// the next change is counted from. The control store comes before the trail, by name.
func (r *Rescue) endAudit() []*nats.Msg {
	if r.audit.Number == 0 {
		return nil
	}
	rec := kbroker.AuditRecord{
		ID: fmt.Sprintf("rescue %s %d", r.host, r.audit.Number), Time: r.now, Actor: kbroker.Caller{Host: r.host, Role: string(kbroker.RoleCore)},
		Action: kbroker.AuditRescue, Object: "host " + string(r.host), Outcome: kbroker.AuditDone, Changes: min(r.audit.Changes, r.changes),
		Message: fmt.Sprintf("a new cluster was made of copies; that of the trail ends with record %d, of %s", r.audit.Number, r.audit.Time.Format(time.RFC3339)),
		By:      "rescue " + string(r.host),
	}
	return []*nats.Msg{newRecord(subjects.AuditRecord, rec.After(r.audit))}
}

// release gives a lease back that nobody can hold any more.
func release(m *nats.Msg) ([]*nats.Msg, error) {
	var l leaseRecord
	if err := json.Unmarshal(m.Data, &l); err != nil {
		return nil, unreadable(m.Subject, err)
	}
	l.Epoch += rescueEpochs
	l.Released = true
	return written(m, l), nil
}

// written is a record in place of the one in m.
func written(m *nats.Msg, v any) []*nats.Msg { return []*nats.Msg{newRecord(m.Subject, v)} }

func unreadable(subject string, err error) error {
	return kbroker.Errorf(kbroker.Refused, "the record %s is not readable: %v", subject, err).
		WithHint("a newer kbroker may have written it; rescue with that one")
}
