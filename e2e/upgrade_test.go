package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
)

// TestUpgradeEachHost upgrades the agents of three cores and a worker in turn
// under load: no request fails, also of a method that may not be repeated, and
// no application is restarted.
func TestUpgradeEachHost(t *testing.T) {
	needLong(t)
	c := upgradable(t)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.must("deploy", c.once())
	for _, app := range []string{"wordcount", "once"} {
		c.waitReady(20*time.Second, app, app, 3, nil)
	}
	before := c.incarnations()
	const duration = 100 * time.Second // each is on trial for 10 s and more
	end := c.load(duration)
	endOnce := c.callOnce(200)
	began := time.Now()
	for _, host := range []string{"h1", "h2", "h3", "h4"} {
		program := c.newProgram()
		wait.Until(t, 20*time.Second, func() error { return c.upgrade(host, "--binary", program) })
		if rows := c.hostRows(); len(rows) != 4 {
			t.Errorf("hosts are %s", show(rows))
		}
	}
	if took := time.Since(began); took > duration {
		t.Errorf("the upgrades took %v, longer than the load", took)
	}
	endOnce()
	end()
	if after := c.incarnations(); !maps.Equal(before, after) {
		t.Errorf("instances are\n%v, want the processes of before:\n%v", after, before)
	}
}

// incarnations are the processes of all instances, allocators too, once each is
// ready: none that was not there before, none moved, none restarted.
func (c *cluster) incarnations() map[kbroker.InstanceID]string {
	c.t.Helper()
	out := map[kbroker.InstanceID]string{}
	wait.Until(c.t, 20*time.Second, func() error {
		clear(out)
		rows, err := list[kbroker.InstanceRow](c, "ps")
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.State != kbroker.StateReady || r.PID == nil || r.Host == nil {
				return fmt.Errorf("not all are ready: %s", show(rows))
			}
			out[*r.Instance] = fmt.Sprintf("pid %d on %s, %d restarts", *r.PID, *r.Host, r.Restarts)
		}
		return nil
	})
	return out
}

// TestUpgradeIsRefused while another core is dead.
func TestUpgradeIsRefused(t *testing.T) {
	needLong(t)
	c := upgradable(t)
	c.kill("h3", false)
	wait.Until(t, 10*time.Second, func() error {
		out, code := c.try("agent", "upgrade", "--dir", c.host("h1"))
		if code != 4 || !strings.Contains(out, "core h3") || !strings.Contains(out, "hint: ") {
			return fmt.Errorf("exit code %d, want 4, why and a hint: %s", code, out)
		}
		return nil
	})
	c.must("agent", "upgrade", "--dir", c.host("h4")) // a worker stores nothing
	c.up()
	wait.Until(t, 30*time.Second, func() error { return c.upgrade("h1") })
}

// upgradable is a cluster of three cores and a worker that runs from a program
// of its own.
func upgradable(t *testing.T) *cluster {
	t.Helper()
	return upgradableTo(t, 4)
}

func upgradableTo(t *testing.T, hosts int) *cluster {
	t.Helper()
	was := kbrokerBin
	own := filepath.Join(t.TempDir(), "kbroker")
	copyFile(t, was, own)
	kbrokerBin = own
	t.Cleanup(func() { kbrokerBin = was })
	return up(t, hosts)
}

func (c *cluster) host(name string) string { return filepath.Join(c.dir, name) }

// upgrade is nil when the host's agent was upgraded; it may be refused while
// the upgrade before it settles.
func (c *cluster) upgrade(host string, args ...string) error {
	c.t.Helper()
	out, code := c.try(append([]string{"agent", "upgrade", "--dir", c.host(host)}, args...)...)
	c.t.Logf("upgrade of %s: exit code %d\n%s", host, code, out)
	if code != 0 && code != 4 {
		c.t.Fatalf("upgrade of %s: exit code %d", host, code)
	}
	if code != 0 {
		return fmt.Errorf("upgrade of %s: %s", host, out)
	}
	return nil
}

// newProgram is kbroker with other bytes: a program of its own that runs.
func (c *cluster) newProgram() string {
	c.t.Helper()
	path := filepath.Join(c.t.TempDir(), "kbroker")
	copyFile(c.t, kbrokerBin, path)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("\n") // behind what the loader reads
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return path
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, raw, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// once builds the service of testdata/once and returns its spec.
func (c *cluster) once() string {
	c.t.Helper()
	dir := c.t.TempDir()
	if out, err := exec.Command("go", "build", "-o", filepath.Join(dir, "once"), "./testdata/once").CombinedOutput(); err != nil {
		c.t.Fatalf("build: %v\n%s", err, out)
	}
	path := filepath.Join(dir, "app.yaml")
	spec := "name: once\nservices:\n  once:\n    run: once\n    count: 3\n    spread: host\n"
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// callOnce calls a method that may not be repeated, perSecond; end holds that
// each call was answered, and that none was run twice.
func (c *cluster) callOnce(perSecond int) (end func()) {
	c.t.Helper()
	api, err := sdk.Dial(context.Background(), sdk.At(c.dir))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var (
		calls  sync.WaitGroup
		mu     sync.Mutex
		failed []string
		runs   = map[string]int64{} // the most by instance
		sent   int64
		worst  time.Duration
	)
	type answer struct {
		Instance string `json:"instance"`
		Run      int64  `json:"run"`
	}
	call := func() {
		at := time.Now()
		got, err := sdk.Call[answer](context.Background(), api.Service("once"), "add", struct{}{})
		mu.Lock()
		defer mu.Unlock()
		worst = max(worst, time.Since(at))
		if err != nil {
			failed = append(failed, fmt.Sprintf("%s: %v (executed %s)", at.Format("15:04:05.000"), err, kbroker.AsError(err).Executed))
			return
		}
		runs[got.Instance] = max(runs[got.Instance], got.Run)
	}
	calls.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				sent++
				calls.Go(call)
			}
		}
	})
	stop := func() { cancel(); calls.Wait() }
	c.t.Cleanup(func() { stop(); api.Close() })
	return func() {
		c.t.Helper()
		stop()
		var ran int64
		for _, n := range runs {
			ran += n
		}
		c.t.Logf("calls that may not be repeated: %d sent, %d failed, %d run, the slowest took %v", sent, len(failed), ran, worst.Round(time.Millisecond))
		if len(failed) > 0 || ran != sent || sent == 0 {
			c.t.Errorf("%d sent, %d failed, %d run; want each run once. Failed:\n%s", sent, len(failed), ran, strings.Join(failed[:min(len(failed), 20)], "\n"))
		}
	}
}
