package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pulse"
	"github.com/kbroker/kbroker/internal/wait"
)

// performWatched are the programs that tests of health start; false: it is none.
func performWatched(name string) bool {
	switch name {
	case "web": // not well while there is a file "sick"; does not answer while there is one "hung"
		go func() {
			panic(http.ListenAndServe(net.JoinHostPort(localhost, os.Getenv("WEB")), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				for there("hung") {
					<-time.After(time.Millisecond) // of a program's life
				}
				if there("sick") {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})))
		}()
	case "beating":
		answer()
		go pulse.Beat(context.Background(), filepath.Join(filepath.Dir(os.Getenv(envInstance)), pulse.File), time.Now(), func() {})
	case "dumb": // its SDK runs and does not come through
		go pulse.Beat(context.Background(), filepath.Join(filepath.Dir(os.Getenv(envInstance)), pulse.File), time.Now(), func() {})
	default:
		return false
	}
	return true
}

func there(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// quick is a check that is made often.
func quick(way string) kbroker.Check {
	return kbroker.Check{Ready: way, Interval: 50 * time.Millisecond, Timeout: 100 * time.Millisecond}
}

// webPlacement is one of the program "web", at a port that is free.
func webPlacement(t *testing.T, id kbroker.InstanceID, h kbroker.Health) kbroker.Placement {
	t.Helper()
	l, err := net.Listen("tcp", localhost+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).Port
	p := placement(id, "web")
	p.Spec.Env = map[string]string{"WEB": strconv.Itoa(port)}
	p.Spec.Ports = []kbroker.Port{{Name: "web", Number: port}}
	p.Spec.Health = h
	p.Template = kbroker.Template(p.Spec)
	return p
}

// put leaves a file in the working directory of an instance.
func (r *running) put(i kbroker.InstanceID, name string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.home(i), workDir, name), nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) take(i kbroker.InstanceID, name string) {
	r.t.Helper()
	if err := os.Remove(filepath.Join(r.home(i), workDir, name)); err != nil {
		r.t.Fatal(err)
	}
}

// awaitKilled waits until an instance runs again after it was killed for a reason.
func (c *core) awaitKilled(was kbroker.Status, within time.Duration, reason string) kbroker.Status {
	c.t.Helper()
	s := c.await(was.Instance, within, "another process, "+reason, func(s kbroker.Status) bool {
		return s.State == kbroker.StateReady && s.PID != was.PID
	})
	if !strings.HasPrefix(s.Message, reason) || s.Crashes != was.Crashes+1 || s.Exit == nil || s.Exit.Signal != "SIGKILL" || alive(was.PID) {
		c.t.Errorf("status %+v, exit %+v, the old process lives: %t; want a crash by SIGKILL: %s", s, s.Exit, alive(was.PID), reason)
	}
	return s
}

func TestAWebServerIsReadyWhileItAnswersSoAndIsKilledWhenItHangs(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := webPlacement(t, "shop-web-1", kbroker.Health{Check: quick(kbroker.HealthHTTP)})
	c.want(p)
	a := c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.put(p.Instance, "sick")
	c.awaitState(p.Instance, kbroker.StateRunning)
	a.take(p.Instance, "sick")
	if well := c.awaitState(p.Instance, kbroker.StateReady); well.PID != s.PID {
		t.Errorf("pid %d, was %d: an answer that says no kills nobody", well.PID, s.PID)
	}
	kill(t, s.PID, unix.SIGSTOP)
	s = c.awaitKilled(s, 10*time.Second, "killed: hung, 6 checks in a row were not answered (http: no answer in time)")
	a.put(p.Instance, "hung")
	c.await(p.Instance, 10*time.Second, "its end", func(now kbroker.Status) bool { return now.PID != s.PID })
	a.take(p.Instance, "hung")
	c.awaitState(p.Instance, kbroker.StateReady)
}

func TestWhatListensIsReadyAndWhoStopsToIsHung(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := webPlacement(t, "shop-web-1", kbroker.Health{Check: quick(kbroker.HealthTCP)})
	deaf := webPlacement(t, "shop-web-2", kbroker.Health{Check: quick(kbroker.HealthTCP), Start: 3 * time.Second})
	deaf.Spec.Artifact.Builtin = "run" // listens on nothing
	deaf.Backoff = 5
	c.want(p, deaf)
	c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	s := c.await(deaf.Instance, 30*time.Second, "backoff", func(s kbroker.Status) bool { return s.State == kbroker.StateBackoff })
	want := fmt.Sprintf("killed: not ready within 3s (tcp: dial tcp 127.0.0.1:%d: connect: connection refused)", deaf.Spec.Ports[0].Number)
	if !strings.HasPrefix(s.Message, want) || !strings.HasSuffix(s.Message, "this is run") || s.Crashes != 6 {
		t.Errorf("status %+v, want %q, the output, and a sixth crash", s, want)
	}
}

func TestACheckByAProgramIsOfTheInstance(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "run")
	p.Spec.Env = map[string]string{"COLOUR": "red"}
	check := quick(kbroker.HealthExec)
	// What it starts, and does not wait for, is gone when it has ended.
	check.Command = []string{"/bin/sh", "-c", `sleep 1000 & echo $! >> left; echo $$ "$COLOUR" "$KBROKER_CHECK" >> asked; test -e hung && sleep 1000; test -e well`}
	check.Timeout = 300 * time.Millisecond
	p.Spec.Health = kbroker.Health{Check: check}
	c.want(p)
	a := c.startAgent(t.TempDir())
	asked := filepath.Join(a.home(p.Instance), workDir, "asked")
	wait.Until(t, 10*time.Second, func() error { _, err := os.Stat(asked); return err })
	if s := c.awaitState(p.Instance, kbroker.StateRunning); s.Crashes != 0 {
		t.Errorf("status %+v", s)
	}
	a.put(p.Instance, "well")
	s := c.awaitState(p.Instance, kbroker.StateReady)
	if b, err := os.ReadFile(asked); err != nil || !strings.HasSuffix(string(b), " red 1\n") {
		t.Errorf("the check has seen %q, %v", b, err)
	}
	a.take(p.Instance, "well")
	c.awaitState(p.Instance, kbroker.StateRunning)
	a.put(p.Instance, "well")
	c.awaitState(p.Instance, kbroker.StateReady)
	a.put(p.Instance, "hung")
	c.await(p.Instance, 20*time.Second, "its end", func(now kbroker.Status) bool { return now.PID != s.PID })
	a.take(p.Instance, "hung")
	s = c.awaitKilled(s, 10*time.Second, "killed: hung, 6 checks in a row were not answered (exec: no answer in time)")
	c.want()
	c.awaitGone(p.Instance)
	b, err := os.ReadFile(filepath.Join(a.home(p.Instance), outputFile))
	if err != nil || strings.Contains(string(b), "asked") {
		t.Errorf("the output is %q, %v: nothing of a check", b, err)
	}
	wait.Until(t, 5*time.Second, func() error {
		all, err := scan()
		for _, m := range all {
			if m.HostDir == a.cfg.Dir.Path && m.Check && !m.ended() {
				return fmt.Errorf("process %d of a check is left", m.PID)
			}
		}
		return err
	})
}

// TestAHungSDKIsKilledAlsoWithoutTheBus and nobody else is, however long it is away.
func TestAHungSDKIsKilledAlsoWithoutTheBus(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	sdk := kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: 100 * time.Millisecond, Timeout: 100 * time.Millisecond}, Start: 5 * time.Second}
	hangs, lives, older := placement("shop-web-1", "beating"), placement("shop-web-2", "beating"), placement("shop-web-3", "answer")
	dumb, off := placement("shop-web-4", "dumb"), placement("shop-web-5", "beating")
	all := []*kbroker.Placement{&hangs, &lives, &older, &dumb, &off}
	var want []kbroker.Placement
	for _, p := range all {
		p.Spec.Health = sdk
	}
	off.Spec.Health.Live = &kbroker.Check{Ready: kbroker.HealthOff}
	for _, p := range all {
		p.Template = kbroker.Template(p.Spec)
		want = append(want, *p)
	}
	c.want(want...)
	a := c.startAgent(t.TempDir())
	began := time.Now()
	pids := map[kbroker.InstanceID]int{dumb.Instance: c.awaitState(dumb.Instance, kbroker.StateRunning).PID}
	for _, p := range []kbroker.Placement{hangs, lives, older, off} {
		pids[p.Instance] = c.awaitState(p.Instance, kbroker.StateReady).PID
	}
	first := c.status(hangs.Instance)
	for _, p := range []kbroker.Placement{hangs, older, off} {
		kill(t, pids[p.Instance], unix.SIGSTOP)
	}
	for _, p := range []kbroker.Placement{older, off} {
		c.awaitState(p.Instance, kbroker.StateRunning)
	}
	second := c.awaitKilled(first, 15*time.Second, "killed: hung, 6 looks in a row saw no sign of life (sdk)")
	c.srv.Shutdown()
	kill(t, second.PID, unix.SIGSTOP)
	awaitDead(t, 15*time.Second, second.PID)                     // the others had the same time
	<-time.After(time.Until(began.Add(sdk.Start + time.Second))) // and more than that to be ready
	delete(pids, hangs.Instance)
	for i, pid := range pids {
		if !alive(pid) {
			t.Errorf("process %d of %s was killed", pid, i)
		}
	}
	if _, err := os.Lstat(filepath.Join(a.home(older.Instance), pulse.File)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("signs of life of one that gives none: %v", err)
	}
}

func TestALifeCheckOfItsOwnKills(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	live := quick(kbroker.HealthHTTP)
	p := webPlacement(t, "shop-web-1", kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthAlive}, Start: 2 * time.Second, Live: &live})
	c.want(p)
	a := c.startAgent(t.TempDir())
	s := c.awaitState(p.Instance, kbroker.StateReady)
	a.put(p.Instance, "sick") // whether it was well before or not: by then it has to be
	c.await(p.Instance, 10*time.Second, "its end", func(now kbroker.Status) bool { return now.PID != s.PID })
	a.take(p.Instance, "sick")
	c.awaitKilled(s, 10*time.Second, "killed: hung, 3 checks in a row failed (http: answered with 503 Service Unavailable)")
}

func TestAnswersOverHTTP(t *testing.T) {
	t.Parallel()
	var asked atomic.Value // string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.RequestURI)
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "/500", http.StatusFound)
			return
		}
		code, err := strconv.Atoi(r.URL.Path[1:])
		if err != nil {
			code = http.StatusOK
		}
		w.WriteHeader(code)
		for range 1000 { // no body is read to its end
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	for path, want := range map[string]outcome{"/200": yes, "/399": yes, "/400": no, "/503": no, "/away": yes, "": yes, "/up?deep=1": yes} {
		got, why := judge(t.Context(), checkHTTP(t.Context(), srv.Listener.Addr().String(), path))
		if got != want || (got == yes) != (why == "") || path != "" && asked.Load() != path {
			t.Errorf("GET %q is %v (%s) by %v, want %v", path, got, why, asked.Load(), want)
		}
	}
	srv.Close()
	if got, why := judge(t.Context(), checkHTTP(t.Context(), srv.Listener.Addr().String(), "/")); got != unanswered || !strings.Contains(why, "refused") {
		t.Errorf("nobody there is %v (%s), want that it was not answered", got, why)
	}
	if got, why := judge(t.Context(), fmt.Errorf("dial: %w", unix.EMFILE)); got != untold {
		t.Errorf("no files left is %v (%s), want that nothing was told", got, why)
	}
}

// TestACheckIsNotTakenForItsInstance by a later agent that looks for that.
func TestACheckIsNotTakenForItsInstance(t *testing.T) {
	t.Parallel()
	a := &Agent{cfg: Config{Dir: &Dir{Path: "/d"}}, boot: "b"}
	r := record{Incarnation: "shop-web-1.00", BootID: "b"} // of before the fork
	m := marked{procStat: procStat{procID: procID{PID: 9, Start: 5}, State: 'S', Group: 9}, HostDir: "/d", Incarnation: r.Incarnation, Check: true}
	if got := a.identify(r, []marked{m}); got.PID != 0 {
		t.Errorf("process %d of a check is taken for the instance", got.PID)
	}
	if m.Check = false; a.identify(r, []marked{m}).PID != 9 {
		t.Error("the instance is not found")
	}
	if r.procID = (procID{PID: 7, Start: 1}); a.identify(r, []marked{m}).PID != 0 {
		t.Error("the process of the record has ended, and what it left in a session of its own is taken for it")
	}
}
