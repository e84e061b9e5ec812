package allocator

import (
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

// owned is a view of services web (2 to 20) and db (1), with owners a and b of four shards: the
// third one's is out, nobody has the last.
func owned() View {
	return View{
		App: app(service("db", 1, 1), service("web", 2, 20)), Version: 1,
		Owners: []kbroker.Incarnation{"web-1.a", "web-2.b"},
		Shards: []Shard{{Owner: "web-1.a"}, {Owner: "web-2.b"}, {Owner: "web-3.c"}, {}},
	}
}

func TestWhatADecisionCannotBe(t *testing.T) {
	const a, b, out = kbroker.Incarnation("web-1.a"), kbroker.Incarnation("web-2.b"), kbroker.Incarnation("web-3.c")
	shards := func(to ...kbroker.Incarnation) Decision { return Decision{Shards: to} }
	rooms := View{
		Rooms: []Room{{Owner: a, Instance: "web-1", Has: kbroker.Demanded{Slots: 1}}},
		Waiting: []Placed{
			{Object: kbroker.Object{Kind: "room", ID: "1"}, Demanded: kbroker.Demanded{Slots: 1}},
			{Object: kbroker.Object{Kind: "room", ID: "2"}, Demanded: kbroker.Demanded{Slots: 1}},
		},
	}
	places := func(to ...kbroker.Incarnation) Decision { return Decision{Placed: to} }
	nobody := owned()
	nobody.Owners = nil
	for _, c := range []struct {
		name string
		view View
		d    Decision
		want string // empty: it can
	}{
		{"nothing", owned(), Decision{}, ""},
		{"numbers at the ends of the counts", owned(), Decision{Wanted: counts{"db": 1, "web": 20}}, ""},
		{"a service that is left out", owned(), Decision{Wanted: counts{"web": 2}, Why: map[kbroker.ServiceName]string{"web": "so"}}, ""},
		{"all shards at owners", owned(), shards(a, b, a, b), ""},
		{"shards that stay, by an empty name or by that of their owner", owned(), shards("", b, a, a), ""},
		{"shards that move", owned(), shards(b, a, b, b), ""},
		{"shards that nobody may own", nobody, shards("", b, out, ""), ""},
		{"an object that is placed, and one that waits", rooms, places("", a), ""},

		{"too few objects", rooms, places(a), "it places 1 objects, 2 wait"},
		{"an object at nobody", rooms, places("", b), `it places room:2 at "web-2.b", which may own none`},
		{"more objects than there is room", rooms, places(a, a), "it places room:2 at web-1, which has no room for it"},
		{"an unknown service", owned(), Decision{Wanted: counts{"web": 2, "old": 4}}, `it wants 4 of service "old", which the spec does not have`},
		{"more than the count", owned(), Decision{Wanted: counts{"web": 21}}, "it wants 21 of service web, more than the 20 of its count"},
		{"fewer than the count", owned(), Decision{Wanted: counts{"web": 1}}, "it wants 1 of service web, fewer than the 2 of its count"},
		{"less than none", owned(), Decision{Wanted: counts{"web": -1}}, "it wants -1 of service web"},
		{"other than a fixed count", owned(), Decision{Wanted: counts{"db": 2}}, "it wants 2 of service db, more than the 1 of its count"},
		{"a reason for an unknown service", owned(), Decision{Why: map[kbroker.ServiceName]string{"old": "so"}}, `it says why of service "old", which the spec does not have`},
		{"a reason without end", owned(), Decision{Why: map[kbroker.ServiceName]string{"web": strings.Repeat("x", 501)}}, "in 501 bytes, at most 500"},
		{"a reason that is no text", owned(), Decision{Why: map[kbroker.ServiceName]string{"web": "\xff"}}, "is no text"},
		{"too few shards", owned(), shards(a, b, a), "it places 3 shards, the app has 4"},
		{"too many shards", owned(), shards(a, b, a, b, a), "it places 5 shards, the app has 4"},
		{"no shard at all", owned(), Decision{Shards: []kbroker.Incarnation{}}, "it places 0 shards, the app has 4"},
		{"shards of an app without objects", View{App: app(service("web", 2, 20))}, shards(a), "it places 1 shards, the app has 0"},
		{"an unknown instance", owned(), shards(a, b, "web-9.z", b), `it gives shard 2 to "web-9.z", which may own none`},
		{"an instance in place of its start", owned(), shards("web-1", b, a, b), `it gives shard 0 to "web-1", which may own none`},
		{"an owner that is out", owned(), shards(out, b, a, b), `it gives shard 0 to "web-3.c", which may own none`},
		{"a shard left to an owner that is out", owned(), shards(a, b, out, b), "it leaves shard 2 to web-3.c, which is out or leaves"},
		{"a shard left to an owner that is out, by an empty name", owned(), shards(a, b, "", b), "it leaves shard 2 to web-3.c, which is out or leaves"},
		{"a shard left to nobody", owned(), shards(a, b, a, ""), "it leaves shard 3, which nobody owns, to nobody"},
		{"what somebody holds who is gone", owned(), Decision{Holds: map[kbroker.InstanceID]int{"web-9": 1}}, ""},
		{"less than nothing that somebody holds", View{App: app(service("web", 2, 20)), Instances: []Instance{{Name: "shop-web-1"}}}, Decision{Holds: map[kbroker.InstanceID]int{"shop-web-1": -1}}, `it says that "shop-web-1" holds -1`},
		{"a shard for somebody where nobody may own any", nobody, shards("", "", "", a), `it gives shard 3 to "web-1.a", which may own none`},
	} {
		err := check(c.view, c.d)
		switch {
		case err == nil && c.want != "":
			t.Errorf("%s: it is taken, want %q", c.name, c.want)
		case err != nil && (c.want == "" || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// TestBuiltInPoliciesAnswerWhatCanBe: so that a policy can be made of one of them.
func TestBuiltInPoliciesAnswerWhatCanBe(t *testing.T) {
	v := owned()
	for _, least := range []int{2, 12} {
		s := service("web", least, 20)
		s.Objects = []kbroker.KindName{"account"}
		v.App = app(service("db", 1, 1), s)
		for _, busy := range []float64{0, 0.5, 1} {
			v.Instances = nil
			for n := range 20 {
				v.Instances = append(v.Instances, Instance{Name: webName(n), Service: "web", Ready: true, Load: Load{Known: true, Busy: busy, Refused: 10 * busy, Requests: 11}})
			}
			for _, name := range []string{kbroker.PolicySpread, kbroker.PolicyBalanced, kbroker.PolicyPack} {
				if err := check(v, builtin(name)(v)); err != nil {
					t.Errorf("%s of a load of %v: %v", name, busy, err)
				}
			}
		}
	}
}
