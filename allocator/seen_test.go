package allocator

import (
	"fmt"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// What is placed, and what waits for a place, is told with what decides it.
func TestPlacedObjectsAreSeen(t *testing.T) {
	t.Parallel()
	w := newScaled(t, 2)
	w.times = objectTimes
	web := service("web", 1, 20)
	web.Objects, web.Placed, web.Slots = []kbroker.KindName{"room"}, map[kbroker.KindName]kbroker.Demanded{"room": {Slots: 1}}, 2
	w.want(kbroker.AppVersion{Tenant: tenant, Version: 1, App: app(service("mail", 1, 1), web)})
	w.bear(2, 0.1)
	first := w.fake("shop-web-1.a", "web")
	w.fake("shop-web-2.a", "web")
	p := scaledPace
	p.lookLeases = objectPace.lookLeases
	active := w.start("shop-allocator-1", p)
	sees := func(placed kbroker.AllocatorPlaced, rooms ...kbroker.AllocatorRoom) {
		t.Helper()
		wait.Until(t, within, func() error {
			d := active.alloc.demanding.Load()
			if d == nil {
				return fmt.Errorf("it is not active")
			}
			seen := d.seen()
			if seen.Placed == nil || *seen.Placed != placed {
				return fmt.Errorf("it sees %s, want %s", encoded(seen.Placed), encoded(placed))
			}
			for n, want := range rooms {
				if len(seen.Instances) != len(rooms) || seen.Instances[n].Placed == nil || *seen.Instances[n].Placed != want {
					return fmt.Errorf("it sees %s, want %s", encoded(seen.Instances), encoded(rooms))
				}
			}
			return nil
		})
	}
	has := kbroker.Demanded{Slots: 2}
	sees(kbroker.AllocatorPlaced{}, kbroker.AllocatorRoom{Has: has}, kbroker.AllocatorRoom{Has: has})
	for n := range 5 {
		r := kbroker.AllocateRequest{Kind: "room", ID: fmt.Sprint(n), WaitMS: 60_000}
		if err := w.conn.PublishRequest(subjects.Placing(tenant, shop, subjects.VerbAllocate), "nobody", encoded(r)); err != nil {
			t.Fatal(err)
		}
	}
	full := kbroker.AllocatorRoom{Objects: 2, Used: has, Has: has}
	sees(kbroker.AllocatorPlaced{Objects: 4, Waiting: 1}, full, full)
	first.stop() // nobody has room for what was there
	sees(kbroker.AllocatorPlaced{Objects: 4, Waiting: 3}, full, full)
}
