package sdk

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// loads are what an instance says of its load.
type loads struct {
	mu  sync.Mutex
	all []kbroker.InstanceLoad
}

func (l *loads) hear(t *testing.T, m *nats.Msg) {
	var load kbroker.InstanceLoad
	if err := json.Unmarshal(m.Data, &load); err != nil {
		t.Errorf("unreadable load %q: %v", m.Data, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, load)
}

// last is the latest, and how many there were; the zero one if there was none.
func (l *loads) last() (kbroker.InstanceLoad, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.all) == 0 {
		return kbroker.InstanceLoad{}, 0
	}
	return l.all[len(l.all)-1], len(l.all)
}

// loaded is an instance in a bubble, which is called there.
type loaded struct {
	*running
	loads
	end   *busEnd       // its connection
	tries atomic.Int64  // to tell a load
	hold  chan struct{} // a call of hold ends for each that is sent
	wire  *busEnd       // of its callers
}

// triesOf is a transport that counts what is to be sent now or never.
type triesOf struct {
	transport
	count *atomic.Int64
}

func (c triesOf) publishNow(m *nats.Msg) error {
	c.count.Add(1)
	return c.transport.publishNow(m)
}

// loadedApp runs an instance, with the method hold of bound 4, full, which answers Overloaded
// itself, and say.
func loadedApp(t *testing.T, opts ...Option) *loaded {
	b := newBus()
	i := instance("", "echo-echo-1")
	l := &loaded{hold: make(chan struct{}), wire: b.connect(connEvents{connected: func() {}, closed: func() {}})}
	a := New(append([]Option{on(b, &i)}, opts...)...)
	dial := a.client.dial
	a.client.dial = func(ctx context.Context, on connEvents) (transport, error) {
		end, err := dial(ctx, on)
		l.end = end.(*busEnd)
		return triesOf{end, &l.tries}, err
	}
	if _, err := l.wire.subscribe(subjects.Load(i.Tenant, i.App, i.Incarnation), "", func(m *nats.Msg) { l.hear(t, m) }); err != nil {
		t.Fatal(err)
	}
	Handle(a, "hold", func(context.Context, struct{}) (string, error) { <-l.hold; return "", nil }, Concurrency(4))
	Handle(a, "full", func(context.Context, struct{}) (string, error) { return "", Errorf(Overloaded, "by itself") })
	Handle(a, "say", func(context.Context, struct{}) (string, error) { return "", nil })
	ctx, cancel := context.WithCancel(t.Context())
	l.running = &running{App: a, stop: cancel, done: make(chan error, 1)}
	go func() { l.done <- a.Run(ctx) }()
	synctest.Wait()
	return l
}

// ask has a method called so many times, and does not wait for the answers.
func (l *loaded) ask(t *testing.T, method string, times int) {
	t.Helper()
	for range times {
		if err := l.wire.publish(&nats.Msg{Subject: subjects.Method("echo", "echo", method), Data: []byte("{}")}); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
}

// finish ends calls of hold.
func (l *loaded) finish(times int) {
	for range times {
		l.hold <- struct{}{}
	}
	synctest.Wait()
}

// leave ends the instance.
func (l *loaded) leave(t *testing.T) {
	t.Helper()
	l.stop()
	if err := <-l.done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

// later lets time pass, and what happens then happen.
func later(d time.Duration) {
	<-time.After(d) // of the bubble
	synctest.Wait()
}

func TestAnInstanceTellsItsLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := loadedApp(t)
		want := kbroker.InstanceLoad{Incarnation: l.identity.Incarnation, Service: "echo", Host: "h1"}
		is := func(when string, messages int) {
			t.Helper()
			want.AtS = (time.Duration(messages-1) * kbroker.LoadEvery).Seconds()
			got, n := l.last()
			got.CPU = 0 // of this process, by its own clock
			if !reflect.DeepEqual(got, want) || n != messages {
				t.Errorf("%s: %+v, the message %d; want %+v, %d", when, got, n, want, messages)
			}
		}
		is("at the start", 1)
		l.ask(t, "hold", 2)
		later(time.Millisecond) // off the beat
		later(2 * kbroker.LoadEvery)
		want.Busy = 0.5
		is("two of four are under way", 3)
		l.ask(t, "hold", 3)
		later(2 * kbroker.LoadEvery)
		want.Busy, want.Requests, want.Refused = 1, 1, 1
		is("four are, and one was refused", 5)
		l.ask(t, "full", 1)
		later(kbroker.LoadEvery)
		want.Requests = 2
		is("the application itself said that there is too much", 6)
		l.finish(4)
		later(2 * kbroker.LoadEvery)
		want.Busy, want.Requests = 0, 6
		is("all have ended", 8)
		l.leave(t)
	})
}

// TestWhatIsBusyIsAnAverage of the time since the last message, and that of the method that
// is nearest to its bound.
func TestWhatIsBusyIsAnAverage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := loadedApp(t)
		later(kbroker.LoadEvery/2 + loadSample/2)
		l.ask(t, "hold", 1) // so that it looks often
		later(kbroker.LoadEvery / 2)
		l.finish(1)
		l.ask(t, "hold", 4)
		l.ask(t, "say", 100)
		later(kbroker.LoadEvery / 2)
		l.finish(4)
		later(kbroker.LoadEvery / 2)
		const near = 0.06 // one sample of twenty
		if got, _ := l.last(); math.Abs(got.Busy-0.5) > near {
			t.Errorf("all of the bound for half of the time is %v, want about 0.5", got.Busy)
		}
		later(kbroker.LoadEvery)
		if got, _ := l.last(); got.Busy != 0 {
			t.Errorf("afterwards it is %v, want nothing of what was said before", got.Busy)
		}
		l.leave(t)
	})
}

// TestWhoHadNothingToDoLooksRarely, and still tells, on average, about what there was.
func TestWhoHadNothingToDoLooksRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		loaded := loadedApp(t)
		const burst = 2 * kbroker.LoadEvery
		sum, times := 0.0, 0
		for begins := 5 * time.Millisecond; begins < loadIdle; begins += 10 * time.Millisecond {
			var heard loads
			m := newLoadMeter(loaded.App, loaded.end)
			m.subject = "load.of." + fmt.Sprint(times)
			if _, err := loaded.wire.subscribe(m.subject, "", func(msg *nats.Msg) { heard.hear(t, msg) }); err != nil {
				t.Fatal(err)
			}
			var busy, looks atomic.Int64
			m.busy, m.sums = []func() float64{func() float64 { looks.Add(1); return float64(busy.Load()) }}, make([]float64, 1)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { defer close(done); m.run(ctx) }()
			const tells = 4 // each looks, too
			later(tells * kbroker.LoadEvery)
			if most := int64(tells*kbroker.LoadEvery/loadIdle + kbroker.LoadEvery/loadSample + tells); looks.Load() > most {
				t.Errorf("%d looks in %v without anything, want at most %d", looks.Load(), tells*kbroker.LoadEvery, most)
			}
			later(begins)
			busy.Store(1)
			later(burst)
			busy.Store(0)
			later(2 * kbroker.LoadEvery)
			cancel()
			<-done
			synctest.Wait()
			heard.mu.Lock()
			for _, told := range heard.all {
				sum += told.Busy * kbroker.LoadEvery.Seconds()
			}
			heard.mu.Unlock()
			sum -= burst.Seconds()
			times++
		}
		// On average what began is found in the middle between two looks.
		if off := sum / float64(times); off < -loadSample.Seconds() || off > (loadIdle/2).Seconds() {
			t.Errorf("of %v that began between two looks %.3f s too much are told, on average", burst, off)
		}
		loaded.leave(t)
	})
}

func TestAnInstanceTellsThatItDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := loadedApp(t)
		l.ask(t, "hold", 1)
		later(kbroker.LoadEvery + kbroker.LoadEvery/2)
		if got, n := l.last(); got.Draining || n != 2 {
			t.Fatalf("it serves, and says %+v in message %d, want 2 and none that it drains", got, n)
		}
		l.stop()
		later(loadSample)
		if got, n := l.last(); !got.Draining || got.Busy != 0.25 || n != 3 {
			t.Errorf("as it begins to drain it says %+v in message %d, want 3, that it drains, and that one of four is under way", got, n)
		}
		later(3 * kbroker.LoadEvery)
		if got, n := l.last(); !got.Draining || got.Busy != 0.25 || n != 6 {
			t.Errorf("while it drains it says %+v in message %d, want 6, and the same", got, n)
		}
		l.finish(1)
		l.leave(t)
		_, n := l.last()
		tried := l.tries.Load()
		later(time.Minute)
		if _, now := l.last(); now != n || l.tries.Load() != tried {
			t.Errorf("after its end %d messages came, and %d were tried", now-n, l.tries.Load()-tried)
		}
	})
}

// TestADrainThatIsQuickIsTold too, once.
func TestADrainThatIsQuickIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := loadedApp(t)
		l.leave(t)
		if got, n := l.last(); !got.Draining || n != 2 {
			t.Errorf("it ends with %+v, message %d, want 2, that it drains", got, n)
		}
	})
}

// TestALoadIsToldNowOrNever: what waits for a connection would be old.
func TestALoadIsToldNowOrNever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := loadedApp(t)
		l.ask(t, "hold", 4)
		later(time.Millisecond)
		l.end.cut()
		later(4 * kbroker.LoadEvery)
		if _, n := l.last(); n != 1 {
			t.Errorf("%d messages were sent without a connection", n-1)
		}
		l.finish(4)
		later(kbroker.LoadEvery)
		l.end.restore()
		if _, n := l.last(); n != 1 {
			t.Errorf("%d messages have waited for the connection", n-1)
		}
		later(kbroker.LoadEvery)
		if got, n := l.last(); n != 2 || got.Busy != 0 || got.Requests != 4 {
			t.Errorf("with the connection back it says %+v, message %d; want 2, of the last %v", got, n, kbroker.LoadEvery)
		}
		l.leave(t)
	})
}

// TestWhatIsSentNowOrNeverIsNotKept by the client of NATS either.
func TestWhatIsSentNowOrNeverIsNotKept(t *testing.T) {
	s := natstest.Start(t)
	p := newProxy(t, s)
	c := dial(t, p.url)
	var heard atomic.Int64
	natstest.Listen(t, s.Connect(t), "now", func(*nats.Msg) { heard.Add(1) })
	over := c.opened.Load().transport
	if err := over.publishNow(&nats.Msg{Subject: "now"}); err != nil {
		t.Errorf("with a connection: %v", err)
	}
	wait.Until(t, patience, func() error {
		if n := heard.Load(); n != 1 {
			return fmt.Errorf("%d messages came, want 1", n)
		}
		return nil
	})
	p.cut()
	wait.Until(t, patience, func() error {
		if err := over.publishNow(&nats.Msg{Subject: "elsewhere"}); !errors.Is(err, errNotConnected) {
			return fmt.Errorf("without a connection: %v, want %w", err, errNotConnected)
		}
		return nil
	})
}

// TestServersThatRefuseLoadsAreLeftAlone: those of an earlier build log each one.
func TestServersThatRefuseLoadsAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := loadedApp(t)
		later(time.Millisecond)
		l.client.refuse(subjects.Load(l.identity.Tenant, l.identity.App, l.identity.Incarnation))
		tried := l.tries.Load()
		later(loadRefused - time.Second)
		if n := l.tries.Load() - tried; n != 0 {
			t.Errorf("it was tried %d times again", n)
		}
		later(time.Second + kbroker.LoadEvery)
		if n := l.tries.Load() - tried; n < 1 || n > 2 {
			t.Errorf("%v later it was tried %d times, want that it is", loadRefused, n)
		}
		l.leave(t)
	})
}

func TestOnlyWhomAnAgentStartedTellsItsLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus()
		told := 0
		b.lose = func(m *nats.Msg) bool {
			if strings.HasPrefix(m.Subject, subjects.LoadOf(kbroker.DefaultTenant, "echo")) {
				told++
			}
			return false
		}
		developed := New(on(b, nil), As("echo/echo"))
		Handle(developed, "say", func(context.Context, struct{}) (string, error) { return "", nil })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- developed.Run(ctx) }()
		synctest.Wait()
		client, err := Dial(t.Context(), on(b, nil))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Call[string](t.Context(), client.Service("echo"), "say", struct{}{}); err != nil {
			t.Errorf("the developer's instance does not serve: %v", err)
		}
		later(time.Minute)
		client.Close()
		cancel()
		if err := <-done; err != nil || told != 0 {
			t.Errorf("a developer's instance (%v) and its client told a load %d times", err, told)
		}
	})
}

// TestWhatIsNearestToItsBoundCounts also of objects.
func TestWhatIsNearestToItsBoundCounts(t *testing.T) {
	for name, c := range map[string]struct {
		turns, nested, reads int64
		want                 float64
	}{
		"turns":                       {maxTurns / 2, maxNested / 8, maxTurns / 4, 0.5},
		"turns for which others wait": {maxTurns / 4, maxNested / 2, maxTurns / 4, 0.5},
		"reads":                       {maxTurns / 4, maxNested / 8, maxTurns / 2, 0.5},
		"reads that came at once":     {0, 0, maxTurns + 3, 1},
	} {
		t.Run(name, func(t *testing.T) {
			k := &keeper{roots: lane{bound: maxTurns}, nested: lane{bound: maxNested}}
			k.roots.running.Store(c.turns)
			k.nested.running.Store(c.nested)
			k.gates.running.Store(c.reads)
			l := newLoadMeter(&App{keeper: k}, nil)
			l.sample()
			if got := l.busiest(); got != c.want {
				t.Errorf("%d turns, %d nested ones and %d reads are %v, want %v", c.turns, c.nested, c.reads, got, c.want)
			}
		})
	}
}

// TestAnInstanceWithObjectsTellsItsLoad over a real connection.
func TestAnInstanceWithObjectsTellsItsLoad(t *testing.T) {
	t.Parallel()
	s := natstest.Start(t)
	core := newCore(t, s)
	core.give(incarnation("a"), acc("1"))
	hold := make(chan struct{})
	a := bank(s.URL, "a", func(k *Kind[account]) {
		Method(k, "hold", func(*account, context.Context, struct{}) (int, error) { <-hold; return 0, nil })
	}, Mailbox(2))
	heard := &loads{}
	natstest.Listen(t, s.Connect(t), subjects.Load(a.identity.Tenant, a.identity.App, a.identity.Incarnation), func(m *nats.Msg) { heard.hear(t, m) })
	says := func(want string, holds func(kbroker.InstanceLoad) bool) {
		t.Helper()
		wait.Until(t, patience, func() error {
			got, n := heard.last()
			if n == 0 {
				return errors.New("no load is told")
			}
			if !holds(got) {
				b, err := json.Marshal(got)
				return fmt.Errorf("the last of %d is %s (%v), want %s", n, b, err, want)
			}
			return nil
		})
	}
	r := start(t, a)
	c := dial(t, s.URL)
	c.deposit(t, "1", 5)
	var calls sync.WaitGroup
	ask := func(method string) {
		calls.Go(func() {
			_, err := Call[int64](within(t, patience), c.Object("bank/account:1"), method, json.RawMessage(`null`))
			if err != nil {
				t.Errorf("%s: %v", method, err)
			}
		})
	}
	ask("hold")
	says("a turn under way", func(l kbroker.InstanceLoad) bool { return l.Busy == 1.0/maxTurns })
	ask("deposit")
	ask("deposit")
	says("two calls that wait, one object, and one answer", func(l kbroker.InstanceLoad) bool {
		return l.Waiting == 2 && l.Objects != nil && l.Objects.Active == 1 && l.Requests == 1
	})
	if _, err := Call[int64](within(t, 200*time.Millisecond), c.Object("bank/account:1"), "deposit", 1); err == nil {
		t.Error("a third call waits in a mailbox of two")
	}
	says("a refusal, of objects alone", func(l kbroker.InstanceLoad) bool { return l.Objects.Refused > 0 && l.Refused == 0 })
	close(hold)
	calls.Wait()
	says("nothing that waits or runs", func(l kbroker.InstanceLoad) bool { return l.Waiting == 0 && l.Busy == 0 })
	r.stop()
	if err := r.ended(t); err != nil {
		t.Errorf("Run: %v", err)
	}
	says("that it drains", func(l kbroker.InstanceLoad) bool { return l.Draining })
}
