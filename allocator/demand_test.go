package allocator

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// scaledPace looks often at what loads depend on.
var scaledPace = func() pace {
	p := eventPace
	p.lookInstances, p.decide = 50*time.Millisecond, 20*time.Millisecond
	return p
}()

// newScaled is a world whose app has a service of 1 to 20 instances, of which so many are ready.
func newScaled(t *testing.T, ready int) *world {
	w := newWorld(t)
	w.super()
	s := service("web", 1, 20)
	s.Scale = &kbroker.Scale{Busy: 0.5, Down: 2 * time.Second}
	w.want(kbroker.AppVersion{Tenant: tenant, Version: 1, App: app(s)})
	w.run(ready)
	return w
}

// run says that so many instances are ready.
func (w *world) run(ready int) {
	rows := []kbroker.InstanceRow{{Service: "web"}} // one that has no place
	for n := range ready {
		rows = append(rows, kbroker.InstanceRow{Tenant: tenant, App: shop, Service: "web", Instance: new(webName(n)), State: kbroker.StateReady})
	}
	rows = append(rows, kbroker.InstanceRow{Tenant: tenant, App: shop, Service: kbroker.AllocatorService, Instance: new(kbroker.InstanceID("shop-allocator-1")), State: kbroker.StateReady})
	w.rows.Store(&rows)
}

func webName(n int) kbroker.InstanceID { return kbroker.InstanceID(fmt.Sprintf("shop-web-%d", n+1)) }

// bear has so many instances say that they are so busy, until the test or what it returns
// ends it.
func (w *world) bear(n int, busy float64) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	conn := w.server.Connect(w.t)
	go func() {
		defer close(ended)
		began := time.Now()
		for {
			for i := range n {
				who := kbroker.Incarnation(string(webName(i)) + ".a")
				b, err := json.Marshal(kbroker.InstanceLoad{Incarnation: who, Service: "web", Host: "h1", AtS: time.Since(began).Seconds(), Busy: busy})
				if err == nil {
					err = conn.Publish(subjects.Load(tenant, shop, who), b)
				}
				if err != nil {
					w.t.Errorf("say a load: %v", err)
				}
			}
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	stop = func() {
		select {
		case <-done:
		default:
			close(done)
		}
		<-ended
	}
	w.t.Cleanup(stop)
	return stop
}

func TestInstancesFollowTheLoad(t *testing.T) {
	t.Parallel()
	w := newScaled(t, 4)
	idle := w.bear(4, 0.5)
	w.start("shop-allocator-1", scaledPace)
	w.demand("for 4", wants(4))
	idle()
	less := w.bear(4, 1)
	d := w.demand("for 8", wants(8))
	if want := "web: busy is "; !strings.HasPrefix(d.Reason, want) {
		t.Errorf("the reason is %q, want %s...", d.Reason, want)
	}
	less()
	w.run(8)
	began := time.Now()
	w.bear(8, 0.25)
	w.demand("for 4 once more", func(d kbroker.Demand) bool {
		sent := w.heard()
		return wants(4)(d) && wants(4)(sent[len(sent)-1])
	})
	if took := time.Since(began); took < time.Second {
		t.Errorf("fewer are wanted after %v, want 2 s after they were needed", took)
	}
	// That the load is a little another one each time is nothing that is told.
	n := len(w.heard())
	<-time.After(300 * time.Millisecond)
	if more := w.heard()[n:]; len(more) > 1 {
		t.Errorf("told %+v, though nothing else is wanted", more)
	}
}

// TestAnotherAllocatorKeepsWhatIsThere: it knows nothing of loads yet.
func TestAnotherAllocatorKeepsWhatIsThere(t *testing.T) {
	t.Parallel()
	w := newScaled(t, 7)
	rows := w.rows.Swap(nil)
	w.start("shop-allocator-1", scaledPace)
	<-time.After(300 * time.Millisecond)
	if d := w.heard(); len(d) > 0 {
		t.Fatalf("demands %+v before it is known which instances there are", d)
	}
	w.rows.Store(rows)
	w.demand("for 7", wants(7))
	<-time.After(3 * time.Second) // more than the time after which fewer are wanted
	if d := w.heard(); !wants(7)(d[len(d)-1]) {
		t.Fatalf("demands %+v, though nobody says what it has to do", d[len(d)-1])
	}
	w.bear(7, 0)
	wait.Until(t, within, func() error {
		d := w.heard()
		if last := d[len(d)-1]; last.Wanted["web"] != 1 {
			return errors.New("those that have nothing to do are still wanted")
		}
		return nil
	})
	for _, d := range w.heard()[1:] {
		if n := d.Wanted["web"]; n != 7 && n != 1 {
			t.Errorf("%d are wanted meanwhile", n)
		}
	}
}

// TestACoreSeesWhatIsDecided: of the active allocator alone, and nobody else does.
func TestACoreSeesWhatIsDecided(t *testing.T) {
	t.Parallel()
	w := newScaled(t, 2)
	w.bear(2, 1)
	active := w.start("shop-allocator-1", scaledPace)
	w.demand("for 4", wants(4))
	standby := w.start("shop-allocator-2", scaledPace)
	ask := func(p *process, to string) (reply kbroker.KeeperReply, code string) {
		t.Helper()
		sub, err := w.conn.SubscribeSync(to)
		if err != nil {
			t.Fatal(err)
		}
		wait.Until(t, within, func() error {
			if err := w.conn.PublishRequest(subjects.Keeper(tenant, p.alloc.own.Incarnation), to, []byte("{}")); err != nil {
				return err
			}
			m, err := sub.NextMsg(300 * time.Millisecond)
			if err != nil {
				return err
			}
			if code = m.Header.Get(subjects.HeaderCode); code == "" || code == string(kbroker.Moved) {
				return json.Unmarshal(m.Data, &reply)
			}
			return errors.New("answered " + code)
		})
		return reply, code
	}
	kept := func(p *process) string { return subjects.Kept(tenant, p.alloc.own.Incarnation, "h1", "q1") }
	if _, code := ask(standby, kept(standby)); code != string(kbroker.Moved) {
		t.Errorf("the standby answers %q, want moved", code)
	}
	reply, _ := ask(active, kept(active))
	seen := reply.Allocator
	if seen == nil || len(seen.Services) != 1 || len(seen.Instances) != 2 {
		t.Fatalf("it says %+v", reply)
	}
	if s := seen.Services[0]; s.Service != "web" || s.Min != 1 || s.Max != 20 || s.Instances != 2 || s.Ready != 2 || s.Wanted != 4 || !strings.Contains(s.Why, "busy is 1.00 of 0.50") {
		t.Errorf("it decides %+v", s)
	}
	if i := seen.Instances[1]; i.Instance != "shop-web-2" || !i.Ready || i.Busy == nil || *i.Busy != 1 || i.CPUCores != nil {
		t.Errorf("it knows %+v of an instance", i)
	}
	// A question whose answer is to go elsewhere is not answered.
	elsewhere, err := w.conn.SubscribeSync("elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.conn.PublishRequest(subjects.Keeper(tenant, active.alloc.own.Incarnation), "elsewhere", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	ask(active, kept(active)) // asked later
	if n, _, err := elsewhere.Pending(); n != 0 || err != nil {
		t.Errorf("%d answers elsewhere, %v", n, err)
	}
}
