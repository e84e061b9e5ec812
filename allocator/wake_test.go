package allocator

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

var webM = subjects.Method(shop, "web", "m")

// newSleeper is a world whose app has a service of 0 to 20 instances, of which so many are
// ready, and an allocator that hears what is asked of it if that is none.
func newSleeper(t *testing.T, ready int, down time.Duration) (*world, *process) {
	t.Helper()
	w := newWorld(t)
	w.times = state.Tuned // what waits is refused when the lease is lost
	w.super()
	s := service("web", 0, 20)
	s.Scale = &kbroker.Scale{Busy: 0.5, Down: down}
	w.want(kbroker.AppVersion{Tenant: tenant, Version: 1, App: app(s)})
	w.run(ready)
	p := w.start("shop-allocator-1", scaledPace)
	if ready == 0 {
		w.hears("web")
	}
	return w, p
}

// hears waits until the active allocator hears what is asked of a service.
func (w *world) hears(s kbroker.ServiceName) {
	w.t.Helper()
	wait.Until(w.t, within, func() error {
		if !w.heardBySomebody(s) {
			return fmt.Errorf("nobody hears what is asked of %s", s)
		}
		return nil
	})
}

// heardBySomebody asks for nothing: it is one whose time is over.
func (w *world) heardBySomebody(s kbroker.ServiceName) bool {
	m := nats.NewMsg(subjects.Method(shop, s, "m"))
	m.Header.Set(subjects.HeaderTimeout, "0")
	_, err := w.conn.RequestMsg(m, time.Second)
	if err != nil && !errors.Is(err, nats.ErrNoResponders) {
		w.t.Fatalf("ask %s: %v", s, err)
	}
	return err == nil
}

// ask sends a request with a deadline; what comes back, even later, is in the channel: nil,
// nobody was there or answered.
func (w *world) ask(id string, timeout time.Duration) <-chan *nats.Msg {
	m := nats.NewMsg(webM)
	m.Header.Set(subjects.HeaderRequestID, id)
	m.Header.Set(subjects.HeaderTimeout, fmt.Sprint(timeout.Milliseconds()))
	m.Header.Set("Of-Mine", "yes")
	m.Data = []byte(id)
	out := make(chan *nats.Msg, 1)
	go func() {
		reply, err := w.conn.RequestMsg(m, timeout+within)
		if err != nil {
			w.t.Logf("request %s: %v", id, err)
			reply = nil
		}
		out <- reply
	}()
	return out
}

// waits waits until so many requests wait with an allocator.
func (p *process) waits(t *testing.T, n int) {
	t.Helper()
	wait.Until(t, within, func() error {
		d := p.alloc.demanding.Load()
		if d == nil {
			return errors.New("it is not active")
		}
		d.wake.mu.Lock()
		defer d.wake.mu.Unlock()
		if e := d.wake.ears["web"]; e == nil || len(e.waiting.all) != n {
			return fmt.Errorf("what waits: %+v, want %d", e, n)
		}
		return nil
	})
}

// web is an instance of the service: what it has run, in order.
type web struct {
	conn *nats.Conn
	sub  *nats.Subscription
	mu   sync.Mutex
	ran  []*nats.Msg
}

// serve has an instance answer.
func (w *world) web() *web {
	w.t.Helper()
	i := &web{conn: w.server.Connect(w.t)}
	var err error
	i.sub, err = i.conn.QueueSubscribe(webM, subjects.QueueService, func(m *nats.Msg) {
		i.mu.Lock()
		i.ran = append(i.ran, m)
		i.mu.Unlock()
		_ = m.RespondMsg(&nats.Msg{Data: m.Data, Header: nats.Header{subjects.HeaderInstance: {"shop-web-1.a"}}})
	})
	if err == nil {
		err = i.conn.Flush()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return i
}

func (i *web) all() []*nats.Msg {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.ran)
}

// answered waits for an answer of an instance.
func answered(t *testing.T, id string, c <-chan *nats.Msg) {
	t.Helper()
	if m := <-c; m == nil || string(m.Data) != id || m.Header.Get(subjects.HeaderInstance) != "shop-web-1.a" {
		t.Fatalf("request %s is answered %+v", id, m)
	}
}

// refused waits for an answer that says that nothing has run.
func refusedWith(t *testing.T, c <-chan *nats.Msg, says string) {
	t.Helper()
	m := <-c
	if m == nil {
		t.Fatal("not answered")
	}
	var e kbroker.Error
	if err := json.Unmarshal(m.Data, &e); err != nil || e.Code != kbroker.Overloaded || e.Executed != kbroker.ExecutedNo || m.Header.Get(subjects.HeaderCode) != string(kbroker.Overloaded) || !strings.Contains(e.Message, says) {
		t.Errorf("answered %q, %v, %v; want overloaded, not executed: %s", m.Data, m.Header, err, says)
	}
}

// TestTheFirstRequestsWait: for an instance that says its load.
func TestTheFirstRequestsWait(t *testing.T) {
	t.Parallel()
	w, p := newSleeper(t, 0, 2*time.Second)
	w.demand("for 0", wants(0))
	const n = 50
	var all []<-chan *nats.Msg
	for i := range n {
		all = append(all, w.ask(fmt.Sprint("s:", i), 10*time.Second))
	}
	if d := w.demand("for 1", wants(1)); !strings.Contains(d.Reason, "wait") {
		t.Errorf("the reason is %q", d.Reason)
	}
	p.waits(t, n)
	if s := p.alloc.demanding.Load().seen().Services[0]; s.Wanted != 1 || s.Why != "50 requests wait for an instance" {
		t.Errorf("it says %+v", s)
	}
	i := w.web()
	w.bear(1, 0)
	for i, c := range all {
		answered(t, fmt.Sprint("s:", i), c)
	}
	ran := i.all()
	if len(ran) != n {
		t.Fatalf("%d have run, want %d", len(ran), n)
	}
	m := ran[0]
	var left int
	if _, err := fmt.Sscan(m.Header.Get(subjects.HeaderTimeout), &left); err != nil || left >= 10_000 || left < 1000 || m.Header.Get("Of-Mine") != "yes" || !strings.HasPrefix(m.Header.Get(subjects.HeaderRequestID), "s:") {
		t.Errorf("an instance gets %v", m.Header)
	}
	// It is heard no more: all go to the instance.
	for n := range 20 {
		id := fmt.Sprint("later:", n)
		answered(t, id, w.ask(id, 5*time.Second))
	}
}

// TestAProgramWithoutTheSDKIsWaitedFor: only its agent says that it is ready.
func TestAProgramWithoutTheSDKIsWaitedFor(t *testing.T) {
	t.Parallel()
	w, p := newSleeper(t, 0, 2*time.Second)
	c := w.ask("s:1", 10*time.Second)
	p.waits(t, 1)
	w.web()
	rows := []kbroker.InstanceRow{{Tenant: tenant, App: shop, Service: "web", Instance: new(webName(0)), State: kbroker.StateStarting}}
	w.rows.Store(&rows)
	<-time.After(300 * time.Millisecond)
	p.waits(t, 1)
	w.run(1)
	answered(t, "s:1", c)
}

// TestOnlyOneAttemptOfACallRuns: the last one.
func TestOnlyOneAttemptOfACallRuns(t *testing.T) {
	t.Parallel()
	w, p := newSleeper(t, 0, 2*time.Second)
	inbox := nats.NewInbox()
	got, err := w.conn.SubscribeSync(inbox + ".*")
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		m := nats.NewMsg(webM)
		m.Header.Set(subjects.HeaderRequestID, "s:1")
		m.Header.Set(subjects.HeaderTimeout, fmt.Sprint(10_000-n))
		m.Reply = fmt.Sprint(inbox, ".", n)
		if err := w.conn.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.conn.Flush(); err != nil {
		t.Fatal(err)
	}
	p.waits(t, 1)
	i := w.web()
	w.bear(1, 0)
	m, err := got.NextMsg(within)
	if err != nil || m.Subject != inbox+".2" || len(i.all()) != 1 {
		t.Errorf("answered to %+v, %v; %d have run, want the last one alone", m, err, len(i.all()))
	}
}

// TestWhatCannotWaitIsRefused: it has not run, and its caller knows.
func TestWhatCannotWaitIsRefused(t *testing.T) {
	t.Parallel()
	t.Run("when its deadline comes", func(t *testing.T) {
		t.Parallel()
		w, _ := newSleeper(t, 0, 2*time.Second)
		refusedWith(t, w.ask("s:1", 400*time.Millisecond), "in time")
	})
	t.Run("when too many wait", func(t *testing.T) {
		t.Parallel()
		w, p := newSleeper(t, 0, 2*time.Second)
		for n := range maxWaiting {
			m := nats.NewMsg(webM)
			m.Header.Set(subjects.HeaderTimeout, "20000")
			m.Data = fmt.Append(nil, n)
			if err := w.conn.PublishMsg(m); err != nil {
				t.Fatal(err)
			}
		}
		p.waits(t, maxWaiting)
		refusedWith(t, w.ask("s:1", 5*time.Second), "1000 requests")
	})
	t.Run("when no instance has its method", func(t *testing.T) {
		t.Parallel()
		w, p := newSleeper(t, 0, 2*time.Second)
		c := w.ask("s:1", 10*time.Second)
		p.waits(t, 1)
		info := micro.Info{Endpoints: []micro.EndpointInfo{{Name: "other", Subject: subjects.Method(shop, "web", "other")}}}
		w.serve(subjects.Discovery+".INFO."+subjects.MicroName(shop, "web"), func(*nats.Msg) (any, error) { return info, nil })
		w.bear(1, 0)
		refusedWith(t, c, "serves "+webM)
	})
	t.Run("when the allocator leaves", func(t *testing.T) {
		t.Parallel()
		w, p := newSleeper(t, 0, 2*time.Second)
		next := w.start("shop-allocator-2", scaledPace)
		if next.alloc.demanding.Load() != nil {
			t.Fatal("two are active")
		}
		c := w.ask("s:1", 10*time.Second)
		p.waits(t, 1)
		p.stop()
		refusedWith(t, c, "leaves")
		w.hears("web") // by the other one
		c = w.ask("s:1", 10*time.Second)
		next.waits(t, 1)
		w.web()
		w.bear(1, 0)
		answered(t, "s:1", c)
	})
	t.Run("when another version has no instances at all", func(t *testing.T) {
		t.Parallel()
		w, p := newSleeper(t, 0, 2*time.Second)
		c := w.ask("s:1", 10*time.Second)
		p.waits(t, 1)
		w.want(kbroker.AppVersion{Tenant: tenant, Version: 2, App: app(service("web", 0, 0))})
		w.announceVersion(2)
		refusedWith(t, c, "another count")
		wait.Until(t, within, func() error {
			if w.heardBySomebody("web") {
				return errors.New("it is still heard")
			}
			return nil
		})
	})
}

// TestOnlyWhatMaySleepIsHeard: for others somebody is there, or nobody is to be.
func TestOnlyWhatMaySleepIsHeard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.super()
	owner := service("ledger", 0, 5)
	owner.Objects = []kbroker.KindName{"account"}
	w.want(kbroker.AppVersion{Tenant: tenant, Version: 1, App: app(owner, service("api", 1, 5), service("off", 0, 0), service("web", 0, 5))})
	w.run(0)
	w.start("shop-allocator-1", scaledPace)
	w.hears("web")
	for _, s := range []kbroker.ServiceName{"ledger", "api", "off"} {
		if w.heardBySomebody(s) {
			t.Errorf("%s is heard", s)
		}
	}
}

// TestTheLastInstanceStaysUntilItsRequestsAreHeard: by all servers.
func TestTheLastInstanceStaysUntilItsRequestsAreHeard(t *testing.T) {
	const now = time.Hour
	conn := natstest.Start(t).Connect(t)
	may := service("web", 0, 20)
	for _, c := range []struct {
		name     string
		service  kbroker.Service
		ear      *ear
		n, there int
		want     int
	}{
		{"nobody hears them", may, nil, 0, 1, 1},
		{"one of three that leave stays, too", may, nil, 0, 3, 1},
		{"they are about to be heard", may, &ear{}, 0, 1, 1},
		{"they are heard by one server, maybe", may, &ear{since: now - restsAfter/2}, 0, 1, 1},
		{"they are heard", may, &ear{since: now - restsAfter}, 0, 1, 0},
		{"they are no longer heard soon", may, &ear{since: now - restsAfter, ending: true}, 0, 1, 1},
		{"there is none to stay", may, nil, 0, 0, 0},
		{"more are needed", may, &ear{since: now - restsAfter}, 2, 1, 2},
		{"there is always one of another service", service("web", 1, 20), nil, 1, 1, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWaker(&Allocator{cfg: Config{Conn: conn, Clock: func() time.Duration { return now }}})
			if c.ear != nil {
				w.ears["web"] = c.ear
			}
			if n := w.rests(c.service, c.n, c.there); n != c.want {
				t.Errorf("super is told %d, want %d", n, c.want)
			}
		})
	}
}

// TestTheLastInstanceLeavesAndNothingIsLost: nobody is told that there is nobody, and nothing
// is passed on to the one that leaves.
func TestTheLastInstanceLeavesAndNothingIsLost(t *testing.T) {
	t.Parallel()
	w, p := newSleeper(t, 1, time.Second)
	i := w.web()
	idle := w.bear(1, 0)
	w.demand("for 1", wants(1))
	w.demand("for 0", wants(0))
	p.waits(t, 0)
	if err := i.sub.Drain(); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, within, func() error {
		if i.sub.IsValid() {
			return errors.New("it has not left")
		}
		return nil
	})
	// It has left the group, and says its load for a moment longer.
	c := w.ask("s:1", 10*time.Second)
	p.waits(t, 1)
	w.demand("for 1 again", func(d kbroker.Demand) bool {
		all := w.heard()
		return wants(1)(d) && wants(1)(all[len(all)-1])
	})
	<-time.After(700 * time.Millisecond)
	p.waits(t, 1)
	idle()
	rows := []kbroker.InstanceRow{{Tenant: tenant, App: shop, Service: "web", Instance: new(webName(7)), State: kbroker.StateReady}}
	w.web()
	w.rows.Store(&rows)
	answered(t, "s:1", c)
}

// TestWhoWasToLeaveAndStaysIsPassedOnTo: super was told that it is wanted before it had done
// anything.
func TestWhoWasToLeaveAndStaysIsPassedOnTo(t *testing.T) {
	t.Parallel()
	w, _ := newSleeper(t, 1, time.Second)
	w.web()
	w.bear(1, 0)
	w.demand("for 1", wants(1))
	w.demand("for 0", wants(0))
	for n := range 10 { // the instance has some of them, the allocator the others
		id := fmt.Sprint("s:", n)
		answered(t, id, w.ask(id, 10*time.Second))
	}
}

// TestWhatIsAskedNeedsAnInstance: however little it is, and whatever the policy says.
func TestWhatIsAskedNeedsAnInstance(t *testing.T) {
	const now = time.Hour
	may, always := service("web", 0, 20), service("web", 1, 20)
	idle := []Instance{{Ready: true, Load: Load{Known: true}}}
	little := []Instance{{Ready: true, Load: Load{Known: true, Requests: 0.4}}}
	three := waiting{all: make([]*kept, 3)}
	for _, c := range []struct {
		name      string
		service   kbroker.Service
		instances []Instance
		ear       *ear
		policy    int
		want      int
		why       string
	}{
		{"none without requests", may, idle, nil, 0, 0, "nothing is asked of it"},
		{"what the policy wants", may, idle, nil, 4, 4, "so"},
		{"one for a few requests", may, little, nil, 0, 1, "requests/s is 0.40"},
		{"one for those that wait", may, nil, &ear{waiting: three}, 0, 1, "3 requests wait for an instance"},
		{"no fewer than the policy wants", may, nil, &ear{waiting: three}, 2, 2, "3 requests wait for an instance"},
		{"one for those that could not wait", may, nil, &ear{asked: now - time.Second}, 0, 1, "requests came while no instance was ready"},
		{"none for those of long ago", may, nil, &ear{asked: now - time.Minute}, 0, 0, "nothing is asked of it"},
		{"another service is none of its business", always, little, nil, 0, 0, "so"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWaker(&Allocator{cfg: Config{Clock: func() time.Duration { return now }}})
			if c.ear != nil {
				w.ears["web"] = c.ear
			}
			if n, why := w.need(c.service, c.instances, c.policy, "so"); n != c.want || why != c.why {
				t.Errorf("%d are needed as %q, want %d as %q", n, why, c.want, c.why)
			}
		})
	}
}
