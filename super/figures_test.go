package super

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// figuresMessage is a message of a host about one instance.
func figuresMessage(t *testing.T, on, says kbroker.HostID, instance kbroker.InstanceID, cores float64) *nats.Msg {
	t.Helper()
	b, err := json.Marshal(kbroker.Figures{Host: says, Machine: kbroker.HostFigures{CPUCores: &cores}, Instances: []kbroker.InstanceMeasure{
		{Tenant: tenant, Instance: instance, InstanceFigures: kbroker.InstanceFigures{CPUCores: &cores}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &nats.Msg{Subject: subjects.Figures(on), Data: b}
}

func TestFiguresAreNewsForAWhile(t *testing.T) {
	now := time.Hour
	f := newFigures(func() time.Duration { return now })
	row := func(host kbroker.HostID, pid int) kbroker.InstanceRow {
		id := kbroker.InstanceID("shop-web-1")
		r := kbroker.InstanceRow{Tenant: tenant, Instance: &id, Host: &host}
		if pid > 0 {
			r.PID = &pid
		}
		return r
	}
	see := func(what string, r kbroker.InstanceRow, want string) {
		t.Helper()
		rows := []kbroker.InstanceRow{r}
		f.addTo(rows)
		got := "unknown"
		if rows[0].Figures != nil {
			got = fmt.Sprintf("%.1f cores, %.0f s old", *rows[0].Figures.CPUCores, rows[0].Figures.AgeS)
		}
		if got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	see("before anything is heard", row("h1", 7), "unknown")
	f.take(figuresMessage(t, "h1", "h1", "shop-web-1", 0.5))
	see("heard now", row("h1", 7), "0.5 cores, 0 s old")
	see("without a process", row("h1", 0), "unknown")
	left := row("h1", 7)
	left.State = kbroker.StateUnmanaged
	see("whose agent is not heard", left, "unknown")
	see("on another host", row("h2", 7), "unknown")
	see("not placed", kbroker.InstanceRow{Tenant: tenant}, "unknown")
	now += 4 * time.Second
	see("a bit later", row("h1", 7), "0.5 cores, 4 s old")
	f.take(figuresMessage(t, "h1", "h1", "shop-web-1", 0.7))
	see("heard anew", row("h1", 7), "0.7 cores, 0 s old")
	now += kbroker.FiguresFor
	see("old", row("h1", 7), "unknown")

	f.take(figuresMessage(t, "h1", "h2", "shop-web-1", 0.9))
	see("in the name of another host", row("h2", 7), "unknown")
	see("and not of its own", row("h1", 7), "unknown")
	f.take(&nats.Msg{Subject: subjects.Figures("h1"), Data: []byte("garbage")})
	see("of another version", row("h1", 7), "unknown")
	f.take(figuresMessage(t, "h1", "h1", "shop-web-2", 0.9))
	see("of its neighbour", row("h1", 7), "unknown")

	hosts := []kbroker.HostRow{{Name: "h1", PID: new(3)}, {Name: "h2", PID: new(3)}, {Name: "h1"}}
	f.addToHosts(hosts)
	if hosts[0].Figures == nil || *hosts[0].Figures.CPUCores != 0.9 || hosts[1].Figures != nil || hosts[2].Figures != nil {
		t.Errorf("hosts have %+v", hosts)
	}
}

func TestFiguresOfHostsThatAreGoneAreForgotten(t *testing.T) {
	now := time.Hour
	f := newFigures(func() time.Duration { return now })
	for i := range 100 {
		host := kbroker.HostID(fmt.Sprint("h", i))
		f.take(figuresMessage(t, host, host, "i", 1))
		now += time.Second
	}
	if n := len(f.of); n > int(kbroker.FiguresFor/time.Second)+1 {
		t.Errorf("the figures of %d hosts are kept", n)
	}
}

func TestFiguresReachTheRows(t *testing.T) {
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	var deployed kbroker.DeployReply
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &deployed)
	})
	var view kbroker.ViewReply
	wait.Until(t, 10*time.Second, func() error {
		err := d.ask(subjects.View("h1"), kbroker.ViewRequest{Host: "h1"}, &view)
		if err == nil && len(view.Placements) == 0 {
			err = fmt.Errorf("nothing is placed")
		}
		return err
	})
	p := view.Placements[0]
	report := kbroker.ReportRequest{Host: "h1", Process: "p1", Number: 1, Statuses: []kbroker.Status{{
		Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: p.Host, Version: p.Version, Epoch: p.Epoch, State: kbroker.StateReady, PID: 42,
	}}}
	var accepted kbroker.ReportReply
	if err := d.ask(subjects.Report("h1"), report, &accepted); err != nil || !accepted.Accepted {
		t.Fatalf("report: %+v, %v; want accepted", accepted, err)
	}
	if err := d.nc.PublishMsg(figuresMessage(t, "h1", "h1", p.Instance, 0.5)); err != nil {
		t.Fatal(err)
	}
	cores := func(rows []kbroker.InstanceRow) (n int) {
		for _, r := range rows {
			if r.Figures != nil && *r.Instance == p.Instance && *r.Figures.CPUCores == 0.5 {
				n++
			}
		}
		return n
	}
	for _, wide := range []bool{true, false} {
		wait.Until(t, 5*time.Second, func() error {
			var rows []kbroker.InstanceRow
			if err := d.ask(subjects.Core(subjects.VerbInstances, tenant), kbroker.ListRequest{Wide: wide}, &rows); err != nil || len(rows) == 0 {
				return fmt.Errorf("%d rows, %w", len(rows), err)
			}
			if n := cores(rows); (n == 1) != wide {
				return fmt.Errorf("asked for figures: %t, %d rows have them", wide, n)
			}
			return nil
		})
	}
	var hosts []kbroker.HostRow
	if err := d.ask(subjects.Core(subjects.VerbHosts, tenant), kbroker.ListRequest{}, &hosts); err != nil || len(hosts) != 1 || hosts[0].Figures == nil {
		t.Errorf("hosts are %+v, %v; want one with figures", hosts, err)
	}
	for app, want := range map[kbroker.AppName]int{"": 1, "shop": 1, "other": 0} {
		var all kbroker.FiguresReply
		if err := d.ask(subjects.Core(subjects.VerbFigures, tenant), kbroker.ListRequest{App: app}, &all); err != nil ||
			all.Core != "h1" || len(all.Hosts) != 1 || all.Hosts[0].Figures == nil || cores(all.Instances) != want {
			t.Errorf("of app %q: %+v, %v; want one host, and %d instances with figures", app, all, err, want)
		}
	}
}
