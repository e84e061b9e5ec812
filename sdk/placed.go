package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// allocateAttempt is when a request to an allocator is sent again that is not answered: it
	// may have died, and the next one knows nothing of it.
	allocateAttempt = time.Second
	// allocateRetry is the pause before one is sent again that nobody has heard.
	allocateRetry = 50 * time.Millisecond
	// whereTimeout bounds the wait for the answer to where a placed object is.
	whereTimeout = time.Second
)

// AllocateOption changes one Allocate.
type AllocateOption func(*kbroker.AllocateRequest)

// Labels are for policies of the app's allocator, and for people. At most kbroker.MaxLabels.
func Labels(labels map[string]string) AllocateOption {
	return func(r *kbroker.AllocateRequest) { r.Labels = maps.Clone(labels) }
}

// OnHost has the object be on a host, if an instance there has room.
func OnHost(host string) AllocateOption {
	return func(r *kbroker.AllocateRequest) { r.Host = kbroker.HostID(host) }
}

// OnInstance has the object be on an instance, if that has room.
func OnInstance(instance string) AllocateOption {
	return func(r *kbroker.AllocateRequest) { r.Instance = kbroker.InstanceID(instance) }
}

// Takes is what this object takes, in place of what the spec says of its kind.
func Takes(d kbroker.Demanded) AllocateOption {
	return func(r *kbroker.AllocateRequest) { r.Demand = &d }
}

// Allocate has a place found for a placed object, by "app/kind:id": an instance that has room
// for what it takes, where it is from then on, until it is released or the instance is lost or
// leaves; then it is on another one. It is called as any other object.
//
// It returns when the object has a place; while there is no room it waits, until ctx ends, and
// without a deadline DefaultTimeout. One that has a place already stays there. Errors: Invalid -
// its kind is not placed, or it takes more than any instance has; NotFound - the app has no such
// kind; Unavailable - there was no room in time, or no allocator; Overloaded - too many wait.
// After Unavailable it may have a place all the same: allocate it again, or Release it.
func (c *Client) Allocate(ctx context.Context, name string, opts ...AllocateOption) (kbroker.Allocation, error) {
	var a kbroker.Allocation
	app, o, err := kbroker.ParseObject(name)
	if err != nil {
		return a, notRun(kbroker.AsError(err))
	}
	r := kbroker.AllocateRequest{Kind: o.Kind, ID: o.ID}
	for _, set := range opts {
		set(&r)
	}
	if err := r.Check(); err != nil {
		return a, notRun(kbroker.AsError(err))
	}
	err = c.askAllocator(ctx, app, subjects.VerbAllocate, func(left time.Duration) any {
		r.WaitMS = left.Milliseconds()
		return r
	}, &a)
	if err == nil {
		c.placed.Store(placedKey{app, o.Kind}, true)
	}
	return a, err
}

// Release ends that a placed object, by "app/kind:id", has a place: what is called of it comes
// to its end, and what it has stored stays, for when it is allocated again. It reports whether
// it had one, or may have had. Errors are those of Allocate.
func (c *Client) Release(ctx context.Context, name string) (bool, error) {
	app, o, err := kbroker.ParseObject(name)
	if err != nil {
		return false, notRun(kbroker.AsError(err))
	}
	var out kbroker.ReleaseReply
	asked := 0
	err = c.askAllocator(ctx, app, subjects.VerbRelease, func(time.Duration) any {
		asked++
		return kbroker.PlacedRequest{Kind: o.Kind, ID: o.ID}
	}, &out)
	return out.Released || err == nil && asked > 1, err // an earlier attempt may have done it
}

// Allocate is Client.Allocate over the app's connection.
func (a *App) Allocate(ctx context.Context, name string, opts ...AllocateOption) (kbroker.Allocation, error) {
	return a.client.Allocate(ctx, name, opts...)
}

// Release is Client.Release over the app's connection.
func (a *App) Release(ctx context.Context, name string) (bool, error) {
	return a.client.Release(ctx, name)
}

// askAllocator asks the active allocator of an app until it answers, or ctx ends.
func (c *Client) askAllocator(ctx context.Context, app kbroker.AppName, verb string, request func(left time.Duration) any, into any) error {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultTimeout)
		defer cancel()
	}
	t, err := c.open(ctx)
	if err != nil {
		return notRun(kbroker.AsError(err))
	}
	subject, began, sent := subjects.Placing(c.tenant, app, verb), time.Now(), false
	refused := c.refused.wait()
	for {
		deadline, _ := ctx.Deadline()
		data, err := json.Marshal(request(time.Until(deadline)))
		if err != nil {
			return notRun(kbroker.AsError(err))
		}
		m, err := c.askOnce(ctx, t, &nats.Msg{Subject: subject, Data: data}, refused)
		var again time.Duration
		switch {
		case err == nil:
			failure, nobody := answerOf(m)
			if failure == nil && !nobody {
				return json.Unmarshal(m.Data, into)
			}
			if failure != nil && !(failure.Code == kbroker.Unavailable && time.Until(deadline) > allocateAttempt) {
				if failure.Executed == kbroker.ExecutedNo { // that is of this attempt
					failure.Executed = executedBefore(sent)
				}
				return failure
			}
			again = allocateRetry
		case errors.Is(err, errNotConnected):
			again = allocateRetry
		case errors.Is(err, errClosed):
			return c.placingFailed(app, verb, sent, err)
		case c.refusedSince(subject, began):
			e := kbroker.Errorf(kbroker.Refused, "the credential of this process does not allow to %s objects of app %s", verb, app).
				WithHint("the spec of a service names those of other apps that it calls, as in calls: [%s/*]; people need the role deployer", app)
			e.Executed = executedBefore(sent)
			return e
		default:
			refused = c.refused.wait()
			sent = true
		}
		select {
		case <-ctx.Done():
			return c.placingFailed(app, verb, sent, ctx.Err())
		case <-time.After(again):
		}
	}
}

func (c *Client) placingFailed(app kbroker.AppName, verb string, sent bool, err error) error {
	e := kbroker.Errorf(kbroker.Unavailable, "the allocator of app %s has not answered to %s: %v", app, verb, err).
		WithHint("kbroker why %s says whether it runs", app)
	e.Executed = executedBefore(sent)
	return e
}

// executedBefore is what can be said of a request that was not executed now; sent: an earlier
// attempt was not answered.
func executedBefore(sent bool) kbroker.Executed {
	if sent {
		return kbroker.ExecutedUnknown
	}
	return kbroker.ExecutedNo
}

// askOnce sends one request, and waits for the answer until ctx ends, it is to be sent again, or
// the servers have refused a subject.
func (c *Client) askOnce(ctx context.Context, t transport, m *nats.Msg, refused <-chan struct{}) (*nats.Msg, error) {
	answers := make(chan *nats.Msg, 1)
	slot, err := t.request(m, func(_ uint64, m *nats.Msg) { answers <- m })
	if err != nil {
		return nil, err
	}
	defer t.forget(slot)
	timer := time.NewTimer(allocateAttempt)
	defer timer.Stop()
	select {
	case m := <-answers:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, context.DeadlineExceeded
	case <-refused:
		return nil, errRefused
	}
}

// errRefused is a subject that this process may not publish to: this one, or another.
var errRefused = errors.New("the servers have refused a subject")

// placedKey is a kind of objects of an app.
type placedKey struct {
	app  kbroker.AppName
	kind kbroker.KindName
}

// isPlaced reports whether a kind of objects is known to be placed. Who does not know calls by
// the shard, whose owner says so.
func (c *Client) isPlaced(t Target) bool {
	is, known := c.placed.Load(placedKey{t.app, t.object.Kind})
	return known && is.(bool)
}

// knowPlaced is for an app, which knows its own kinds.
func (c *Client) knowPlaced(own *kbroker.InstanceFile) {
	for _, kind := range own.Objects {
		c.placed.Store(placedKey{own.App, kind}, slices.Contains(own.Placed, kind))
	}
}

// aim has the call go to a placed object, or to one of many in a shard.
func (c *call) aim(placed bool) {
	c.to.object.Placed = placed
	c.subject = subjects.ObjectMethod(c.to.app, c.to.object.Shard(), c.to.object.Kind, c.method)
}

// misaimed reports whether the call was refused as it went to the wrong one of both: it goes to
// the other one then.
func (c *call) misaimed(m *nats.Msg, failure *kbroker.Error) bool {
	is := m.Header.Get(subjects.HeaderPlaced)
	if !c.to.isObject() || failure.Executed != kbroker.ExecutedNo || is == "" {
		return false
	}
	placed := is == "true"
	c.client.placed.Store(placedKey{c.to.app, c.to.object.Kind}, placed)
	c.aim(placed)
	return true
}

// whereabouts is a question to an allocator where a placed object is.
type whereabouts struct {
	done chan struct{}  // closed after the answer; none is set then
	none *kbroker.Error // it is nowhere
}

func (w *whereabouts) answered() <-chan struct{} {
	if w == nil {
		return nil
	}
	return w.done
}

// nowhere is the error of who calls an object that is not allocated, or nil.
func (w *whereabouts) nowhere() *kbroker.Error { return w.none }

// whereIs asks the allocator of an app where a placed object is.
func (c *Client) whereIs(t transport, to Target) *whereabouts {
	w := &whereabouts{done: make(chan struct{})}
	data, err := json.Marshal(kbroker.PlacedRequest{Kind: to.object.Kind, ID: to.object.ID})
	if err != nil {
		return w
	}
	slot, err := t.request(&nats.Msg{Subject: subjects.Placing(c.tenant, to.app, subjects.VerbFind), Data: data}, func(_ uint64, m *nats.Msg) {
		if e, nobody := answerOf(m); !nobody && e != nil && e.Code == kbroker.NotFound {
			w.none = e
		}
		close(w.done)
	})
	if err == nil {
		time.AfterFunc(whereTimeout, func() { t.forget(slot) })
	}
	return w
}
