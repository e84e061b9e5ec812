package allocator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// wakeEvery is how often is looked at what waits.
	wakeEvery = 25 * time.Millisecond
	// restsAfter is for how long requests have been heard before the last instance may be
	// stopped: all servers know then.
	restsAfter = 250 * time.Millisecond
	// spareAfter is how long after instances are wanted again one that was not wanted before
	// has stayed for good: it would have been stopped by then.
	spareAfter = 2 * time.Second
	// methodsWithin bounds the question what methods an instance has.
	methodsWithin = 500 * time.Millisecond
)

// waker hears the requests of services that may have no instance, while there is none.
//
//	an instance serves --none does, or none is wanted--> heard: what comes waits
//	        ^                                                     |
//	        +-- not heard, what waited is passed on <--one serves-+
//
// It is in the queue group of the instances, so nothing comes to both. What waits is passed
// on as it came, and answered by the instance. Everything that it does not pass on is
// answered as by an instance that is overloaded: it has not run.
//
// An instance that is there while none is wanted will leave, though it may not know it yet:
// it is doomed, and nothing is passed on to it.
type waker struct {
	alloc *Allocator
	look  bell
	tasks sync.WaitGroup // that run started

	mu     sync.Mutex
	ears   map[kbroker.ServiceName]*ear
	zero   map[kbroker.ServiceName]bool // none is wanted
	doomed map[kbroker.ServiceName]*doom
	looked time.Duration // when the instances were last asked for
}

// doom is who was there when super was told that none is wanted.
type doom struct {
	names map[kbroker.InstanceID]bool
	lifts time.Duration // when who is still there stays; 0: none is wanted
}

// ear hears the requests of a service. All but service and closed is guarded by the waker's
// mu; sub is not changed.
type ear struct {
	service kbroker.ServiceName
	sub     *nats.Subscription
	closed  chan struct{} // nothing comes any more

	since   time.Duration // from when on all is heard; 0: not yet
	asked   time.Duration // when the last request came; 0: none has
	waiting waiting
	ending  bool
	ended   bool           // what comes is passed on, or refused
	refusal *kbroker.Error // of all that comes then; nil: it is passed on
	methods []string       // subjects that instances have; nil: not known
}

func newWaker(a *Allocator) *waker {
	return &waker{
		alloc: a, look: newBell(), ears: map[kbroker.ServiceName]*ear{}, zero: map[kbroker.ServiceName]bool{},
		doomed: map[kbroker.ServiceName]*doom{},
	}
}

// sleeps reports whether a service may have no instance until somebody asks for it. Objects
// always have an owner.
func sleeps(s kbroker.Service) bool {
	return s.Count.Min == 0 && s.Count.Max > 0 && len(s.Objects) == 0
}

// run hears and passes on until ctx ends. What waits then is refused.
func (w *waker) run(ctx context.Context) {
	defer w.tasks.Wait()
	defer func() {
		e := kbroker.Errorf(kbroker.Overloaded, "the allocator of app %s, where this request waited for an instance, leaves", w.alloc.own.App)
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, ear := range w.ears {
			w.end(ear, func() { w.stop(ear, e, nil) })
		}
	}()
	for {
		w.step(ctx)
		pause := w.alloc.pace.decide
		if w.holds() {
			pause = min(pause, wakeEvery)
		}
		tick := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			tick.Stop()
			return
		case <-w.look:
			tick.Stop()
		case <-tick.C:
		}
	}
}

// stir has the waker look again: an instance says something of itself.
func (w *waker) stir() {
	w.mu.Lock()
	some := len(w.ears) > 0
	w.mu.Unlock()
	if some {
		w.look.ring()
	}
}

// holds reports whether anything waits.
func (w *waker) holds() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.ears {
		if len(e.waiting.all) > 0 {
			return true
		}
	}
	return false
}

// step begins and ends to hear services, and refuses what has waited for long enough.
func (w *waker) step(ctx context.Context) {
	a := w.alloc
	now := a.cfg.Clock()
	for _, r := range w.late(now) {
		w.refuse(r, tooLate(a.own.App))
	}
	view, known := a.look()
	if !known || !a.cfg.Conn.IsConnected() {
		return
	}
	for _, s := range w.judge(ctx, now, view) {
		w.listen(ctx, s)
	}
}

// judge ends ears, and returns the services that are to be heard from now on.
func (w *waker) judge(ctx context.Context, now time.Duration, view View) (unheard []kbroker.ServiceName) {
	a := w.alloc
	w.mu.Lock()
	defer w.mu.Unlock()
	asleep := map[kbroker.ServiceName]bool{}
	for _, s := range view.App.Services {
		if !sleeps(s) {
			continue
		}
		asleep[s.Name] = true
		w.lift(now, s.Name)
		e := w.ears[s.Name]
		if e == nil {
			if may, _ := a.loads.serves(now, 0, s.Name, w.doomedOf(s.Name)); w.zero[s.Name] || !may {
				unheard = append(unheard, s.Name)
			}
			continue
		}
		held := len(e.waiting.all)
		if held > 0 && now-w.looked >= a.pace.decide {
			w.looked = now
			a.lookInstances.ring()
		}
		if e.since == 0 || w.zero[s.Name] && held == 0 {
			continue
		}
		if _, sure := a.loads.serves(now, e.since, s.Name, w.doomedOf(s.Name)); sure {
			w.end(e, func() { w.stop(e, nil, w.methods(ctx, e.service)) })
		}
	}
	for name, e := range w.ears {
		if !asleep[name] {
			refusal := kbroker.Errorf(kbroker.Overloaded, "version %d of app %s has another count of %s", view.Version, a.own.App, name)
			w.end(e, func() { w.stop(e, refusal, nil) })
		}
	}
	return unheard
}

// late takes out of all ears what has waited for long enough.
func (w *waker) late(now time.Duration) (out []*kept) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.ears {
		out = append(out, e.waiting.late(now)...)
	}
	return out
}

// listen joins the queue group of a service.
func (w *waker) listen(ctx context.Context, service kbroker.ServiceName) {
	a := w.alloc
	e := &ear{service: service, closed: make(chan struct{})}
	sub, err := a.cfg.Conn.QueueSubscribe(subjects.Method(a.own.App, service, "*"), subjects.QueueService, func(m *nats.Msg) { w.heard(e, m) })
	if err != nil {
		a.log.Warn("requests not heard", "service", service, "err", err)
		return
	}
	sub.SetClosedHandler(func(string) { close(e.closed) })
	w.mu.Lock()
	e.sub, w.ears[service] = sub, e
	w.mu.Unlock()
	w.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, a.pace.attempt)
		defer cancel()
		err := a.cfg.Conn.FlushWithContext(ctx)
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			w.end(e, func() {
				w.stop(e, kbroker.Errorf(kbroker.Overloaded, "the allocator of app %s has no connection", a.own.App), nil)
			})
			return
		}
		e.since = a.cfg.Clock()
		w.look.ring()
	})
}

// end has how end an ear, unless that is under way. The caller holds mu.
func (w *waker) end(e *ear, how func()) {
	if e.ending {
		return
	}
	e.ending = true
	w.tasks.Go(how)
}

// stop leaves the queue group; what waits, and what comes until the server knows, is passed
// on, or refused.
func (w *waker) stop(e *ear, refusal *kbroker.Error, methods []string) {
	a := w.alloc
	connections := a.cfg.Conn.Stats().Reconnects
	// What is published later, the server takes later: nothing comes back.
	if err := e.sub.Drain(); err != nil {
		a.log.Debug("requests not drained", "service", e.service, "err", err)
	}
	w.mu.Lock()
	e.ended, e.refusal, e.methods = true, refusal, methods
	all := e.waiting.empty()
	w.mu.Unlock()
	for _, r := range all {
		w.release(e, r)
	}
	if len(all) > 0 {
		a.log.Info("requests no longer wait", "service", e.service, "requests", len(all), "passed", refusal == nil)
	}
	over := time.NewTimer(a.pace.attempt)
	defer over.Stop()
	select {
	case <-e.closed:
	case <-over.C:
	}
	if a.cfg.Conn.Stats().Reconnects != connections && !a.cfg.Conn.IsClosed() {
		// The new server was told of the subscription, and not that it has ended.
		if err := a.cfg.Conn.ForceReconnect(); err != nil {
			a.log.Warn("not connected again", "err", err)
		}
	}
	w.mu.Lock()
	delete(w.ears, e.service)
	w.mu.Unlock()
	w.look.ring()
}

// heard takes a request.
func (w *waker) heard(e *ear, m *nats.Msg) {
	a := w.alloc
	now := a.cfg.Clock()
	r := newKept(now, m)
	w.mu.Lock()
	ended, first := e.ended, w.zero[e.service]
	if r.gone(now) {
		first = false // who asks wants nothing any more
	} else {
		e.asked = now
	}
	room := !ended && !r.late(now) && e.waiting.take(r)
	w.mu.Unlock()
	switch {
	case ended:
		w.release(e, r)
	case room:
	case r.late(now):
		w.refuse(r, kbroker.Errorf(kbroker.Overloaded, "no instance of %s/%s is ready", a.own.App, e.service))
	default:
		w.refuse(r, kbroker.Errorf(kbroker.Overloaded, "no instance of %s/%s is ready, and %d requests, or %d MiB, wait for one", a.own.App, e.service, maxWaiting, maxWaitingBytes>>20))
	}
	if !ended {
		w.look.ring()
	}
	if first {
		a.demandNow.ring() // at once, not with the next look at the loads
	}
}

// release passes on what waited, or refuses it if no instance would hear it.
func (w *waker) release(e *ear, r *kept) {
	now := w.alloc.cfg.Clock()
	switch {
	case r.gone(now):
		w.refuse(r, tooLate(w.alloc.own.App))
	case e.refusal != nil:
		w.refuse(r, e.refusal)
	case e.methods != nil && !slices.Contains(e.methods, r.msg.Subject):
		w.refuse(r, kbroker.Errorf(kbroker.Overloaded, "no instance of %s/%s that is ready serves %s", w.alloc.own.App, e.service, r.msg.Subject))
	default:
		if err := w.alloc.cfg.Conn.PublishMsg(r.message(now)); err != nil {
			w.alloc.log.Warn("a request is not passed on", "service", e.service, "err", err)
		}
	}
}

func tooLate(app kbroker.AppName) *kbroker.Error {
	return kbroker.Errorf(kbroker.Overloaded, "no instance was ready in time").WithHint("`kbroker why %s` says why", app)
}

// refuse tells the caller that no attempt of its call has run.
func (w *waker) refuse(r *kept, why *kbroker.Error) {
	e := *why
	e.Executed = kbroker.ExecutedNo
	body, err := json.Marshal(e)
	if err != nil {
		return
	}
	for _, to := range append(r.earlier, r.msg.Reply) {
		if !subjects.IsInbox(to) {
			continue // it wants no answer, or one where an allocator is to send none
		}
		err := w.alloc.cfg.Conn.PublishMsg(&nats.Msg{Subject: to, Data: body, Header: nats.Header{
			subjects.HeaderCode: {string(e.Code)}, subjects.HeaderMicroError: {e.Message}, subjects.HeaderMicroErrorCode: {"503"},
		}})
		if err != nil {
			w.alloc.log.Debug("a caller is not told that its request has not run", "err", err)
		}
	}
}

// methods asks an instance what methods it has, by the protocol of NATS micro: the subjects
// of those; nil: it does not say.
func (w *waker) methods(ctx context.Context, service kbroker.ServiceName) []string {
	var info micro.Info
	err := ask(ctx, w.alloc.cfg.Conn, methodsWithin, subjects.Discovery+".INFO."+subjects.MicroName(w.alloc.own.App, service), struct{}{}, &info)
	if err != nil || len(info.Endpoints) == 0 {
		return nil
	}
	var all []string
	for _, e := range info.Endpoints {
		all = append(all, e.Subject)
	}
	return all
}

// need is how many instances a service needs for what is asked of it, whatever its policy
// says: one, if any.
func (w *waker) need(s kbroker.Service, instances []Instance, n int, why string) (int, string) {
	if !sleeps(s) {
		return n, why
	}
	now := w.alloc.cfg.Clock()
	w.mu.Lock()
	defer w.mu.Unlock()
	said := ""
	if e := w.ears[s.Name]; e != nil {
		switch held := len(e.waiting.all); {
		case held == 1:
			said = "1 request waits for an instance"
		case held > 1:
			said = fmt.Sprintf("%d requests wait for an instance", held)
		case e.asked > 0 && now-e.asked < loadOver:
			said = "requests came while no instance was ready"
		}
	}
	requests := 0.0
	for _, i := range instances {
		requests += i.Load.Requests
	}
	switch {
	case said != "":
		return max(n, 1), said
	case n == 0 && requests > 0:
		return 1, fmt.Sprintf("requests/s is %s", short(requests))
	case n == 0:
		return 0, "nothing is asked of it"
	}
	return n, why
}

// rests is how many instances super is told that a service is to have, of which so many are
// there and n are enough: the last one stays until what is asked of the service is heard.
func (w *waker) rests(s kbroker.Service, n, there int) int {
	if !sleeps(s) {
		return n
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.zero[s.Name] != (n == 0) {
		w.zero[s.Name] = n == 0
		w.look.ring()
	}
	if n > 0 || there == 0 {
		return n
	}
	e := w.ears[s.Name]
	if e == nil || e.ending || e.since == 0 || w.alloc.cfg.Clock()-e.since < restsAfter || !w.alloc.cfg.Conn.IsConnected() {
		return 1
	}
	return 0
}

// telling notes who is doomed, before super is told what is wanted; told that super has been.
func (w *waker) telling(view View, wanted map[kbroker.ServiceName]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range view.App.Services {
		if !sleeps(s) || wanted[s.Name] > 0 {
			continue
		}
		d := w.doomed[s.Name]
		if d == nil {
			d = &doom{names: map[kbroker.InstanceID]bool{}}
			w.doomed[s.Name] = d
		}
		d.lifts = 0
		for _, i := range view.Of(s.Name) {
			d.names[i.Name] = true
		}
	}
}

func (w *waker) told(wanted map[kbroker.ServiceName]int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, d := range w.doomed {
		if wanted[name] > 0 && d.lifts == 0 {
			d.lifts = w.alloc.cfg.Clock() + spareAfter
		}
	}
}

// lift forgets who was doomed, when who is still there stays. The caller holds mu.
func (w *waker) lift(now time.Duration, s kbroker.ServiceName) {
	if d := w.doomed[s]; d != nil && d.lifts > 0 && now >= d.lifts {
		delete(w.doomed, s)
	}
}

// doomedOf are the names of those that leave. The caller holds mu.
func (w *waker) doomedOf(s kbroker.ServiceName) map[kbroker.InstanceID]bool {
	if d := w.doomed[s]; d != nil {
		return d.names
	}
	return nil
}
