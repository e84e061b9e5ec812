package sdk

import (
	"encoding/json"
	"errors"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of a question to the cores.
const (
	// leaseWithin is how long the answer to a renewal is waited for: a core has given up
	// then. Others are sent meanwhile.
	leaseWithin = 3500 * time.Millisecond
	// writeWithin is how long that to another write is: what was lost with a core is not to
	// hold up an object for long. What is sent again finds the first copy under way, or
	// written.
	writeWithin = 1500 * time.Millisecond
	// readWithin is how long that to a read is.
	readWithin = time.Second
)

var errNoCore = errors.New("no core has answered in time")

// ask sends a request to any core and hands the answer to done, on the loop, once: nil and
// why not, if there is none.
func (k *keeper) ask(verb string, data []byte, within time.Duration, done func(now time.Duration, m *nats.Msg, err error)) {
	var over atomic.Bool
	finish := func(m *nats.Msg, err error) {
		if !over.Swap(true) {
			k.post(func(now time.Duration) { done(now, m, err) })
		}
	}
	subject := subjects.Own(k.own.Tenant, k.own.App, verb, k.own.Incarnation)
	var timer atomic.Pointer[time.Timer]
	slot, err := k.t.request(&nats.Msg{Subject: subject, Data: data}, func(_ uint64, m *nats.Msg) {
		if t := timer.Load(); t != nil {
			t.Stop()
		}
		finish(m, nil)
	})
	if err != nil {
		finish(nil, err)
		return
	}
	timer.Store(time.AfterFunc(within, func() {
		k.t.forget(slot)
		finish(nil, errNoCore)
	}))
}

// write has a batch written.
func (k *keeper) write(writes []kbroker.Write, within time.Duration, done func(now time.Duration, w ownership.Written, first kbroker.Revision)) {
	data, err := kbroker.OwnWriteRequest{Writes: writes}.MarshalBinary()
	if err != nil {
		k.post(func(now time.Duration) {
			k.complain(now, "take", err)
			done(now, ownership.NotAttempted, 0)
		})
		return
	}
	k.ask(subjects.VerbOwnWrite, data, within, func(now time.Duration, m *nats.Msg, err error) {
		w, first, err := written(m, err)
		if err != nil {
			k.complain(now, "take", err)
		}
		done(now, w, first)
	})
}

// written is what became of a batch, by the answer to it; an error is one that will come
// again.
func written(m *nats.Msg, err error) (ownership.Written, kbroker.Revision, error) {
	switch {
	case errors.Is(err, errNotConnected) || errors.Is(err, errClosed):
		return ownership.NotAttempted, 0, nil
	case err != nil:
		return ownership.NotKnown, 0, nil
	}
	e, nobody := answerOf(m)
	switch {
	case nobody:
		return ownership.NotAttempted, 0, nil
	case e == nil:
		var r kbroker.OwnWriteReply
		if err := json.Unmarshal(m.Data, &r); err != nil || r.First == 0 {
			return ownership.NotKnown, 0, nil
		}
		return ownership.Accepted, r.First, nil
	case e.Code == kbroker.Conflict:
		return ownership.Refused, 0, nil
	case e.Code == kbroker.Overloaded:
		return ownership.NotAttempted, 0, nil
	case e.Code == kbroker.Invalid || e.Code == kbroker.Refused:
		return ownership.NotAttempted, 0, e
	case e.Code == kbroker.Unavailable && e.Executed == kbroker.ExecutedNo:
		return ownership.NotAttempted, 0, nil
	}
	return ownership.NotKnown, 0, nil
}

// read reads records, all pages of them. A request by keys is answered with as many, in
// their order.
func (k *keeper) read(r kbroker.OwnReadRequest, done func(now time.Duration, found []kbroker.Stored, ok bool)) {
	k.readOn(r, len(r.Keys), found{}, func(now time.Duration, all found, ok bool) { done(now, all.records, ok) })
}

// found are the records of a read, and the revision until which they are all; 0: not known.
type found struct {
	records []kbroker.Stored
	at      kbroker.Revision
}

func (k *keeper) readOn(r kbroker.OwnReadRequest, want int, all found, done func(now time.Duration, all found, ok bool)) {
	data, err := json.Marshal(r)
	if err != nil {
		panic("sdk: a request does not marshal: " + err.Error()) // strings only
	}
	k.ask(subjects.VerbOwnRead, data, readWithin, func(now time.Duration, m *nats.Msg, err error) {
		var page kbroker.OwnReadReply
		if err == nil {
			e, nobody := answerOf(m)
			switch {
			case nobody:
				err = errNoCore
			case e != nil:
				err = e
			default:
				err = page.UnmarshalBinary(m.Data)
			}
			if errors.Is(err, kbroker.Invalid) || errors.Is(err, kbroker.Refused) {
				k.complain(now, "show", err)
			}
		}
		n := len(page.Records)
		all.records = append(all.records, page.Records...)
		if r.After == "" {
			all.at = page.At // of the first page: later ones know of what may be missing in it
		}
		if page.Same {
			all.at = r.Since
		}
		have := len(all.records)
		switch {
		case err != nil, page.More && n == 0, want > 0 && (have > want || !page.More && have < want):
			done(now, found{}, false)
		case page.More && want > 0:
			r.Keys = r.Keys[n:]
			k.readOn(r, want, all, done)
		case page.More:
			r.After, r.Since = page.Records[n-1].Key, 0
			k.readOn(r, want, all, done)
		default:
			done(now, all, true)
		}
	})
}

// see tells the machine what was found of shards.
func (k *keeper) see(now time.Duration, found []kbroker.Stored, ok bool) {
	if !ok {
		return // it is asked for again
	}
	for _, s := range found {
		if s.Revision != 0 {
			k.seen(now, s)
		}
	}
}

// seen tells it of one record: read, or announced. One that was taken away says nothing.
func (k *keeper) seen(now time.Duration, s kbroker.Stored) {
	switch key := subjects.ParseOwnKey(s.Key); key.Table {
	case subjects.OwnAssign:
		var a ownership.Assignment
		if !s.Exists() || k.decoded(s, &a) {
			k.owner.Assigned(now, key.Shard, a, s.Revision)
		}
	case subjects.OwnRelease:
		var r ownership.Release
		if !s.Exists() || k.decoded(s, &r) {
			k.owner.Released(now, key.Shard, r, s.Revision)
		}
	}
}

func (k *keeper) decoded(s kbroker.Stored, into any) bool {
	if err := json.Unmarshal(s.Value, into); err != nil {
		k.log.Error("record of the ownership not readable", "key", s.Key, "rev", s.Revision, "err", err)
		return false
	}
	return true
}
