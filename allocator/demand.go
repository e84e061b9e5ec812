package allocator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// demander tells super how many instances of each service the app wants, under one epoch.
//
//	loads ---> policy ---> steady ---> demand, when it is another one and every few seconds
//
// An allocator that has just become active knows which instances there are before it wants
// any number of a service that is scaled, and needs at least as many for a while as there
// were: that another one decides is no reason to drain any.
type demander struct {
	alloc *Allocator
	epoch uint64
	wake  *waker

	mu     sync.Mutex
	steady map[kbroker.ServiceName]*steady
	sent   Decision // that super has taken last
	said   string   // likewise, why the app's own policy is refused
}

func newDemander(a *Allocator, epoch uint64) *demander {
	a.loads.forget()
	return &demander{alloc: a, epoch: epoch, wake: newWaker(a), steady: map[kbroker.ServiceName]*steady{}}
}

// watch rings when the app wants something else than super has been told, until ctx ends.
func (d *demander) watch(ctx context.Context) {
	a := d.alloc
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() {
		_ = a.rounds(ctx, "instances of the app not read, asked again", a.lookInstances, a.pace.lookInstances, a.readInstances)
	})
	tick := time.NewTicker(a.pace.decide)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if now, ok := d.decide(); ok && (!maps.Equal(now.Wanted, d.told().Wanted) || d.alloc.guard.why() != d.toldRefused()) {
			a.demandNow.ring()
		}
	}
}

// told is what super has taken last.
func (d *demander) told() Decision {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.sent
}

// toldRefused is why the app's own policy is refused, as super has taken it last.
func (d *demander) toldRefused() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.said
}

// decide is what the app wants now; false if what it depends on is not known yet.
func (d *demander) decide() (Decision, bool) {
	a := d.alloc
	view, ok := a.look()
	if !ok {
		return Decision{}, false // whoever reads what is absent rings as soon as it is there
	}
	now := a.cfg.Clock()
	wants := Wanted(a.policy(view), view)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range view.App.Services {
		if !scales(s) {
			delete(d.steady, s.Name)
			continue
		}
		down := kbroker.DefaultDown
		if s.Scale != nil {
			down = cmp.Or(s.Scale.Down, down)
		}
		there := len(slices.DeleteFunc(view.Of(s.Name), func(i Instance) bool { return i.Leaving }))
		st, n := d.steady[s.Name], wants.Wanted[s.Name]
		if st == nil {
			st = &steady{}
			d.steady[s.Name] = st
			st.take(now, bounded(s, there), down)
		}
		n, why := d.wake.need(s, view.Of(s.Name), n, wants.Why[s.Name])
		held := bounded(s, st.take(now, n, down))
		if held != n && why != "" {
			why += fmt.Sprintf("; more were needed in the last %v", down)
		}
		wants.Wanted[s.Name] = d.wake.rests(s, held, there)
		if why != "" {
			wants.Why[s.Name] = why
		}
	}
	return wants, true
}

// send tells super once what the app wants now.
func (d *demander) send(ctx context.Context) error {
	wants, ok := d.decide()
	if !ok {
		return nil
	}
	holds := wants.Holds
	if was := d.told(); maps.Equal(was.Wanted, wants.Wanted) {
		wants = was // the reason is that of the change: super stores what is new
	}
	wants.Holds = holds
	a := d.alloc
	view, known := a.look()
	if known {
		d.wake.telling(view, wants.Wanted)
	}
	request := kbroker.DemandRequest{Demand: kbroker.Demand{
		Tenant: a.own.Tenant, App: a.own.App, Epoch: d.epoch, Wanted: wants.Wanted, Reason: wants.reason(), Refused: a.guard.why(), Holds: view.leaving(wants),
	}}
	err := ask(ctx, a.cfg.Conn, a.pace.attempt, subjects.Demand(a.own.Tenant, a.own.App), request, nil)
	if errors.Is(err, kbroker.Refused) {
		return fmt.Errorf("%w: %w", errDeposed, err)
	}
	if err == nil {
		d.mu.Lock()
		d.sent, d.said = wants, request.Demand.Refused
		d.mu.Unlock()
		d.wake.told(wants.Wanted)
	}
	return err
}
