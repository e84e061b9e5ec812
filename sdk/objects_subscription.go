package sdk

import (
	"context"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
)

// Bounds of a durable subscription in the hands of its owner.
const (
	// lookEvery is how often it looks for events of which it has not heard.
	lookEvery = time.Second
	// lookAgainMost is the pause at last after looks that failed.
	lookAgainMost = 5 * time.Second
	// lookWithin bounds one turn of it, with what waits in front of it.
	lookWithin = 5 * time.Second
	// maxForwarded bounds the events that wait in its outbox before it reads on.
	maxForwarded = 1024
)

// feed is a durable subscription in the hands of an instance: while that owns the object, it
// has turns of it begin that read the topic. Of the keeper's loop, where nothing else is said.
//
//	not owned --the shard is served--> looking --read, told on--> looking again
//	    ^                               |  ^ every second, or the topic was heard
//	    +--served no more---------------+  +- while less than maxForwarded messages wait
type feed struct {
	of     *durableTopic
	object kbroker.Object
	number uint64        // of the turn that was begun last
	busy   bool          // it is not over
	until  time.Duration // then it is, whatever became of it
	next   time.Duration // when it looks again
	failed int           // looks, in a row
	behind bool          // there are more events than it has read
	heard  atomic.Bool   // an event was heard that it has not looked for
	stop   func()        // ends that the topic is heard; nil: it is not
}

// look is one turn of a subscription, which reads its topic.
type look struct {
	of     *durableTopic
	behind bool
	err    error // why the topic was not read
}

func feedsOf(a *App) []*feed {
	var all []*feed
	for _, d := range a.durable {
		all = append(all, &feed{of: d, object: d.object()})
	}
	return all
}

// feed has the subscriptions look that are to.
func (k *keeper) feed(now time.Duration) {
	for _, f := range k.feeds {
		k.feedOne(now, f)
	}
}

func (k *keeper) feedOne(now time.Duration, f *feed) {
	is := k.owner.See(f.object)
	if !is.Serves || !k.owner.Valid(now) || k.deaf.Load() {
		f.busy, f.failed, f.next = false, 0, 0
		k.silenceTopic(f)
		return
	}
	k.hearTopic(f)
	switch {
	case f.busy && now < f.until:
	case !f.behind && now < f.next && (f.failed > 0 || !f.heard.Load()):
	case is.Sends >= maxForwarded || is.Active && !is.Sending:
	case k.quarantine.in[f.object] > 0:
	default:
		k.beginLook(now, f)
	}
}

func (k *keeper) beginLook(now time.Duration, f *feed) {
	f.heard.Store(false) // what is heard from now on may be missed by the read
	f.number++
	f.busy, f.until, f.next = true, now+2*lookWithin, now+lookEvery
	number, l := f.number, &look{of: f.of}
	m := k.kinds[subscriptionKind].methods[methodLook]
	session := timerSession(k.own.Incarnation, f.object, methodLook)
	id := session + ":" + strconv.FormatUint(number, 10)
	c := &heard{id: id, method: m, deadline: time.Now().Add(lookWithin), root: root{time.Now().UnixMicro(), id}, look: l}
	c.done = func(e *kbroker.Error) {
		k.post(func(now time.Duration) { k.looked(now, f, number, l, e) })
	}
	if !k.owner.Begin(now, &ownership.Call{
		Object: f.object, Session: session, Sequence: number, Confirmed: number, Expires: now + lookWithin, Data: c,
	}) {
		f.busy = false
	}
	k.settle(now)
}

// looked is the end of such a turn.
func (k *keeper) looked(now time.Duration, f *feed, number uint64, l *look, e *kbroker.Error) {
	if f.number != number {
		return
	}
	f.busy = false
	err := l.err
	if e != nil {
		err = e
	}
	if f.behind = err == nil && l.behind; err != nil {
		if f.failed++; f.failed == 1 {
			k.log.Warn("a topic is not read; it is tried again", "topic", f.of.String(), "err", err)
		}
		f.next = now + min(lookEvery<<min(f.failed-1, 10), lookAgainMost)
	} else {
		f.failed = 0
	}
	k.feedOne(now, f)
}

// hearTopic has a subscription look at once when there is a new event.
func (k *keeper) hearTopic(f *feed) {
	if f.stop != nil {
		return
	}
	ctx, stop := context.WithCancel(k.base)
	f.stop = stop
	k.work.Go(func() {
		defer stop()
		hear := func(*nats.Msg) {
			if !f.heard.Swap(true) {
				k.post(func(now time.Duration) { k.feedOne(now, f) })
			}
		}
		again := time.NewTicker(connectPoll)
		defer again.Stop()
		sub, err := k.t.subscribe(f.of.subject(), "", hear)
		for err != nil { // it is looked at every second meanwhile
			select {
			case <-ctx.Done():
				return
			case <-again.C:
			}
			sub, err = k.t.subscribe(f.of.subject(), "", hear)
		}
		<-ctx.Done()
		quiet, cancel := context.WithTimeout(context.Background(), flushTimeout)
		defer cancel()
		_ = sub.drain(quiet) // what is heard later has it look once more
	})
}

func (k *keeper) silenceTopic(f *feed) {
	if f.stop != nil {
		f.stop()
		f.stop = nil
	}
}
