package super

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// withSchema is the shop with a program and the schema of its accounts.
func withSchema(t *testing.T, program string, number, lowest int) kbroker.App {
	app := shop(t, func(s *kbroker.Service) {
		s.Artifact.SHA256 = strings.Repeat(program, 64)
		s.Objects = []kbroker.KindName{"account"}
		if number > 1 {
			s.Schemas = map[kbroker.KindName]kbroker.Schema{"account": {Number: number, Lowest: lowest}}
		}
	})
	app.ObjectStreams = 4
	return app
}

func TestSchemasAreWrittenThatAllCanRead(t *testing.T) {
	c := newCluster(t, 3)
	for _, step := range []struct {
		name           string
		program        string
		number, lowest int
		count          int
		unsettled      bool // nothing of it runs before the next step
		want           int  // the write schema; 0: the first, -1: the version is refused
	}{
		{"a first version", "a", 1, 1, 3, false, 0},
		{"a schema that can be taken back", "b", 2, 1, 3, false, 0},
		{"the same program, scaled: the way back is still open", "b", 2, 1, 4, false, 0},
		{"back to the first", "a", 1, 1, 3, false, 0},
		{"and on again", "b", 2, 1, 3, false, 0},
		{"the next program closes the way to the first", "c", 2, 1, 3, false, 2},
		{"the first is refused", "a", 1, 1, 3, false, -1},
		{"a second version with schema 2 may come back", "b", 2, 1, 3, false, 2},
		{"schema 3", "d", 3, 1, 3, true, 2},
		{"another program with it, while the rollout to the first has not begun", "e", 3, 1, 3, true, 2},
		{"one more: only programs that read 2 run", "f", 3, 1, 3, false, 2},
		{"now all read 3", "1", 3, 1, 3, false, 3},
		{"one without a way back", "2", 5, 5, 3, false, 5},
		{"one that reads less", "3", 4, 1, 3, false, -1},
		{"one that writes less is told what is written", "4", 5, 1, 3, false, 5},
	} {
		app := withSchema(t, step.program, step.number, step.lowest)
		app.Services[0].Count = kbroker.Count{Min: step.count, Max: step.count}
		before := c.view.Apps[webKey]
		d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: app}, time.Time{})
		if step.want < 0 {
			if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || !strings.Contains(e.Message, "the objects account of app \"shop\" are written in schema") {
				t.Errorf("%s: %v, want it refused", step.name, err)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		c.apply(d.changes)
		if !step.unsettled {
			c.settle()
			c.now += time.Minute
			c.settle()
		}
		rec := c.view.Apps[webKey]
		if got := rec.WriteSchemas["account"]; got != step.want || got < before.WriteSchemas["account"] {
			t.Errorf("%s: schema %d is written, want %d", step.name, got, step.want)
		}
		if step.unsettled {
			continue
		}
		if rec.Rollout.State != kbroker.RolloutDone {
			t.Fatalf("%s: the rollout is %+v", step.name, rec.Rollout)
		}
		for _, p := range c.view.Placements {
			if !p.Stop && p.Service == "web" && (p.WriteSchemas["account"] != step.want || p.Spec.Schema("account").Number < step.want) {
				t.Errorf("%s: instance %s of a program with schema %d is told to write %d", step.name, p.Instance, p.Spec.Schema("account").Number, p.WriteSchemas["account"])
			}
		}
	}
	if _, err := decideRollback(&c.view, kbroker.RollbackRequest{Tenant: tenant, App: "shop", Version: 1}, time.Time{}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a rollback to the first version: %v, want it refused", err)
	}
	dry := kbroker.DeployRequest{Tenant: tenant, App: withSchema(t, "9", 2, 1), DryRun: true}
	if _, err := decideDeploy(&c.view, dry, time.Time{}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a dry run of a version that cannot read what is written: %v, want it refused", err)
	}
}

// A rollout that fails does not return by itself to a program that cannot read any more
// what was written.
func TestNoWayBackByItself(t *testing.T) {
	for _, lowest := range []int{1, 2} {
		c := newCluster(t, 3)
		deploy := func(app kbroker.App) {
			t.Helper()
			d, err := decideDeploy(&c.view, kbroker.DeployRequest{Tenant: tenant, App: app}, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			c.apply(d.changes)
		}
		deploy(withSchema(t, "a", 1, 1))
		c.settle()
		bad := withSchema(t, "b", 2, lowest)
		bad.Services[0].Update.AutoRollback = true
		c.broken[2] = true
		deploy(bad)
		for range 400 {
			c.step()
		}
		rec := c.view.Apps[webKey]
		if lowest == 1 && rec.Version != 1 {
			t.Errorf("with a way back: %+v, want version 1", rec)
		}
		if lowest == 2 && (rec.Version != 2 || rec.Rollout.State != kbroker.RolloutFailed || !strings.Contains(rec.Rollout.Reason, "not rolled back: the objects account")) {
			t.Errorf("without a way back: %+v, want version 2, failed", rec)
		}
	}
}

func TestAPlanNamesSchemas(t *testing.T) {
	a, b := withSchema(t, "a", 1, 1).Services[0], withSchema(t, "a", 3, 2).Services[0]
	if words := strings.Join(changedWords(a, b), "; "); words != "objects account schema 1 -> 3, which the old program cannot read: no way back" {
		t.Errorf("the words are %q", words)
	}
	b = withSchema(t, "a", 3, 1).Services[0]
	if words := strings.Join(changedWords(a, b), "; "); words != "objects account schema 1 -> 3" {
		t.Errorf("the words are %q", words)
	}
}
