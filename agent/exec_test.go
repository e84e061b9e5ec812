package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/flow"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// executed is a command that a test has asked for, as a core and a client do.
type executed struct {
	t     *testing.T
	end   *flow.End
	reply kbroker.ExecReply
	ctx   context.Context
	stop  func() // without a word to the agent

	mu    sync.Mutex
	out   bytes.Buffer
	err   bytes.Buffer
	exit  *kbroker.ExecExit
	holds kbroker.ExecFrame
}

// tryExec asks an agent for a command.
func (c *core) tryExec(r kbroker.ExecRequest) (*executed, error) {
	c.t.Helper()
	x := &executed{t: c.t}
	ctx, cancel := context.WithCancel(context.Background())
	quiet := make(chan struct{})
	x.end = flow.New(func(f kbroker.ExecFrame) {
		select {
		case <-quiet:
			return
		default:
		}
		f.Session = x.reply.Session
		body, _ := json.Marshal(f)
		_ = c.conn.Publish(subjects.Host(testHost, subjects.VerbSession, kbroker.DefaultTenant), body)
	})
	x.end.Holds = func(f *kbroker.ExecFrame) {
		x.mu.Lock()
		defer x.mu.Unlock()
		f.Size, f.Interrupts, f.Over = x.holds.Size, x.holds.Interrupts, x.holds.Over
	}
	r.Answers = c.conn.NewInbox()
	sub, err := c.conn.Subscribe(r.Answers, func(m *nats.Msg) {
		var f kbroker.ExecFrame
		if json.Unmarshal(m.Data, &f) == nil {
			x.end.Arrive(f)
		}
	})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := request(ctx, c.conn, subjects.Host(testHost, subjects.VerbExec, kbroker.DefaultTenant), r, &x.reply); err != nil || x.reply.Exit != nil {
		cancel()
		_ = sub.Unsubscribe()
		return x, err
	}
	var parts sync.WaitGroup
	parts.Go(func() { _ = x.end.Run(ctx) })
	parts.Go(func() { x.read(ctx) })
	x.ctx = ctx
	x.stop = sync.OnceFunc(func() {
		close(quiet)
		cancel()
		parts.Wait()
		_ = sub.Unsubscribe()
	})
	c.t.Cleanup(x.stop)
	return x, nil
}

func (c *core) exec(i kbroker.InstanceID, tty bool, command ...string) *executed {
	c.t.Helper()
	r := kbroker.ExecRequest{Instance: i, Command: command}
	if tty {
		r.TTY, r.Term = &kbroker.TerminalSize{Rows: 11, Columns: 22}, "xterm"
	}
	x, err := c.tryExec(r)
	if err != nil || x.reply.Exit != nil {
		c.t.Fatalf("exec %v: %v, %+v", command, err, x.reply)
	}
	return x
}

func (x *executed) read(ctx context.Context) {
	for {
		f, ok := x.end.Next(ctx)
		if !ok {
			return
		}
		x.mu.Lock()
		switch {
		case f.Exit != nil:
			x.exit = f.Exit
		case f.Stream == kbroker.ExecStdout:
			x.out.Write(f.Data)
		default:
			x.err.Write(f.Data)
		}
		x.mu.Unlock()
		x.end.Took()
	}
}

func (x *executed) typed(text string) {
	x.end.Put(x.ctx, kbroker.ExecFrame{Stream: kbroker.ExecStdin, Data: []byte(text)})
}

func (x *executed) closed() {
	x.end.Put(x.ctx, kbroker.ExecFrame{Stream: kbroker.ExecStdin, End: true})
}

// says waits for a text in the output.
func (x *executed) says(text string) {
	x.t.Helper()
	wait.Until(x.t, 10*time.Second, func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if !strings.Contains(x.out.String(), text) {
			return fmt.Errorf("no %q in %q, %q", text, x.out.String(), x.err.String())
		}
		return nil
	})
}

// ends waits for its end.
func (x *executed) ends(within time.Duration) (code int, out, err string) {
	x.t.Helper()
	wait.Until(x.t, within, func() error {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.exit == nil {
			return fmt.Errorf("it has not ended: %d bytes, %q", x.out.Len(), x.err.String())
		}
		code, out, err = x.exit.Code, x.out.String(), x.err.String()
		return nil
	})
	return code, out, err
}

// pid is what a shell prints of itself.
func (x *executed) pid() (pid int) {
	x.t.Helper()
	x.says("\n")
	x.mu.Lock()
	defer x.mu.Unlock()
	if _, err := fmt.Sscan(x.out.String(), &pid); err != nil || pid < 2 {
		x.t.Fatalf("no process in %q: %v", x.out.String(), err)
	}
	return pid
}

func TestACommandRunsInsideAnInstance(t *testing.T) {
	c := newCore(t)
	a := c.startAgent(t.TempDir())
	c.want(placement("web-1", "run"))
	c.awaitState("web-1", kbroker.StateReady)
	x := c.exec("web-1", false, "sh", "-c", "cat; echo to nobody >&2; pwd; echo $KBROKER_INCARNATION; id -u; cat /proc/self/cgroup; exit 7")
	x.typed("one\n")
	x.typed("two\n")
	x.closed()
	code, out, errs := x.ends(10 * time.Second)
	incarnation := string(c.status("web-1").Incarnation)
	for _, want := range []string{"one\ntwo\n", a.home("web-1") + "/work\n", incarnation + "\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
	if a.contain.can.Group && !strings.Contains(out, "/"+incarnation+"\n") {
		t.Errorf("it is not in the group of %s: %s", incarnation, out)
	}
	if a.contain.users != nil && strings.Contains(out, "\n0\n") {
		t.Errorf("it is root: %s", out)
	}
	if code != 7 || errs != "to nobody\n" {
		t.Errorf("it ended with %d and %q", code, errs)
	}
	if code, _, _ := c.exec("web-1", false, "sh", "-c", "kill -9 $$").ends(10 * time.Second); code != 137 {
		t.Errorf("killed it ended with %d, want 137", code)
	}
	if s := c.status("web-1"); s.State != kbroker.StateReady || s.Restarts != 0 {
		t.Errorf("the instance is %+v", s)
	}
}

// What a command has left in a session of its own may write on: that holds nobody up.
func TestACommandEndsThoughItsOutputGoesOn(t *testing.T) {
	c := newCore(t)
	c.startAgent(t.TempDir())
	c.want(placement("web-1", "run"))
	c.awaitState("web-1", kbroker.StateReady)
	code, out, _ := c.exec("web-1", false, "sh", "-c", "setsid sh -c 'while :; do echo on; sleep 0.05; done' & sleep 0.5; exit 3").ends(2*outputRest + time.Second)
	if code != 3 {
		t.Errorf("it ended with %d, and %q", code, out)
	}
}

func TestMuchOutputArrivesWhole(t *testing.T) {
	c := newCore(t)
	c.startAgent(t.TempDir())
	c.want(placement("web-1", "run"))
	c.awaitState("web-1", kbroker.StateReady)
	began := time.Now()
	x := c.exec("web-1", false, "sh", "-c", "head -c 20000000 /dev/zero")
	code, out, _ := x.ends(2 * time.Minute)
	if code != 0 || len(out) != 20_000_000 {
		t.Errorf("it ended with %d, and %d bytes came", code, len(out))
	}
	t.Logf("20 MB in %v", time.Since(began))
}

// What has come is read also after the deadline, at which os.File does not look any more.
func TestWhatHasComeIsReadAfterTheDeadline(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("late"); err != nil {
		t.Fatal(err)
	}
	if err := r.SetReadDeadline(time.Now().Add(-time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10)
	if n, err := r.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("os.File reads %d after its deadline (%v): readNow has no purpose", n, err)
	}
	if n, err := readNow(r, buf); err != nil || string(buf[:n]) != "late" {
		t.Errorf("read %q (%v), want what is there", buf[:n], err)
	}
	if n, err := readNow(r, buf); n != 0 || !errors.Is(err, unix.EAGAIN) {
		t.Errorf("read %d (%v) of nothing", n, err)
	}
	w.Close()
	if n, err := readNow(r, buf); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("read %d (%v) at the end", n, err)
	}
}

func TestWhatCannotBeRunInside(t *testing.T) {
	c := newCore(t)
	c.startAgent(t.TempDir())
	c.want(placement("web-1", "run"), placement("web-2", "fail"))
	c.awaitState("web-1", kbroker.StateReady)
	c.awaitState("web-2", kbroker.StateBackoff)
	for name, test := range map[string]struct {
		instance kbroker.InstanceID
		command  []string
		code     int
		err      kbroker.Code
	}{
		"no such command":         {"web-1", []string{"not-there"}, 127, ""},
		"no such file":            {"web-1", []string{"./not-there"}, 127, ""},
		"a file that is none":     {"web-1", []string{"/etc/hostname"}, 126, ""},
		"an instance in backoff":  {"web-2", []string{"true"}, 0, kbroker.Refused},
		"no such instance":        {"web-3", []string{"true"}, 0, kbroker.NotFound},
		"no command":              {"web-1", nil, 0, kbroker.Invalid},
		"a path for an instance":  {"../web-1", []string{"true"}, 0, kbroker.Invalid},
		"an argument with a zero": {"web-1", []string{"echo", "a\x00b"}, 0, kbroker.Invalid},
	} {
		x, err := c.tryExec(kbroker.ExecRequest{Instance: test.instance, Command: test.command})
		if test.err != "" && !errors.Is(err, test.err) {
			t.Errorf("%s: %v, want %s", name, err, test.err)
		}
		if test.code != 0 && (err != nil || x.reply.Exit == nil || x.reply.Exit.Code != test.code || x.reply.Exit.Message == "") {
			t.Errorf("%s: %v, %+v, want code %d and a message", name, err, x.reply.Exit, test.code)
		}
	}
}

func TestACommandOnATerminal(t *testing.T) {
	c := newCore(t)
	c.startAgent(t.TempDir())
	c.want(placement("web-1", "run"))
	c.awaitState("web-1", kbroker.StateReady)
	x := c.exec("web-1", true, "sh", "-c", `trap 'echo interrupted; exit 5' INT; stty size; stty size < /dev/tty; echo $TERM; read line; echo "got $line"; stty size; echo go; while :; do sleep 0.05; done`)
	x.says("11 22\r\n11 22\r\nxterm")
	x.mu.Lock()
	x.holds.Size = &kbroker.TerminalSize{Rows: 33, Columns: 44}
	x.mu.Unlock()
	x.end.Stir()
	x.typed("hello\n")
	x.says("got hello")
	x.says("33 44\r\ngo")
	x.typed("\x03")
	if code, out, _ := x.ends(10 * time.Second); code != 5 || !strings.Contains(out, "interrupted") {
		t.Errorf("it ended with %d: %q", code, out)
	}
}

func TestInterruptsReachACommandOnce(t *testing.T) {
	c := newCore(t)
	c.startAgent(t.TempDir())
	c.want(placement("web-1", "run"))
	c.awaitState("web-1", kbroker.StateReady)
	x := c.exec("web-1", false, "sh", "-c", `n=0; trap 'n=$((n+1)); echo "interrupt $n"' INT; echo go; while [ $n -lt 2 ]; do sleep 0.05; done; exit 3`)
	x.says("go\n")
	for i := range 2 {
		x.mu.Lock()
		x.holds.Interrupts++
		x.mu.Unlock()
		x.end.Stir()
		x.says(fmt.Sprintf("interrupt %d\n", i+1))
	}
	if code, out, _ := x.ends(10 * time.Second); code != 3 || strings.Contains(out, "interrupt 3") {
		t.Errorf("it ended with %d: %q", code, out)
	}
}

// TestACommandEnds with who asked for it, and with its instance, and its agent.
func TestACommandEnds(t *testing.T) {
	const daemon = "setsid sleep 1000 & echo $$; trap '' HUP; while :; do sleep 1; done"
	for name, test := range map[string]struct {
		end    func(c *core, a *running, x *executed)
		within time.Duration
		tty    bool
	}{
		"who asked says so":           {func(_ *core, _ *running, x *executed) { x.mu.Lock(); x.holds.Over = true; x.mu.Unlock(); x.end.Stir() }, time.Second, false},
		"who asked says so, terminal": {func(_ *core, _ *running, x *executed) { x.mu.Lock(); x.holds.Over = true; x.mu.Unlock(); x.end.Stir() }, time.Second, true},
		"who asked is silent":         {func(_ *core, _ *running, x *executed) { x.stop() }, 6 * time.Second, false},
		"the instance ends":           {func(c *core, _ *running, _ *executed) { c.want(tombstone(placement("web-1", "run"))) }, 5 * time.Second, true},
		"the agent ends":              {func(_ *core, a *running, _ *executed) { a.stop() }, 2 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCore(t)
			a := c.startAgent(t.TempDir())
			c.want(placement("web-1", "run"))
			c.awaitState("web-1", kbroker.StateReady)
			x := c.exec("web-1", test.tty, "sh", "-c", daemon)
			pid := x.pid()
			began := time.Now()
			test.end(c, a, x)
			awaitDead(t, test.within, pid)
			t.Logf("gone after %v", time.Since(began).Round(time.Millisecond))
		})
	}
}

func TestSignals(t *testing.T) {
	c := newCore(t)
	c.startAgent(t.TempDir())
	c.want(placement("web-1", "family"))
	pid := c.awaitState("web-1", kbroker.StateReady).PID
	ask := func(r kbroker.SignalRequest) (kbroker.SignalReply, error) {
		var reply kbroker.SignalReply
		err := request(t.Context(), c.conn, subjects.Host(testHost, subjects.VerbSignal, kbroker.DefaultTenant), r, &reply)
		return reply, err
	}
	var all kbroker.SignalReply
	wait.Until(t, 10*time.Second, func() (err error) {
		if all, err = ask(kbroker.SignalRequest{Instance: "web-1", Signal: "SIGCONT", All: true}); err == nil && all.Processes != 3 {
			err = fmt.Errorf("%d processes were signalled, want 3", all.Processes)
		}
		return err
	})
	for name, test := range map[string]struct {
		request kbroker.SignalRequest
		want    kbroker.Code
	}{
		"no such signal":   {kbroker.SignalRequest{Instance: "web-1", Signal: "SIGNOT"}, kbroker.Invalid},
		"a number":         {kbroker.SignalRequest{Instance: "web-1", Signal: "9"}, kbroker.Invalid},
		"no such instance": {kbroker.SignalRequest{Instance: "web-2", Signal: "SIGHUP"}, kbroker.NotFound},
	} {
		if _, err := ask(test.request); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
	if !alive(pid) {
		t.Fatal("the process is gone before it was killed")
	}
	if r, err := ask(kbroker.SignalRequest{Instance: "web-1", Signal: "SIGKILL"}); err != nil || r.Processes != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	s := c.await("web-1", 10*time.Second, "a crash, then another process", func(s kbroker.Status) bool { return s.Restarts == 1 && s.PID != pid && s.PID != 0 })
	if s.Exit == nil || s.Exit.Signal != "SIGKILL" || s.Crashes != 1 {
		t.Errorf("the status is %+v", s)
	}
	awaitDead(t, 10*time.Second, pid)
}

func TestFindProgram(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/mine", []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=/nowhere", "A=b", "PATH=.:/usr/bin:/bin:" + dir}
	for name, want := range map[string]string{"mine": dir + "/mine", "./mine": dir + "/mine", "/x/y": "/x/y", "not-there": ""} {
		got, err := findProgram(name, dir, env)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%s is %q, %v, want %q", name, got, err, want)
		}
	}
}
