package sdk

import (
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// streamBuffer is what has come of a stream and was not taken yet. While the connection
// moves to another server, messages come twice and those of one connection before those of
// the other, so that they are put in order here. Safe for concurrent use.
type streamBuffer struct {
	to      Target
	method  string
	control string // what the subjects begin with that may be answered
	conn    transport
	wake    chan struct{} // has one when something has come

	mu      sync.Mutex
	items   map[uint64]*nats.Msg // at most streamWindow
	taken   uint64               // items handed over
	told    uint64               // of those, that who serves it knows of
	untold  int                  // bytes of the others
	claimed uint64               // items that were sent, as far as is known
	missing time.Time            // since when the next one is missing of these; zero: it is not
	reply   string               // where taken is told, without the number; empty: it has not begun
	heard   time.Time
	last    *nats.Msg      // the end; claimed counts the items before it
	refusal *kbroker.Error // why an attempt certainly did not run
	failure *kbroker.Error // what has come is no stream
	closed  bool
}

func newStreamBuffer(to Target, method, control string, conn transport) *streamBuffer {
	return &streamBuffer{to: to, method: method, control: control, conn: conn, wake: make(chan struct{}, 1), items: map[uint64]*nats.Msg{}}
}

// deliver takes a message.
func (b *streamBuffer) deliver(_ uint64, m *nats.Msg) {
	if isProbe(m) {
		return // the stream is not part of a ring: whoever holds it up is not told of
	}
	if told := b.put(m); told != nil {
		_ = b.conn.publish(told) // what does not leave is said again at the next beat
	}
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// put notes a message, and returns what to answer, or nil.
func (b *streamBuffer) put(m *nats.Msg) *nats.Msg {
	b.mu.Lock()
	defer b.mu.Unlock()
	what, n, ok := parseStream(m)
	if !ok {
		b.refused(m)
		return nil
	}
	b.heard = time.Now()
	b.claimed = max(b.claimed, n)
	if prefix, _, _, ok := subjects.ParseStreamTaken(m.Reply); ok && b.reply == "" && strings.HasPrefix(prefix, b.control) {
		b.reply = prefix
	}
	switch {
	case b.closed:
	case what == streamEnd:
		b.last = m
	case what == streamAlive:
		return b.tell()
	case n > b.taken+streamWindow:
		b.failure = kbroker.Errorf(kbroker.Internal, "%s %s sends more items than it was asked for", b.to, b.method)
		b.failure.Executed = kbroker.ExecutedUnknown
	case n > b.taken:
		b.items[n] = m
	}
	return nil
}

// refused notes an answer that is not of a stream. Under mu.
func (b *streamBuffer) refused(m *nats.Msg) {
	e, nobody := answerOf(m)
	switch {
	case nobody:
		b.refusal = kbroker.Errorf(kbroker.Unavailable, "nobody serves %s %s", b.to, b.method).
			WithHint("`kbroker ps` says whether it runs, and `kbroker call` which methods it has")
	case e == nil:
		b.failure = kbroker.Errorf(kbroker.Invalid, "%s %s answers once, and not with a stream", b.to, b.method).WithHint("sdk.Call calls it")
		b.failure.Executed = kbroker.ExecutedYes
	case e.Code == kbroker.Overloaded && e.Executed == kbroker.ExecutedNo:
		b.refusal = e
	default:
		b.failure = e
	}
}

// tell is the message that says how much was taken, and that somebody still wants more; nil:
// nobody to tell. Under mu.
func (b *streamBuffer) tell() *nats.Msg {
	if b.reply == "" {
		return nil
	}
	b.told, b.untold = b.taken, 0
	return &nats.Msg{Subject: b.reply + strconv.FormatUint(b.taken, 10)}
}

// next takes the next item. over: there is none any more, and why.
func (b *streamBuffer) next(now time.Time) (item *nats.Msg, over bool, err error) {
	item, told, e := b.take(now)
	if told != nil {
		_ = b.conn.publish(told) // likewise
	}
	switch {
	case item != nil:
		return item, false, nil
	case e != nil:
		return nil, true, e
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil || b.claimed > b.taken {
		return nil, false, nil
	}
	if e, _ := answerOf(b.last); e != nil {
		return nil, true, e
	}
	return nil, true, nil
}

// take returns the next item and what to tell of it, or what has broken the stream.
func (b *streamBuffer) take(now time.Time) (item, told *nats.Msg, e *kbroker.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if item = b.items[b.taken+1]; item != nil {
		b.taken++
		delete(b.items, b.taken)
		b.missing = time.Time{}
		b.untold += len(item.Data)
		if b.taken-b.told >= streamWindow/4 || b.untold >= maxStreamBytes/4 {
			told = b.tell()
		}
		return item, told, nil
	}
	if b.claimed > b.taken && b.missing.IsZero() {
		b.missing = now
	}
	switch {
	case b.failure != nil:
		return nil, nil, b.failure
	case !b.missing.IsZero() && now.Sub(b.missing) > streamBeat:
		e = kbroker.Errorf(kbroker.Unavailable, "item %d of the stream %s %s was lost on the way", b.taken+1, b.to, b.method)
	case b.last == nil && !b.heard.IsZero() && now.Sub(b.heard) > streamSilence:
		e = kbroker.Errorf(kbroker.Unavailable, "nothing was heard for %v of who serves the stream %s %s", streamSilence, b.to, b.method)
	default:
		return nil, nil, nil
	}
	e.Executed = kbroker.ExecutedUnknown
	return nil, nil, e
}

// begun reports whether the stream has begun, and once why an attempt did not.
func (b *streamBuffer) begun() (bool, *kbroker.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	refusal := b.refusal
	b.refusal = nil
	return !b.heard.IsZero(), refusal
}

// close ends the stream of who serves it, unless it is over.
func (b *streamBuffer) close() {
	if m := b.leave(); m != nil {
		_ = b.conn.publish(m) // else it is missed in streamSilence
	}
}

func (b *streamBuffer) leave() *nats.Msg {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	m := b.tell()
	if b.last != nil || m == nil {
		return nil
	}
	m.Header = nats.Header{subjects.HeaderStream: {streamEnd}}
	return m
}
