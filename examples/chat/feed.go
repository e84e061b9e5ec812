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
	// lookEvery is how often a web server asks a room for what is new, however many
	// browsers look at it: a read, which stores nothing.
	lookEvery = 200 * time.Millisecond
	// sayEvery is how often it says who is there; less than half of sweepEvery.
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
	news    bool           // here has changed since it was said
	looked  bool           // what is below is known
	last    int
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

// run follows the room until ctx ends; then it says that nobody is here any more.
func (f *feed) run(ctx context.Context) {
	defer close(f.done)
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	var said time.Time
	for ctx.Err() == nil {
		if f.unsaid() || time.Since(said) > sayEvery {
			if f.say(ctx) {
				said = time.Now()
			}
		}
		f.look(ctx)
		select {
		case <-ctx.Done():
		case <-tick.C:
		case <-f.stir:
		}
	}
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
	defer cancel()
	f.say(bye)
}

// say tells the room who is here.
func (f *feed) say(ctx context.Context) bool {
	f.mu.Lock()
	names := slices.Sorted(maps.Keys(f.here))
	f.news = false
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if _, err := sdk.Call[page](ctx, f.room, "here", here{At: f.at, Names: names}); err != nil {
		slog.Warn("a room does not hear who is there", "room", f.name, "err", err)
		f.mu.Lock()
		f.news = true
		f.mu.Unlock()
		return false
	}
	return true
}

// look takes what is new.
func (f *feed) look(ctx context.Context) {
	f.mu.Lock()
	after := f.last
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	p, err := sdk.Call[page](ctx, f.room, "look", ask{After: after})
	if err != nil {
		if ctx.Err() == nil {
			slog.Warn("a room does not answer; it is asked again", "room", f.name, "err", err)
		}
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for n := range f.here {
		f.news = f.news || !slices.Contains(p.Here, n) // the room was taken over
	}
	if f.looked && len(p.Messages) == 0 && slices.Equal(p.Here, f.others) {
		return
	}
	f.looked = true
	f.last, f.others = p.Last, p.Here
	f.history = append(f.history, p.Messages...)
	f.history = slices.Clone(f.history[max(len(f.history)-keep, 0):])
	close(f.changed)
	f.changed = make(chan struct{})
}

// after is what a browser has not seen yet, if that is known, and what is closed when there
// is more.
func (f *feed) after(number int) (p page, known bool, more <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p = page{Last: f.last, Here: f.others, Messages: []message{}}
	for _, m := range f.history {
		if m.Number > number {
			p.Messages = append(p.Messages, m)
		}
	}
	return p, f.looked, f.changed
}

func (f *feed) unsaid() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.news
}

// add notes connections of a member, fewer too, and returns how many are left of all.
func (f *feed) add(name string, n int) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.here[name] += n; f.here[name] == 0 {
		delete(f.here, name)
	}
	f.news = true
	f.soon()
	return len(f.here)
}

// soon has it look now.
func (f *feed) soon() {
	select {
	case f.stir <- struct{}{}:
	default:
	}
}
