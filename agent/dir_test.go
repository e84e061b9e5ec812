package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

func TestASecondAgentIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if pid, alive, err := Running(dir); pid != 0 || alive || err != nil {
		t.Errorf("running before there is a directory: %d %t %v", pid, alive, err)
	}
	first, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info.Mode(), err)
	}
	if first.Earlier != "" || first.Process == "" {
		t.Errorf("first start: %+v", first)
	}
	began := time.Now()
	_, err = Lock(dir)
	if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || !strings.Contains(e.Hint, pidText()) || time.Since(began) > time.Second {
		t.Errorf("second lock after %v: %v (%+v)", time.Since(began), err, e)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(link); !errors.Is(err, kbroker.Refused) {
		t.Errorf("lock by another path: %v", err)
	}
	if pid, alive, err := Running(link); pid != os.Getpid() || !alive || err != nil {
		t.Errorf("running: %d %t %v", pid, alive, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if pid, alive, err := Running(dir); alive || err != nil {
		t.Errorf("running after close: %d %t %v", pid, alive, err)
	}
	second, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.Earlier != first.Process || second.Process == first.Process {
		t.Errorf("second start: %+v after %+v", second, first)
	}
}

func pidText() string { return fmt.Sprintf("process %d;", os.Getpid()) }

func TestSweep(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	p, family := placement("shop-web-1", "stubborn"), placement("shop-web-2", "family")
	c.want(p, family)
	a := c.startAgent(dir)
	s, f := c.awaitState(p.Instance, kbroker.StateReady), c.awaitState(family.Instance, kbroker.StateReady)
	a.noted(p.Instance)
	pids := []int{s.PID, f.PID}
	for _, field := range strings.Fields(a.noted(family.Instance)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	a.stop()
	bystander := foreign(t)
	const grace = 300 * time.Millisecond
	began := time.Now()
	n, err := Sweep(context.Background(), dir, grace)
	if err != nil || n != len(pids) || time.Since(began) < grace {
		t.Errorf("sweep: %d of %v, %v after %v", n, pids, err, time.Since(began))
	}
	for _, pid := range pids {
		if alive(pid) {
			t.Errorf("process %d lives", pid)
		}
	}
	if !alive(bystander.PID) {
		t.Error("a foreign process was killed")
	}
	for _, d := range []string{dir, filepath.Join(dir, "none")} {
		if n, err := Sweep(context.Background(), d, grace); n != 0 || err != nil {
			t.Errorf("sweep of nothing: %d %v", n, err)
		}
	}
}

func TestParseStat(t *testing.T) {
	s, err := parseStat(42, []byte("42 (a) (b c) S 1 40 39 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0\n"))
	if err != nil || s != (procStat{procID: procID{PID: 42, Start: 987654}, State: 'S', Parent: 1, Group: 40, Session: 39}) {
		t.Errorf("%+v %v", s, err)
	}
	for _, bad := range []string{"", "42 (a", "42 (a) S 1", "42 (a) S x 40 39 0 -1 4194560 0 0 0 0 0 0 0 0 20 0 1 0 987654 0 0"} {
		if s, err := parseStat(42, []byte(bad)); err == nil {
			t.Errorf("%q parsed as %+v", bad, s)
		}
	}
	me, err := self()
	if err != nil || me.PID != os.Getpid() || me.Parent != os.Getppid() || me.Start == 0 {
		t.Errorf("this process: %+v %v", me, err)
	}
}
