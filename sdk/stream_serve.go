package sdk

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// streamWindow is how many items the SDK lets be on their way, maxStreamWindow how many
	// any caller can.
	streamWindow    = 64
	maxStreamWindow = 1024
	// maxStreamBytes bounds those that are on their way, but for a single one.
	maxStreamBytes = 4 << 20
	// streamBeat is how often who serves a stream says that it is alive; a caller says so in
	// return.
	streamBeat = time.Second
	// streamSilence is how long nothing is heard of the other side before it is held dead.
	streamSilence = 5 * time.Second
)

// Why a stream ended that its handler did not end.
var (
	errStreamUnwanted = Errorf(Failed, "the caller has ended the stream")
	errStreamSilent   = Errorf(Failed, "nothing was heard of the caller for %v", streamSilence)
)

// HandleStream serves a method of the app's service that answers with many items, each by a
// call of send, in order. send waits while the caller is slow: at most 64 items that it has
// not taken are on their way, of together 4 MiB. It fails when the stream is over, and fn's
// context with it: the caller has ended it or was not heard of for 5 s, its deadline passed,
// an item was larger than the cluster takes (Invalid), or the app leaves and its grace is
// over (Unavailable). The caller is told, also where fn returns nil then. The stream ends when fn returns, with its error if it
// has one. A stream counts as a running request for as long. Otherwise as Handle.
func HandleStream[In, Out any](app *App, name string, fn func(ctx context.Context, in In, send func(Out) error) error, opts ...HandleOption) {
	m := &method{name: name, concurrency: DefaultConcurrency}
	m.streams = &streams{running: map[string]*producer{}}
	m.streams.run = func(ctx context.Context, data []byte, send func([]byte) error) error {
		in, err := decode[In](data)
		if err != nil {
			return notRun(kbroker.Errorf(kbroker.Invalid, "the argument of %s is not valid: %v", name, err))
		}
		err = fn(ctx, in, func(out Out) error {
			item, err := encode(out)
			if err != nil {
				return fmt.Errorf("encode an item of %s: %w", name, err)
			}
			return send(item)
		})
		if err != nil {
			return executedYes(err)
		}
		return nil
	}
	for _, set := range opts {
		set(m)
	}
	app.add(m)
}

// streams are those of a method that one process serves. Safe for concurrent use.
type streams struct {
	run func(ctx context.Context, data []byte, send func([]byte) error) error

	mu      sync.Mutex
	running map[string]*producer
}

// heard passes on what a caller says of its stream.
func (s *streams) heard(m *nats.Msg) {
	_, id, n, ok := subjects.ParseStreamTaken(m.Subject)
	s.mu.Lock()
	p := s.running[id]
	s.mu.Unlock()
	switch {
	case !ok || p == nil:
	case m.Header.Get(subjects.HeaderStream) == streamEnd:
		p.end(errStreamUnwanted)
	default:
		p.take(n)
	}
}

func (s *streams) add(p *producer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running[p.id] = p
}

func (s *streams) remove(p *producer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.running, p.id)
}

// producer is the side of one stream that serves it. Safe for concurrent use.
type producer struct {
	m      *method
	id     string
	reply  string
	window uint64
	end    context.CancelCauseFunc // of the handler's context

	room broadcast // fires when something was taken

	mu          sync.Mutex
	sent, taken uint64 // items
	sizes       []int  // of those between
	bytes       int    // sum of sizes
	heard       time.Time
}

// handleStream runs the handler of a stream.
func (m *method) handleStream(j job) {
	start := time.Now()
	window, err := strconv.ParseUint(j.msg.Header.Get(subjects.HeaderStream), 10, 64)
	switch {
	case !subjects.IsInbox(j.msg.Reply):
		return
	case err != nil || window < 1:
		m.refuse(j.msg, notRun(kbroker.Errorf(kbroker.Invalid, "%s answers with a stream", m.name).
			WithHint("ask by sdk.Stream, or with the header %s that says how many items may be on their way", subjects.HeaderStream)))
		return
	case !start.Before(j.deadline) || m.base.Err() != nil:
		m.refuse(j.msg, notRun(kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline of %s passed before it ran", m.name)))
		return
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	base, end := context.WithCancelCause(m.base)
	p := &producer{m: m, id: hex.EncodeToString(b[:]), reply: j.msg.Reply, window: min(window, maxStreamWindow), end: end, heard: start}
	ctx := &request{base: base, client: m.app.client, id: j.msg.Header.Get(subjects.HeaderRequestID), deadline: j.deadline, chain: chain(j.msg.Header.Get(subjects.HeaderChain))}
	m.streams.add(p)
	over := make(chan struct{})
	var beats sync.WaitGroup
	beats.Go(func() { p.beat(over) })
	e := p.guarded(ctx, j.msg.Data)
	close(over)
	beats.Wait()
	m.streams.remove(p)
	e = p.outcome(ctx, e)
	end(nil)
	ctx.end()
	p.finish(e)
	m.count(time.Since(start), e)
}

// guarded turns a panic of the handler into an error.
func (p *producer) guarded(ctx context.Context, data []byte) (e *kbroker.Error) {
	defer func() {
		if r := recover(); r != nil {
			p.m.app.log.Error("handler panicked", "method", p.m.name, "err", fmt.Sprint(r), "stack", string(debug.Stack()))
			e = kbroker.Errorf(kbroker.Internal, "%s panicked", p.m.name).WithHint("the instance's log has the stack")
			e.Executed = kbroker.ExecutedUnknown
		}
	}()
	return kbroker.AsError(p.m.streams.run(ctx, data, func(item []byte) error { return p.send(ctx, item) }))
}

// outcome is what the caller is told of a stream whose handler has returned e. One that was
// ended is not complete, whatever the handler says of it.
func (p *producer) outcome(ctx context.Context, e *kbroker.Error) *kbroker.Error {
	if ctx.Err() == nil || e != nil && e.Executed == kbroker.ExecutedNo {
		return e
	}
	var why *kbroker.Error
	switch cause := context.Cause(requestOf(ctx).base); {
	case p.m.base.Err() != nil:
		why = kbroker.Errorf(kbroker.Unavailable, "%s leaves, and ends its streams", p.m.app.identity.Instance).
			WithHint("ask again: another instance serves it")
	case cause != nil:
		c := *kbroker.AsError(cause)
		why = &c
	default:
		why = kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline of the stream %s passed", p.m.name)
	}
	why.Executed = kbroker.ExecutedUnknown
	return why
}

// send sends one item, when there is room.
func (p *producer) send(ctx context.Context, item []byte) error {
	for {
		room := p.room.wait()
		if ctx.Err() != nil {
			return over(ctx)
		}
		if n, ok := p.next(len(item)); ok {
			return p.sendAs(n, item)
		}
		select {
		case <-room:
		case <-ctx.Done():
			return over(ctx)
		}
	}
}

// over is why a stream is over.
func over(ctx context.Context) error {
	if why := context.Cause(requestOf(ctx).base); why != nil {
		return why
	}
	return ctx.Err()
}

// next is the number of the next item, if there is room for it.
func (p *producer) next(size int) (uint64, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sent-p.taken >= p.window || p.sent > p.taken && p.bytes+size > maxStreamBytes {
		return 0, false
	}
	p.sent++
	p.sizes = append(p.sizes, size)
	p.bytes += size
	return p.sent, true
}

func (p *producer) sendAs(n uint64, item []byte) error {
	err := p.m.out.publish(p.message(streamItem, n, item))
	if errors.Is(err, nats.ErrMaxPayload) {
		err = Errorf(Invalid, "an item of %s has %d bytes, more than the cluster takes", p.m.name, len(item))
	}
	if err != nil {
		p.takeBack(n, len(item))
		p.end(err)
	}
	return err
}

// takeBack gives the number of an item back that did not leave, so that nobody waits for it.
func (p *producer) takeBack(n uint64, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n == p.sent && n > p.taken {
		p.sent--
		p.sizes = p.sizes[:len(p.sizes)-1]
		p.bytes -= size
	}
}

// message is one of the stream, to be answered when all up to n was taken.
func (p *producer) message(what string, n uint64, data []byte) *nats.Msg {
	i := &p.m.app.identity
	return &nats.Msg{
		Subject: p.reply, Reply: subjects.StreamTaken(i.App, i.Service, p.m.name, i.Incarnation, p.id, n), Data: data,
		Header: nats.Header{
			subjects.HeaderStream:   {what + " " + strconv.FormatUint(n, 10)},
			subjects.HeaderInstance: p.m.header[subjects.HeaderInstance],
		},
	}
}

// take notes that the caller lives, and has taken n items.
func (p *producer) take(n uint64) {
	defer p.room.fire() // without the lock
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = time.Now()
	for p.taken < min(n, p.sent) {
		p.taken++
		p.bytes -= p.sizes[0]
		p.sizes = p.sizes[1:]
	}
}

// state is how many items were sent and taken, and when the caller was heard of.
func (p *producer) state() (sent, taken uint64, heard time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent, p.taken, p.heard
}

// beat says at once and then every streamBeat that the stream is alive, and ends it when
// nothing is heard of the caller.
func (p *producer) beat(over <-chan struct{}) {
	tick := time.NewTicker(streamBeat)
	defer tick.Stop()
	for {
		sent, taken, heard := p.state()
		if time.Since(heard) > streamSilence {
			p.end(errStreamSilent)
		}
		alive := p.message(streamAlive, sent, nil)
		i := &p.m.app.identity // who answers it says that it lives, and takes nothing more
		alive.Reply = subjects.StreamTaken(i.App, i.Service, p.m.name, i.Incarnation, p.id, taken)
		if err := p.m.out.publish(alive); err != nil {
			p.m.app.log.Warn("stream not said to be alive", "method", p.m.name, "err", err)
		}
		select {
		case <-over:
			return
		case <-tick.C:
		}
	}
}

// finish sends the last message.
func (p *producer) finish(e *kbroker.Error) {
	sent, _, _ := p.state()
	last := p.message(streamEnd, sent, nil)
	if e != nil {
		last = errorReply(p.reply, last.Header, e)
	}
	last.Reply = ""
	if err := p.m.out.publish(last); err != nil {
		p.m.app.log.Warn("end of a stream not sent", "method", p.m.name, "err", err)
	}
}
