package allocator

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// loadOver is the time over which loads are averages: a few messages of each instance.
	loadOver = 4 * kbroker.LoadEvery
	// refusedOver is the time that what is refused has to be known of: one who just began to listen,
	// as it takes over from an allocator, would take what came at once for what comes.
	refusedOver = loadOver / 2
)

// loads is what is known of the instances of the app: those that are to run, as a core
// reads them, and what each says of its load. Safe for concurrent use.
//
//	kb.load of each, twice a second --+
//	                                  +--> instances of a View
//	rows of a core, each second ------+
type loads struct {
	mu    sync.Mutex
	of    map[kbroker.Incarnation]*said
	rows  []kbroker.InstanceRow // that are to run; nil: not read yet
	asked time.Duration         // when the rows were asked for
	known bool
}

// said is what a start has said lately: the oldest of loadOver first.
type said struct {
	heard time.Duration
	by    []kbroker.InstanceLoad
}

// heard takes what an instance says, and returns what its load is now.
func (l *loads) heard(now time.Duration, m kbroker.InstanceLoad) Load {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[kbroker.Incarnation]*said{}
	}
	s := l.of[m.Incarnation]
	if s == nil {
		for i, old := range l.of {
			if now-old.heard >= kbroker.LoadFor {
				delete(l.of, i)
			}
		}
		s = &said{}
		l.of[m.Incarnation] = s
	}
	if n := len(s.by); n > 0 && s.by[n-1].AtS >= m.AtS {
		return s.load() // it overtook another one
	}
	s.heard = now
	s.by = append(s.by, m)
	for len(s.by) > 2 && s.by[len(s.by)-1].AtS-s.by[0].AtS > loadOver.Seconds() {
		s.by = s.by[1:]
	}
	return s.load()
}

// load is what follows of what a start has said.
func (s *said) load() Load {
	first, last := s.by[0], s.by[len(s.by)-1]
	l := Load{Known: true, Waiting: last.Waiting}
	if last.Objects != nil {
		l.Objects = last.Objects.Active
	}
	for _, m := range s.by {
		l.Busy += m.Busy / float64(len(s.by))
	}
	if over := last.AtS - first.AtS; over > 0 {
		l.Requests = float64(last.Requests-first.Requests) / over
		if over >= refusedOver.Seconds() {
			l.Refused = float64(last.Refused-first.Refused) / over
		}
		if last.Objects != nil && first.Objects != nil {
			done := func(o *kbroker.ObjectFigures) uint64 { return o.Turns + o.Reads }
			l.Turns = float64(done(last.Objects)-done(first.Objects)) / over
		}
	}
	return l
}

// read takes the rows of the app's instances, that were asked for at a time.
func (l *loads) read(asked time.Duration, rows []kbroker.InstanceRow) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows = slices.DeleteFunc(slices.Clone(rows), func(r kbroker.InstanceRow) bool {
		return r.Instance == nil || r.Service == kbroker.AllocatorService || r.State == kbroker.StateExited
	})
	l.asked, l.known = asked, true
}

// serves reports whether an instance of a service that is not among these may answer what is
// asked of it now, and whether one is sure to, as it has been heard of later than since.
func (l *loads) serves(now, since time.Duration, service kbroker.ServiceName, but map[kbroker.InstanceID]bool) (may, sure bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	leaving := map[kbroker.InstanceID]bool{}
	for _, r := range l.rows {
		if r.Service != service || but[*r.Instance] {
			continue
		}
		switch r.State {
		case kbroker.StateReady:
			may, sure = true, sure || l.asked > since
		case kbroker.StateUnmanaged: // only its agent is not there
			may = true
		case kbroker.StateDraining:
			leaving[*r.Instance] = true
		}
	}
	for who, s := range l.of {
		i, last := who.Instance(), s.by[len(s.by)-1]
		if last.Service == service && now-s.heard < kbroker.LoadFor && !last.Draining && !leaving[i] && !but[i] {
			may, sure = true, sure || s.heard > since
		}
	}
	return may, sure
}

// forget drops the rows: those who are active again read them first.
func (l *loads) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rows, l.known = nil, false
}

// instances are those that are to run, or say that they do, sorted by name. Until they have
// been read, which is false then, they are those that say so.
func (l *loads) instances(now time.Duration) ([]Instance, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	of := map[kbroker.InstanceID]*Instance{}
	for _, r := range l.rows {
		i := &Instance{Name: *r.Instance, Service: r.Service, Ready: r.State == kbroker.StateReady, Leaving: r.State == kbroker.StateDraining}
		if r.Host != nil {
			i.Host = *r.Host
		}
		if f := r.Figures; f != nil {
			i.Load.Measured = f.CPUCores != nil
			if f.CPUCores != nil {
				i.Load.CPU = *f.CPUCores
			}
			if f.RequestsPerS != nil {
				i.Load.Requests = *f.RequestsPerS
			}
		}
		of[i.Name] = i
	}
	newest := map[kbroker.InstanceID]time.Duration{} // of two starts of an instance the later one counts
	for who, s := range l.of {
		name := who.Instance()
		if now-s.heard >= kbroker.LoadFor || s.heard < newest[name] {
			continue
		}
		newest[name] = s.heard
		last := s.by[len(s.by)-1]
		i := of[name]
		if i == nil { // the rows are older
			i = &Instance{Name: name, Service: last.Service, Host: last.Host, Ready: true}
			of[i.Name] = i
		}
		cpu, measured := i.Load.CPU, i.Load.Measured
		i.Load = s.load()
		i.Load.CPU, i.Load.Measured = cpu, measured
		i.Leaving = i.Leaving || last.Draining
		i.Ready = i.Ready && !i.Leaving
	}
	all := make([]Instance, 0, len(of))
	for _, i := range of {
		all = append(all, *i)
	}
	slices.SortFunc(all, func(a, b Instance) int { return cmp.Compare(a.Name, b.Name) })
	return all, l.known
}

// onLoad takes what an instance says of its load.
func (a *Allocator) onLoad(m *nats.Msg) {
	var l kbroker.InstanceLoad
	if err := json.Unmarshal(m.Data, &l); err != nil || m.Subject != subjects.Load(a.own.Tenant, a.own.App, l.Incarnation) {
		a.log.Debug("what an instance says of its load is not readable", "object", m.Subject, "err", err)
		return
	}
	now := a.cfg.Clock()
	a.shards.sawTurns(now, l, a.loads.heard(now, l))
	if d := a.demanding.Load(); d != nil {
		a.shards.knows(now, l)
		d.wake.stir()
	}
}

// readInstances reads which instances are to run, and what their agents measure.
func (a *Allocator) readInstances(ctx context.Context) error {
	if v, ok := a.view(); !ok || !slices.ContainsFunc(v.App.Services, scales) {
		return nil
	}
	var reply kbroker.FiguresReply
	asked := a.cfg.Clock()
	request := kbroker.ListRequest{Tenant: a.own.Tenant, App: a.own.App}
	if err := ask(ctx, a.cfg.Conn, a.pace.attempt, subjects.Core(subjects.VerbFigures, a.own.Tenant), request, &reply); err != nil {
		return err
	}
	a.loads.read(asked, reply.Instances)
	if d := a.demanding.Load(); d != nil {
		d.wake.stir()
	}
	return nil
}
