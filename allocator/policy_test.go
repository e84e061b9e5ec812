package allocator

import (
	"maps"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

type counts = map[kbroker.ServiceName]int

func app(services ...kbroker.Service) kbroker.App {
	return kbroker.App{Name: "shop", Services: services}
}

func service(name kbroker.ServiceName, least, most int) kbroker.Service {
	return kbroker.Service{Name: name, Count: kbroker.Count{Min: least, Max: most}}
}

// says is a policy that answers this.
func says(c counts, why map[kbroker.ServiceName]string) Policy {
	return func(View) Decision { return Decision{Wanted: c, Why: why} }
}

// TestWhatAnInstanceHolds: placed objects, and shards of objects as one; super hears it of
// services that lose instances, and of those alone that are to stay or go.
func TestWhatAnInstanceHolds(t *testing.T) {
	web, mail := service("web", 1, 20), service("mail", 1, 20)
	v := View{
		App: app(mail, web), Instances: []Instance{
			{Name: "shop-mail-1", Service: "mail"},
			{Name: webName(0), Service: "web"},
			{Name: webName(1), Service: "web"},
			{Name: webName(2), Service: "web", Leaving: true},
			{Name: webName(3), Service: "web"},
		},
		Shards: []Shard{{Owner: webStart(0)}, {Owner: webStart(0)}, {Owner: webStart(2)}, {Owner: webStart(9)}, {Owner: "shop-mail-1.a"}, {}},
		Rooms:  []Room{{Owner: webStart(0), Instance: webName(0), Objects: 3}, {Owner: webStart(1), Instance: webName(1)}, {Owner: webStart(8), Instance: webName(8), Objects: 1}},
	}
	d := Spread(v)
	if want := map[kbroker.InstanceID]int{"shop-mail-1": 1, webName(0): 4, webName(2): 1}; !maps.Equal(d.Holds, want) {
		t.Errorf("they hold %v, want %v", d.Holds, want)
	}
	d.Wanted = map[kbroker.ServiceName]int{"web": 2, "mail": 1}
	if got, want := v.leaving(d), map[kbroker.InstanceID]int{webName(0): 4}; !maps.Equal(got, want) {
		t.Errorf("super hears %v, want %v", got, want)
	}
	d.Wanted["web"] = 3
	if got := v.leaving(d); got != nil {
		t.Errorf("super hears %v where nobody is to leave", got)
	}
}

func TestWanted(t *testing.T) {
	for _, c := range []struct {
		name   string
		policy Policy
		app    kbroker.App
		want   counts
	}{
		{"the count of a service", Spread, app(service("web", 3, 3)), counts{"web": 3}},
		{"the lower end of a range without a load", Spread, app(service("web", 2, 20)), counts{"web": 2}},
		{"each service has an answer", Spread, app(service("db", 1, 1), service("web", 2, 4)), counts{"db": 1, "web": 2}},
		{"a count of zero is wanted as zero", Spread, app(service("web", 0, 0)), counts{"web": 0}},
		{"an app without services wants nothing", Spread, app(), counts{}},
		{"a policy moves a service inside its range", says(counts{"web": 7}, nil), app(service("web", 2, 20)), counts{"web": 7}},
		{"a policy cannot go below the range", says(counts{"web": -1}, nil), app(service("web", 2, 20)), counts{"web": 2}},
		{"a policy cannot go above the range", says(counts{"web": 21}, nil), app(service("web", 2, 20)), counts{"web": 20}},
		{"a service that the policy leaves out gets the lower end", says(nil, nil), app(service("web", 2, 20)), counts{"web": 2}},
		{"a service that the spec does not have is dropped", says(counts{"old": 4}, nil), app(service("web", 1, 1)), counts{"web": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Wanted(c.policy, View{App: c.app, Version: 1}); !maps.Equal(got.Wanted, c.want) {
				t.Errorf("wanted %v, want %v", got.Wanted, c.want)
			}
		})
	}
}

func TestADecisionSaysWhy(t *testing.T) {
	why := map[kbroker.ServiceName]string{"web": "it is noon", "db": "so", "old": "gone"}
	d := Wanted(says(counts{"web": 30, "db": 2}, why), View{App: app(service("web", 2, 20), service("db", 1, 4))})
	if got, want := d.reason(), "db: so; web: it is noon; its count is 2 to 20"; got != want {
		t.Errorf("reason %q, want %q", got, want)
	}
}

func TestWantedIsAlwaysInsideTheSpec(t *testing.T) {
	name := rapid.SampledFrom([]kbroker.ServiceName{"a", "b", "c", "d"})
	rapid.Check(t, func(t *rapid.T) {
		var services []kbroker.Service
		for _, n := range rapid.SliceOfNDistinct(name, 0, 4, rapid.ID).Draw(t, "services") {
			least := rapid.IntRange(0, 50).Draw(t, "min")
			services = append(services, service(n, least, least+rapid.IntRange(0, 50).Draw(t, "range")))
		}
		answer := rapid.MapOf(name, rapid.IntRange(-200, 200)).Draw(t, "answer")
		got := Wanted(says(answer, nil), View{App: app(services...)}).Wanted
		if len(got) != len(services) {
			t.Fatalf("wanted %v for %d services", got, len(services))
		}
		for _, s := range services {
			if n := got[s.Name]; n < s.Count.Min || n > s.Count.Max {
				t.Errorf("service %s wants %d outside %+v", s.Name, n, s.Count)
			}
			if a := answer[s.Name]; a >= s.Count.Min && a <= s.Count.Max && got[s.Name] != a {
				t.Errorf("service %s wants %d, the policy said %d, which is inside %+v", s.Name, got[s.Name], a, s.Count)
			}
		}
	})
}

// loaded is a service with instances that bear this load each.
func loaded(scale *kbroker.Scale, n int, each Load) (kbroker.Service, []Instance) {
	s := service("web", 0, 1000)
	s.Scale, s.Resources.CPU = scale, 0.5
	var of []Instance
	for range n {
		each.Known, each.Measured = true, true
		of = append(of, Instance{Service: "web", Ready: true, Load: each})
	}
	return s, of
}

func TestNeed(t *testing.T) {
	scale := func(s kbroker.Scale) *kbroker.Scale { return &s }
	for name, c := range map[string]struct {
		scale *kbroker.Scale
		n     int
		each  Load
		want  int
		why   string
	}{
		"none is there":                               {nil, 0, Load{}, 0, "no load is known"},
		"idle":                                        {nil, 4, Load{}, 0, "busy is 0.00 of 0.70"},
		"busy to the bound by default":                {nil, 7, Load{Busy: 1}, 10, "busy is 1.00 of 0.70 on each of 7"},
		"a little above the target is no reason":      {nil, 10, Load{Busy: 0.76}, 10, ""},
		"nor is a little below":                       {nil, 10, Load{Busy: 0.64}, 10, ""},
		"half of the target":                          {nil, 10, Load{Busy: 0.35}, 5, ""},
		"much is refused by who does few at a time":   {nil, 7, Load{Busy: 0.7, Requests: 100, Refused: 60}, 7, ""},
		"most is refused, so that there is more load": {nil, 7, Load{Busy: 0.8, Requests: 5000, Refused: 4900}, 16, ""},
		"what is refused by chance is no load":        {nil, 7, Load{Busy: 0.7, Requests: 150, Refused: 50}, 7, ""},
		"cpu of what is reserved":                     {scale(kbroker.Scale{CPU: 0.5}), 4, Load{CPU: 0.5}, 8, "cpu is 1.00 of 0.50"},
		"requests":                                    {scale(kbroker.Scale{Requests: 100}), 2, Load{Requests: 250}, 5, "requests/s is 250 of 100"},
		"calls that wait":                             {scale(kbroker.Scale{Mailbox: 10}), 2, Load{Waiting: 40}, 8, "mailbox is 40 of 10"},
		"objects in memory":                           {scale(kbroker.Scale{Objects: 1000}), 3, Load{Objects: 2000}, 6, "objects is 2000 of 1000"},
		"of several targets that which needs most":    {scale(kbroker.Scale{Busy: 0.5, Requests: 100}), 2, Load{Busy: 0.5, Requests: 300}, 6, "requests/s"},
		"a buffer":                                    {scale(kbroker.Scale{Busy: 0.5, Buffer: 2}), 4, Load{Busy: 0.5}, 6, "and 2 ready beyond"},
	} {
		t.Run(name, func(t *testing.T) {
			s, of := loaded(c.scale, c.n, c.each)
			n, why := need(s, of)
			if n != c.want || !strings.Contains(why, c.why) {
				t.Errorf("needs %d (%s), want %d (%s)", n, why, c.want, c.why)
			}
		})
	}
}

// Where nobody says what it has to do, nothing says that there are too many.
func TestNeedOfWhatIsNotKnown(t *testing.T) {
	s, of := loaded(nil, 4, Load{})
	for i := range of {
		of[i].Load = Load{}
	}
	of = append(of, Instance{Service: "web"}, Instance{Service: "web", Leaving: true})
	if n, why := need(s, of); n != 5 || why != "no load is known" {
		t.Errorf("needs %d (%s), want the 5 that are there", n, why)
	}
	// One that says nothing is taken to be like the others.
	s, of = loaded(&kbroker.Scale{CPU: 0.5}, 4, Load{CPU: 0.5})
	of[3].Load = Load{}
	if n, why := need(s, of); n != 8 {
		t.Errorf("needs %d (%s), want 8", n, why)
	}
}

// A buffer is beyond what is needed, not beyond what is there: with no load known it would
// grow with each look.
func TestABufferDoesNotGrowByItself(t *testing.T) {
	s, of := loaded(&kbroker.Scale{Buffer: 2}, 5, Load{})
	for i := range of {
		of[i].Load = Load{}
	}
	if n, _ := need(s, of); n != 5 {
		t.Errorf("needs %d, want the 5 that are there", n)
	}
	if n, _ := need(s, nil); n != 2 {
		t.Errorf("needs %d where none is there, want the buffer", n)
	}
}

// Shards do not move to and fro as the load changes: fewer own them only when fewer instances
// are wanted.
func TestPackKeepsOwnersWhileTheyAreWanted(t *testing.T) {
	s, of := loaded(&kbroker.Scale{Busy: 0.5}, 3, Load{Busy: 0.16})
	s.Objects = []kbroker.KindName{"room"}
	v := View{App: app(s), Instances: of, Shards: make([]Shard, 30)}
	for n := range 3 {
		v.Owners = append(v.Owners, webStart(n))
	}
	for n := range v.Shards {
		v.Shards[n].Owner = v.Owners[n%3]
	}
	owners := func() int {
		on := map[kbroker.Incarnation]bool{}
		for _, i := range Pack(v).Shards {
			on[i] = true
		}
		return len(on)
	}
	if got := owners(); got != 3 {
		t.Errorf("%d own shards for an allocator that has told nothing yet, want those that do", got)
	}
	v.Wanted = counts{"web": 3}
	if got := owners(); got != 3 {
		t.Errorf("%d own shards while 3 are wanted", got)
	}
	v.Wanted = counts{"web": 1}
	if got := owners(); got != 1 {
		t.Errorf("%d own shards when one is enough, and wanted", got)
	}
}

func TestNeedOfOwnersIsOneAtLeast(t *testing.T) {
	s, of := loaded(nil, 3, Load{})
	s.Objects = []kbroker.KindName{"room"}
	if n, _ := need(s, of); n != 1 {
		t.Errorf("needs %d owners of objects without a load, want 1", n)
	}
}

// The load is that of all who bear it: it needs the same number whoever bears it, while
// others start, leave, or say nothing.
func TestNeedIsOfTheLoadAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		total, target := rapid.Float64Range(0.1, 50).Draw(t, "load"), rapid.Float64Range(0.1, 1).Draw(t, "target")
		scale := &kbroker.Scale{Busy: target}
		n := rapid.IntRange(1, 60).Draw(t, "instances")
		s, of := loaded(scale, n, Load{Busy: total / float64(n)})
		first, _ := need(s, of)
		for range rapid.IntRange(0, 5).Draw(t, "starting") {
			of = append(of, Instance{Service: "web"})
		}
		for range rapid.IntRange(0, 5).Draw(t, "leaving") {
			of = append(of, Instance{Service: "web", Leaving: true, Load: Load{Known: true, Busy: 1}})
		}
		if again, _ := need(s, of); again != first {
			t.Errorf("needs %d beside those that start and leave, want %d", again, first)
		}
		// In one step it has what it needs, and needs no other number then.
		s, of = loaded(scale, max(first, 1), Load{Busy: total / float64(max(first, 1))})
		if settled, _ := need(s, of); settled != first && first > 0 {
			t.Errorf("%d instances need %d", first, settled)
		}
	})
}
