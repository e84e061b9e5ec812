package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// The test binary is also the program that agents under test start.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "builtin" {
		perform(os.Args[2])
		return
	}
	os.Exit(m.Run())
}

// perform is what an instance under test does.
func perform(name string) {
	fmt.Println("this is", name)
	switch name {
	case "run": // until it is told to leave
	case "fail":
		fmt.Println("boom")
		os.Exit(3)
	case "deaf":
		signal.Ignore(syscall.SIGTERM)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		note("ready")
	case "polite": // leaves without an error
		left := make(chan os.Signal, 1)
		signal.Notify(left, syscall.SIGTERM)
		note("ready")
		<-left
		os.Exit(0)
	case "family": // a child in its group, and one that has left group and session
		child := exec.Command(os.Args[0], "builtin", "deaf")
		daemon := exec.Command(os.Args[0], "builtin", "deaf")
		daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		for _, c := range []*exec.Cmd{child, daemon} {
			if err := c.Start(); err != nil {
				panic(err)
			}
		}
		note(fmt.Sprintf("%d %d", child.Process.Pid, daemon.Process.Pid))
	case "look": // what an instance can see of its surroundings
		fds, err := filepath.Glob("/proc/self/fd/*")
		if err != nil {
			panic(err)
		}
		for _, fd := range fds {
			to, err := os.Readlink(fd)
			fmt.Printf("fd %s %s %v\n", filepath.Base(fd), to, err)
		}
		wd, err := os.Getwd()
		fmt.Printf("wd %s %v\ngroup %t\n%s\nlooked\n", wd, err, syscall.Getpgrp() == os.Getpid(), strings.Join(os.Environ(), "\n"))
	case "seven": // ends with code 7 when it is told to
		told := make(chan os.Signal, 1)
		signal.Notify(told, syscall.SIGUSR1)
		note("ready")
		<-told
		os.Exit(7)
	case "plain": // a program without a runtime that handles signals
		note("ready")
		if err := syscall.Exec("/bin/sleep", []string{"sleep", "600"}, os.Environ()); err != nil {
			panic(err)
		}
	case "agent":
		agentAlone(os.Args[3], os.Args[4])
	case "parent":
		parent(os.Args[3:])
	case "flood":
		flood(2 * time.Second)
	case "answer":
		answer()
	case "busy":
		busy()
	case "spy":
		spy()
	case "hungry":
		eat()
	case "bomb": // a daemon that is hard to recognise, and a fork bomb
		for _, script := range []string{"exec sleep 1000", "bomb() { bomb | bomb & }; bomb; wait"} {
			c := exec.Command("/bin/bash", "-c", script)
			c.Env, c.SysProcAttr = []string{"PATH=/usr/bin:/bin"}, &syscall.SysProcAttr{Setsid: true}
			if err := c.Start(); err != nil {
				panic(err)
			}
		}
	case "serve":
		serve()
	default:
		if !performWatched(name) {
			panic("unknown program " + name)
		}
	}
	select {}
}

// floodRate is how many bytes a second a flood has. As fast as it can is for e2e, where
// a test has the machine alone: how much is on disk depends on when the agent looks.
const floodRate = 300e6

// flood writes, and notes how much that was.
func flood(d time.Duration) {
	lines := []byte(strings.Repeat("a line of a flood of lines, each a bit more than sixty bytes\n", 1000))
	n, longest := len("this is flood\n"), time.Duration(0)
	for began := time.Now(); time.Since(began) < d; {
		call := time.Now()
		if _, err := os.Stdout.Write(lines); err != nil {
			panic(err)
		}
		n, longest = n+len(lines), max(longest, time.Since(call))
		if ahead := time.Duration(float64(n)/floodRate*float64(time.Second)) - time.Since(began); ahead > 0 {
			<-time.After(ahead)
		}
	}
	note(fmt.Sprintf("%d bytes written, the longest call took %v;", n, longest))
}

// answer is ready as long as no file "sick" is in its directory.
func answer() {
	var f kbroker.InstanceFile
	b, err := os.ReadFile(os.Getenv(envInstance))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		panic(err)
	}
	conn, err := nats.Connect(f.Servers[0], nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		panic(err)
	}
	_, err = conn.Subscribe(subjects.Ping(f.Tenant, f.Incarnation), func(m *nats.Msg) {
		_, err := os.Stat("sick")
		body, _ := json.Marshal(kbroker.PingReply{Incarnation: f.Incarnation, Ready: err != nil})
		_ = m.Respond(body)
	})
	if err != nil {
		panic(err)
	}
}

// note leaves a file in the working directory.
func note(text string) {
	if err := os.WriteFile("note.tmp", []byte(text), 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename("note.tmp", "note"); err != nil {
		panic(err)
	}
}

const testHost kbroker.HostID = "h1"

var discard = slog.New(slog.DiscardHandler)

// core plays the cores: it answers what agents ask.
type core struct {
	t    *testing.T
	conn *nats.Conn
	srv  *natstest.Server

	mu       sync.Mutex
	view     kbroker.ViewReply
	asked    int // views
	hash     string
	number   uint64
	refused  int
	statuses map[kbroker.InstanceID]kbroker.Status
	history  map[kbroker.InstanceID][]kbroker.InstanceState
	gone     map[kbroker.InstanceID]bool
	beats    []kbroker.Heartbeat
	head     uint64 // told in heartbeat replies; 0: that of view
	removed  bool   // likewise
	deaf     bool   // reports are not accepted
	ended    []string
	files    map[string][]byte
	pieces   int
}

func newCore(t *testing.T) *core {
	srv := natstest.Start(t)
	c := &core{
		t: t, srv: srv, conn: srv.Connect(t), files: map[string][]byte{},
		statuses: map[kbroker.InstanceID]kbroker.Status{}, history: map[kbroker.InstanceID][]kbroker.InstanceState{}, gone: map[kbroker.InstanceID]bool{},
	}
	for subject, handle := range map[string]func(*nats.Msg) any{
		subjects.AllViews: c.onView, subjects.AllReports: c.onReport, subjects.AllHeartbeats: c.onBeat,
	} {
		c.subscribe(subject, func(m *nats.Msg) {
			body, err := json.Marshal(handle(m))
			if err != nil {
				panic(err)
			}
			_ = m.Respond(body)
		})
	}
	c.subscribe(subjects.Core(subjects.VerbArtifactGet, kbroker.DefaultTenant), c.onArtifact)
	return c
}

func (c *core) subscribe(subject string, handle nats.MsgHandler) {
	c.t.Helper()
	if _, err := c.conn.Subscribe(subject, handle); err != nil {
		c.t.Fatal(err)
	}
	if err := c.conn.Flush(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *core) onView(*nats.Msg) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	v := c.view
	if c.hash != "" {
		v.Head.Hash = c.hash
	}
	return v
}

func (c *core) onReport(m *nats.Msg) any {
	var r kbroker.ReportRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.deaf {
		return kbroker.ReportReply{Number: r.Number}
	}
	if r.Number <= c.number {
		c.refused++
		return kbroker.ReportReply{Number: c.number}
	}
	c.number = r.Number
	c.ended = append(c.ended, r.Ended...)
	for _, s := range r.Statuses {
		c.statuses[s.Instance] = s
		delete(c.gone, s.Instance)
		if h := c.history[s.Instance]; len(h) == 0 || h[len(h)-1] != s.State {
			c.history[s.Instance] = append(h, s.State)
		}
	}
	for _, k := range r.Gone {
		delete(c.statuses, k.Instance)
		c.gone[k.Instance] = true
	}
	return kbroker.ReportReply{Accepted: true, Number: r.Number}
}

func (c *core) onBeat(m *nats.Msg) any {
	var b kbroker.Heartbeat
	if err := json.Unmarshal(m.Data, &b); err != nil {
		panic(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.beats = append(c.beats, b)
	r := kbroker.HeartbeatReply{Core: "c1", HeadRevision: c.view.Head.Revision, Removed: c.removed, Cores: []kbroker.CoreAddr{{Host: "c9", Client: "10.0.0.9:4222"}}}
	if c.head > 0 {
		r.HeadRevision = c.head
	}
	return r
}

func (c *core) onArtifact(m *nats.Msg) {
	var r kbroker.ArtifactGet
	if err := json.Unmarshal(m.Data, &r); err != nil {
		panic(err)
	}
	c.mu.Lock()
	file, ok := c.files[r.SHA256]
	c.pieces++
	c.mu.Unlock()
	if !ok {
		_ = respond(m, nil, kbroker.Errorf(kbroker.NotFound, "no artifact %s", r.SHA256))
		return
	}
	reply := nats.NewMsg(m.Reply)
	reply.Header.Set(subjects.HeaderSize, strconv.Itoa(len(file)))
	reply.Data = file[min(r.Offset, int64(len(file))):min(r.Offset+int64(r.MaxBytes), int64(len(file)))]
	_ = m.RespondMsg(reply)
}

// want makes placements the host's, and says that something has changed.
func (c *core) want(ps ...kbroker.Placement) {
	c.t.Helper()
	c.quietly(ps...)
	if err := c.conn.Publish(subjects.Changed(subjects.KeyPlacement(testHost, kbroker.DefaultTenant, "any")), nil); err != nil {
		c.t.Fatal(err)
	}
}

// quietly is want whose message is lost.
func (c *core) quietly(ps ...kbroker.Placement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rev := c.view.Head.Revision + 1
	c.view = kbroker.ViewReply{Placements: ps, Head: kbroker.Head{Host: testHost, Revision: rev, Count: len(ps), Hash: kbroker.PlacementsHash(ps)}}
}

func (c *core) status(i kbroker.InstanceID) kbroker.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.statuses[i]
}

// await waits until an instance's status is as it should be.
func (c *core) await(i kbroker.InstanceID, within time.Duration, what string, ok func(kbroker.Status) bool) kbroker.Status {
	c.t.Helper()
	var s kbroker.Status
	wait.Until(c.t, within, func() error {
		if s = c.status(i); !ok(s) {
			return fmt.Errorf("status of %s: %+v, want %s", i, s, what)
		}
		return nil
	})
	return s
}

func (c *core) awaitState(i kbroker.InstanceID, want kbroker.InstanceState) kbroker.Status {
	c.t.Helper()
	return c.await(i, 30*time.Second, string(want), func(s kbroker.Status) bool { return s.State == want })
}

func (c *core) awaitGone(i kbroker.InstanceID) {
	c.t.Helper()
	wait.Until(c.t, 30*time.Second, func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.gone[i] {
			return fmt.Errorf("%s is not gone: %+v", i, c.statuses[i])
		}
		return nil
	})
}

// rounds waits until the agent has acted on n further views.
func (c *core) rounds(n int) {
	c.t.Helper()
	c.mu.Lock()
	from := c.asked
	c.mu.Unlock()
	for i := range n + 1 { // whoever asks again has handed over what it got before
		if err := c.conn.Publish(subjects.Changed(subjects.KeyPlacement(testHost, kbroker.DefaultTenant, "any")), nil); err != nil {
			c.t.Fatal(err)
		}
		wait.Until(c.t, 5*time.Second, func() error {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.asked <= from+i {
				return errors.New("the agent does not ask for its view")
			}
			return nil
		})
	}
}

// placement is an instance of a program of this test binary.
func placement(id kbroker.InstanceID, program string) kbroker.Placement {
	p := kbroker.Placement{
		Tenant: kbroker.DefaultTenant, App: "shop", Service: "web", Instance: id, Host: testHost, Version: 1, Epoch: 1,
		Spec: kbroker.Service{
			Name: "web", Artifact: kbroker.Artifact{Builtin: program}, Health: kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthAlive}},
			Stop: kbroker.Stop{Signal: "SIGTERM", Grace: 10 * time.Second},
		},
	}
	p.Template = kbroker.Template(p.Spec)
	return p
}

func tombstone(p kbroker.Placement) kbroker.Placement {
	p.Stop, p.StopReason = true, "test"
	p.Epoch++
	return p
}

// running is an agent that a test can stop, leaving its instances.
type running struct {
	*Agent
	t    *testing.T
	stop func()
}

// newAgent makes an agent of dir that does not run yet; release gives dir up. When the
// test ends nothing is left of its instances.
func (c *core) newAgent(dir string) (a *Agent, release func()) {
	c.t.Helper()
	c.t.Cleanup(func() {
		if _, err := Sweep(context.Background(), dir, 0); err != nil {
			c.t.Errorf("sweep: %v", err)
		}
	})
	d, err := Lock(dir)
	if err != nil {
		c.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	conn := c.srv.Connect(c.t, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	log := slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	a, err = New(Config{
		Dir: d, Host: testHost, Role: kbroker.RoleWorker, Conn: conn, Servers: func() []string { return []string{c.srv.URL} },
		Executable: exe, Version: "test", Log: log, Labels: DefaultLabels(testHost, kbroker.RoleCore),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return a, func() {
		conn.Close()
		if err := d.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

// startAgent runs an agent on dir until the test ends.
func (c *core) startAgent(dir string) *running {
	c.t.Helper()
	a, release := c.newAgent(dir)
	ctx, cancel := context.WithCancel(context.Background())
	var both sync.WaitGroup
	var beat, ran error
	both.Go(func() { beat = a.Beat(ctx) })
	both.Go(func() { ran = a.Run(ctx) })
	var once sync.Once
	stop := func() {
		once.Do(func() {
			cancel()
			both.Wait()
			if err := errors.Join(beat, ran); err != nil {
				c.t.Errorf("the agent ended with %v", err)
			}
			release()
		})
	}
	c.t.Cleanup(stop)
	return &running{Agent: a, t: c.t, stop: stop}
}

func (r *running) home(i kbroker.InstanceID) string {
	return r.cfg.Dir.home(kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: i})
}

// noted waits for the note that a program leaves.
func (r *running) noted(i kbroker.InstanceID) string {
	r.t.Helper()
	var text string
	wait.Until(r.t, 10*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(r.home(i), workDir, "note"))
		text = string(b)
		return err
	})
	return text
}

// alive is true for a process that runs.
func alive(pid int) bool {
	s, err := readStat(pid)
	return err == nil && !s.ended()
}

func awaitDead(t *testing.T, within time.Duration, pids ...int) {
	t.Helper()
	wait.Until(t, within, func() error {
		for _, pid := range pids {
			if alive(pid) {
				return fmt.Errorf("process %d lives", pid)
			}
		}
		return nil
	})
}

func kill(t *testing.T, pid int, sig unix.Signal) {
	t.Helper()
	if pid <= 1 {
		t.Fatalf("refusing to kill %d", pid)
	}
	if err := unix.Kill(pid, sig); err != nil {
		t.Fatalf("kill %d: %v", pid, err)
	}
}

// foreign starts a process that is not the agent's.
func foreign(t *testing.T, env ...string) procStat {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "60")
	cmd.Env, cmd.Stdout = env, io.Discard
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	s, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
