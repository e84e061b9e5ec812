package sdk

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// crowd are instances of a service of which each runs bound requests at a time; a request comes
// to any of them.
type crowd struct {
	bus   *bus
	end   *busEnd
	bound int
	runs  time.Duration // each request
	far   time.Duration // from the callers

	mu      sync.Mutex
	stands  time.Time // until then
	busy    []int
	rand    *rand.Rand
	ran     int
	refused int
	none    bool // has room
}

// full has all of them refuse what comes, or not any more.
func (s *crowd) full(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.none = is
}

// stand has what comes within a time come at its end.
func (s *crowd) stand(lasts time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stands = time.Now().Add(lasts)
}

func (s *crowd) come(m *nats.Msg) {
	s.mu.Lock()
	wait := max(time.Until(s.stands), 0) + s.far
	s.mu.Unlock()
	after(wait, func() { s.take(m) })
}

func (s *crowd) reply(m *nats.Msg) { after(s.far, func() { _ = s.end.publish(m) }) }

// after does it at once after no time.
func after(d time.Duration, do func()) {
	if d <= 0 {
		do()
		return
	}
	time.AfterFunc(d, do)
}

func (s *crowd) take(m *nats.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.rand.IntN(len(s.busy))
	if s.busy[n] == s.bound || s.none {
		s.refused++
		e := notRun(kbroker.Errorf(kbroker.Overloaded, "it is full"))
		s.reply(errorReply(m.Reply, nats.Header{}, e))
		return
	}
	s.busy[n]++
	reply := m.Reply
	time.AfterFunc(s.runs, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ran++
		s.busy[n]--
		s.reply(&nats.Msg{Subject: reply, Header: nats.Header{}, Data: []byte(`"ok"`)})
	})
}

func (s *crowd) grow(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = append(s.busy, make([]int, n)...)
}

func newCrowd(t *testing.T, seed uint64, n, bound int, runs time.Duration) *crowd {
	t.Helper()
	s := &crowd{bus: newBus(), bound: bound, runs: runs, busy: make([]int, n), rand: rand.New(rand.NewPCG(seed, 1))}
	s.end = s.bus.connect(connEvents{connected: func() {}, closed: func() {}})
	if _, err := s.end.subscribe(subjects.Method("echo", "echo", "m"), subjects.QueueService, s.come); err != nil {
		t.Fatal(err)
	}
	return s
}

// callers call a crowd, and count what comes of it.
type callers struct {
	clients []*Client
	calls   sync.WaitGroup
	n       atomic.Int64 // calls
	failed  atomic.Int64
	unknown atomic.Int64 // of them, executed
	slowest atomic.Int64
}

func (s *crowd) callers(t *testing.T, n int) *callers {
	t.Helper()
	c := &callers{}
	for range n {
		client, err := Dial(t.Context(), on(s.bus, nil))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(client.Close)
		c.clients = append(c.clients, client)
	}
	return c
}

// at makes so many calls in a second.
func (c *callers) at(perS int, lasts time.Duration) {
	for n := range int(lasts.Seconds() * float64(perS)) {
		c.calls.Go(func() { c.call(c.clients[n%len(c.clients)]) })
		<-time.After(time.Second / time.Duration(perS))
	}
}

func (c *callers) call(client *Client) {
	began := time.Now()
	c.n.Add(1)
	if _, err := Call[string](context.Background(), client.Service("echo"), "m", nil); err != nil {
		c.failed.Add(1)
		if kbroker.AsError(err).Executed != kbroker.ExecutedNo {
			c.unknown.Add(1)
		}
	}
	if took := int64(time.Since(began)); took > c.slowest.Load() {
		c.slowest.Store(took)
	}
}

func (c *callers) String() string {
	return fmt.Sprintf("%d calls: %d failed, %d of them unknown, the slowest took %v", c.n.Load(), c.failed.Load(), c.unknown.Load(), time.Duration(c.slowest.Load()).Round(time.Millisecond))
}

// moreCome: two instances have a third too much for 2.5 s, then there are four. All calls are
// answered within a time; without a look at what is full 20,000 attempts are refused.
func moreCome(t *testing.T, clients int, within time.Duration, refused int) {
	s := newCrowd(t, 1, 2, 8, 20*time.Millisecond)
	c := s.callers(t, clients)
	c.at(530, time.Second)
	c.at(1060, 2500*time.Millisecond)
	s.grow(2)
	c.at(1060, 3*time.Second)
	c.calls.Wait()
	if t.Logf("%v, %d attempts refused", c, s.refused); c.failed.Load() > 0 || c.slowest.Load() > int64(within) || s.refused > refused {
		t.Errorf("%v, %d attempts refused", c, s.refused)
	}
}

// TestFullInstances is of what comes of calls when there are too many.
func TestFullInstances(t *testing.T) {
	for name, play := range map[string]func(t *testing.T){
		"more instances come":                func(t *testing.T) { moreCome(t, 1, 1500*time.Millisecond, 6_000) },
		"more instances come, of 20 clients": func(t *testing.T) { moreCome(t, 20, 3*time.Second, 8_000) },
		"nobody answers for a time": func(t *testing.T) {
			s := newCrowd(t, 1, 2, 8, 20*time.Millisecond)
			c := s.callers(t, 1)
			c.at(600, time.Second)
			s.full(true)
			c.at(600, 2*time.Second)
			s.full(false)
			s.grow(2)
			c.at(600, time.Second)
			c.calls.Wait()
			if t.Logf("%v, %d attempts refused", c, s.refused); c.failed.Load() > 0 || c.slowest.Load() > int64(4*time.Second) {
				t.Errorf("%v, %d attempts refused", c, s.refused)
			}
		},
		"too much for long": func(t *testing.T) {
			s := newCrowd(t, 1, 2, 8, 20*time.Millisecond)
			c := s.callers(t, 1)
			c.at(1060, 15*time.Second)
			c.calls.Wait()
			// They answer 800 in a second, for 20 s, as the last ones wait.
			if t.Logf("%v, %d attempts refused", c, s.refused); c.n.Load()-c.failed.Load() < 18*800 || c.unknown.Load() > 100 || s.refused > 20_000 {
				t.Errorf("%v, %d attempts refused, want as many answers as there can be", c, s.refused)
			}
		},
		"too much, then less": func(t *testing.T) {
			s := newCrowd(t, 1, 2, 8, 20*time.Millisecond)
			c := s.callers(t, 1)
			c.at(1200, 8*time.Second)
			c.at(500, 3*time.Second)
			later := &callers{clients: c.clients}
			later.at(500, 4*time.Second)
			c.calls.Wait()
			later.calls.Wait()
			if t.Logf("%v; later %v", c, later); later.failed.Load() > 0 {
				t.Errorf("3 s behind it there were %v", later)
			}
		},
		"all stand, and are far": func(t *testing.T) {
			s := newCrowd(t, 1, 2, 8, 20*time.Millisecond)
			s.far = 8 * time.Millisecond // so that what is answered at one time comes again at one time
			c := s.callers(t, 1)
			c.at(530, 2*time.Second)
			s.stand(time.Second)
			c.at(530, 6*time.Second)
			later := &callers{clients: c.clients}
			later.at(530, 4*time.Second)
			c.calls.Wait()
			later.calls.Wait()
			if t.Logf("%v; later %v, %d attempts refused", c, later, s.refused); c.failed.Load() > 0 || later.slowest.Load() > int64(500*time.Millisecond) {
				t.Errorf("5 s behind it there were %v; %v", later, c)
			}
		},
		"slow handlers": func(t *testing.T) {
			s := newCrowd(t, 1, 8, 64, 2*time.Second)
			c := s.callers(t, 1)
			c.at(210, 15*time.Second) // 82 % of what they can
			c.calls.Wait()
			if t.Logf("%v, %d attempts refused", c, s.refused); c.failed.Load() > 0 || c.slowest.Load() > int64(3*time.Second) || s.refused == 0 {
				t.Errorf("%v, %d attempts refused", c, s.refused)
			}
		},
		"slow handlers, and too much": func(t *testing.T) {
			s := newCrowd(t, 1, 4, 64, 3*time.Second)
			c := s.callers(t, 1)
			c.at(130, 20*time.Second) // they can do 85 in a second; none that waits for long is answered in its time
			c.calls.Wait()
			if t.Logf("%v, %d ran, %d attempts refused", c, s.ran, s.refused); s.ran < 1750 {
				t.Errorf("%v, %d ran, %d attempts refused, want as many as they can do", c, s.ran, s.refused)
			}
		},
		"all stand for long": func(t *testing.T) {
			s := newCrowd(t, 1, 2, 8, 20*time.Millisecond)
			c := s.callers(t, 1)
			c.at(530, 2*time.Second)
			s.stand(3 * time.Second)
			c.at(530, 10*time.Second)
			later := &callers{clients: c.clients}
			later.at(530, 4*time.Second)
			c.calls.Wait()
			later.calls.Wait()
			if t.Logf("%v; later %v, %d attempts refused", c, later, s.refused); c.failed.Load() > 0 || later.slowest.Load() > int64(500*time.Millisecond) {
				t.Errorf("7 s behind it there were %v; %v", later, c)
			}
		},
		"many callers": func(t *testing.T) {
			s := newCrowd(t, 1, 1, 8, 500*time.Millisecond)
			c := s.callers(t, 200)
			for _, client := range c.clients {
				c.calls.Go(func() {
					for began := time.Now(); time.Since(began) < 20*time.Second; {
						c.call(client)
					}
				})
			}
			c.calls.Wait()
			if t.Logf("%v, %d ran, %d attempts refused", c, s.ran, s.refused); s.ran < 300 || s.refused > 40_000 {
				t.Errorf("%v, %d ran, %d attempts refused", c, s.ran, s.refused)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, play) })
	}
}

// What is known of a method is forgotten when nothing is refused any more; it takes some to know it.
func TestFullnessIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var all fullnesses
		all.answered("m", 0) // of a method of which nothing is known
		for n := range fullKnown {
			if p := all.refused("m").pause(DefaultTimeout, 1); n < fullKnown-1 && p > 0 {
				t.Errorf("after %d refusals a call pauses %v", n+1, p)
			}
		}
		f := all.refused("m")
		if young, old := f.pause(DefaultTimeout, 1), f.pause(DefaultTimeout, 0); young != fullPauseMost || old != time.Duration(fullSoonest*float64(fullPauseMost)) {
			t.Errorf("a call that has all of its time pauses %v, one without %v", young, old)
		}
		for range 9 * (fullKnown + 1) {
			all.answered("m", 0)
		}
		if p := f.pause(DefaultTimeout, 1); p > 0 {
			t.Errorf("with one of ten refused a call pauses %v", p)
		}
		<-time.After(10 * fullOver)
		if all.answered("m", 0); all.some.Load() != 0 {
			t.Error("what was refused is never forgotten")
		}
		all.refused("m")
		<-time.After(10 * fullOver)
		if all.answered("n", 0); all.some.Load() != 0 {
			t.Error("a method that is not called any more is never forgotten")
		}
		all.refused("m")
		<-time.After(10 * fullOver)
		all.refused("n")
		if len(all.of) != 1 {
			t.Errorf("known are %d methods, want the last one", len(all.of))
		}
	})
}
