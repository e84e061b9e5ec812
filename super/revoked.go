package super

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// How a credential of an instance is taken back:
//
//	its start is over ----> the agent reports it ------> the core that takes the report --+
//	its host was removed, or is lost and                                                  v
//	the instance was to stop by now -------> the leader ----> a record in the status bucket
//
// All cores follow the records. Who holds the credential may have had it renewed by any
// core up to now, without its agent's knowing: so each record lasts as long as the
// longest that any core signs for.

// Revoked are the public keys of users whose credentials were taken back, with a time
// after all that was signed for them: those of starts that are over or were given up, of
// workers that were removed, and of people.
func (s *Super) Revoked() map[string]time.Time {
	store := s.store.Load()
	if store == nil {
		return nil
	}
	out := maps.Clone(store.Peek().Revoked)
	if out == nil {
		out = map[string]time.Time{}
	}
	for _, h := range store.Hosts() {
		for _, user := range h.Revoked {
			out[user] = forGood
		}
		if !h.Member() && h.User != "" {
			out[h.User] = forGood
		}
	}
	maps.Copy(out, revokedUsers(store.Peek()))
	return out
}

// forGood is later than anything that is signed.
var forGood = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// longestLife is how long what any core signs now may hold, this one's is own. One that
// was removed counts as well: it still signs when nobody has told it.
func longestLife(hosts map[kbroker.HostID]kbroker.Host, own time.Duration) time.Duration {
	for _, h := range hosts {
		own = max(own, h.SignsFor(h.CredentialLife))
	}
	return own
}

// identify has the statuses of a report name the users of the starts that run. A host
// that named the key of another's would have it taken back with its own: what was signed
// says whose it is.
func (d *desk) identify(r *kbroker.ReportRequest) {
	for i := range r.Statuses {
		st := &r.Statuses[i]
		signed := st.Credential
		st.Credential, st.User = "", ""
		if signed == "" || d.cfg.Signed == nil {
			continue
		}
		if _, of, err := d.own(r.Host, signed); err != nil {
			d.log.Warn("a host reports of an instance that runs with a credential that is not its own", "host", r.Host, "instance", st.Instance, "err", err)
		} else {
			st.User = of.User
		}
	}
}

// ended are the credentials that a host says are over, and the starts that had them. It
// can take back its own alone; what else it names is no reason not to take its report.
// renewed is when all has ended that may have been signed for them up to now.
func (d *desk) ended(r kbroker.ReportRequest, renewed time.Time) (out []kbroker.Revocation, starts []kbroker.InstanceFile) {
	if d.cfg.Signed == nil {
		return nil, nil
	}
	for _, signed := range r.Ended {
		of, revocation, err := d.own(r.Host, signed)
		if err != nil {
			d.log.Warn("a host reports the end of a credential that is not its own", "host", r.Host, "err", err)
			continue
		}
		if revocation.Until.Before(renewed) {
			revocation.Until = renewed.UTC().Truncate(time.Second)
		}
		out, starts = append(out, revocation), append(starts, of)
	}
	return out, starts
}

// own reads what was signed for a start on a host, and refuses that of another one.
func (d *desk) own(host kbroker.HostID, signed string) (kbroker.InstanceFile, kbroker.Revocation, error) {
	of, revocation, err := d.cfg.Signed(signed)
	if err == nil && of.Host != host {
		err = fmt.Errorf("it is one of host %q", of.Host)
	}
	return of, revocation, err
}

// tellReaped tells the allocators of apps which starts have ended: what these owned may go
// to others at once. That it is lost does no harm: the leases of those starts end. It is
// so whatever becomes of the report, as an agent says that a start is over when it has
// waited for it.
func (d *desk) tellReaped(starts []kbroker.InstanceFile) {
	of := map[string][]kbroker.Incarnation{}
	for _, s := range starts {
		subject := subjects.Reaped(s.Tenant, s.App)
		if !slices.Contains(of[subject], s.Incarnation) {
			of[subject] = append(of[subject], s.Incarnation)
		}
	}
	for _, subject := range slices.Sorted(maps.Keys(of)) {
		body, err := json.Marshal(kbroker.Reaped{Incarnations: of[subject]})
		if err == nil {
			err = d.cfg.Conn.Publish(subject, body)
		}
		if err != nil {
			d.log.Debug("allocators are not told which starts have ended", "err", err)
		}
	}
}

// revokeWithin bounds what the leader spends of a round on it.
const revokeWithin = time.Second

// revokeGivenUp takes back what nobody will report the end of. The next round looks
// again: a plan does not wait for it.
func (t *term) revokeGivenUp(ctx context.Context, v *state.View) {
	users := givenUp(v, t.memory.stopFor(t.cfg.Clock()), longestLife(v.Hosts, t.cfg.CredentialLife), time.Now())
	if len(users) == 0 {
		return
	}
	until := time.Now().Add(longestLife(v.Hosts, t.cfg.CredentialLife)).UTC().Truncate(time.Second)
	revocations := make([]kbroker.Revocation, 0, len(users))
	for _, user := range users {
		revocations = append(revocations, kbroker.Revocation{User: user, Until: until})
	}
	ctx, cancel := context.WithTimeout(ctx, revokeWithin)
	defer cancel()
	if err := t.store.Revoke(ctx, revocations); err != nil {
		t.log.Warn("credentials of hosts that are gone still hold; trying again", "count", len(revocations), "err", err)
		return
	}
	t.log.Info("credentials of hosts that are gone were taken back", "count", len(revocations))
}

// givenUp are the users of starts of which no agent will say that they are over, sorted,
// without those that were taken back already: all on hosts that were removed, and on
// lost ones those that are stopped on record, for as long as they may take to leave. What of
// a lost host is not stopped works on when the host returns, and a host that is there stops
// what it has to itself: until then its process may serve. One whose agent alone is dead
// sees for itself that it must stop: it answers what it has begun, and hands over the
// objects that it owns, which nobody may take from it before its lease ends. Pure. stopFor
// is how long each has been to stop. life is the longest that anything is signed for: when
// it has passed since the removal of a host, as nobody renews what ran there, nothing is
// left to take back. What ran on a lost host renews its own until it is taken back, however
// late that is, and at a core that is cut off longer: so it is taken back again when the
// record has gone, as long as the host is lost.
func givenUp(v *state.View, stopFor map[state.PlacementKey]time.Duration, life time.Duration, now time.Time) []string {
	var out []string
	for k, st := range v.Statuses {
		h, known := v.Hosts[k.Host]
		_, done := v.Revoked[st.User]
		if !known || st.User == "" || done {
			continue
		}
		p := v.Placements[k]
		over := h.State == kbroker.HostLost && p.Stop && p.Epoch > st.Epoch && stopFor[k] >= leaveTime(p)
		if !h.Member() {
			over = !now.After(h.Since.Add(life + clocksDiffer))
		}
		if over {
			out = append(out, st.User)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

const (
	// maxLeave bounds what an instance of a lost host gets to leave.
	maxLeave = time.Minute
	// ownerLeave is what one gets that may own objects: it serves them for as long as no
	// allocator is there to give them to another (handOverWithin in sdk, and its grace).
	ownerLeave = 2 * time.Minute
)

// leaveTime is how long an instance that is to stop may take: as on a host that is there.
func leaveTime(p kbroker.Placement) time.Duration {
	if len(p.Spec.Objects) > 0 {
		return ownerLeave
	}
	return min(p.Spec.Stop.Grace, maxLeave)
}

// clocksDiffer by no more, between cores.
const clocksDiffer = 10 * time.Minute
