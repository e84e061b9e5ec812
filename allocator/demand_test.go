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

// scaled is a world whose app has a service of 1 to 20 instances, of which so many are ready.
func scaled(t *testing.T, ready int) *world {
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
	w := scaled(t, 4)
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
	w := scaled(t, 7)
	rows := w.rows.Swap(nil)
	w.start("shop-allocator-1", scaledPace)
	<-time.After(300 * time.Millisecond)
	if d := w.heard(); len(d) > 0 {
		t.Fatalf("demands %+v before it is known which instances there are", d)
	}
	w.rows.Store(rows)
	w.demand("for 7", wants(7))
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
