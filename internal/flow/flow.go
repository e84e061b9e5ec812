// Package flow is one end of a session of frames over messages that can be lost,
// doubled or swapped (kbroker.ExecFrame): content arrives once and in order, and
// whoever is slow is waited for.
//
//	content -> [at most ExecWindow until taken] -> messages -> [in order] -> taken
//
// A frame is kept until the other side says that it got it, and sent again meanwhile
// (go back N). What it got and has not taken, because a reader is slow, is not sent
// again: it only leaves no room. Either end that hears nothing for Silence is alone.
package flow

import (
	"context"
	"errors"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// Every is how often an end says how far it is, and sends again what was not got.
	Every = 250 * time.Millisecond
	// Silence is how long nothing need be heard until the other end counts as gone.
	Silence = 5 * time.Second
	// arrivals bounds the messages that wait to be looked at; further ones are lost, and
	// come again.
	arrivals = 2 * kbroker.ExecWindow
)

// ErrSilent ends Run: the other end was not heard for Silence.
var ErrSilent = errors.New("nothing was heard of the other side")

// numbers is how far one end is. Pure: no clock, no I/O.
type numbers struct {
	sent  []kbroker.ExecFrame // numbered, and not known to be got
	last  uint64              // of ours
	taken uint64              // of ours, by the other side
	got   uint64              // of theirs
	took  uint64              // of theirs, by us
}

// room reports whether one more may be sent.
func (n *numbers) room() bool { return n.last-n.taken < kbroker.ExecWindow }

// number takes content that is to be sent.
func (n *numbers) number(f kbroker.ExecFrame) kbroker.ExecFrame {
	n.last++
	f.Number = n.last
	n.sent = append(n.sent, f)
	return f
}

// hear takes what a frame says; true: its content is the next one. What nobody can have
// got, or taken before it was got, is not believed.
func (n *numbers) hear(f kbroker.ExecFrame) (next bool) {
	if f.Got <= n.last {
		for len(n.sent) > 0 && n.sent[0].Number <= f.Got {
			n.sent = n.sent[1:]
		}
		if f.Taken <= f.Got {
			n.taken = max(n.taken, f.Taken)
		}
	}
	if f.Number == 0 || f.Number != n.got+1 || n.got-n.took >= kbroker.ExecWindow {
		return false
	}
	n.got++
	return true
}

// End is one end of a session. Send is required.
type End struct {
	// Send sends a frame; what it does not send comes again.
	Send func(kbroker.ExecFrame)
	// Holds adds what holds on this side to a frame that is sent; may be nil.
	Holds func(*kbroker.ExecFrame)
	// Heard sees each frame of the other side, out of order, too; may be nil. It does not
	// wait.
	Heard func(kbroker.ExecFrame)

	arrived chan kbroker.ExecFrame
	content chan kbroker.ExecFrame
	next    chan kbroker.ExecFrame
	took    chan struct{}
	stirred chan struct{}
}

// New makes an end that does not run yet.
func New(send func(kbroker.ExecFrame)) *End {
	return &End{
		Send: send, arrived: make(chan kbroker.ExecFrame, arrivals), content: make(chan kbroker.ExecFrame),
		next: make(chan kbroker.ExecFrame, kbroker.ExecWindow), took: make(chan struct{}, kbroker.ExecWindow),
		stirred: make(chan struct{}, 1),
	}
}

// Arrive takes a frame of the other side. It never waits.
func (e *End) Arrive(f kbroker.ExecFrame) {
	select {
	case e.arrived <- f:
	default:
	}
}

// Put sends content when there is room; false: ctx ended before.
func (e *End) Put(ctx context.Context, f kbroker.ExecFrame) bool {
	select {
	case e.content <- f:
		return true
	case <-ctx.Done():
		return false
	}
}

// Next is the next content of the other side; false: ctx ended before. Took follows when
// it was passed on. One goroutine may call both.
func (e *End) Next(ctx context.Context) (kbroker.ExecFrame, bool) {
	select {
	case f := <-e.next:
		return f, true
	case <-ctx.Done():
		return kbroker.ExecFrame{}, false
	}
}

// Took makes room for one more.
func (e *End) Took() { e.took <- struct{}{} }

// Stir has what holds on this side said now.
func (e *End) Stir() {
	select {
	case e.stirred <- struct{}{}:
	default:
	}
}

// Run moves frames until ctx ends, then says once more what holds, and returns nil; or
// ErrSilent.
func (e *End) Run(ctx context.Context) error {
	var n numbers
	say := func(f kbroker.ExecFrame) {
		f.Got, f.Taken = n.got, n.took
		if e.Holds != nil {
			e.Holds(&f)
		}
		e.Send(f)
	}
	tick := time.NewTicker(Every)
	defer tick.Stop()
	alone := time.NewTimer(Silence)
	defer alone.Stop()
	for {
		content := e.content
		if !n.room() {
			content = nil
		}
		select {
		case <-ctx.Done():
			say(kbroker.ExecFrame{})
			return nil
		case <-alone.C:
			return ErrSilent
		case f := <-e.arrived:
			alone.Reset(Silence)
			if e.Heard != nil {
				e.Heard(f)
			}
			if n.hear(f) {
				e.next <- f // has room: not more than the window is got and not taken
			}
		case f := <-content:
			say(n.number(f))
		case <-e.took:
			if n.took++; n.took == n.got || n.took%(kbroker.ExecWindow/4) == 0 { // or the tick says it
				say(kbroker.ExecFrame{})
			}
		case <-e.stirred:
			say(kbroker.ExecFrame{})
		case <-tick.C:
			say(kbroker.ExecFrame{})
			for _, f := range n.sent {
				say(f)
			}
		}
	}
}
