package allocator

import (
	"maps"
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

func TestWanted(t *testing.T) {
	says := func(c counts) Policy { return func(View) counts { return c } }
	for _, c := range []struct {
		name   string
		policy Policy
		app    kbroker.App
		want   counts
	}{
		{"keep wants the count of a service", Keep, app(service("web", 3, 3)), counts{"web": 3}},
		{"keep wants the lower end of a range", Keep, app(service("web", 2, 20)), counts{"web": 2}},
		{"keep answers for each service", Keep, app(service("db", 1, 1), service("web", 2, 4)), counts{"db": 1, "web": 2}},
		{"a count of zero is wanted as zero", Keep, app(service("web", 0, 0)), counts{"web": 0}},
		{"an app without services wants nothing", Keep, app(), counts{}},
		{"a policy moves a service inside its range", says(counts{"web": 7}), app(service("web", 2, 20)), counts{"web": 7}},
		{"a policy cannot go below the range", says(counts{"web": -1}), app(service("web", 2, 20)), counts{"web": 2}},
		{"a policy cannot go above the range", says(counts{"web": 21}), app(service("web", 2, 20)), counts{"web": 20}},
		{"a service that the policy leaves out gets the lower end", says(nil), app(service("web", 2, 20)), counts{"web": 2}},
		{"a service that the spec does not have is dropped", says(counts{"old": 4}), app(service("web", 1, 1)), counts{"web": 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Wanted(c.policy, View{App: c.app, Version: 1}); !maps.Equal(got, c.want) {
				t.Errorf("wanted %v, want %v", got, c.want)
			}
		})
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
		got := Wanted(func(View) counts { return answer }, View{App: app(services...)})
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
