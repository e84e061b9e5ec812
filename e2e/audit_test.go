package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

// verified is what `audit --verify` prints of an intact trail.
type verified struct {
	Intact  bool     `json:"intact"`
	Records int      `json:"records"`
	Rescues []uint64 `json:"rescues"`
}

// intact holds that the audit trail is, and returns what was found.
func (c *cluster) intact() (v verified) {
	c.t.Helper()
	out := c.must("audit", "--verify", "-o", "json")
	if err := json.Unmarshal([]byte(out), &v); err != nil || !v.Intact || v.Records == 0 {
		c.t.Errorf("the audit trail is %s: %v, want it intact", out, err)
	}
	return v
}

// trail is the whole audit trail.
func (c *cluster) trail() ([]kbroker.AuditRecord, error) {
	return list[kbroker.AuditRecord](c, "audit", "-n", "100000")
}

// TestEveryChangeAndRefusalIsInTheAuditTrail: of a founded cluster there is the foundation;
// then who did what; and leaders that are killed between a change and its record lose none.
func TestEveryChangeAndRefusalIsInTheAuditTrail(t *testing.T) {
	c := up(t, 1)
	if all, err := c.trail(); err != nil || len(all) == 0 || all[0].Action != kbroker.AuditFound || all[0].Number != 1 {
		t.Errorf("a new cluster has %s, %v; want its foundation first", show(all), err)
	}
	c.must("deploy", "../examples/hello/app.yaml")
	c.must("scale", "hello", "2")
	if _, code := c.try("scale", "hello", "99999999"); code == 0 {
		t.Error("a scale to 99999999 was taken")
	}
	token := c.token(t.TempDir(), kbroker.RoleWorker)
	joins := func(host string) (string, int) {
		return c.try("agent", "--dir", c.host(host), "--name", host, "--role", "core", "--advertise", "127.0.0.1", "--join", strings.TrimPrefix(mustFind(c).Servers[0], "nats://"), "--token-file", token)
	}
	if out, code := joins("h9"); code != 4 {
		t.Errorf("a core with the token of a worker: exit code %d, want 4: %s", code, out)
	}
	viewer := &cluster{t: t, dir: t.TempDir()}
	err := client.WriteContext(viewer.dir, client.Context{
		Tenant: kbroker.DefaultTenant, Servers: mustFind(c).Servers, CA: rootsIn(t, c.host("h1")), Credential: c.creds(c.host("h1"), "viewer"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, code := viewer.try("scale", "hello", "3"); code != 4 {
		t.Errorf("a viewer scales: exit code %d, want 4: %s", code, out)
	}
	if out, code := viewer.try("audit"); code != 4 {
		t.Errorf("a viewer reads the trail: exit code %d, want 4: %s", code, out)
	}
	var all []kbroker.AuditRecord
	for _, want := range []struct {
		what    string
		matches func(r kbroker.AuditRecord) bool
	}{
		{"the deploy", func(r kbroker.AuditRecord) bool {
			return r.Action == "deploy" && r.Object == "app hello" && r.Changes > 0
		}},
		{"the scale", func(r kbroker.AuditRecord) bool {
			return r.Action == "scale" && r.Outcome == kbroker.AuditDone && r.Actor.Role == "admin" && r.Actor.Address == "127.0.0.1"
		}},
		{"the refused scale", func(r kbroker.AuditRecord) bool { return r.Action == "scale" && r.Code == kbroker.Invalid }},
		{"the token", func(r kbroker.AuditRecord) bool { return r.Action == "create" && strings.HasPrefix(r.Object, "token ") }},
		{"the refused join", func(r kbroker.AuditRecord) bool {
			return r.Action == "join" && r.Actor.Host == "h9" && r.Outcome == kbroker.AuditRefused
		}},
		{"the viewer that published", func(r kbroker.AuditRecord) bool {
			return r.Action == "publish" && r.Actor.Role == "viewer" && strings.HasPrefix(r.Object, "subject kb.super.scale.default.") && r.Actor.Address == "127.0.0.1"
		}},
	} {
		wait.Until(t, 10*time.Second, func() (err error) {
			if all, err = c.trail(); err != nil {
				return err
			}
			for _, r := range all {
				if want.matches(r) {
					return nil
				}
			}
			return fmt.Errorf("%s is in none of the records %s", want.what, show(all))
		})
	}
	if v := c.intact(); v.Records < len(all) {
		t.Errorf("%d records are verified, want %d or more", v.Records, len(all))
	}
}

// TestTheAuditTrailOutlivesItsLeaders: twice the leader is killed while the number of
// instances is changed all the time. Each change that was acknowledged is told once.
func TestTheAuditTrailOutlivesItsLeaders(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	c.whole(30 * time.Second)
	api, err := client.Open(t.Context(), mustFind(c), "kbroker audit test")
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	acked := map[int]bool{} // versions
	ctx, end := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		pace := time.NewTicker(200 * time.Millisecond)
		defer pace.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			<-pace.C
			attempt, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			if reply, err := api.Scale(attempt, "hello", "", 3+n%2); err == nil && reply.Version > 1 {
				acked[reply.Version] = true
			}
			cancel()
		}
	}()
	for range 2 {
		<-time.After(2 * time.Second) // of changes
		host := c.super()
		c.kill(host, false)
		wait.Until(t, 30*time.Second, func() error {
			if now := c.super(); now == host {
				return fmt.Errorf("host %s leads, which was killed", now)
			}
			return nil
		})
		c.up()
		c.whole(60 * time.Second)
	}
	end()
	<-done
	version := regexp.MustCompile(`^version (\d+), by scale`)
	wait.Until(t, 20*time.Second, func() error {
		all, err := c.trail()
		if err != nil {
			return err
		}
		told := map[int]int{}
		for _, r := range all {
			if m := version.FindStringSubmatch(r.Message); m != nil && r.Outcome == kbroker.AuditDone {
				var n int
				_, _ = fmt.Sscan(m[1], &n)
				told[n]++
			}
		}
		for v := range acked {
			if told[v] != 1 {
				return fmt.Errorf("version %d was acknowledged and is told %d times", v, told[v])
			}
		}
		for v, n := range told {
			if n > 1 {
				return fmt.Errorf("version %d is told %d times", v, n)
			}
		}
		return nil
	})
	v := c.intact()
	t.Logf("%d changes were acknowledged, and %d records are intact", len(acked), v.Records)
	if len(acked) < 10 {
		t.Errorf("%d changes are too few to say something", len(acked))
	}
}

func mustFind(c *cluster) client.Target {
	c.t.Helper()
	target, err := client.Find(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	return target
}
