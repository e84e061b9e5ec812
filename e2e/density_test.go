package e2e

import (
	"encoding/json"
	"errors"
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
	idleWorker      = 0.02
	ownersCount     = 30
	idleOwner       = 0.016
)

// TestFiveHundredProcessesOnOneHost: as fast as they are wanted, and at what cost;
// beside a plain loop that forks and executes the same program as often.
//
// Each round has a file system of its own: ext4 searches long for an inode for a minute
// or more after many were deleted (fs/ext4/ialloc.c, recently_deleted), as tests do, and
// a start makes ten.
func TestFiveHundredProcessesOnOneHost(t *testing.T) {
	needLong(t)
	var rates, plain []float64
	var empty, full int64
	for range 3 {
		plain = append(plain, forkLoop(t, densityCount))
		t.Run("round", func(t *testing.T) {
			rate, before, after := fillHost(t)
			rates, empty, full = append(rates, rate), max(empty, before), max(full, after)
		})
	}
	if len(rates) < 3 {
		t.FailNow()
	}
	slices.Sort(rates)
	slices.Sort(plain)
	t.Logf("started and running: %.0f per second (%.0f to %.0f); a plain fork and exec loop: %.0f; ratio %.2f", rates[1], rates[0], rates[2], plain[1], rates[1]/plain[1])
	t.Logf("the agent takes %d MiB without instances, %d MiB with %d", empty>>20, full>>20, densityCount)
	if rates[1] < densityRate {
		t.Errorf("%.0f per second, want %.0f", rates[1], densityRate)
	}
	if empty > agentBytesEmpty {
		t.Errorf("the agent takes %d MiB without instances, want at most %d", empty>>20, agentBytesEmpty>>20)
	}
	if full > agentBytesFull {
		t.Errorf("the agent takes %d MiB with %d instances, want at most %d", full>>20, densityCount, agentBytesFull>>20)
	}
}

// fillHost starts a cluster of one host, and in it densityCount instances: how many per
// second, and what the agent's memory was before and after.
func fillHost(t *testing.T) (rate float64, before, after int64) {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(freshDisk(t), "cluster"), hosts: 1}
	t.Cleanup(c.down)
	c.up()
	c.must("deploy", c.tiny("tiny", 0)) // the program is on the host then, and the app's allocator runs
	api, err := client.Open(t.Context(), mustFind(c), "kbroker test")
	if err != nil {
		t.Fatal(err)
	}
	defer api.Close()
	agent := c.agentOf("h1")
	before = residentBytes(t, agent)
	began := time.Now()
	if _, err := api.Scale(t.Context(), "tiny", "tiny", densityCount); err != nil {
		t.Fatal(err)
	}
	awaitRunning(t, api, "tiny", densityCount)
	return densityCount / time.Since(began).Seconds(), before, residentBytes(t, agent)
}

// freshDisk is a new ext4 in a file; without root a directory.
func freshDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if os.Geteuid() != 0 {
		t.Log("NOT ON A FRESH DISK: needs root")
		return dir
	}
	image, disk := filepath.Join(dir, "image"), filepath.Join(dir, "disk")
	f, err := os.Create(image)
	if err == nil {
		err = errors.Join(f.Truncate(4<<30), f.Close(), os.Mkdir(disk, 0o755))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.ext4", "-q", "-F", image}, {"mount", "-o", "loop", image, disk}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", disk).CombinedOutput(); err != nil {
			t.Errorf("umount: %v\n%s", err, out)
		}
	})
	return disk
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

// TestAnIdleAgent: what it costs to look after a hundred healthy instances: medians.
func TestAnIdleAgent(t *testing.T) {
	needLong(t)
	for _, tc := range []struct {
		what, agent string
		args        []string
		most        float64 // of one core
		deploy      func(c *cluster)
	}{
		{"a core, instances that only run", "h1", nil, idleCore, func(c *cluster) {
			c.must("deploy", c.tiny("hello", idleCount))
		}},
		{"a worker, instances with the SDK", "h2", []string{"--cores", "1"}, idleWorker, func(c *cluster) {
			c.must("deploy", c.example("hello", func(spec string) string {
				return strings.Replace(spec, "count: 3", fmt.Sprintf("count: %d\n    resources: {cpu: 0.01, memory: 8MiB, memory_limit: 64MiB}\n    require: [\"role == worker\"]", idleCount), 1)
			}))
		}},
	} {
		t.Run(tc.what, func(t *testing.T) {
			hosts := 1 + len(tc.args)/2
			c := up(t, hosts, tc.args...)
			tc.deploy(c)
			c.waitReady(time.Minute, "hello", "hello", idleCount, nil)
			agent := c.agentOf(tc.agent)
			<-time.After(8 * time.Second) // what the deployment has left to do
			const span = 10 * time.Second
			var used []float64
			for range 3 {
				before := cpuSeconds(t, agent)
				<-time.After(span)
				used = append(used, (cpuSeconds(t, agent)-before)/span.Seconds())
			}
			slices.Sort(used)
			t.Logf("RESULT the agent of %s, %d of them: %.2f %% of a core (%.2f to %.2f)", tc.what, idleCount, 100*used[1], 100*used[0], 100*used[2])
			if used[1] > tc.most {
				t.Errorf("it takes %.2f %% of a core, want at most %.0f %%", 100*used[1], 100*tc.most)
			}
		})
	}
}

// TestIdleOwners: what instances cost that own objects, and have nothing to do: they hold their
// leases, and say so.
func TestIdleOwners(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.deployRooms(strconv.Itoa(ownersCount), "    slots: 2000\n    resources: {cpu: 0.05, memory: 48MiB}\n")
	c.waitReady(time.Minute, "rooms", "rooms", ownersCount, nil)
	var owners, allocators []int
	for _, r := range c.rows("rooms") {
		switch {
		case r.PID == nil:
		case r.Service == "rooms":
			owners = append(owners, *r.PID)
		default:
			allocators = append(allocators, *r.PID)
		}
	}
	used := func(pids []int) (sum float64) {
		for _, pid := range pids {
			sum += cpuSeconds(t, pid)
		}
		return sum / float64(len(pids))
	}
	<-time.After(30 * time.Second) // what the deployment has left to do, and the first look at all that is owned
	const span = 60 * time.Second
	all := [][]int{owners, allocators, {c.agentOf("h1"), c.agentOf("h2"), c.agentOf("h3")}}
	var before, share []float64
	for _, pids := range all {
		before = append(before, used(pids))
	}
	<-time.After(span)
	for i, pids := range all {
		share = append(share, (used(pids)-before[i])/span.Seconds())
	}
	t.Logf("RESULT %d idle owners take %.2f %% of a core each, %d allocators %.2f %%, %d cores %.2f %%", len(owners), 100*share[0], len(allocators), 100*share[1], len(all[2]), 100*share[2])
	if len(owners) != ownersCount || len(allocators) != 2 || share[0] > idleOwner {
		t.Errorf("an owner takes %.2f %% of a core, want at most %.1f %%", 100*share[0], 100*idleOwner)
	}
}

// TestManyOwnersStay: sixty instances that own objects come up on one small machine, whose
// processors are full with them, and keep their leases.
func TestManyOwnersStay(t *testing.T) {
	needLong(t)
	const owners, lasts, restarts = 60, 90 * time.Second, 10
	c := up(t, 3)
	began := time.Now()
	c.deployRooms(strconv.Itoa(owners), "    slots: 2000\n    resources: {cpu: 0.01, memory: 48MiB}\n    update: {deadline: 10m}\n")
	c.waitReady(5*time.Minute, "rooms", "rooms", owners, nil)
	ready := time.Since(began)
	<-time.After(lasts)
	again, up := 0, 0
	for _, r := range c.rows("rooms") {
		if again += r.Restarts; r.Service == "rooms" && r.State == kbroker.StateReady {
			up++
		}
	}
	t.Logf("RESULT %d owners are ready after %v; %v later %d are, with %d restarts in all", owners, ready.Round(100*time.Millisecond), lasts, up, again)
	if up < owners || again > restarts {
		t.Errorf("%d of %d are ready, with %d restarts, want at most %d", up, owners, again, restarts)
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
