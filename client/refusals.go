package client

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// refusals ends requests that the cluster's servers do not let through: they say so
// beside the request, which would wait for an answer. The zero value is ready. Safe for
// concurrent use.
type refusals struct {
	role string // whose connection it is; empty: not known

	mu      sync.Mutex
	waiting map[*watcher]bool
}

// watcher is one request that waits.
type watcher struct {
	subject string
	end     context.CancelCauseFunc
}

// note takes what a connection says of itself.
func (r *refusals) note(_ *nats.Conn, _ *nats.Subscription, err error) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.waiting {
		if strings.Contains(err.Error(), `"`+w.subject+`"`) {
			w.end(r.notAllowed(w.subject))
		}
	}
}

// watch returns a context for one request, which ends with its refusal as cause. The
// caller calls done.
func (r *refusals) watch(ctx context.Context, subject string) (_ context.Context, done func()) {
	ctx, end := context.WithCancelCause(ctx)
	w := &watcher{subject, end}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting == nil {
		r.waiting = map[*watcher]bool{}
	}
	r.waiting[w] = true
	return ctx, func() {
		end(nil)
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waiting, w)
	}
}

// refused is the refusal that ended a context of watch, or err.
func refused(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*kbroker.Error](context.Cause(ctx)); err != nil && ok {
		return e
	}
	return err
}

// notAllowed is the refusal of a request.
func (r *refusals) notAllowed(subject string) *kbroker.Error {
	if _, app, service, ok := subjects.ParseEndpoints(subject); ok {
		return kbroker.Errorf(kbroker.Refused, "this credential does not allow you to ask where %s/%s listens", app, service).
			WithHint("the spec of a service names those of other apps that it uses, as in calls: [%s/%s]", app, service)
	}
	what := subject
	if verb, _, ok := subjects.ParseAPI(subject); ok {
		what = verb
	}
	if words, ok := deeds[what]; ok {
		what = words
	} else {
		what = "ask for " + strconv.Quote(what)
	}
	who := "this credential does not allow you to "
	if r.role != "" {
		who = "role " + r.role + " may not "
	}
	return kbroker.Errorf(kbroker.Refused, "%s%s", who, what).
		WithHint("use the context of somebody who may, with --context; an admin makes one: kbroker user create NAME --role ROLE, or on a core host kbroker agent creds")
}

// deeds are the verbs in words.
var deeds = map[string]string{
	subjects.VerbDeploy: "deploy", subjects.VerbArtifactBegin: "deploy", subjects.VerbArtifactGet: "fetch programs",
	subjects.VerbScale: "scale", subjects.VerbStop: "stop apps", subjects.VerbRollback: "roll back", subjects.VerbRestart: "restart instances",
	subjects.VerbDevelop: "run a local instance",
	subjects.VerbExec:    "run commands inside instances", subjects.VerbSession: "run commands inside instances", subjects.VerbSignal: "signal instances",
	subjects.VerbDrain: "drain hosts", subjects.VerbRemove: "remove hosts", subjects.VerbMaintain: "take hosts down and up",
	subjects.VerbToken: "let hosts in", subjects.VerbRevoke: "revoke tokens", subjects.VerbTokens: "see the tokens",
	subjects.VerbUser: "let users in", subjects.VerbUserRevoke: "revoke users", subjects.VerbUsers: "see the users",
	subjects.VerbApps: "see the apps", subjects.VerbInstances: "see the instances", subjects.VerbHosts: "see the hosts", subjects.VerbStatus: "see the status",
	subjects.VerbVersion: "see the apps", subjects.VerbPlacement: "see the instances", subjects.VerbHistory: "see the history", subjects.VerbPlan: "plan",
	subjects.VerbEvents: "see the events", subjects.VerbWhy: "ask why", subjects.VerbAudit: "read the audit trail",
	subjects.VerbFigures: "see the figures", subjects.VerbAllocator: "see what allocators decide",
	subjects.VerbObjects: "see objects", subjects.VerbObjectOwners: "see objects", subjects.VerbObject: "see objects",
	subjects.VerbObjectState: "see the state of objects", subjects.VerbObjectAct: "move objects, put them away or delete them",
}
