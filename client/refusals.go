package client

import (
	"context"
	"errors"
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
			w.end(notAllowed(w.subject))
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

func notAllowed(subject string) *kbroker.Error {
	what := subject
	if verb, _, ok := subjects.ParseAPI(subject); ok {
		what = verb
	}
	return kbroker.Errorf(kbroker.Refused, "this credential does not allow %q", what).
		WithHint("use the context of somebody who may: --context; an admin's is made on a core host with kbroker agent creds")
}
