package sdk

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// request is the context of one run of a handler, and what it knows of the
// request. It behaves like a context.WithDeadline of base, which it makes only
// when somebody waits for its end: most handlers do not, and a timer for each
// request costs more than the rest of it. One difference is left: if the deadline
// passed and then base ended before anybody asked, the reason is base's.
type request struct {
	base     context.Context // of all handlers of the app
	client   *Client
	id       string
	deadline time.Time
	chain    chain // objects whose turns wait for it, without that of its own turn
	root     root  // of the chain; none: whoever made it does not know of it
	turn     *turn // nil: of no object

	out     transport // where replyTo is told who waits for whom; nil: nowhere
	replyTo string
	crossed atomic.Bool // a call was refused that crossed another

	mu     sync.Mutex
	full   context.Context // nil: not needed yet
	cancel context.CancelFunc
	over   bool // the handler returned
}

type requestKey struct{}

// waiting are the objects whose turns wait for what the request calls.
func (r *request) waiting() chain {
	if r.turn == nil {
		return r.chain
	}
	return r.chain.with(r.turn.keeper.own.App, r.turn.object)
}

func (r *request) Deadline() (time.Time, bool) { return r.deadline, true }

func (r *request) Done() <-chan struct{} { return r.context().Done() }

func (r *request) Err() error {
	if r.running() {
		return nil
	}
	return r.context().Err() // lasting, from here on
}

func (r *request) Value(key any) any {
	if key == (requestKey{}) {
		return r
	}
	return r.context().Value(key)
}

// running reports that nothing has ended the context, if the full one need not
// be asked.
func (r *request) running() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.full == nil && !r.over && r.base.Err() == nil && time.Now().Before(r.deadline)
}

// context is the full context, made now if there is none.
func (r *request) context() context.Context {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.full == nil {
		r.full, r.cancel = context.WithDeadline(r.base, r.deadline)
		if r.over {
			r.cancel()
		}
	}
	return r.full
}

// end ends the context after the handler returned.
func (r *request) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.cancel != nil {
		r.cancel()
	}
}

// RequestIDOf is the id of the request that a handler's context belongs to: the
// same for all attempts of one call. Empty elsewhere, and for callers that send
// none.
func RequestIDOf(ctx context.Context) string {
	if r := requestOf(ctx); r != nil {
		return r.id
	}
	return ""
}

// clientOf is the client of a handler's request, else that of the process.
func clientOf(r *request) *Client {
	if r != nil {
		return r.client
	}
	return processClient.Load()
}

// requestOf is the request that a context belongs to, or nil.
func requestOf(ctx context.Context) *request {
	r, _ := ctx.Value(requestKey{}).(*request)
	return r
}
