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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/spawn"
	"github.com/kbroker/kbroker/internal/flow"
)

const (
	// outputQuiet is how long nothing need be written by who holds the outputs of a command
	// that has ended, restOfOutput the most that is read of them then.
	// outputRest bounds all of it.
	outputQuiet  = 200 * time.Millisecond
	outputRest   = 2 * time.Second
	restOfOutput = 1 << 20
)

// command is one that runs in an instance.
type command struct {
	*process
	child  *spawn.Child
	stdin  *os.File
	output map[kbroker.ExecStream]*os.File
	tty    *os.File // nil: pipes
}

// beginCommand starts a command as the instance of r is started, sandbox and all, in its
// control group. It ends when this agent does. Errors: those of the kernel among them.
func (a *Agent) beginCommand(r record, ask kbroker.ExecRequest) (*command, error) {
	cfg, err := a.beside(r, ask.Command)
	if err != nil {
		return nil, err
	}
	cfg.Args = ask.Command[1:] // as they are: a person's shell has replaced what it would
	if ask.TTY != nil {
		cfg.Env = append(cfg.Env, "TERM="+ask.Term)
	}
	c := &command{output: map[kbroker.ExecStream]*os.File{}}
	given, err := c.connect(&cfg, ask.TTY)
	defer closeAll(given)
	if err != nil {
		c.close()
		return nil, err
	}
	if c.child, err = start(cfg); err != nil {
		c.close()
		return nil, fmt.Errorf("start: %w", err)
	}
	defer c.child.Release()
	if c.process, err = a.watched(c.child, r); err != nil {
		c.child.Forget()
		c.close()
		return nil, errors.Join(err, c.child.Cmd.Process.Kill(), c.child.Cmd.Wait())
	}
	return c, nil
}

// watched takes hold of a process that is to run beside that of r.
func (a *Agent) watched(child *spawn.Child, r record) (*process, error) {
	s, err := readStat(child.PID()) // not waited for: it is there, dead or alive
	if err != nil {
		return nil, fmt.Errorf("identify a command: %w", err)
	}
	if err := expose(s.PID); err != nil {
		a.log.Warn("a command keeps the agent's protection from the OOM killer", "pid", s.PID, "err", err)
	}
	r.procID = s.procID
	return newProcess(r, child.Cmd, nil, &a.scanner, a.log) // the group is the instance's
}

// connect gives cfg the files of a command, and c their other ends. What is returned is
// to be closed when it was started.
func (c *command) connect(cfg *spawn.Config, tty *kbroker.TerminalSize) (given []*os.File, err error) {
	if tty != nil {
		master, slave, err := openTerminal(*tty)
		if err != nil {
			return nil, err
		}
		c.tty, c.stdin, c.output[kbroker.ExecStdout] = master, master, master
		cfg.Stdin, cfg.Stdout, cfg.Stderr, cfg.Terminal = slave, slave, slave, true
		return []*os.File{slave}, belongsTo(cfg.User, slave)
	}
	for _, s := range []struct {
		stream kbroker.ExecStream
		file   **os.File
	}{{kbroker.ExecStdin, &cfg.Stdin}, {kbroker.ExecStdout, &cfg.Stdout}, {kbroker.ExecStderr, &cfg.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return given, fmt.Errorf("pipe: %w", err)
		}
		ours, theirs := r, w
		if s.stream == kbroker.ExecStdin {
			ours, theirs = w, r
			c.stdin = ours
		} else {
			c.output[s.stream] = ours
		}
		*s.file, given = theirs, append(given, theirs)
	}
	return given, belongsTo(cfg.User, given...)
}

// belongsTo lets a user open again what it was given: /dev/stdin, or its terminal.
func belongsTo(u *spawn.User, files ...*os.File) error {
	if u == nil {
		return nil
	}
	for _, f := range files {
		if err := f.Chown(int(u.UID), int(u.GID)); err != nil {
			return fmt.Errorf("give a command its files: %w", err)
		}
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// close closes this side of the command's files.
func (c *command) close() {
	if c.stdin != nil {
		c.stdin.Close()
	}
	for _, f := range c.output {
		f.Close()
	}
}

// findProgram is the file of a command: with a slash, from the working directory; else in
// the PATH of the environment.
func findProgram(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		return name, nil
	}
	path := ""
	for _, v := range env { // the last one holds
		if value, ok := strings.CutPrefix(v, "PATH="); ok {
			path = value
		}
	}
	for _, in := range filepath.SplitList(path) {
		if !filepath.IsAbs(in) {
			continue
		}
		if file, err := exec.LookPath(filepath.Join(in, name)); err == nil {
			return file, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, unix.ENOENT)
}

// session is a command and who has asked for it.
type session struct {
	name    string
	command *command
	scanner *scanner
	log     *slog.Logger
	end     *flow.End
	over    chan struct{} // capacity 1: who asked has gone
	ended   chan struct{} // closed when the command has
	endedAt time.Time     // set before

	// The fields below belong to Run of end.
	size       kbroker.TerminalSize
	interrupts int
}

func newSession(name, answers string, conn *nats.Conn, c *command, scan *scanner, log *slog.Logger) *session {
	s := &session{name: name, command: c, scanner: scan, log: log, over: make(chan struct{}, 1), ended: make(chan struct{})}
	s.end = flow.New(func(f kbroker.ExecFrame) {
		f.Session = name
		body, err := json.Marshal(f)
		if err == nil {
			err = conn.Publish(answers, body)
		}
		if err != nil {
			log.Debug("a frame is not sent; it comes again", "err", err)
		}
	})
	s.end.Heard = s.heard
	return s
}

// heard takes what holds on the other side.
func (s *session) heard(f kbroker.ExecFrame) {
	if f.Over {
		select {
		case s.over <- struct{}{}:
		default:
		}
	}
	if f.Size != nil && s.command.tty != nil && *f.Size != s.size {
		s.size = *f.Size
		if err := setSize(s.command.tty, s.size); err != nil {
			s.log.Debug("a terminal keeps its size", "err", err)
		}
	}
	if f.Interrupts > s.interrupts {
		s.interrupts = f.Interrupts
		s.command.signalGroup(unix.SIGINT)
	}
}

// run moves what is written and read until the command has ended and that was taken, who
// asked has gone or is silent, or ctx ends. Nothing of the command is left then.
func (s *session) run(parent context.Context) {
	ctx, cancel := context.WithCancel(parent)
	var parts sync.WaitGroup
	defer parts.Wait()
	defer s.command.child.Forget()
	defer s.command.pidfd.Close()
	defer s.command.close() // which ends those that read and write
	defer cancel()
	parts.Go(func() {
		defer cancel()
		if err := s.end.Run(ctx); err != nil {
			s.log.Info("a command ends: who asked for it is silent")
		}
	})
	parts.Go(func() { s.write(ctx) })
	var readers sync.WaitGroup
	for stream, f := range s.command.output {
		readers.Go(func() { s.read(ctx, stream, f) })
	}
	gone := make(chan error, 1)
	parts.Go(func() { gone <- waitPidfd(s.command.pidfd) })
	select {
	case <-gone:
	case <-s.over:
		cancel() // nobody takes what it writes
	case <-ctx.Done():
	}
	exit := s.finish()
	s.endedAt = time.Now()
	close(s.ended)
	for _, f := range s.command.output { // who waits to read looks again
		_ = f.SetReadDeadline(time.Now().Add(outputQuiet))
	}
	readers.Wait()
	if s.end.Put(ctx, kbroker.ExecFrame{Exit: &exit}) {
		select {
		case <-s.over:
		case <-ctx.Done():
		}
	}
}

// finish kills the command, if it has not ended, with its session.
func (s *session) finish() kbroker.ExecExit {
	p := s.command.process
	p.signalGroup(unix.SIGKILL)
	if err := p.pidfd.SetReadDeadline(time.Now().Add(insideKilledWait)); err == nil {
		if err := waitPidfd(p.pidfd); err != nil {
			p.log.Warn("a command outlives SIGKILL", "instance", p.incarnation, "pid", p.id.PID)
			return kbroker.ExecExit{Code: kbroker.ExecSignalled + int(unix.SIGKILL), Message: "the command outlives SIGKILL"}
		}
	}
	e := p.reap()
	_, err := killAll(context.Background(), s.scanner.scan, func(m marked) bool { // a shell puts each job into a group of its own
		return m.Session == p.id.PID && m.Incarnation == p.incarnation
	}, nil, 0, insideKilledWait)
	if err != nil {
		p.log.Warn("jobs of a command are left", "pid", p.id.PID, "err", err)
	}
	switch {
	case e.Code != nil:
		return kbroker.ExecExit{Code: *e.Code}
	case e.Signal != "":
		return kbroker.ExecExit{Code: kbroker.ExecSignalled + int(unix.SignalNum(e.Signal)), Message: "ended by " + e.Signal}
	}
	return kbroker.ExecExit{Code: kbroker.ExecSignalled, Message: "it ended, nobody knows how"}
}

// write passes standard input on.
func (s *session) write(ctx context.Context) {
	for {
		f, ok := s.end.Next(ctx)
		if !ok {
			return
		}
		if f.Stream == kbroker.ExecStdin && len(f.Data) > 0 {
			_, _ = s.command.stdin.Write(f.Data) // who does not read it has ended
		}
		if f.Stream == kbroker.ExecStdin && f.End && s.command.tty == nil {
			s.command.stdin.Close()
		}
		s.end.Took()
	}
}

// readNow reads what is there, also after the deadline of f, which is gone then: os.File does
// not look once that is over. Errors: unix.EAGAIN - there is nothing now.
func readNow(f *os.File, buf []byte) (n int, err error) {
	if err := f.SetReadDeadline(time.Time{}); err != nil {
		return 0, err
	}
	c, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	looked := c.Read(func(fd uintptr) bool {
		n, err = unix.Read(int(fd), buf)
		return true
	})
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), errors.Join(looked, err)
}

// read passes an output on, until its end; of a command that has ended, what there is.
func (s *session) read(ctx context.Context, stream kbroker.ExecStream, f *os.File) {
	buf := make([]byte, kbroker.MaxExecData)
	for rest := restOfOutput; rest > 0; {
		n, err := f.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) { // what has come before this goroutine had its turn
			n, err = readNow(f, buf)
		}
		if n > 0 && !s.end.Put(ctx, kbroker.ExecFrame{Stream: stream, Data: slices.Clone(buf[:n])}) {
			return
		}
		if err != nil { // its end; of a terminal EIO; or nothing came for a while
			return
		}
		select {
		case <-s.ended:
			if rest -= n; time.Since(s.endedAt) > outputRest {
				return
			}
			_ = f.SetReadDeadline(time.Now().Add(outputQuiet))
		default:
		}
	}
}
