//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/e2e/netlab"
	"github.com/kbroker/kbroker/internal/wait"
)

// Ports of every core; each has an address of its own.
const (
	labClientPort = "4222"
	labRoutePort  = "6222"
)

// labCluster is a cluster whose hosts have networks and disks of their own. What
// uses it (commands, load, writes, probes) is at the lab's operator.
type labCluster struct {
	*cluster
	lab  *netlab.Lab
	args map[string][]string // of the agents that have been started, by host
	// settings are flags of all agents.
	settings []string
	// roots are the cluster's, as the first host has them, admin a credential of it.
	roots, admin string
}

// newLab makes a cluster of the lab's first hosts: cores, then workers. The lab
// may have more hosts, for later. settings are flags for all agents. It skips the test
// where no lab can be.
func newLab(t *testing.T, hosts, cores, workers int, settings ...string) *labCluster {
	t.Helper()
	lab := netlab.New(t, hosts)
	c := &labCluster{cluster: &cluster{t: t, dir: filepath.Join(lab.Dir, "operator")}, lab: lab, args: map[string][]string{}, settings: settings}
	c.command = lab.Operator().Command
	c.inside = c.processesIn
	t.Cleanup(c.keepLogs)
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for i := 1; i <= cores+workers; i++ {
		c.join(lab.Host(i), i > cores)
	}
	c.whole(30 * time.Second)
	t.Logf("%d cores and %d workers are whole after %v", cores, workers, time.Since(began).Round(10*time.Millisecond))
	return c
}

// join starts the agent of a new host; the first one founds.
func (c *labCluster) join(h *netlab.Host, worker bool) {
	c.t.Helper()
	args := []string{"agent", "--dir", filepath.Join(h.Dir, "data"), "--name", h.Name}
	switch {
	case worker:
		args = append(args, "--role", string(kbroker.RoleWorker))
	default:
		args = append(args, "--advertise", h.IP.String(), "--client-port", labClientPort, "--route-port", labRoutePort)
	}
	if len(c.args) == 0 {
		args = append(args, "--found")
	} else {
		role := kbroker.RoleCore
		if worker {
			role = kbroker.RoleWorker
		}
		args = append(args, "--join", strings.Join(c.cores(), ","), "--token-file", c.token(h.Dir, role))
	}
	args = append(args, c.settings...)
	c.args[h.Name] = args
	c.hosts++
	c.start(h)
	c.aim()
}

// start starts the agent of a host, again as the first time.
func (c *labCluster) start(h *netlab.Host) {
	c.t.Helper()
	h.Start(kbrokerBin, c.args[h.Name]...)
}

// cores are the client addresses of the cores that have power.
func (c *labCluster) cores() []string {
	var out []string
	for _, h := range c.lab.Hosts() {
		if args := c.args[h.Name]; h.On() && slices.Contains(args, "--advertise") {
			out = append(out, h.IP.String()+":"+labClientPort)
		}
	}
	return out
}

// servers are the URLs of the cores that have power.
func (c *labCluster) servers() []string {
	out := c.cores()
	for i, s := range out {
		out[i] = "nats://" + s
	}
	return out
}

// aim lets the commands use the cores that have power: a command tries a dead one
// for a second, which is not what the rows measure.
func (c *labCluster) aim() {
	c.t.Helper()
	if c.roots == "" {
		c.core = filepath.Join(c.lab.Host(1).Dir, "data")
		c.roots, c.admin = rootsIn(c.t, c.core), c.creds(c.core, "admin")
		c.coreCreds() // while there is power
	}
	if err := client.WriteContext(c.dir, client.Context{Servers: c.servers(), CA: c.roots, Credential: c.admin}); err != nil {
		c.t.Fatal(err)
	}
}

// powerOff ends hosts at once, without a sign to anybody, and says when.
func (c *labCluster) powerOff(hosts ...*netlab.Host) time.Time {
	c.t.Helper()
	at := time.Now()
	c.lab.PowerOff(hosts...)
	if len(c.servers()) > 0 {
		c.aim()
	}
	return at
}

// powerOn brings hosts back, with their agents.
func (c *labCluster) powerOn(hosts ...*netlab.Host) {
	c.t.Helper()
	for _, h := range hosts {
		h.PowerOn()
		c.start(h)
	}
	c.aim()
}

// hostOf is the lab's host of that name.
func (c *labCluster) hostOf(name string) *netlab.Host { return c.lab.HostNamed(name) }

// processesIn are the live processes of a host, or of all.
func (c *labCluster) processesIn(host string) map[int]string {
	out := map[int]string{}
	for _, h := range c.lab.Hosts() {
		if h.On() && (host == "" || h.Name == host) {
			maps.Copy(out, h.Processes())
		}
	}
	return out
}

// deployBoth deploys the examples, three instances each.
func (c *labCluster) deployBoth() {
	c.t.Helper()
	for _, app := range []string{"wordcount", "hello"} {
		c.must("deploy", "../examples/"+app+"/app.yaml")
		c.waitReady(10*time.Second, app, app, 3, nil)
	}
}

// both is what deployBoth wants.
var both = map[string]int{"wordcount": 3, "hello": 3}

// whole waits until all hosts are ready, the control store is led and takes
// writes, and every stream has a replica on each core that has caught up.
func (c *labCluster) whole(timeout time.Duration) {
	c.t.Helper()
	c.cluster.whole(timeout)
	if len(c.cores()) < 3 {
		return
	}
	var want []string
	for _, h := range c.lab.Hosts() {
		if h.On() && slices.Contains(c.args[h.Name], "--advertise") {
			want = append(want, h.Name)
		}
	}
	wait.Until(c.t, timeout, func() error {
		var got map[string][]string
		c.startChild(replicasJob, c.servers()).report(&got)
		for stream, on := range got {
			if !slices.Equal(on, want) {
				return fmt.Errorf("stream %s is current on %v, want %v", stream, on, want)
			}
		}
		if len(got) == 0 {
			return errors.New("no streams are listed")
		}
		return nil
	})
}

// elsewhere waits until all instances of both apps are ready on other hosts than
// these, and returns how long after the fault that was.
func (c *labCluster) elsewhere(fault time.Time, timeout time.Duration, gone ...*netlab.Host) time.Duration {
	c.t.Helper()
	for app := range both {
		c.waitReady(timeout, app, app, 3, func(r kbroker.InstanceRow) bool {
			return !slices.ContainsFunc(gone, func(h *netlab.Host) bool { return h.Name == string(*r.Host) })
		})
	}
	return time.Since(fault)
}

// answers waits until the operator's load has somebody to answer it.
func (c *labCluster) answers() {
	c.t.Helper()
	wait.Until(c.t, 10*time.Second, func() error {
		if out, code := c.try("call", "hello", "greet", "name=Ann"); code != 0 || !strings.Contains(out, "Hello, Ann") {
			return fmt.Errorf("hello: exit code %d: %s", code, out)
		}
		return nil
	})
}

// stopLoad ends a load before its time; what was sent until then counts.
func (l *loadRun) stop() result {
	l.t.Helper()
	if err := l.cmd.Process.Signal(os.Interrupt); err != nil {
		l.t.Errorf("the load has ended: %v", err)
	}
	return l.wait()
}

// told are the lines of a host's agent about what the cluster does, from a time
// on, with the time since then.
func (c *labCluster) told(since time.Time) []string {
	c.t.Helper()
	var lines []string
	for _, h := range c.lab.Hosts() {
		raw, err := os.ReadFile(h.Output)
		if err != nil {
			continue // it never ran
		}
		for line := range strings.Lines(string(raw)) {
			var r struct {
				Time                               time.Time
				Msg, Instance, Change, Object, Err string
			}
			if err := json.Unmarshal([]byte(line), &r); err == nil && r.Time.After(since) && slices.Contains(steps, r.Msg) {
				lines = append(lines, fmt.Sprintf("%9.3f %s: %s %s", r.Time.Sub(since).Seconds(), h.Name, r.Msg,
					strings.TrimSpace(r.Object+" "+r.Change+" "+r.Instance+" "+r.Err)))
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// steps are the log lines that tell where the time of a failover went.
var steps = []string{
	"lease taken", "leading", "not leading any more", "plan", "instance started", "stopping",
	"round failed; the next one plans again", "waiting to be admitted",
}

// trace logs these lines.
func (c *labCluster) trace(since time.Time) {
	c.t.Helper()
	c.t.Logf("what the agents did after the fault:\n%s", strings.Join(c.told(since), "\n"))
}

// keepLogs copies what the agents wrote to where `go test -artifacts` keeps it,
// and shows its end when the test has failed.
func (c *labCluster) keepLogs() {
	for _, h := range c.lab.Hosts() {
		raw, err := os.ReadFile(h.Output)
		if err != nil {
			continue
		}
		path := filepath.Join(c.t.ArtifactDir(), h.Name+".log")
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			c.t.Errorf("keep the log of %s: %v", h.Name, err)
		}
		if c.t.Failed() {
			c.t.Logf("%s:\n%s", path, raw[max(0, len(raw)-6000):])
		}
	}
}
