package super

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// controlName is the caller of whom a subject does not say who it is: it is of the account
// of control.
const controlName = "control"

// callerOf is who has sent a request: whose subject it is, as servers let nobody ask on that
// of another. Of a join it is the host that the request names. What else a message says of
// its sender, a header of a server among it, whoever sends it can have written there.
func callerOf(m *nats.Msg) kbroker.Caller {
	verb, _, api := subjects.ParseAPI(m.Subject)
	if api && verb == subjects.VerbJoin {
		return kbroker.Caller{Host: askedHost(m.Data)}
	}
	if host, ok := subjects.HostOf(m.Subject); ok {
		return kbroker.Caller{Host: host}
	}
	if tenant, app, ok := subjects.ParseDemand(m.Subject); ok {
		return kbroker.Caller{Name: "allocator of " + string(app), Tenant: tenant, App: app}
	}
	if tenant, app, ok := subjects.ParseLease(m.Subject); ok {
		return kbroker.Caller{Name: "allocator of " + string(app), Tenant: tenant, App: app}
	}
	if tenant, app, _, who, ok := subjects.ParseOwn(m.Subject); ok {
		return kbroker.Caller{Instance: who.Instance(), Tenant: tenant, App: app}
	}
	if key, ok := subjects.KeyOf(m.Subject); ok {
		_, tenant, _ := subjects.ParseAPI(m.Subject)
		return kbroker.Caller{Key: key, Tenant: tenant}
	}
	// A read, which servers let nobody ask whose role does not have it, says nothing of who
	// asks: it is whoever hears the answer.
	if key, ok := subjects.InboxOwner(m.Reply); ok && api && !strings.HasSuffix(m.Subject, "."+subjects.NoKey) {
		_, tenant, _ := subjects.ParseAPI(m.Subject)
		return kbroker.Caller{Key: key, Tenant: tenant}
	}
	return kbroker.Caller{Name: controlName}
}

const (
	// whoWithin bounds the question who has a key: on a busy machine the servers take
	// their time, and a record without a name tells nobody who it was. Where none knows
	// it, it is asked once more after whoAgain: a server takes a connection that ends from
	// one list before it puts it on another. whoFor is how long an answer holds, and
	// nobodyFor, none: whoever asks may come again from elsewhere.
	whoWithin = 2 * time.Second
	whoAgain  = 50 * time.Millisecond
	whoFor    = time.Minute
	nobodyFor = 2 * time.Second
	// maxWho bounds the answers that are remembered.
	maxWho = 1024
)

// whose finds out who has a key, after the fact: nothing is decided by it. Safe for
// concurrent use.
type whose struct {
	ask   func(ctx context.Context, key string) (kbroker.Caller, error) // nil: nobody can say
	clock state.Clock

	mu    sync.Mutex
	known map[string]acquaintance
}

type acquaintance struct {
	who   kbroker.Caller
	until time.Duration
}

// fill adds to a caller of whom there is only the key what the servers know of it. Without
// an answer it is as it was.
func (w *whose) fill(ctx context.Context, c kbroker.Caller) kbroker.Caller {
	if w.ask == nil || c.Key == "" || c.Name != "" {
		return c
	}
	now := w.clock()
	w.mu.Lock()
	a, ok := w.known[c.Key]
	w.mu.Unlock()
	if !ok || now >= a.until {
		ctx, cancel := context.WithTimeout(ctx, whoWithin)
		defer cancel()
		who, err := w.ask(ctx, c.Key)
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(whoAgain):
				who, err = w.ask(ctx, c.Key)
			}
		}
		if a = (acquaintance{who, now + whoFor}); err != nil || who.Key != c.Key {
			a = acquaintance{c, now + nobodyFor}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.known == nil || len(w.known) >= maxWho {
			w.known = map[string]acquaintance{}
		}
		w.known[c.Key] = a
	}
	return a.who
}

// askedHost is the host that a request names, if in a form that a host can have.
func askedHost(body []byte) kbroker.HostID {
	var r struct {
		Host kbroker.HostID `json:"host"`
	}
	if json.Unmarshal(body, &r) != nil || kbroker.CheckName("host", string(r.Host)) != nil {
		return ""
	}
	return r.Host
}

// objectOf is what a request is about, in words; empty: it does not say. What might be a
// whole token is not told.
func objectOf(m *nats.Msg) string {
	verb, _, ok := subjects.ParseAPI(m.Subject)
	if !ok {
		if host, ok := subjects.HostOf(m.Subject); ok {
			return "host " + string(host)
		}
		if _, app, ok := subjects.ParseLease(m.Subject); ok {
			return "app " + string(app)
		}
		if _, app, _, _, ok := subjects.ParseOwn(m.Subject); ok {
			return "app " + string(app)
		}
		return ""
	}
	var r struct {
		ID       string               `json:"id"`
		Name     string               `json:"name"`
		Instance kbroker.InstanceID   `json:"instance"`
		Token    *struct{ ID string } `json:"token"`
	}
	_ = json.Unmarshal(m.Data, &r) // what is not readable names nothing
	switch verb {
	case subjects.VerbJoin:
		if r.Token != nil && kbroker.CheckTokenID(r.Token.ID) == nil {
			return "token " + r.Token.ID
		}
	case subjects.VerbToken, subjects.VerbRevoke:
		if kbroker.CheckTokenID(r.ID) == nil {
			return "token " + r.ID
		}
		return ""
	case subjects.VerbExec, subjects.VerbSignal:
		if namedInstance(r.Instance) == nil {
			return "instance " + string(r.Instance)
		}
		return ""
	case subjects.VerbObjectAct:
		return objectNamed(m.Data)
	case subjects.VerbUser, subjects.VerbUserRevoke:
		if kbroker.CheckName("user", r.Name) == nil {
			return "user " + r.Name
		}
		return ""
	}
	if host := askedHost(m.Data); host != "" {
		return "host " + string(host)
	}
	if app := askedApp(m.Data); app != "" {
		return "app " + string(app)
	}
	return ""
}
