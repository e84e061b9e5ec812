package sdk

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/subjects"
)

// desk is what a call works with and leaves to the next one: most of what a
// call would allocate.
type desk struct {
	answers chan answer
	deliver func(slot uint64, m *nats.Msg) // into answers
	timer   *time.Timer
	open    []uint64                 // slots of the attempts without an answer; 0: has none
	asker   *atomic.Pointer[request] // that hears probes; nil: none does

	msg                  nats.Msg
	plain                nats.Header // of msg, if it has no others
	requestID, timeoutMs []string    // values of msg's headers
}

// answer is what came back to the attempt that has the slot.
type answer struct {
	slot uint64
	msg  *nats.Msg
}

// desks are the free ones of a client. The zero value is ready.
type desks struct{ pool sync.Pool }

// get returns a call with nothing set but its desk.
func (d *desks) get() *call {
	if c, ok := d.pool.Get().(*call); ok {
		return c
	}
	c := &call{}
	// Beside the answers to this call one to the last may come, which was on
	// its way when its slot was given up.
	answers := make(chan answer, maxUnanswered+2)
	asker := &atomic.Pointer[request]{}
	c.answers, c.asker = answers, asker
	c.deliver = func(slot uint64, m *nats.Msg) {
		if isProbe(m) {
			asker.Load().probed(m)
			return
		}
		select {
		case answers <- answer{slot, m}:
		default: // full: its attempt stays unanswered
		}
	}
	c.timer = time.NewTimer(time.Hour)
	c.requestID, c.timeoutMs = make([]string, 1), make([]string, 1)
	c.plain = nats.Header{subjects.HeaderRequestID: c.requestID, subjects.HeaderTimeout: c.timeoutMs}
	return c
}

func (d *desks) put(c *call) {
	c.asker.Store(nil)
	*c = call{desk: c.desk}
	d.pool.Put(c)
}

// message is an attempt to be sent, valid until the next one. header is what it has beside
// the headers of all attempts; nil: nothing.
func (d *desk) message(subject string, data []byte, id string, header nats.Header, left time.Duration) *nats.Msg {
	d.msg.Subject, d.msg.Data = subject, data
	if d.msg.Header = d.plain; header != nil {
		header[subjects.HeaderRequestID], header[subjects.HeaderTimeout] = d.requestID, d.timeoutMs
		d.msg.Header = header
	}
	d.requestID[0], d.timeoutMs[0] = id, timeoutHeader(left)
	return &d.msg
}

// mine reports whether an answer is one to an open attempt, which it closes.
func (d *desk) mine(a answer) bool {
	i := slices.Index(d.open, a.slot)
	if i < 0 {
		return false
	}
	d.open = slices.Delete(d.open, i, i+1)
	return true
}

// clear leaves nothing of a call behind.
func (d *desk) clear(t transport) {
	d.timer.Stop()
	for _, slot := range d.open {
		if slot != 0 {
			t.forget(slot)
		}
	}
	d.open = d.open[:0]
	d.msg.Data, d.msg.Header = nil, nil
	for {
		select {
		case <-d.answers:
		default:
			return
		}
	}
}
