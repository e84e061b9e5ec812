package agent

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// maxFigures bounds the instances in one message of figures, of some 300 bytes each, to
// what a broker takes; those above have none.
const maxFigures = 2500

// sampler measures the host and its instances every kbroker.FiguresEvery, and publishes
// what it finds. It waits for nobody, and nothing waits for it.
type sampler struct {
	host kbroker.HostID
	conn *nats.Conn

	mu      sync.Mutex
	watched map[kbroker.StatusKey]watched
	told    map[kbroker.StatusKey]told
}

// told is what is known of an incarnation without measuring it.
type told struct {
	incarnation kbroker.Incarnation
	ready, live failing
	// Two answers of its SDK, from which a rate follows.
	from, last tally
	objects    *kbroker.ObjectFigures // that it said last; nil: it owns none
}

// failing are checks in a row that have not said that all is well.
type failing struct {
	known bool
	count int
	why   string
}

// tally is what an SDK has counted, and when it said so; boottime.
type tally struct {
	at               time.Duration
	requests, errors uint64
}

func newSampler(cfg Config) *sampler {
	return &sampler{host: cfg.Host, conn: cfg.Conn, watched: map[kbroker.StatusKey]watched{}, told: map[kbroker.StatusKey]told{}}
}

// runs notes the processes that the loop watches.
func (s *sampler) runs(instances map[kbroker.StatusKey]*instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k := range s.watched {
		if i := instances[k]; i == nil || i.process == nil {
			delete(s.watched, k)
			delete(s.told, k)
		}
	}
	for k, i := range instances {
		if i.process != nil {
			s.watched[k] = i.watched()
		}
	}
}

// watched is what the sampler has to know of an instance that has a process.
func (i *instance) watched() watched {
	w := watched{incarnation: i.process.incarnation, id: i.process.id, group: i.process.group, readySince: i.readySince}
	if w.group != nil && !slices.Contains(i.unenforced, unenforcedMemory) {
		w.limitBytes = i.record.Placement.Spec.Resources.MemoryLimitBytes
	}
	return w
}

// objectsOf is what an instance that has a process said last of its objects.
func (s *sampler) objectsOf(k kbroker.StatusKey) *kbroker.ObjectFigures {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.told[k]; t.incarnation == s.watched[k].incarnation {
		return t.objects
	}
	return nil
}

func (s *sampler) watchedOf(k kbroker.StatusKey) (watched, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.watched[k]
	return w, ok
}

// tell changes what is told of an incarnation.
func (s *sampler) tell(r record, change func(*told)) {
	k := keyOf(r.Placement)
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.told[k]
	if t.incarnation != r.Incarnation {
		if s.watched[k].incarnation != r.Incarnation {
			return // it is over
		}
		t = told{incarnation: r.Incarnation}
	}
	change(&t)
	s.told[k] = t
}

// checked notes the outcome of a check of readiness, lives that of one of life.
func (s *sampler) checked(r record, bad int, why string) {
	s.tell(r, func(t *told) { t.ready = failing{true, bad, why} })
}

func (s *sampler) lives(r record, bad int, why string) {
	s.tell(r, func(t *told) { t.live = failing{true, bad, why} })
}

// answered notes what an SDK has counted.
func (s *sampler) answered(r record, reply kbroker.PingReply, now time.Duration) {
	s.tell(r, func(t *told) {
		t.objects = reply.Objects
		if reply.Requests != nil && reply.Errors != nil {
			t.count(tally{now, *reply.Requests, *reply.Errors})
		}
	})
}

// count takes an answer: the rate is that of the last two seconds or so.
func (t *told) count(a tally) {
	if t.from.at == 0 || t.last.at-t.from.at >= kbroker.FiguresEvery {
		t.from = t.last
	}
	t.last = a
	if t.from.at == 0 || a.requests < t.from.requests {
		t.from = a
	}
}

// run measures and publishes until ctx ends.
func (s *sampler) run(ctx context.Context) error {
	tick := time.NewTicker(kbroker.FiguresEvery)
	defer tick.Stop()
	var before round
	for {
		now := s.measure()
		if err := s.publish(s.figures(before, now)); err != nil {
			return err
		}
		before = now
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// round is all that is measured at about one time.
type round struct {
	at        time.Duration // boottime, of its begin
	machine   machine
	instances map[kbroker.StatusKey]sample
}

// sample is what was measured of an instance.
type sample struct {
	watched
	told
	usage
	at time.Duration // boottime
}

func (s *sampler) measure() round {
	now := round{at: state.Boottime(), machine: measureMachine(), instances: map[kbroker.StatusKey]sample{}}
	s.mu.Lock()
	for k, w := range s.watched {
		if t := s.told[k]; t.incarnation == w.incarnation {
			now.instances[k] = sample{watched: w, told: t}
		} else {
			now.instances[k] = sample{watched: w}
		}
	}
	s.mu.Unlock()
	var m measurer
	for k, i := range now.instances {
		i.at, i.usage = state.Boottime(), m.usage(i.watched)
		now.instances[k] = i
	}
	return now
}

// figures are what follows of two rounds.
func (s *sampler) figures(before, now round) kbroker.Figures {
	f := kbroker.Figures{Host: s.host, Machine: kbroker.HostFigures{
		CPUCores:    cores(before.machine.cpu, now.machine.cpu, now.at-before.at),
		MemoryBytes: now.machine.used, MemoryFreeBytes: now.machine.free, Load: now.machine.load,
		AgentCPUCores: cores(before.machine.own, now.machine.own, now.at-before.at), AgentBytes: now.machine.ownMem,
	}}
	for k, i := range now.instances {
		if len(f.Instances) == maxFigures {
			break
		}
		f.Instances = append(f.Instances, kbroker.InstanceMeasure{
			Tenant: k.Tenant, Instance: k.Instance, Incarnation: i.watched.incarnation, InstanceFigures: i.figures(before.instances[k]),
		})
	}
	return f
}

// figures are what follows of a sample and the one before. Pure.
func (i sample) figures(before sample) kbroker.InstanceFigures {
	f := kbroker.InstanceFigures{MemoryBytes: i.memoryBytes, OpenFiles: i.openFiles, OpenFilesAll: i.openFilesAll, PIDs: i.pids}
	if before.watched.incarnation == i.watched.incarnation {
		f.CPUCores = cores(before.cpu, i.cpu, i.at-before.at)
	}
	if i.cpu != nil {
		f.CPUSeconds = rounded(i.cpu.Seconds())
	}
	if i.limitBytes > 0 {
		f.MemoryLimitBytes = &i.limitBytes
	}
	if i.readySince > 0 {
		f.ReadyForS = rounded(max(0, i.at-i.readySince).Seconds())
	}
	if i.last.at > 0 && i.at-i.last.at < kbroker.FiguresFor {
		f.Requests, f.Errors = &i.last.requests, &i.last.errors
		f.RequestsPerS = perSecond(&i.from.requests, &i.last.requests, i.last.at-i.from.at)
		f.ErrorsPerS = perSecond(&i.from.errors, &i.last.errors, i.last.at-i.from.at)
	}
	worst := i.ready
	if i.live.count > worst.count || !worst.known {
		worst = i.live
	}
	if worst.known {
		f.ChecksFailing = &worst.count
	}
	if worst.count > 0 {
		f.CheckFailing = worst.why[:min(len(worst.why), maxWhy)]
	}
	return f
}

// maxWhy bounds what is told of a check that fails.
const maxWhy = 200

// publish says what was measured, unless nobody could hear it in time: what waits in a
// buffer for a connection would be old when it arrives.
func (s *sampler) publish(f kbroker.Figures) error {
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if s.conn.IsConnected() {
		_ = s.conn.Publish(subjects.Figures(s.host), body) // another one follows
	}
	return nil
}
