package allocator

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// aDemand draws what a placed object takes.
func aDemand(t *rapid.T) kbroker.Demanded {
	return kbroker.Demanded{
		Slots: rapid.IntRange(0, 4).Draw(t, "slots"), CPU: float64(rapid.IntRange(0, 10).Draw(t, "cpu")) / 10,
		MemoryBytes: rapid.Int64Range(0, 64).Draw(t, "memory"),
	}
}

// TestPlacedObjectsAreWhereThereIsRoom: whatever the policy, none is beyond the room that there
// is, none waits that fits anywhere, the same view has the same answer, and a wish is kept where
// there is room for it.
func TestPlacedObjectsAreWhereThereIsRoom(t *testing.T) {
	for name, policy := range map[string]Policy{"spread": Spread, "balanced": Balance, "pack": Pack} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				var v View
				has := kbroker.Demanded{Slots: rapid.IntRange(0, 10).Draw(t, "has slots"), CPU: float64(rapid.IntRange(0, 4).Draw(t, "has cpu")), MemoryBytes: rapid.Int64Range(0, 256).Draw(t, "has memory")}
				for n := range rapid.IntRange(0, 6).Draw(t, "rooms") {
					r := Room{
						Owner: kbroker.Incarnation(fmt.Sprintf("i-%d.a", n)), Instance: kbroker.InstanceID(fmt.Sprintf("i-%d", n)),
						Host: kbroker.HostID(fmt.Sprintf("h%d", n%3)), Has: has, Load: Load{Busy: rapid.Float64Range(0, 1).Draw(t, "busy")},
					}
					for range rapid.IntRange(0, 3).Draw(t, "there") {
						if d := aDemand(t); r.Fits(d) {
							r.Used, r.Objects = r.Used.Plus(d), r.Objects+1
						}
					}
					v.Rooms, v.Owners = append(v.Rooms, r), append(v.Owners, r.Owner)
				}
				for n := range rapid.IntRange(0, 12).Draw(t, "waiting") {
					v.Waiting = append(v.Waiting, Placed{
						Object: kbroker.Object{Kind: "room", ID: fmt.Sprint(n), Placed: true}, Demanded: aDemand(t),
						Instance: kbroker.InstanceID(rapid.SampledFrom([]string{"", "", "i-0", "i-3", "i-9"}).Draw(t, "wish")),
						Host:     kbroker.HostID(rapid.SampledFrom([]string{"", "h1", "h7"}).Draw(t, "host")),
					})
				}
				to := policy(v).Placed
				if again := policy(v).Placed; !slices.Equal(to, again) {
					t.Fatalf("the same view has the answers %v and %v", to, again)
				}
				if len(to) != len(v.Waiting) {
					t.Fatalf("%d answers for %d that wait", len(to), len(v.Waiting))
				}
				rooms := slices.Clone(v.Rooms)
				for n, w := range v.Waiting {
					fits := slices.IndexFunc(rooms, func(r Room) bool { return r.Fits(w.Demanded) })
					at := slices.IndexFunc(rooms, func(r Room) bool { return r.Owner == to[n] })
					switch {
					case to[n] == "" && fits >= 0:
						t.Fatalf("%s waits, though there is room at %s", w.Object, rooms[fits].Owner)
					case to[n] == "":
						continue
					case at < 0:
						t.Fatalf("%s is given to %s, which is nobody", w.Object, to[n])
					case !rooms[at].Fits(w.Demanded):
						t.Fatalf("%s takes %+v, and is given to %+v", w.Object, w.Demanded, rooms[at])
					}
					for _, r := range rooms {
						if r.Fits(w.Demanded) && w.wishes(r) > w.wishes(rooms[at]) {
							t.Fatalf("%s is at %s, and wishes to be at %s", w.Object, rooms[at].Instance, r.Instance)
						}
					}
					rooms[at].Used = rooms[at].Used.Plus(w.Demanded)
				}
			})
		})
	}
}

func TestPoliciesPlace(t *testing.T) {
	room := func(name string, used int, busy float64) Room {
		return Room{Owner: kbroker.Incarnation(name + ".a"), Instance: kbroker.InstanceID(name), Has: kbroker.Demanded{Slots: 10}, Used: kbroker.Demanded{Slots: used}, Objects: used, Load: Load{Busy: busy}}
	}
	v := View{Rooms: []Room{room("a", 3, 0.1), room("b", 9, 0.1), room("c", 1, 0.95)}, Waiting: []Placed{{Demanded: kbroker.Demanded{Slots: 1}}, {Demanded: kbroker.Demanded{Slots: 1}}}}
	for _, c := range []struct {
		name   string
		policy Policy
		want   []kbroker.Incarnation
	}{
		{"spread: where there is most room", Spread, []kbroker.Incarnation{"c.a", "c.a"}},
		{"balanced: not where there is too much to do", Balance, []kbroker.Incarnation{"a.a", "a.a"}},
		{"pack: where there is least that is enough", Pack, []kbroker.Incarnation{"b.a", "a.a"}},
	} {
		if got := c.policy(v).Placed; !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// A service has as many instances as its placed objects need, and those that wait.
func TestAServiceIsScaledByItsPlacedObjects(t *testing.T) {
	web := service("web", 1, 20)
	web.Slots, web.Placed, web.Objects = 10, map[kbroker.KindName]kbroker.Demanded{"room": {Slots: 1}}, []kbroker.KindName{"room"}
	v := View{App: app(web), Instances: []Instance{{Name: "web-1", Service: "web", Ready: true, Load: Load{Known: true}}}}
	for _, c := range []struct{ used, missing, buffer, want int }{{0, 0, 0, 1}, {10, 0, 0, 1}, {10, 1, 0, 2}, {11, 0, 0, 2}, {9, 32, 0, 5}, {9, 32, 2, 7}, {9, 1000, 0, 20}} {
		web.Scale = &kbroker.Scale{Buffer: c.buffer}
		v.App.Services[0] = web
		v.Rooms, v.Missing = []Room{{Used: kbroker.Demanded{Slots: c.used}}}, kbroker.Demanded{Slots: c.missing}
		if got := Wanted(Spread, v); got.Wanted["web"] != c.want {
			t.Errorf("%d slots used, %d missing, a buffer of %d: %d are wanted (%s), want %d", c.used, c.missing, c.buffer, got.Wanted["web"], got.Why["web"], c.want)
		}
	}
}

// BenchmarkPlanOfManyPlacedObjects plans when an instance is lost of 101 that own 1,024 shards
// and 100,000 placed objects: a view, the decision, and the first batch.
func BenchmarkPlanOfManyPlacedObjects(b *testing.B) {
	const owners, objects = 101, 100_000
	web := service("web", owners, owners)
	web.Placed, web.Objects, web.Slots = map[kbroker.KindName]kbroker.Demanded{"room": {Slots: 1}}, []kbroker.KindName{"room"}, 2*objects/owners
	now := time.Hour
	times := ownership.Times{ObserverActs: time.Second, HolderStops: 500 * time.Millisecond}
	a := &Allocator{own: kbroker.InstanceFile{Tenant: "default", App: "shop"}, pace: normalPace, current: &View{App: app(web), Version: 1}}
	a.cfg.Judge, a.cfg.Clock = func() time.Duration { return now }, func() time.Duration { return now }
	a.shards = newShards(a)
	s := a.shards
	s.assigner = ownership.NewAssigner(ownership.AssignerConfig{Times: times})
	who := func(n int) kbroker.Incarnation { return kbroker.Incarnation(fmt.Sprintf("shop-web-%d.a", n)) }
	for n := range owners {
		s.assigner.SawLease(now, now, who(n), ownership.Lease{Incarnation: who(n), Service: "web", Host: "h1", Revoked: n == 7}, kbroker.Revision(n+1))
	}
	for n := range kbroker.Shards {
		s.assigner.SawShard(now, kbroker.Shard(n), ownership.Assignment{Owner: who(n % owners), Epoch: 1}, kbroker.Revision(n+1))
	}
	for n := range objects {
		p := ownership.Placed{Kind: "room", ID: fmt.Sprint(n), Demanded: kbroker.Demanded{Slots: 1}}
		was, is := ownership.Assignment{}, ownership.Assignment{Owner: who(n % owners), Epoch: 1, Placed: &p}
		s.assigner.SawShard(now, p.Object().Shard(), is, kbroker.Revision(n+1))
		s.sawPlaced(was, is)
	}
	s.assigner.SawAll()
	for b.Loop() {
		v, _ := a.look()
		if len(v.Waiting) < objects/owners-10 {
			b.Fatalf("%d wait", len(v.Waiting))
		}
		d := a.policy(v)(v)
		s.mu.Lock()
		batch := s.planPlaced(2, v, d.Placed)
		s.mu.Unlock()
		if len(batch.Writes) < 200 || subjects.ParseOwnKey(batch.Writes[len(batch.Writes)-1].Key).Table != subjects.OwnAssign {
			b.Fatalf("a batch of %d", len(batch.Writes))
		}
	}
}
