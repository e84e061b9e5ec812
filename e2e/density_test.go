package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

// Budgets of DESIGN.md, section 8, and of the agent.
const (
	densityCount = 500
	// densityRate: ten times what Nomad's raw_exec starts on such a machine, 22 per
	// second.
	densityRate     = 220.0
	agentBytesFull  = 150 << 20
	agentBytesEmpty = 60 << 20
	idleCount       = 100
	idleCore        = 0.05 // of one core
)

// TestFiveHundredProcessesOnOneHost: as fast as they are wanted, and at what cost;
// beside a plain loop that forks and executes the same program as often.
func TestFiveHundredProcessesOnOneHost(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	agent := c.agentOf("h1")
	empty := residentBytes(t, agent)
	if empty > agentBytesEmpty {
		t.Errorf("the agent takes %d MiB without instances, want at most %d", empty>>20, agentBytesEmpty>>20)
	}
	spec := c.tiny("tiny", 0)
	c.must("deploy", spec)
	api, err := client.Open(t.Context(), mustFind(c), "kbroker test")
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	scale := func(n int) {
		if _, err := api.Scale(t.Context(), "tiny", "tiny", n); err != nil {
			t.Fatal(err)
		}
		awaitRunning(t, api, "tiny", n)
	}
	// The program is on the host, and the app's allocator runs.
	var rates, plain []float64
	for range 3 {
		plain = append(plain, forkLoop(t, densityCount))
		began := time.Now()
		scale(densityCount)
		rates = append(rates, densityCount/time.Since(began).Seconds())
		if len(rates) == 3 {
			break
		}
		scale(0)
	}
	full := residentBytes(t, agent)
	slices.Sort(rates)
	slices.Sort(plain)
	t.Logf("started and running: %.0f per second (%.0f to %.0f); a plain fork and exec loop: %.0f; ratio %.2f", rates[1], rates[0], rates[2], plain[1], rates[1]/plain[1])
	t.Logf("the agent takes %d MiB without instances, %d MiB with %d", empty>>20, full>>20, densityCount)
	if rates[1] < densityRate {
		t.Errorf("%.0f per second, want %.0f", rates[1], densityRate)
	}
	if full > agentBytesFull {
		t.Errorf("the agent takes %d MiB with %d instances, want at most %d", full>>20, densityCount, agentBytesFull>>20)
	}
}

// forkLoop is how many processes per second one after the other starts.
func forkLoop(t *testing.T, n int) float64 {
	t.Helper()
	var all []*exec.Cmd
	began := time.Now()
	for range n {
		cmd := exec.Command("/bin/sleep", "1000")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		all = append(all, cmd)
	}
	took := time.Since(began)
	for _, cmd := range all {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return float64(n) / took.Seconds()
}

// tiny writes the spec of an app whose program does nothing, and returns its path.
func (c *cluster) tiny(name string, count int) string {
	c.t.Helper()
	dir := c.t.TempDir()
	program, err := os.ReadFile("/bin/sleep")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "sleep"), program, 0o755)
	}
	path := filepath.Join(dir, "app.yaml")
	spec := fmt.Sprintf(`name: %s
services:
  %[1]s:
    run: sleep
    args: ["1000000"]
    count: %d
    resources: {cpu: 0.001, memory: 1MiB, memory_limit: 16MiB, pids: 8}
    health: {ready: alive}
`, name, count)
	if err == nil {
		err = os.WriteFile(path, []byte(spec), 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	return path
}

// awaitRunning waits until as many processes of an app run as are wanted, by the
// cluster's word, and no other.
func awaitRunning(t *testing.T, api *client.Client, app kbroker.AppName, want int) {
	t.Helper()
	wait.Until(t, 2*time.Minute, func() error {
		rows, err := api.Instances(t.Context(), app, false)
		if err != nil {
			return err
		}
		n := 0
		for _, r := range rows {
			if r.Service != kbroker.AllocatorService && r.PID != nil {
				n++
			}
		}
		if n != want {
			return fmt.Errorf("%d of %d run", n, want)
		}
		return nil
	})
}

// agentOf is the process of a host's agent.
func (c *cluster) agentOf(host string) int {
	c.t.Helper()
	for _, r := range c.hostRows() {
		if string(r.Name) == host && r.PID != nil {
			return *r.PID
		}
	}
	c.t.Fatalf("there is no agent of %s", host)
	return 0
}

func residentBytes(t *testing.T, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	t.Fatalf("process %d has no VmRSS", pid)
	return 0
}

// cpuSeconds is the processor time that a process has taken.
func cpuSeconds(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100
}

// TestAnIdleAgent: what it costs to look after a hundred healthy instances.
func TestAnIdleAgent(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	c.must("deploy", c.tiny("tiny", idleCount))
	c.waitReady(time.Minute, "tiny", "tiny", idleCount, nil)
	agent := c.agentOf("h1")
	<-time.After(5 * time.Second) // what the deployment has left to do
	const span = 20 * time.Second
	before := cpuSeconds(t, agent)
	<-time.After(span)
	used := (cpuSeconds(t, agent) - before) / span.Seconds()
	t.Logf("an idle core's agent with %d instances takes %.1f %% of a core", idleCount, 100*used)
	if used > idleCore {
		t.Errorf("it takes %.1f %% of a core, want at most %.1f %%", 100*used, 100*idleCore)
	}
}

// rows are the instances of an app.
func (c *cluster) rows(app string) (rows []kbroker.InstanceRow) {
	c.t.Helper()
	if err := json.Unmarshal([]byte(c.must("ps", app, "-o", "json")), &rows); err != nil {
		c.t.Fatal(err)
	}
	return rows
}
