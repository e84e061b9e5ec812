package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// againWithin is how long after its kill -9 a program answers on the same port.
const againWithin = time.Second

// needForeign skips where the programs of others are not installed.
func needForeign(t *testing.T) {
	t.Helper()
	needLong(t)
	for _, program := range []string{"/usr/sbin/nginx", "/usr/bin/redis-server"} {
		if _, err := os.Stat(program); err != nil {
			t.Skipf("NOTHING IS TESTED of programs that do not know kbroker: %v; tools/foreign-install.sh installs them", err)
		}
	}
}

// TestForeignPrograms: nginx and Redis as Debian has them run on three hosts, on ports that
// were handed out; who may finds them by endpoints, and nobody else. Killed, they answer on
// the same port in a moment; with their host, elsewhere, and endpoints says where.
func TestForeignPrograms(t *testing.T) {
	needForeign(t)
	c := up(t, 3)
	for _, name := range []string{"nginx", "redis"} {
		c.must("deploy", filepath.Join("..", "examples", "foreign", name, "app.yaml"))
	}
	t.Cleanup(func() { _ = os.Remove("../examples/foreign/nginx/nginx.tar.gz") })
	web, cache := c.endpoints("web/nginx/http", 3), c.endpoints("cache/redis/redis", 1)
	hosts, taken := map[kbroker.HostID]bool{}, map[int]bool{}
	for _, e := range append(slices.Clone(web), cache...) {
		if taken[e.Number] {
			t.Errorf("port %d was given twice: %s", e.Number, show(web))
		}
		taken[e.Number] = true
	}
	for _, e := range web {
		hosts[e.Host] = true
		c.answersAgain(time.Now(), e.Addr()+" at first", func() error { return greets(e) })
	}
	if len(hosts) != 3 {
		t.Errorf("nginx is on %d hosts, want 3: %s", len(hosts), show(web))
	}
	c.answersAgain(time.Now(), cache[0].Addr()+" at first", func() error { return pongs(cache[0]) })

	t.Run("who may, asks", func(t *testing.T) { onlyCallersAsk(t, c, cache[0]) })

	for _, killed := range []struct {
		at      kbroker.Endpoint
		app     string
		answers func(kbroker.Endpoint) error
	}{{web[0], "web", greets}, {cache[0], "cache", pongs}} {
		pid := c.pidOf(killed.app, killed.at.Instance)
		began := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		wait.Until(t, 10*time.Second, func() error { return gone(pid) })
		c.answersAgain(began, "kill -9 of "+string(killed.at.Instance), func() error { return killed.answers(killed.at) })
	}
	if again := c.endpoints("web/nginx/http", 3); !slices.Equal(sorted(again), sorted(web)) {
		t.Errorf("after a kill -9 the endpoints are %s, were %s", show(again), show(web))
	}

	lost := cache[0].Host
	pids := c.everythingOf(lost)
	began := time.Now()
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended with another one
	}
	for _, moved := range []struct {
		service string
		count   int
		answers func(kbroker.Endpoint) error
	}{{"cache/redis/redis", 1, pongs}, {"web/nginx/http", 3, greets}} {
		wait.Until(t, 2*elsewhereWithin, func() error {
			all, err := c.readyEndpoints(moved.service, moved.count)
			for _, e := range all {
				if err == nil && e.Host == lost {
					err = fmt.Errorf("%s is ready on host %s, which is lost", e.Instance, lost)
				}
				if err == nil {
					err = moved.answers(e)
				}
			}
			return err
		})
		took := time.Since(began)
		t.Logf("kill -9 of host %s to %s answering elsewhere: %v", lost, moved.service, took.Round(10*time.Millisecond))
		if took > elsewhereWithin {
			t.Errorf("%s answered elsewhere after %v, want %v", moved.service, took, elsewhereWithin)
		}
	}
}

// onlyCallersAsk: an instance, by the command line as it is, asks of what its spec calls.
func onlyCallersAsk(t *testing.T, c *cluster, redis kbroker.Endpoint) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "ask.sh"), "#!/bin/sh\n\"$CLI\" endpoints cache/redis/redis 2>&1\necho \"asked: $?\"\nexec sleep 1000\n", 0o700)
	writeFile(t, filepath.Join(dir, "app.yaml"), fmt.Sprintf(`name: asker
services:
  friend: {run: ask.sh, env: {CLI: %q}, calls: [cache/redis], health: {ready: alive}}
  stranger: {run: ask.sh, env: {CLI: %q}, health: {ready: alive}}
`, kbrokerBin, kbrokerBin), 0o600)
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	for service, want := range map[string][]string{
		"friend":   {redis.Addr(), "asked: 0"},
		"stranger": {"this credential does not allow you to ask where cache/redis listens", "asked: 4"},
	} {
		wait.Until(t, 20*time.Second, func() error {
			logs := c.must("logs", "asker/"+service)
			for _, w := range want {
				if !strings.Contains(logs, w) {
					return fmt.Errorf("%s said no %q:\n%s", service, w, logs)
				}
			}
			if service == "stranger" && strings.Contains(logs, redis.Addr()) {
				return fmt.Errorf("a stranger was told where Redis listens:\n%s", logs)
			}
			return nil
		})
	}
	c.must("stop", "asker")
}

// endpoints waits until a service has as many ready endpoints, and returns them.
func (c *cluster) endpoints(service string, want int) []kbroker.Endpoint {
	c.t.Helper()
	var all []kbroker.Endpoint
	wait.Until(c.t, 20*time.Second, func() (err error) {
		all, err = c.readyEndpoints(service, want)
		return err
	})
	return all
}

func (c *cluster) readyEndpoints(service string, want int) ([]kbroker.Endpoint, error) {
	all, err := list[kbroker.Endpoint](c, "endpoints", service)
	if err != nil {
		return nil, err
	}
	ready := slices.DeleteFunc(slices.Clone(all), func(e kbroker.Endpoint) bool { return !e.Ready })
	if len(ready) != want {
		return nil, fmt.Errorf("%d ready endpoints of %s, want %d: %s", len(ready), service, want, show(all))
	}
	return ready, nil
}

func sorted(all []kbroker.Endpoint) []kbroker.Endpoint {
	return slices.SortedFunc(slices.Values(all), func(a, b kbroker.Endpoint) int { return strings.Compare(string(a.Instance), string(b.Instance)) })
}

// answersAgain holds that something answers within a second after began.
func (c *cluster) answersAgain(began time.Time, what string, answers func() error) {
	c.t.Helper()
	wait.Until(c.t, 10*againWithin, answers)
	took := time.Since(began)
	c.t.Logf("%s: answering after %v", what, took.Round(time.Millisecond))
	if took > againWithin {
		c.t.Errorf("%s: answering after %v, want %v", what, took, againWithin)
	}
}

var foreignClient = &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}

// greets says whether nginx answers, and is that instance.
func greets(e kbroker.Endpoint) error {
	r, err := foreignClient.Get("http://" + e.Addr() + "/")
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if want := "hello from " + string(e.Instance) + "\n"; err != nil || string(body) != want {
		return fmt.Errorf("%s says %q, %w; want %q", e.Addr(), body, err, want)
	}
	return nil
}

// pongs says whether Redis answers.
func pongs(e kbroker.Endpoint) error {
	conn, err := net.DialTimeout("tcp", e.Addr(), time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(conn, "PING\r\n"); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line != "+PONG\r\n" {
		return fmt.Errorf("redis at %s says %q, %w", e.Addr(), line, err)
	}
	return nil
}

func (c *cluster) pidOf(app string, instance kbroker.InstanceID) int {
	c.t.Helper()
	rows, err := list[kbroker.InstanceRow](c, "ps", app)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, r := range rows {
		if r.Instance != nil && *r.Instance == instance && r.PID != nil {
			return *r.PID
		}
	}
	c.t.Fatalf("%s has no process: %s", instance, show(rows))
	return 0
}

// everythingOf are the processes of a host, its agent first, also those that show a title in the place of
// the environment by which others are found, as nginx and Redis do.
func (c *cluster) everythingOf(host kbroker.HostID) []int {
	c.t.Helper()
	rows, err := list[kbroker.InstanceRow](c, "ps")
	if err != nil {
		c.t.Fatal(err)
	}
	groups := map[int]bool{}
	for _, r := range rows {
		if r.Host != nil && *r.Host == host && r.PID != nil {
			groups[*r.PID] = true
		}
	}
	var pids []int
	for pid, cmd := range c.processes(string(host)) {
		if pids = append(pids, pid); strings.Contains(cmd, " agent ") { // first: it starts nothing again
			last := len(pids) - 1
			pids[0], pids[last] = pids[last], pids[0]
		}
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		if group, err := syscall.Getpgid(pid); err == nil && groups[group] && !slices.Contains(pids, pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// gone is nil when a process is not there.
func gone(pid int) error {
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("process %d is there", pid)
	}
	return nil
}
