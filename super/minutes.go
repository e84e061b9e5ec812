package super

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// minutes is what a leader still has to tell, and what it has told already.
type minutes struct {
	// doubt is a batch whose outcome is not known: the next view shows it.
	doubt     []state.Change
	doubtView *state.View
	suspects  map[kbroker.HostID]bool
}

// tell has events stored as those of this leader.
func (t *term) tell(events ...kbroker.Event) {
	t.journal.add(fmt.Sprintf("super %s epoch %d", t.cfg.Host, t.lease.Epoch()), events...)
}

// tellChanges tells what a batch means, once it is accepted; one whose outcome
// is not known is looked for in the next view.
func (t *term) tellChanges(v *state.View, changes []state.Change, outcome error) {
	switch {
	case outcome == nil:
		t.tell(eventsOf(v, changes)...)
	case errors.Is(outcome, kbroker.Unavailable):
		t.doubt, t.doubtView = changes, v
	}
}

// settleDoubt tells the changes of the batch in doubt that the view shows.
func (t *term) settleDoubt(v *state.View) {
	if t.doubt == nil {
		return
	}
	was, done := t.doubtView, []state.Change{}
	for _, c := range t.doubt {
		if shows(v, c) {
			done = append(done, c)
		}
	}
	t.doubt, t.doubtView = nil, nil
	t.tell(eventsOf(was, done)...)
}

// shows reports whether a view has what a change wrote.
func shows(v *state.View, change state.Change) bool {
	switch c := change.(type) {
	case state.PutApp:
		return sameRecord(v.Apps[state.AppKey{Tenant: c.Record.Tenant, App: c.Record.App}], c.Record)
	case state.PutVersion:
		return sameRecord(v.Versions[state.AppKey{Tenant: c.Version.Tenant, App: c.Version.App.Name}][c.Version.Version], c.Version)
	case state.PutPlacement:
		return sameRecord(v.Placements[keyOf(c.Placement)], c.Placement)
	case state.DropPlacement:
		_, there := v.Placements[c.Key]
		return !there
	case state.PutHost:
		return sameRecord(v.Hosts[c.Host.Name], c.Host)
	case state.DropHost:
		_, there := v.Hosts[c.Host]
		return !there
	case state.PutUser:
		return sameRecord(v.Users[state.UserKey{Tenant: c.User.Tenant, Name: c.User.Name}], c.User)
	case state.PutDemand:
		return sameRecord(v.Demands[state.AppKey{Tenant: c.Demand.Tenant, App: c.Demand.App}], c.Demand)
	}
	return false
}

// sameRecord compares a record that was read with one that was written: times
// lose what JSON does not carry.
func sameRecord[T any](read, written T) bool {
	if reflect.DeepEqual(read, written) {
		return true
	}
	a, errA := json.Marshal(read)
	b, errB := json.Marshal(written)
	return errA == nil && errB == nil && string(a) == string(b)
}

// tellSuspects tells which hosts are no longer heard, and which are again. A
// host that is lost has events of its record.
func (t *term) tellSuspects(verdict Verdict) {
	if verdict.Blind {
		return
	}
	now := map[kbroker.HostID]bool{}
	for host, s := range verdict.States {
		if s == kbroker.HostSuspect {
			now[host] = true
		}
	}
	for _, host := range slices.Sorted(maps.Keys(now)) {
		if !t.suspects[host] {
			t.tell(kbroker.Event{Kind: kbroker.EventHostSuspect, Host: host, Message: fmt.Sprintf("host %s has not been heard for %v", host, t.cfg.Times.Suspect)})
		}
	}
	for _, host := range slices.Sorted(maps.Keys(t.suspects)) {
		if verdict.States[host] == kbroker.HostReady {
			t.tell(kbroker.Event{Kind: kbroker.EventHostReady, Host: host, Message: fmt.Sprintf("host %s is heard again", host)})
		}
	}
	t.suspects = now
}

// tellRefused tells of a request that is not allowed now. The same refusal of
// the same request again is the same event.
func (t *term) tellRefused(m *nats.Msg, err error) {
	verb, tenant, ok := subjects.ParseAPI(m.Subject)
	if !ok || !errors.Is(err, kbroker.Refused) || knownTenant(tenant) != nil {
		return
	}
	app := askedApp(m.Data)
	t.tell(kbroker.Event{
		Kind: kbroker.EventRefused, Tenant: tenant, App: app, Message: verb + " refused: " + err.Error(),
		ID: fmt.Sprintf("refused %s %s %s %s", verb, tenant, app, err),
	})
}

// askedApp finds the app that a request is about, if it names one in a form that
// an app can have.
func askedApp(body []byte) kbroker.AppName {
	var r struct {
		App    json.RawMessage `json:"app"`
		Demand struct {
			App kbroker.AppName `json:"app"`
		} `json:"demand"`
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return ""
	}
	name := r.Demand.App
	var spec kbroker.App
	if json.Unmarshal(r.App, &name) != nil && json.Unmarshal(r.App, &spec) == nil {
		name = spec.Name
	}
	if kbroker.CheckName("app", string(name)) != nil {
		return ""
	}
	return name
}
