package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestRescueTheSecondHost: the founder of two cores dies under load and writes,
// and its disk with it; there is a worker. The second one becomes a cluster of its own, in which
// every write is that had reached its copy; the application answers again, the
// worker is of it by itself, and two further cores join.
func TestRescueTheSecondHost(t *testing.T) {
	needLong(t)
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "cluster")}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.down)
	c.agent("h1", "--found")
	c.context("h1")
	wait.Until(t, 15*time.Second, func() error { return answering(c) })
	first := c.address("h1")
	c.agent("h2", "--join", first, "--token-file", c.token(t.TempDir(), kbroker.RoleCore))
	c.hosts = 2
	c.whole(20 * time.Second)
	c.agent("h5", "--join", first, "--role", "worker", "--token-file", c.token(t.TempDir(), kbroker.RoleWorker))
	c.hosts = 3
	wait.Until(t, 20*time.Second, func() error { return allReady(c) })
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(20*time.Second, "wordcount", "wordcount", 3, nil)
	c.startLoad(time.Minute)
	ended, running := c.writer(), c.writer()
	wait.Until(t, 10*time.Second, func() error {
		if _, err := lastCopied(running.nc, "h2"); err != nil {
			return err
		}
		return answering(c)
	})
	<-time.After(2 * time.Second) // of writes
	ended.stop()
	var copied uint64
	wait.Until(t, 10*time.Second, func() (err error) {
		copied, err = lastCopied(running.nc, "h2")
		if newest := newestOf(ended); err == nil && copied < newest {
			err = fmt.Errorf("the copy has come to %d of %d", copied, newest)
		}
		return err
	})
	c.kill("h1", false)
	running.stop()
	if err := os.RemoveAll(c.host("h1")); err != nil {
		t.Fatal(err)
	}

	if out, code := c.try("agent", "rescue", "--dir", c.host("h2"), "--yes"); code != 4 || !strings.Contains(out, "another agent holds") {
		t.Errorf("rescue beside an agent: exit code %d, want 4: %s", code, out)
	}
	if c.signal("h2", agents, syscall.SIGTERM) != 1 {
		t.Fatal("h2 has no agent")
	}
	wait.Until(t, 15*time.Second, func() error { return c.withoutAgent("h2") })
	before := map[string]map[int]string{"h2": c.processes("h2"), "h5": c.processes("h5")}
	if len(before["h2"]) == 0 {
		t.Error("the applications of h2 ended with its agent")
	}
	if out, code := c.try("agent", "rescue", "--dir", c.host("h2")); code != 4 || !strings.Contains(out, subjects.ControlStream) || !strings.Contains(out, "h1 is removed") {
		t.Errorf("rescue without consent: exit code %d, want 4 and what there is: %s", code, out)
	} else {
		t.Logf("without consent:\n%s", out)
	}
	if _, err := os.Stat(filepath.Join(c.rescue("h2"), "identity.json")); err != nil {
		t.Errorf("the old data: %v", err)
	}

	began := time.Now()
	c.agent("h2", "--join", first) // as it was started before
	c.context("h2")
	c.hosts = 2 // the worker comes by itself
	c.whole(20 * time.Second)
	c.settled(30*time.Second, "wordcount", 3)
	t.Logf("the application is whole %v after the start of the agent", time.Since(began).Round(10*time.Millisecond))
	for host, was := range before {
		for pid, cmd := range c.processes(host) {
			if was[pid] == cmd && !strings.Contains(cmd, agents) {
				t.Errorf("process %d of the lost cluster runs on: %s", pid, cmd)
			}
		}
	}
	if v := c.intact(); len(v.Rescues) != 1 {
		t.Errorf("the audit trail tells of the rescues %v, want one", v.Rescues)
	}
	c.load(5 * time.Second)()
	c.copiesAreThere(ended, copied)
	c.copiesAreThere(running, copied)
	for _, host := range []string{"h3", "h4"} {
		c.hosts++
		c.agent(host, "--join", c.address("h2"), "--token-file", c.token(t.TempDir(), kbroker.RoleCore))
		wait.Until(t, 30*time.Second, func() error { return allReady(c) })
	}
	c.whole(30 * time.Second)
	c.settled(30*time.Second, "wordcount", 3)
	w := c.writer()
	end := c.load(5 * time.Second)
	end()
	w.check(t)
}

// agent starts an agent of a new or a known host in the cluster's directory.
func (c *cluster) agent(host string, args ...string) {
	c.t.Helper()
	if err := os.MkdirAll(c.host(host), 0o700); err != nil {
		c.t.Fatal(err)
	}
	log, err := os.OpenFile(filepath.Join(c.host(host), "agent.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(kbrokerBin, append([]string{"agent", "--dir", c.host(host), "--name", host, "--advertise", "127.0.0.1"}, args...)...)
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }() // down ends it
}

// addresses of a core, as it keeps them.
type addresses struct {
	Client string `json:"client"`
	Route  string `json:"route"`
}

func (c *cluster) addresses(host string) (a addresses) {
	c.t.Helper()
	wait.Until(c.t, 10*time.Second, func() error {
		raw, err := os.ReadFile(filepath.Join(c.host(host), "membership.json"))
		if err == nil {
			err = json.Unmarshal(raw, &a)
		}
		return err
	})
	return a
}

// address is where a host's core takes connections.
func (c *cluster) address(host string) string {
	c.t.Helper()
	return c.addresses(host).Client
}

// rootsIn are the roots of the cluster of a host's data directory, once it is of one.
func rootsIn(t *testing.T, dir string) string {
	t.Helper()
	var roots string
	wait.Until(t, 10*time.Second, func() error {
		files, err := filepath.Glob(filepath.Join(dir, "identity", "*", "root.crt"))
		if err == nil && len(files) == 0 {
			err = fmt.Errorf("no roots in %s", dir)
		}
		if err != nil {
			return err
		}
		raw, err := os.ReadFile(files[0])
		roots = string(raw)
		return err
	})
	return roots
}

// creds is a credential that the core of a data directory makes.
func (c *cluster) creds(dir, role string) string {
	c.t.Helper()
	var out string
	wait.Until(c.t, 10*time.Second, func() error {
		raw, err := exec.Command(kbrokerBin, "agent", "creds", "--dir", dir, "--role", role).Output()
		out = string(raw)
		return err
	})
	return out
}

// coreCreds is the file of a credential that may do what a core may: write to the
// stores, too.
func (c *cluster) coreCreds() string {
	c.t.Helper()
	if c.coreFile == "" {
		dir := c.core
		if dir == "" {
			dir = c.host("h1")
		}
		file := filepath.Join(c.t.TempDir(), "core.creds")
		if err := os.WriteFile(file, []byte(c.creds(dir, "core")), 0o600); err != nil {
			c.t.Fatal(err)
		}
		c.coreFile = file
	}
	return c.coreFile
}

// context names the core that the commands use.
func (c *cluster) context(host string) {
	c.t.Helper()
	err := client.WriteContext(c.dir, client.Context{
		Tenant: kbroker.DefaultTenant, Servers: []string{"nats://" + c.address(host)},
		CA: rootsIn(c.t, c.host(host)), Credential: c.creds(c.host(host), "admin"),
	})
	if err != nil {
		c.t.Fatal(err)
	}
}

// withoutAgent is nil when no agent of a host lives.
func (c *cluster) withoutAgent(host string) error {
	if n := c.signal(host, agents, 0); n > 0 {
		return fmt.Errorf("%d agents of %s live", n, host)
	}
	return nil
}

// rescue kills rescues later and later in their middle, until one comes to its
// end; it returns the directory of the old data. A rescue that was killed behind
// its end leaves nothing to rescue to the next one.
func (c *cluster) rescue(host string) (old string) {
	c.t.Helper()
	const firstKill, laterBy, most = 40 * time.Millisecond, 60 * time.Millisecond, 50
	for n := range most {
		after := firstKill + time.Duration(n)*laterBy
		ctx, cancel := context.WithTimeout(context.Background(), after)
		cmd := c.client(ctx, kbrokerBin, "agent", "rescue", "--dir", c.host(host), "--yes", "-o", "json")
		out, err := cmd.CombinedOutput()
		killed := ctx.Err() != nil
		cancel()
		switch {
		case err == nil, n > 0 && strings.Contains(string(out), "was rescued already"):
			c.t.Logf("%d rescues were killed, the next had %v: %s", n, after, out)
			all, err := filepath.Glob(filepath.Join(c.host(host), "broker.of-*"))
			if err != nil || len(all) != 1 {
				c.t.Fatalf("the old data is in %q (%v), want one directory", all, err)
			}
			return all[0]
		case !killed:
			c.t.Fatalf("rescue: %v: %s", err, out)
		}
	}
	c.t.Fatalf("no rescue ended within %v", firstKill+most*laterBy)
	return ""
}

// lastCopied is the sequence up to which a host has a copy of the control store.
func lastCopied(nc *nats.Conn, host kbroker.HostID) (uint64, error) {
	reply, err := nc.Request("$JS.API.STREAM.INFO."+subjects.MirrorOf(subjects.ControlStream, host), nil, time.Second)
	if err != nil {
		return 0, err
	}
	var info struct {
		State struct {
			LastSeq uint64 `json:"last_seq"`
		} `json:"state"`
	}
	if err := json.Unmarshal(reply.Data, &info); err != nil {
		return 0, err
	}
	if info.State.LastSeq == 0 {
		return 0, fmt.Errorf("no copy on %s: %s", host, reply.Data)
	}
	return info.State.LastSeq, nil
}

// newestOf is the last sequence that a writer that has ended was acknowledged.
func newestOf(w *writer) (newest uint64) {
	for _, seq := range w.acked {
		newest = max(newest, seq)
	}
	return newest
}

// copiesAreThere holds that the cluster has every value that a writer was
// acknowledged up to a sequence of the lost cluster. Later ones may be lost: an
// older value is there then, or none.
func (c *cluster) copiesAreThere(w *writer, copied uint64) {
	c.t.Helper()
	if w.lost != nil {
		c.t.Fatal(w.lost)
	}
	nc, err := connectTo(c.target(), "nats://"+c.address("h2"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer nc.Close()
	r := &writer{nc: nc}
	held, later, lost := 0, 0, 0
	for key, seq := range w.acked {
		var value string
		wait.Until(c.t, 5*time.Second, func() (err error) {
			_, value, err = r.read(c.t.Context(), key)
			return err
		})
		there, _ := strconv.Atoi(value) // 0 for none
		acked, err := strconv.Atoi(w.values[key])
		if err != nil {
			c.t.Fatal(err)
		}
		switch {
		case seq > copied:
			later++
			if there < acked {
				lost++
			}
		case there < acked: // one whose answer was lost with the founder may have come after it
			c.t.Errorf("key %s holds %q; %d was acknowledged at %d, and the copy had come to %d", key, value, acked, seq, copied)
		default:
			held++
		}
	}
	c.t.Logf("of %d acknowledged writes: %d keys up to the copy, all there; %d keys later, %d of them lost their last write", w.writes, held, later, lost)
}

// TestUpAfterARescue: of two local hosts the first is lost with its data. `up`
// does not found a second cluster in its place, takes the second as the whole
// cluster once it was rescued, and grows it.
func TestUpAfterARescue(t *testing.T) {
	needLong(t)
	c := up(t, 2)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(20*time.Second, "wordcount", "wordcount", 3, nil)
	id := c.clusterID("h2")
	c.kill("h1", false)
	if err := os.RemoveAll(c.host("h1")); err != nil {
		t.Fatal(err)
	}
	if out, code := c.try("up", "--dir", c.dir, "--timeout", "5s"); code == 0 || !strings.Contains(out, "host h1 has lost its data") {
		t.Errorf("up without the founder's data: exit code %d, want an error and the reason:\n%s", code, out)
	}
	if _, err := os.Stat(c.host("h1")); err == nil {
		t.Errorf("h1 was started again: %v", c.processes("h1"))
	}
	if c.signal("h2", agents, syscall.SIGTERM) != 1 {
		t.Fatal("h2 has no agent")
	}
	wait.Until(t, 15*time.Second, func() error { return c.withoutAgent("h2") })
	c.must("agent", "rescue", "--dir", c.host("h2"), "--yes")
	c.must("up", "--dir", c.dir)
	if now := c.clusterID("h2"); now == id {
		t.Errorf("h2 is of cluster %s still", id)
	}
	c.must("up", "--dir", c.dir, "--hosts", "3")
	for _, h := range []string{"h3", "h4"} {
		if of := c.clusterID(h); of != c.clusterID("h2") {
			t.Errorf("%s is of cluster %s, h2 of %s", h, of, c.clusterID("h2"))
		}
	}
	c.hosts = 3
	c.whole(30 * time.Second)
	c.settled(30*time.Second, "wordcount", 3)
}

// clusterID is the cluster of a host, as its directory says.
func (c *cluster) clusterID(host string) string {
	c.t.Helper()
	var m struct {
		ClusterID string `json:"cluster_id"`
	}
	raw, err := os.ReadFile(filepath.Join(c.host(host), "membership.json"))
	if err == nil {
		err = json.Unmarshal(raw, &m)
	}
	if err != nil || m.ClusterID == "" {
		c.t.Fatalf("the cluster of %s is %q, %v", host, m.ClusterID, err)
	}
	return m.ClusterID
}
