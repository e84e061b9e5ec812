package kbroker_test

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

func placements() *rapid.Generator[[]kbroker.Placement] {
	one := rapid.Custom(func(t *rapid.T) kbroker.Placement {
		return kbroker.Placement{
			Tenant:   kbroker.TenantID(rapid.SampledFrom([]string{"default", "other"}).Draw(t, "tenant")),
			Instance: kbroker.InstanceID(rapid.StringMatching(`[a-c]-[a-c]-[1-9]`).Draw(t, "instance")),
			Epoch:    rapid.Uint64Range(1, 5).Draw(t, "epoch"),
			Version:  rapid.IntRange(1, 3).Draw(t, "version"),
			Stop:     rapid.Bool().Draw(t, "stop"),
			Template: rapid.SampledFrom([]string{"t1", "t2"}).Draw(t, "template"),
		}
	})
	return rapid.SliceOfNDistinct(one, 0, 12, func(p kbroker.Placement) string { return string(p.Tenant) + "/" + string(p.Instance) })
}

func TestPlacementsHashIgnoresOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ps := placements().Draw(t, "placements")
		want := kbroker.PlacementsHash(ps)
		shuffled := rapid.Permutation(ps).Draw(t, "shuffled")
		before := slices.Clone(shuffled)
		if got := kbroker.PlacementsHash(shuffled); got != want {
			t.Fatalf("the hash depends on the order: %s and %s", got, want)
		}
		for i := range shuffled {
			if shuffled[i].Instance != before[i].Instance || shuffled[i].Tenant != before[i].Tenant {
				t.Fatal("hashing sorted the caller's slice")
			}
		}
	})
}

// What an agent acts on must change the hash: a view with an old record must
// never look complete.
func TestPlacementsHashSeesEveryChange(t *testing.T) {
	base := kbroker.Placement{Tenant: "default", Instance: "bank-ledger-1", Epoch: 3, Version: 2, Template: "t"}
	other := base
	other.Instance = "bank-ledger-2"
	want := kbroker.PlacementsHash([]kbroker.Placement{base, other})
	for name, change := range map[string]func(*kbroker.Placement){
		"tenant":   func(p *kbroker.Placement) { p.Tenant = "other" },
		"instance": func(p *kbroker.Placement) { p.Instance = "bank-ledger-3" },
		"epoch":    func(p *kbroker.Placement) { p.Epoch++ },
		"version":  func(p *kbroker.Placement) { p.Version++ },
		"stop":     func(p *kbroker.Placement) { p.Stop = true },
		"template": func(p *kbroker.Placement) { p.Template = "u" },
	} {
		p := base
		change(&p)
		if kbroker.PlacementsHash([]kbroker.Placement{p, other}) == want {
			t.Errorf("a changed %s does not change the hash", name)
		}
	}
	if kbroker.PlacementsHash([]kbroker.Placement{base}) == want {
		t.Error("a missing placement does not change the hash")
	}
	if kbroker.PlacementsHash(nil) == want {
		t.Error("no placement has the hash of two")
	}
}

func TestTemplate(t *testing.T) {
	base := kbroker.Service{
		Name: "ledger", Run: "bin/ledger", Build: "make",
		Artifact:  kbroker.Artifact{Path: "bin/ledger", SHA256: "aa", SizeBytes: 5, Arch: "amd64"},
		Args:      []string{"-v"},
		Env:       map[string]string{"A": "1", "B": "2"},
		Count:     kbroker.Count{Min: 1, Max: 1},
		Resources: kbroker.Resources{CPU: 1, MemoryBytes: 64 << 20},
		Health:    kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: time.Second}},
		Update:    kbroker.Update{Parallel: 1},
		Stop:      kbroker.Stop{Signal: "SIGTERM", Grace: time.Second},
		Spread:    "host",
	}
	want := kbroker.Template(base)
	for name, change := range map[string]func(*kbroker.Service){
		"count":         func(s *kbroker.Service) { s.Count.Max = 9 },
		"scale":         func(s *kbroker.Service) { s.Scale = &kbroker.Scale{CPU: 0.5} },
		"update":        func(s *kbroker.Service) { s.Update.Parallel = 3 },
		"require":       func(s *kbroker.Service) { s.Require = []string{"a == b"} },
		"spread":        func(s *kbroker.Service) { s.Spread = "none" },
		"build":         func(s *kbroker.Service) { s.Build = "ninja" },
		"run":           func(s *kbroker.Service) { s.Run = "../elsewhere" },
		"artifact path": func(s *kbroker.Service) { s.Artifact.Path = "../elsewhere" },
	} {
		s := base
		change(&s)
		if kbroker.Template(s) != want {
			t.Errorf("a changed %s would restart the processes", name)
		}
	}
	for name, change := range map[string]func(*kbroker.Service){
		"digest":    func(s *kbroker.Service) { s.Artifact.SHA256 = "bb" },
		"command":   func(s *kbroker.Service) { s.Artifact.Command = "bin/other" },
		"built-in":  func(s *kbroker.Service) { s.Artifact.Builtin = kbroker.BuiltinHello },
		"args":      func(s *kbroker.Service) { s.Args = []string{"-v", "-v"} },
		"env":       func(s *kbroker.Service) { s.Env = map[string]string{"A": "1", "B": "3"} },
		"resources": func(s *kbroker.Service) { s.Resources.MemoryBytes++ },
		"health":    func(s *kbroker.Service) { s.Health.Ready = kbroker.HealthAlive },
		"stop":      func(s *kbroker.Service) { s.Stop.Signal = "SIGINT" },
		"restart":   func(s *kbroker.Service) { s.Restart++ },
		"objects":   func(s *kbroker.Service) { s.Objects = []kbroker.KindName{"account"} },
	} {
		s := base
		change(&s)
		if kbroker.Template(s) == want {
			t.Errorf("a changed %s would not reach the processes", name)
		}
	}
	if base.Run != "bin/ledger" || base.Count.Max != 1 {
		t.Error("Template changed the caller's service")
	}
}
