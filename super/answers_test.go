package super

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestACoreTellsTheStory: what was decided and what was reported is answered as
// events, as history and as reasons.
func TestACoreTellsTheStory(t *testing.T) {
	d := startSuper(t)
	write := func(verb string, request any) kbroker.DeployReply {
		t.Helper()
		var reply kbroker.DeployReply
		wait.Until(t, 10*time.Second, func() error { return d.ask(subjects.Super(verb, tenant, subjects.NoKey), request, &reply) })
		return reply
	}
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	write(subjects.VerbDeploy, kbroker.DeployRequest{App: app})
	var view kbroker.ViewReply
	wait.Until(t, 10*time.Second, func() error {
		if err := d.ask(subjects.View("h1"), kbroker.ViewRequest{Host: "h1"}, &view); err != nil {
			return err
		}
		if len(view.Placements) != 5 {
			return fmt.Errorf("%d placements, want 5", len(view.Placements))
		}
		return nil
	})
	var one kbroker.Placement
	report := kbroker.ReportRequest{Host: "h1", Process: "p1", Number: 1}
	for _, p := range view.Placements {
		if p.Service == "web" && one.Instance == "" {
			one = p
		}
		report.Statuses = append(report.Statuses, kbroker.Status{
			Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: p.Host, Version: p.Version, Epoch: p.Epoch,
			State: kbroker.StateReady, PID: 42, Incarnation: kbroker.Incarnation(string(p.Instance) + ".a"),
		})
	}
	var accepted kbroker.ReportReply
	if err := d.ask(subjects.Report("h1"), report, &accepted); err != nil || !accepted.Accepted {
		t.Fatalf("report: %+v, %v", accepted, err)
	}

	events := func(r kbroker.EventsRequest) (page kbroker.EventsReply) {
		t.Helper()
		if err := d.ask(subjects.Core(subjects.VerbEvents, tenant), r, &page); err != nil {
			t.Fatalf("events: %v", err)
		}
		return page
	}
	var page kbroker.EventsReply
	wait.Until(t, 10*time.Second, func() error {
		page = events(kbroker.EventsRequest{App: "shop", Instance: one.Instance})
		if len(page.Events) != 2 || page.Events[0].Kind != kbroker.EventPlaced || page.Events[1].Kind != kbroker.EventReady {
			return fmt.Errorf("events of %s are %+v, want placed and ready", one.Instance, page.Events)
		}
		return nil
	})
	if by := []string{page.Events[0].By, page.Events[1].By}; !slices.Equal(by, []string{"super h1 epoch 1", "agent h1"}) {
		t.Errorf("they are by %q, want super and agent", by)
	}
	var kinds []string
	for _, e := range events(kbroker.EventsRequest{}).Events {
		if e.Host != "" && e.App == "" {
			kinds = append(kinds, string(e.Kind))
		}
	}
	if !slices.Equal(kinds, []string{"leader", "host_ready"}) {
		t.Errorf("events of the host are %v, want that it leads and is ready", kinds)
	}

	var rows []kbroker.HistoryRow
	if err := d.ask(subjects.Core(subjects.VerbHistory, tenant), kbroker.ListRequest{App: "shop"}, &rows); err != nil || len(rows) != 1 || !rows[0].Wanted {
		t.Errorf("history is %+v, %v; want version 1, wanted", rows, err)
	}
	var why kbroker.WhyReply
	if err := d.ask(subjects.Core(subjects.VerbWhy, tenant), kbroker.WhyRequest{App: "shop", Instance: one.Instance}, &why); err != nil || why.Instance == nil ||
		why.Instance.State != kbroker.StateReady || len(why.Instance.Events) != 2 || why.Basis.Leader == nil || !why.Basis.Current {
		t.Errorf("why is %+v, %v; want ready, with its two events, on a current store with a leader", why, err)
	}
	for name, request := range map[string]kbroker.WhyRequest{
		"no such app": {App: "none"}, "no such instance": {App: "shop", Instance: "shop-web-99"},
	} {
		if err := d.ask(subjects.Core(subjects.VerbWhy, tenant), request, &why); !errors.Is(err, kbroker.NotFound) {
			t.Errorf("why of %s: %v, want not found", name, err)
		}
	}
	var invalid kbroker.EventsReply
	if err := d.ask(subjects.Core(subjects.VerbEvents, tenant), kbroker.EventsRequest{App: "shop", Instance: "a.>"}, &invalid); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("events of a wildcard: %v, want invalid", err)
	}
}

// TestAPlanAndARollbackOverTheWire also covers the program that is gone.
func TestAPlanAndARollbackOverTheWire(t *testing.T) {
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	var plan kbroker.PlanReply
	wait.Until(t, 10*time.Second, func() error {
		err := d.ask(subjects.Core(subjects.VerbPlan, tenant), kbroker.PlanRequest{App: app}, &plan)
		if err == nil && plan.Starts != 3 { // the host has not been judged yet
			err = fmt.Errorf("plan is %+v, want 3 to start", plan)
		}
		return err
	})
	var deployed kbroker.DeployReply
	deploy := kbroker.DeployRequest{App: app, CheckIndex: plan.CheckIndex + 1}
	wait.Until(t, 10*time.Second, func() error {
		if err := d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), deploy, &deployed); !errors.Is(err, kbroker.Refused) {
			return fmt.Errorf("deploy of another plan: %v, want refused", err)
		}
		return nil
	})
	wait.Until(t, 10*time.Second, func() error {
		var page kbroker.EventsReply
		if err := d.ask(subjects.Core(subjects.VerbEvents, tenant), kbroker.EventsRequest{App: "shop"}, &page); err != nil {
			return err
		}
		if n := len(page.Events); n != 1 || page.Events[0].Kind != kbroker.EventRefused {
			return fmt.Errorf("%d events, want one refusal: %+v", n, page.Events)
		}
		return nil
	})
	deploy.CheckIndex = plan.CheckIndex
	if err := d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), deploy, &deployed); err != nil {
		t.Fatalf("deploy of the plan: %v", err)
	}
	// A version whose program nobody uploaded cannot come from a deploy.
	lost := app
	lost.Services = slices.Clone(app.Services)
	lost.Services[0].Artifact = kbroker.Artifact{SHA256: strings.Repeat("e", 64), SizeBytes: 1}
	if err := d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: lost}, &deployed); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("deploy without its program: %v, want invalid", err)
	}
	if err := d.ask(subjects.Super(subjects.VerbRollback, tenant, subjects.NoKey), kbroker.RollbackRequest{App: "shop", Version: 9}, &deployed); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("rollback to what never was: %v, want not found", err)
	}
	if err := d.ask(subjects.Super(subjects.VerbRestart, tenant, subjects.NoKey), kbroker.RestartRequest{App: "shop", Request: "r"}, &deployed); err != nil || deployed.Version != 2 {
		t.Errorf("restart: %+v, %v; want version 2", deployed, err)
	}
}
