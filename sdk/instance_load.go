package sdk

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pulse"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// loadSample is how often is looked at what is under way: the requests say nothing of it
	// themselves, as a look at the clock would cost each of them.
	loadSample = 25 * time.Millisecond
	// loadIdle is that of an instance that had nothing to do since it was told last: each look
	// wakes the process up, and of its kind there may be hundreds on a host.
	loadIdle = 10 * loadSample
	// loadRefused is for how long nothing is told after the servers have refused it: those of
	// an earlier build know of no load.
	loadRefused = time.Minute
)

// tellLoad tells the allocator of the app the load of this instance, until the caller calls
// what it returns; to be called when all is served. An app that no agent started has no
// allocator that counts it.
func (a *App) tellLoad(t transport) (stop func()) {
	if a.identity.Host == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { newLoadMeter(a, t).run(ctx) })
	return func() {
		cancel()
		wg.Wait()
	}
}

// loadMeter measures the load of an instance, and tells it. Of one goroutine, that of run.
type loadMeter struct {
	app      *App
	t        transport
	subject  string
	busy     []func() float64 // of all that is bounded: the part that is under way now
	sums     []float64        // of what was found, by the seconds it stands for, since it was told last
	seconds  float64          // that they stand for
	looked   time.Time        // last
	every    time.Duration    // how often is looked at them now
	idle     time.Duration    // for how long nothing was found
	draining bool             // it was told that the instance drains
	cpu      meter            // of the process
}

func newLoadMeter(a *App, t transport) *loadMeter {
	l := &loadMeter{app: a, t: t, looked: time.Now(), every: loadSample, subject: subjects.Load(a.identity.Tenant, a.identity.App, a.identity.Incarnation)}
	for _, m := range a.methods {
		l.busy = append(l.busy, m.crew.busy)
	}
	if k := a.keeper; k != nil {
		l.busy = append(l.busy, k.roots.busy, k.nested.busy, k.gates.busy)
	}
	l.sums = make([]float64, len(l.busy))
	return l
}

// run tells at once, then every kbroker.LoadEvery, and when the instance begins to drain;
// that, at the latest, when ctx ends.
func (l *loadMeter) run(ctx context.Context) {
	since, paced := l.app.started, l.every
	sample, every := time.NewTimer(untilSample(since, paced)), time.NewTimer(pulse.Until(since, kbroker.LoadEvery))
	defer sample.Stop()
	defer every.Stop()
	l.tell()
	for {
		if l.every != paced {
			paced = l.every
			sample.Reset(untilSample(since, paced))
		}
		select {
		case <-ctx.Done():
			l.tellDraining()
			return
		case <-sample.C:
			l.sample()
			sample.Reset(untilSample(since, paced))
		case <-l.app.drains:
			l.tellDraining()
		case <-every.C:
			l.tell()
			every.Reset(pulse.Until(since, kbroker.LoadEvery))
		}
	}
}

// untilSample is how long it takes until the next look: with the beat where there is nothing to do,
// and beside it otherwise, as timers and reminders begin their turns with it.
func untilSample(since time.Time, every time.Duration) time.Duration {
	if every == loadIdle {
		return pulse.Until(since, every)
	}
	return pulse.Until(since.Add(every/2), every)
}

// sample looks at what is under way: it stands for the time since the look before.
func (l *loadMeter) sample() {
	now := time.Now()
	passed, found := now.Sub(l.looked), false
	l.looked = now
	for i, busy := range l.busy {
		is := busy()
		l.sums[i] += is * passed.Seconds()
		found = found || is > 0
	}
	l.seconds += passed.Seconds()
	if found {
		l.idle, l.every = 0, loadSample
	} else if l.idle += passed; l.idle >= kbroker.LoadEvery {
		l.every = loadIdle
	}
}

// busiest is the highest average of what was found since it was told last; it drops that.
func (l *loadMeter) busiest() float64 {
	most := 0.0
	for i, sum := range l.sums {
		if l.seconds > 0 {
			most = max(most, sum/l.seconds)
		}
		l.sums[i] = 0
	}
	l.seconds = 0
	return min(most, 1)
}

func (l *loadMeter) isDraining() bool { return l.app.phase.Load() == phaseDraining }

// tellDraining tells once that the instance drains, if it does.
func (l *loadMeter) tellDraining() {
	if l.isDraining() && !l.draining {
		l.tell()
	}
}

// tell drops what cannot be told now: the next one says all that counts.
func (l *loadMeter) tell() {
	l.draining = l.isDraining()
	l.sample() // a look may be due just now, too: whichever comes first, all of the time is counted
	b, err := json.Marshal(l.load())
	if err != nil || l.app.client.refusedSince(l.subject, time.Now().Add(-loadRefused)) {
		return
	}
	_ = l.t.publishNow(&nats.Msg{Subject: l.subject, Data: b})
}

// load is that of now.
func (l *loadMeter) load() kbroker.InstanceLoad {
	a := l.app
	m := kbroker.InstanceLoad{
		Incarnation: a.identity.Incarnation, Service: a.identity.Service, Host: a.identity.Host,
		AtS: time.Since(a.started).Seconds(), Draining: l.draining, Busy: l.busiest(), Objects: a.figures.Load(),
		CPU: l.cpu.cores(time.Now(), processTime()),
	}
	m.Requests, _, m.Refused = a.counted()
	if k := a.keeper; k != nil {
		m.Waiting = int(k.queued.Load())
		if busiest := k.busiest.Load(); busiest != nil {
			m.Busiest, m.Work, m.BytesPerS, m.Weighs = busiest.busiest, busiest.work, busiest.bytes, true
			m.Placed, m.PlacedTurnsPerS = busiest.placed, busiest.placedTurns
		}
	}
	return m
}
