package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

// signal sends a signal to the processes of a host (empty: of all) whose command
// line contains what (empty: any), and returns how many there were.
func (c *cluster) signal(host, what string, sig syscall.Signal) int {
	c.t.Helper()
	sent := 0
	for pid, cmd := range c.processes(host) {
		if strings.Contains(cmd, what) && syscall.Kill(pid, sig) == nil {
			sent++
		}
	}
	return sent
}

const (
	agents     = " agent "
	allocators = " builtin allocator"
)

// super is the host whose agent leads.
func (c *cluster) super() string {
	c.t.Helper()
	var name string
	wait.Until(c.t, 15*time.Second, func() error {
		rows, err := list[kbroker.HostRow](c, "hosts")
		for _, h := range rows {
			if h.Super {
				name = string(h.Name)
				return nil
			}
		}
		return fmt.Errorf("no host is the super: %s, %w", show(rows), err)
	})
	return name
}

// other is a host that is not this one.
func other(host string) string {
	if host == "h1" {
		return "h2"
	}
	return "h1"
}

// whole waits until all hosts are ready, and the control store has the replicas
// that so many hosts can have.
func (c *cluster) whole(timeout time.Duration) {
	c.t.Helper()
	replicas := 1
	if c.hosts >= 3 {
		replicas = 3
	}
	wait.Until(c.t, timeout, func() error {
		if err := allReady(c); err != nil {
			return err
		}
		s, err := c.status()
		if err == nil && (!s.Writable || s.Leader == nil || s.Hosts != c.hosts || s.Replicas != replicas) {
			err = fmt.Errorf("status %s, want %d hosts, %d replicas, writable and led", show(s), c.hosts, replicas)
		}
		return err
	})
}

// status is what `status` prints; with exit code 3 too, if it prints anything.
func (c *cluster) status() (kbroker.StatusReply, error) {
	var s kbroker.StatusReply
	cmd := c.client(context.Background(), kbrokerBin, "status", "-o", "json", "--context", c.dir)
	out, err := cmd.Output()
	if jErr := json.Unmarshal(out, &s); jErr != nil {
		return s, fmt.Errorf("status printed %q: %w, %w", out, jErr, err)
	}
	return s, nil
}

// settled waits until an app runs with so many instances, ready and where a
// process is, and its two allocators; and holds that nothing else runs beside.
func (c *cluster) settled(timeout time.Duration, app string, want int) {
	c.t.Helper()
	c.allSettled(timeout, map[string]int{app: want})
}

// allSettled is settled for several apps beside each other.
func (c *cluster) allSettled(timeout time.Duration, want map[string]int) {
	c.t.Helper()
	wait.Until(c.t, timeout, func() error {
		var rows []kbroker.InstanceRow
		for app, count := range want {
			for service, n := range map[string]int{app: count, string(kbroker.AllocatorService): 2} {
				ready, err := c.ready(app, service, n, nil)
				if err != nil {
					return err
				}
				rows = append(rows, ready...)
			}
		}
		running := c.processes("")
		for pid, cmd := range running {
			if strings.Contains(cmd, agents) {
				delete(running, pid)
			}
		}
		for _, r := range rows {
			if _, ok := running[*r.PID]; !ok {
				return fmt.Errorf("%s is ready with pid %d, which does not run", *r.Instance, *r.PID)
			}
			delete(running, *r.PID)
		}
		if len(running) > 0 {
			return fmt.Errorf("processes that no row names: %v; rows: %s", running, show(rows))
		}
		return nil
	})
}

// TestDataPathNeedsNobody: with the allocators, the super and all agents but
// one core's away, warm calls go on. People can look, and are told that nothing
// can be changed; `up` heals it without touching an instance.
func TestDataPathNeedsNobody(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	before := map[int]bool{}
	for _, r := range c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil) {
		before[*r.PID] = true
	}
	kept := other(c.super())
	end := c.load(30 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	for _, host := range []string{"h1", "h2", "h3"} {
		if host != kept {
			c.kill(host, true)
			c.signal(host, allocators, syscall.SIGKILL)
		}
	}
	c.signal(kept, allocators, syscall.SIGSTOP) // killed, it would be started again
	wait.Until(t, 15*time.Second, func() error {
		s, err := c.status()
		if err == nil && (s.Leader != nil || s.Writable) {
			err = fmt.Errorf("status %s, want no leader and no writes", show(s))
		}
		return err
	})
	if out, code := c.try("status"); code != 3 || !strings.Contains(out, "no super leads") {
		t.Errorf("status without a majority: exit code %d, want 3 and the reason:\n%s", code, out)
	}
	if rows, err := list[kbroker.InstanceRow](c, "ps"); err != nil || len(rows) != 5 {
		t.Errorf("ps without a majority: %d rows, %v; want 5", len(rows), err)
	}
	began := time.Now()
	if out, code := c.try("scale", "wordcount", "4"); code != 3 || !strings.Contains(out, "no leader") || time.Since(began) > 40*time.Second {
		t.Errorf("scale without a majority: exit code %d after %v, want 3 within 40 s:\n%s", code, time.Since(began), out)
	}
	end()
	c.signal(kept, allocators, syscall.SIGCONT)
	c.up()
	c.settled(20*time.Second, "wordcount", 3)
	for _, r := range c.waitReady(0, "wordcount", "wordcount", 3, nil) {
		if !before[*r.PID] {
			t.Errorf("%s was started again as %d", *r.Instance, *r.PID)
		}
	}
}

// TestTwoHostsDead: the third answers all calls and says what is wrong; `up`
// heals it.
func TestTwoHostsDead(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	end := c.load(20 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	c.kill("h1", false)
	c.kill("h2", false)
	wait.Until(t, 15*time.Second, func() error {
		if out, code := c.try("status"); code != 3 || !strings.Contains(out, "no super leads") {
			return fmt.Errorf("status: exit code %d, want 3 and the reason:\n%s", code, out)
		}
		return nil
	})
	end()
	c.up()
	c.whole(20 * time.Second)
	c.settled(20*time.Second, "wordcount", 3)
}

// TestKillsWhileGrowing kills hosts at random moments of the growth from one
// host with an app to three; `up` again always gets there, with the app.
func TestKillsWhileGrowing(t *testing.T) {
	needLong(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for round := range 4 {
		t.Run(strconv.Itoa(round), func(t *testing.T) {
			c := up(t, 1)
			c.must("deploy", "../examples/hello/app.yaml")
			c.must("scale", "hello", "4")
			apps := c.must("apps", "-o", "json")
			c.hosts = 3
			for range 1 + random.IntN(3) {
				victim, only := []string{"h1", "h2", "h3", ""}[random.IntN(4)], []string{agents, ""}[random.IntN(2)]
				after := time.Duration(random.Int64N(int64(4 * time.Second)))
				upped := make(chan struct{})
				go func() {
					defer close(upped)
					// It fails when its agents are killed under it.
					_, _ = c.try("up", "--hosts", "3", "--dir", c.dir, "--timeout", "10s")
				}()
				<-time.After(after)
				n := c.signal(victim, only, syscall.SIGKILL)
				t.Logf("killed %d processes of host %q (%q) after %v", n, victim, only, after)
				<-upped
			}
			c.up()
			if s, err := c.status(); err != nil || s.Replicas != 3 {
				t.Errorf("status right after up: %s, %v; want three replicas", show(s), err)
			}
			c.whole(20 * time.Second)
			c.settled(30*time.Second, "hello", 4)
			if out := c.must("call", "hello", "greet", "name=Eve"); !strings.Contains(out, "Hello, Eve") {
				t.Errorf("hello answered %q", out)
			}
			wait.Until(t, 10*time.Second, func() error {
				if now := c.must("apps", "-o", "json"); now != apps {
					return fmt.Errorf("apps before:\n%s\nafter:\n%s", apps, now)
				}
				return nil
			})
		})
	}
}

// TestFrozenHost stops every process of a host for a while, the super's too:
// its instances are replaced, and when it wakes up the old ones leave.
func TestFrozenHost(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	for _, role := range []string{"super", "other"} {
		host := c.super()
		if role == "other" { // of those that run something
			for _, r := range c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil) {
				if string(*r.Host) != c.super() {
					host = string(*r.Host)
				}
			}
		}
		end := c.load(25 * time.Second)
		wait.Until(t, 10*time.Second, func() error { return answering(c) })
		began := time.Now()
		if c.signal(host, "", syscall.SIGSTOP) == 0 {
			t.Fatalf("host %s has no process", host)
		}
		t.Cleanup(func() { c.signal(host, "", syscall.SIGCONT) })
		t.Logf("%s (the %s) is frozen: its instances ready elsewhere after %v", host, role, c.elsewhere(began, "wordcount", 3, host))
		c.signal(host, "", syscall.SIGCONT)
		end()
		c.whole(20 * time.Second)
		c.settled(20*time.Second, "wordcount", 3)
	}
}

// TestKillHostDuringDeploy kills a host in the middle of a rolling deploy under
// load, the super among them: the rollout ends by itself.
func TestKillHostDuringDeploy(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range 2 {
		host := c.super()
		if i == 1 {
			host = other(host)
		}
		edited := c.example("wordcount", func(s string) string {
			return strings.Replace(s, "    run:", fmt.Sprintf("    env: {ROUND: %q}\n    run:", fmt.Sprint(i)), 1)
		})
		end := c.load(25 * time.Second)
		wait.Until(t, 10*time.Second, func() error { return answering(c) })
		type outcome struct {
			out  string
			code int
		}
		deployed := make(chan outcome, 1)
		go func() {
			defer close(deployed)
			out, code := c.try("deploy", edited)
			deployed <- outcome{out, code}
		}()
		after := 500*time.Millisecond + time.Duration(random.Int64N(int64(3*time.Second)))
		<-time.After(after)
		c.kill(host, false)
		t.Logf("host %s killed %v after the start of deploy", host, after)
		if got := <-deployed; got.code != 0 {
			t.Errorf("deploy: exit code %d:\n%s", got.code, got.out)
		}
		end()
		c.waitReady(20*time.Second, "wordcount", "wordcount", 3, func(r kbroker.InstanceRow) bool { return r.Version == i+2 })
		c.up()
		c.whole(20 * time.Second)
		c.settled(20*time.Second, "wordcount", 3)
	}
}

// TestTwoHosts: two hosts work, apps go on when either has died, and `up` heals
// both cases. What the second ran is placed on the founder.
func TestTwoHosts(t *testing.T) {
	needLong(t)
	c := up(t, 2)
	c.must("deploy", "../examples/hello/app.yaml")
	for _, host := range []string{"h2", "h1"} {
		c.settled(20*time.Second, "hello", 3)
		killed := time.Now()
		c.kill(host, false)
		wait.Until(t, 10*time.Second, func() error {
			if out, code := c.try("call", "hello", "greet", "name=Ann"); code != 0 {
				return fmt.Errorf("call with %s dead: exit code %d: %s", host, code, out)
			}
			return nil
		})
		if host == "h2" {
			c.elsewhere(killed, "hello", 3, host)
		}
		c.up()
		c.whole(20 * time.Second)
		wait.Until(t, time.Minute, func() error { return apart(c, "hello", 3) }) // both must have one before the other may die
	}
	c.settled(20*time.Second, "hello", 3)
}

// apart holds that not all instances of an app are on one host.
func apart(c *cluster, app string, want int) error {
	rows, err := c.ready(app, app, want, nil)
	if err == nil && !slices.ContainsFunc(rows, func(r kbroker.InstanceRow) bool { return *r.Host != *rows[0].Host }) {
		err = fmt.Errorf("all instances are on %s", *rows[0].Host)
	}
	return err
}

// TestTheSecondOfTwoIsGone: the founder says so, removes it, and takes another in
// its place.
func TestTheSecondOfTwoIsGone(t *testing.T) {
	needLong(t)
	c := up(t, 2)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.settled(20*time.Second, "wordcount", 3)
	end := c.load(20 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	killed := time.Now()
	c.kill("h2", false)
	t.Logf("kill -9 of the second of two hosts: its instances ready elsewhere after %v", c.elsewhere(killed, "wordcount", 3, "h2"))
	found, err := c.findings()
	if err != nil || !slices.ContainsFunc(found, func(f client.Finding) bool { return strings.Contains(f.Message, "kbroker remove h2") }) {
		t.Errorf("doctor finds %+v, %v; want that h2 may have to be removed", found, err)
	}
	c.must("remove", "h2")
	if err := os.RemoveAll(c.host("h2")); err != nil {
		t.Fatal(err)
	}
	c.up()
	end()
	c.whole(20 * time.Second)
	c.settled(20*time.Second, "wordcount", 3)
	rows := c.hostRows()
	if len(rows) != 2 || string(rows[1].Name) != "h3" || rows[1].Role != kbroker.RoleCore {
		t.Errorf("hosts are %s, want h1 and the core h3", show(rows))
	}
}

// TestUpDownAgainAndAgain: each time everything comes back, and nothing else.
func TestUpDownAgainAndAgain(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	ports := len(c.ports())
	for range 4 {
		c.must("down", "--dir", c.dir)
		if left := c.processes(""); len(left) > 0 {
			t.Fatalf("processes left after down: %v", left)
		}
		c.up()
		c.whole(20 * time.Second)
		c.settled(20*time.Second, "hello", 3)
		if now := len(c.ports()); now > ports {
			t.Errorf("%d listening ports, %d before", now, ports)
		}
	}
}
