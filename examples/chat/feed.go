package main

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

// Bounds of a feed.
const (
	// sayEvery is how often a web server says who is there, and is told what is new, if it
	// has not heard it; less than half of sweepEvery.
	sayEvery = 2 * time.Second
	// answerWithin bounds a call to a room; it is asked again.
	answerWithin = 3 * time.Second
)

// feed is a room as one web server shows it, for as long as somebody looks.
type feed struct {
	name string
	room sdk.Target
	at   string // the web server
	stir chan struct{}
	stop context.CancelFunc
	done chan struct{}

	mu      sync.Mutex
	here    map[string]int // connections of each member here
	known   bool           // what is below
	last    int            // change that is in it
	history []message
	others  []string
	changed chan struct{} // closed at the next change
}

func newFeed(name, at string, room sdk.Target) *feed {
	return &feed{
		name: name, at: at, room: room, stir: make(chan struct{}, 1), done: make(chan struct{}),
		here: map[string]int{}, changed: make(chan struct{}),
	}
}

// run talks with the room until ctx ends; then it says that nobody is here any more.
func (f *feed) run(ctx context.Context) {
	defer close(f.done)
	tick := time.NewTicker(sayEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		f.say(ctx)
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-f.stir:
		}
	}
	f.say(context.WithoutCancel(ctx))
}

// say tells the room who is here, and takes what was not heard of it.
func (f *feed) say(ctx context.Context) {
	f.mu.Lock()
	names := slices.Sorted(maps.Keys(f.here))
	in := here{At: f.at, Names: names[:min(len(names), maxHere)], After: f.last}
	f.mu.Unlock()
	within, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	p, err := sdk.Call[page](within, f.room, "here", in)
	if err == nil {
		f.take(p, in.After)
	} else if ctx.Err() == nil {
		slog.Warn("a room does not answer; it is asked again", "room", f.name, "err", err)
	}
}

// take has shown what a room has said is new after a change: an answer, or an event.
func (f *feed) take(p page, number int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if number > f.last { // an event before it was lost: the room is asked for both
		f.soon()
		return
	}
	if f.known && p.Last <= f.last {
		return // it comes late
	}
	f.history = append(f.history, after(p.Messages, f.last)...)
	f.history = f.history[max(len(f.history)-keep, 0):]
	f.known, f.last, f.others = true, p.Last, p.Here
	close(f.changed)
	f.changed = make(chan struct{})
}

// after is what a browser has not seen yet, if that is known, and what is closed when there
// is more.
func (f *feed) after(number int) (p page, known bool, more <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return page{Last: f.last, Here: f.others, Messages: after(f.history, number)}, f.known, f.changed
}

// add notes connections of a member, fewer too, and returns how many are left of all.
func (f *feed) add(name string, n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.here[name] += n; f.here[name] == 0 {
		delete(f.here, name)
	}
	f.soon()
	return len(f.here)
}

// soon has it talk with the room now.
func (f *feed) soon() {
	select {
	case f.stir <- struct{}{}:
	default:
	}
}
