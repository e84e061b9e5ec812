package super

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

func TestChangedWords(t *testing.T) {
	base := service(3)
	base.Env = map[string]string{"A": "1", "B": "secret"}
	base.Require = []string{"disk == ssd"}
	base.Scale = &kbroker.Scale{Busy: 0.7, Objects: 10_000}
	for _, tc := range []struct {
		name   string
		change func(*kbroker.Service)
		want   []string
	}{
		{"nothing", func(*kbroker.Service) {}, nil},
		{"where it was built", func(s *kbroker.Service) { s.Build, s.Run, s.Artifact.Path = "make", "bin/x", "/x" }, nil},
		{"a count", func(s *kbroker.Service) { s.Count = kbroker.Count{Min: 2, Max: 20} }, []string{"count 3 -> 2-20"}},
		{"a scale", func(s *kbroker.Service) {
			s.Scale = &kbroker.Scale{Busy: 0.5, Requests: 1e6, Buffer: 2, Down: time.Minute}
		}, []string{"scale busy 0.7 objects 10000 -> busy 0.5 requests 1000000 buffer 2 down 1m0s"}},
		{"a scale that is equal", func(s *kbroker.Service) { same := *s.Scale; s.Scale = &same }, nil},
		{"a scale that is left out", func(s *kbroker.Service) { s.Scale = nil }, []string{"scale busy 0.7 objects 10000 -> none"}},
		{"a scale with nothing in it", func(s *kbroker.Service) { s.Scale = &kbroker.Scale{} }, []string{"scale busy 0.7 objects 10000 -> default"}},
		{"a program", func(s *kbroker.Service) { s.Artifact.SHA256 = "two" }, []string{"program changed"}},
		{"another program of the archive", func(s *kbroker.Service) { s.Artifact.Command = "bin/other" }, []string{"program changed"}},
		{"a program that is not built", func(s *kbroker.Service) { s.Artifact.SHA256 = unbuilt }, []string{unbuiltText}},
		{"environment, never its values", func(s *kbroker.Service) { s.Env = map[string]string{"B": "other", "C": "x"} }, []string{"env A removed", "env B changed", "env C added"}},
		{"resources", func(s *kbroker.Service) { s.Resources = kbroker.Resources{CPU: 1.5, MemoryBytes: 128 << 20} }, []string{"cpu 0.1 -> 1.5", "memory 64MiB -> 128MiB"}},
		{"constraints", func(s *kbroker.Service) { s.Require = []string{"gpu == yes"} }, []string{"no longer requires disk == ssd", "requires gpu == yes"}},
		{"rules", func(s *kbroker.Service) { s.Health.Interval, s.Update.Parallel, s.Stop.Grace = time.Hour, 9, time.Hour }, []string{"health changed", "update rules changed", "stop rules changed"}},
		{"args and spread", func(s *kbroker.Service) { s.Args, s.Spread = []string{"-v"}, "none" }, []string{"args changed", "spread host -> none"}},
		{"objects", func(s *kbroker.Service) { s.Objects = []kbroker.KindName{"account"} }, []string{"has objects account"}},
		{"a restart", func(s *kbroker.Service) { s.Restart++ }, []string{"restarted"}},
		{"what has no word of its own", func(s *kbroker.Service) { s.Artifact.SizeBytes++ }, []string{"other settings changed"}},
	} {
		other := base
		tc.change(&other)
		if got := changedWords(base, other); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

// Each field of a scale is in its text, under its key.
func TestScaleTextHasEveryField(t *testing.T) {
	fields := reflect.TypeFor[kbroker.Scale]()
	for i := range fields.NumField() {
		var s kbroker.Scale
		switch f := reflect.ValueOf(&s).Elem().Field(i); {
		case f.CanFloat():
			f.SetFloat(2)
		case f.CanInt():
			f.SetInt(2)
		default:
			t.Fatalf("field %s is a %s, which this test cannot set", fields.Field(i).Name, f.Type())
		}
		key, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		if got := scaleText(&s); !strings.HasPrefix(got, key+" 2") {
			t.Errorf("with %s alone the text is %q, want %q and its value", fields.Field(i).Name, got, key)
		}
	}
}

func TestDifferencesNameServicesThatComeAndGo(t *testing.T) {
	web, api := service(2), service(1)
	api.Name = "api"
	got := differences(kbroker.App{Services: []kbroker.Service{web}}, kbroker.App{Services: []kbroker.Service{api}})
	if want := []string{"api: new, count 1", "web: removed"}; !slices.Equal(got, want) {
		t.Errorf("differences are %q, want %q", got, want)
	}
}

func TestDifferencesNameThePolicy(t *testing.T) {
	before, after := kbroker.App{}, kbroker.App{Policy: kbroker.PolicySpread}
	if got := differences(before, after); len(got) != 0 {
		t.Errorf("with the default written differences are %q, want none", got)
	}
	after.Policy = kbroker.PolicyBalanced
	if got, want := differences(before, after), []string{"allocator: policy spread -> balanced"}; !slices.Equal(got, want) {
		t.Errorf("differences are %q, want %q", got, want)
	}
}

func TestDifferencesNameWhatIsStoredOfEvents(t *testing.T) {
	before, after := kbroker.App{}, kbroker.App{Topics: kbroker.TopicLimits{Keep: kbroker.DefaultTopicKeep, MaxBytes: kbroker.DefaultTopicMaxBytes}}
	if got := differences(before, after); len(got) != 0 {
		t.Errorf("with the defaults written differences are %q, want none", got)
	}
	after.Topics.MaxBytes = 2 << 30
	if got, want := differences(before, after), []string{"topics: events kept for 168h0m0s, in 1024MiB -> 168h0m0s, in 2048MiB"}; !slices.Equal(got, want) {
		t.Errorf("differences are %q, want %q", got, want)
	}
}
