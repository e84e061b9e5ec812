package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

const (
	agentKills = 20
	// adoptedWithin is how long after a new agent was started it has what the one before
	// it has left.
	adoptedWithin = 3 * time.Second
	// leavesWithin is how long what was superseded while its host stood still may run on
	// when the host goes on.
	leavesWithin = 5 * time.Second
)

// TestKillAgents kills agents alone and starts them again, under load: no instance may
// notice, and no caller.
func TestKillAgents(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(20*time.Second, "wordcount", "wordcount", 3, nil)
	before := c.incarnations()
	end := c.load(agentKills * 6 * time.Second)
	var worst, back time.Duration
	for i := range agentKills {
		host := fmt.Sprintf("h%d", i%3+1)
		c.kill(host, true)
		began := time.Now()
		c.up()
		back = max(back, time.Since(began))
		worst = max(worst, c.adoption(host, began))
	}
	t.Logf("RESULT A1 %d agents were killed: what ran was adopted at most %v after the kill, up took at most %v", agentKills, worst.Round(time.Millisecond), back.Round(10*time.Millisecond))
	if worst > adoptedWithin {
		t.Errorf("adopted after %v, want %v", worst, adoptedWithin)
	}
	end()
	if after := c.incarnations(); show(after) != show(before) {
		t.Errorf("instances are\n%v, want the processes of before:\n%v", after, before)
	}
}

// adoption is how long after began a host's agent has adopted the last process.
func (c *cluster) adoption(host string, began time.Time) (took time.Duration) {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(c.host(host), "agent.log"))
	if err != nil {
		c.t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		var r struct {
			Time time.Time
			Msg  string
		}
		if json.Unmarshal([]byte(line), &r) == nil && r.Msg == "adopted a running process" && r.Time.After(began) {
			took = r.Time.Sub(began)
		}
	}
	if took == 0 {
		c.t.Errorf("the agent of %s has adopted nothing", host)
	}
	return took
}

// TestWhatStandsStillIsReplacedAndLeaves: an agent with its instances, an agent alone,
// everything of a host stands still for a while. Requests that may be repeated do not
// fail; when it goes on, what was superseded leaves, once, and nothing else.
func TestWhatStandsStillIsReplacedAndLeaves(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	for _, row := range []struct {
		row, what string
		stopped   func(cmd string) bool
		lasts     time.Duration
	}{
		{"P5", "its agent and instances", func(cmd string) bool { return !strings.Contains(cmd, allocators) }, 20 * time.Second},
		{"A2", "its agent", func(cmd string) bool { return strings.Contains(cmd, agents) }, 30 * time.Second},
		{"H5", "all of it", func(string) bool { return true }, time.Minute},
	} {
		c.whole(30 * time.Second)
		c.settled(20*time.Second, "wordcount", 3)
		c.standsStill(row.row, row.what, row.stopped, row.lasts)
	}
}

func (c *cluster) standsStill(row, what string, stopped func(cmd string) bool, lasts time.Duration) {
	c.t.Helper()
	rows, super := c.waitReady(20*time.Second, "wordcount", "wordcount", 3, nil), c.super()
	var victim kbroker.InstanceRow
	for _, r := range rows {
		if string(*r.Host) != super {
			victim = r
		}
	}
	host := string(*victim.Host)
	end := c.load(lasts + 20*time.Second)
	wait.Until(c.t, 10*time.Second, func() error { return answering(c) })
	began, still := time.Now(), []int{}
	for pid, cmd := range c.processes(host) {
		if stopped(cmd) && syscall.Kill(pid, syscall.SIGSTOP) == nil {
			still = append(still, pid)
		}
	}
	goOn := func() {
		for _, pid := range still {
			_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended
		}
	}
	defer goOn()
	elsewhere := c.elsewhere(began, "wordcount", 3, host)
	<-time.After(time.Until(began.Add(lasts)))
	leftBefore := over(*victim.PID) == nil
	again := time.Now()
	goOn()
	wait.Until(c.t, 4*leavesWithin, func() error { return over(*victim.PID) })
	took := time.Since(again)
	r := end()
	c.t.Logf("RESULT %s %s of %s (%d processes) stands still for %v: ready elsewhere after %v; gone before it went on: %v, else after %v; %d of %d requests failed, %d were repeated",
		row, what, host, len(still), lasts, elsewhere, leftBefore, took.Round(10*time.Millisecond), r.Failed, r.Requests, r.Retried)
	if took > leavesWithin {
		c.t.Errorf("%s: %s left after %v, want %v", row, *victim.Instance, took, leavesWithin)
	}
	c.whole(30 * time.Second)
	c.settled(20*time.Second, "wordcount", 3)
	events, err := list[kbroker.Event](c, "events", "-n", "500")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range events {
		if e.Time.After(began) && (e.Kind == kbroker.EventCrashed || strings.HasPrefix(e.Message, kbroker.KilledText)) {
			c.t.Errorf("%s: %s", row, show(e))
		}
	}
	for _, b := range rows {
		if string(*b.Host) != host {
			c.waitReady(0, "wordcount", "wordcount", 1, func(r kbroker.InstanceRow) bool { return *r.Instance == *b.Instance && *r.PID == *b.PID })
		}
	}
}

// over is nil when a process runs no more; who started it may not have seen that.
func over(pid int) error {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err == nil && !strings.Contains(string(stat), ") Z ") {
		return fmt.Errorf("process %d runs", pid)
	}
	return nil
}

// TestStopWhileAnAgentIsAway: the next agent ends what its predecessor left, also what
// knows nothing of kbroker and does not leave; no process and no control group of it is
// left.
func TestStopWhileAnAgentIsAway(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.hostile("deaf", "count: 3\n    spread: host\n    stop: {grace: 1s}", "deaf")
	rows := c.waitReady(20*time.Second, "deaf", "deaf", 3, nil)
	c.kill("h2", true)
	c.must("stop", "deaf", "--detach")
	for _, r := range rows {
		if *r.Host != "h2" {
			wait.Until(t, 10*time.Second, func() error { return gone(*r.PID) })
		} else if gone(*r.PID) == nil {
			t.Fatalf("%s has ended without an agent: nothing is tested", *r.Instance)
		}
	}
	began := time.Now()
	c.up()
	wait.Until(t, 10*time.Second, func() error {
		left := c.processes("")
		for pid, cmd := range left {
			if strings.Contains(cmd, agents) {
				delete(left, pid)
			}
		}
		places := groups(c.dir)
		if in := leftOf(places); len(left) > 0 || len(in) != len(places) {
			return fmt.Errorf("processes %v, control groups %v", left, in)
		}
		return nil
	})
	t.Logf("RESULT an app is stopped while an agent is dead: 0 processes, 0 control groups %v after its next start", time.Since(began).Round(10*time.Millisecond))
}

// TestAnAgentWithFewFiles: the agent that leads has room for 256 open files, fifty
// instances, and more connections than fit. The others hear it, it leads on, and writes
// are taken; when there is room again, it lets everybody in.
func TestAnAgentWithFewFiles(t *testing.T) {
	needLong(t)
	const files, instances, strangers = 256, 50, 300
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	c.must("deploy", c.tiny("tiny", 3*instances))
	c.waitReady(2*time.Minute, "tiny", "tiny", 3*instances, nil)
	same, host := c.neighbour(), c.super()
	agent, own := c.agentOf(host), 0
	for _, r := range c.rows("tiny") {
		if string(*r.Host) == host {
			own++
		}
	}
	if out, err := exec.Command("prlimit", "--pid", strconv.Itoa(agent), fmt.Sprintf("--nofile=%d:%d", files, files)).CombinedOutput(); err != nil {
		t.Fatalf("prlimit: %v\n%s", err, out)
	}
	began, before := time.Now(), openFiles(t, agent)
	var all []net.Conn
	defer func() {
		for _, conn := range all {
			conn.Close()
		}
	}()
	for range strangers {
		conn, err := net.DialTimeout("tcp", c.address(host), time.Second)
		if err != nil {
			break // the kernel's queue is full, too
		}
		all = append(all, conn)
	}
	most, writes := 0, 0
	for time.Since(began) < 15*time.Second {
		most = max(most, openFiles(t, agent))
		if out, code := c.try("scale", "hello", strconv.Itoa(3+writes%2)); code != 0 {
			t.Errorf("scale: exit code %d: %s", code, out)
		}
		writes++
	}
	for _, conn := range all {
		conn.Close()
	}
	freed := time.Now()
	wait.Until(t, 20*time.Second, func() error {
		conn, err := net.DialTimeout("tcp", c.address(host), time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		_, err = conn.Read(make([]byte, 1)) // it greets
		return err
	})
	t.Logf("RESULT P14 an agent that leads, with %d instances and room for %d files: %d open before %d connections, %d at most, %d changes made; it greets again %v after there is room",
		own, files, before, len(all), most, writes, time.Since(freed).Round(10*time.Millisecond))
	if most < files-10 || own < instances-10 {
		t.Errorf("%d files were open and %d instances ran: nothing was tested", most, own)
	}
	same()
	c.waitReady(2*time.Minute, "tiny", "tiny", 3*instances, nil)
	events, err := list[kbroker.Event](c, "events", "-n", "500")
	for _, e := range events {
		if e.Time.After(began) && (e.Kind == kbroker.EventHostSuspect || e.Kind == kbroker.EventHostLost || e.Kind == kbroker.EventLeader) {
			t.Errorf("%s", show(e))
		}
	}
	if err != nil || len(events) == 0 {
		t.Errorf("events: %v", err)
	}
}

func openFiles(t *testing.T, pid int) int {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestAWipedHostIsRefused: a core whose disk is new does not come back under its name, as
// if it still had what it has acknowledged. Removed, it is replaced; nothing is lost.
func TestAWipedHostIsRefused(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.settled(20*time.Second, "wordcount", 3)
	end := c.load(40 * time.Second)
	written := c.startWrites([]string{"nats://" + c.address("h1"), "nats://" + c.address("h3")})
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	c.kill("h2", false)
	if err := os.RemoveAll(c.host("h2")); err != nil {
		t.Fatal(err)
	}
	c.agent("h2", "--join", c.address("h1"), "--token-file", c.token(t.TempDir(), kbroker.RoleCore))
	wait.Until(t, 20*time.Second, func() error {
		raw, err := os.ReadFile(filepath.Join(c.host("h2"), "agent.log"))
		if err == nil && !strings.Contains(string(raw), "a host named h2 is a member already") {
			err = fmt.Errorf("it is not refused: %s", raw)
		}
		return err
	})
	wait.Until(t, 20*time.Second, func() error {
		out, code := c.try("remove", "h2")
		if code != 0 {
			return fmt.Errorf("remove: exit code %d: %s", code, out)
		}
		return nil
	})
	if err := os.RemoveAll(c.host("h2")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.up()
	c.whole(30 * time.Second)
	t.Logf("RESULT H3 a core whose disk is new is refused; removed, another one is whole in its place %v later", time.Since(began).Round(10*time.Millisecond))
	end()
	written()
	c.settled(20*time.Second, "wordcount", 3)
}
