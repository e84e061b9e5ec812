package client

import (
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestExamineAsksEveryHost(t *testing.T) {
	c := newCluster(t)
	rows := []kbroker.HostRow{{Name: "h1", State: kbroker.HostReady}, {Name: "h2", State: kbroker.HostReady}, {Name: "h3", State: kbroker.HostReady}}
	c.serve(subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant), func(*nats.Msg) any { return rows })
	c.serve(subjects.Core(subjects.VerbStatus, kbroker.DefaultTenant), func(*nats.Msg) any { return kbroker.StatusReply{Writable: true} })
	c.serve(subjects.Core(subjects.VerbApps, kbroker.DefaultTenant), func(*nats.Msg) any { return []kbroker.AppRow{{App: "shop"}} })
	c.serve(subjects.Core(subjects.VerbInstances, kbroker.DefaultTenant), func(*nats.Msg) any { return []kbroker.InstanceRow{{App: "shop"}} })
	c.serve(subjects.Host("h1", subjects.VerbCheckup, kbroker.DefaultTenant), func(*nats.Msg) any { return kbroker.Checkup{PID: 7, Now: time.Now().Add(time.Hour)} })
	c.serve(subjects.Host("h2", subjects.VerbCheckup, kbroker.DefaultTenant), func(*nats.Msg) any { return kbroker.Errorf(kbroker.Unavailable, "too much to do") })

	f, err := c.client().Examine(t.Context(), "1.0")
	if err != nil {
		t.Fatalf("Examine: %v", err)
	}
	if !f.Status.Writable || len(f.Hosts) != 3 || len(f.Apps) != 1 || len(f.Instances) != 1 || f.Version != "1.0" || f.Now.IsZero() {
		t.Errorf("facts %+v", f)
	}
	if got := f.Checkups["h1"]; got.Err != nil || got.PID != 7 || got.Ahead < 59*time.Minute || got.Ahead > time.Hour {
		t.Errorf("h1: %+v, want pid 7 and an hour ahead", got)
	}
	for _, host := range []kbroker.HostID{"h2", "h3"} { // says no; says nothing
		if err := f.Checkups[host].Err; !errors.Is(err, kbroker.Unavailable) {
			t.Errorf("%s: %v, want unavailable", host, err)
		}
	}
}

func TestExamineNeedsACore(t *testing.T) {
	c := newCluster(t)
	if _, err := c.client().Examine(t.Context(), "1.0"); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("%v, want unavailable", err)
	}
}
