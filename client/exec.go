package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/flow"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// insideWait is how long a core may take to have something done inside an instance: it
	// waits for an agent, and writes to the audit trail before.
	insideWait = 16 * time.Second
	// interruptGrace is how long a command that was interrupted may take to end.
	interruptGrace = 2 * time.Second
)

// Exec is a command that is to be run inside an instance. Instance and Command are
// required.
type Exec struct {
	Instance kbroker.InstanceID
	Command  []string
	// Stdin may be nil: the command has none. It is read by a goroutine that outlives Run
	// until that read returns.
	Stdin          io.Reader
	Stdout, Stderr io.Writer // nil: it is dropped
	// TTY, if not nil, gives it a terminal of that size, and all its output to Stdout. Size
	// (may be nil) tells new ones.
	TTY  *kbroker.TerminalSize
	Term string
	Size <-chan kbroker.TerminalSize
}

// Exec runs a command in the instance and returns its exit code when it has ended, and its
// output is written: 128 and the number of a signal that ended it; 127 when there is no
// such command, 126 when it cannot be run, both with an error of code Failed. The end of
// ctx interrupts it, and kills it two seconds later. Errors: NotFound, Invalid;
// Refused: the instance does not run, or one may not; Unavailable: it may have been run,
// and has ended by now or will within seconds.
func (c *Client) Exec(ctx context.Context, e Exec) (int, error) {
	s := &execution{Exec: e, client: c, frames: c.conn.NewInbox()}
	s.end = flow.New(s.send)
	s.end.Holds, s.end.Heard = s.holds, nil
	if e.TTY != nil {
		s.size.Store(e.TTY)
	}
	sub, err := c.conn.Subscribe(s.frames, s.arrive)
	if err != nil {
		return 0, kbroker.Errorf(kbroker.Unavailable, "listen to the command: %v", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	var reply kbroker.ExecReply
	ask := kbroker.ExecRequest{Instance: e.Instance, Command: e.Command, Answers: s.frames, TTY: e.TTY, Term: e.Term}
	if err := ask.Check(); err != nil {
		return 0, err
	}
	if err := c.once(ctx, subjects.VerbExec, ask, &reply); err != nil {
		return 0, err
	}
	if reply.Exit != nil {
		return reply.Exit.Code, kbroker.Errorf(kbroker.Failed, "%s", reply.Exit.Message)
	}
	s.to, s.name = subjects.Host(reply.Host, subjects.VerbSession, c.tenant), reply.Session
	return s.run(ctx)
}

// Signal signals the main process of an instance, or with all each of its processes, and
// returns how many that were. Errors: NotFound, Invalid; Refused: it does not run, or one
// may not; Unavailable: it may have been done.
func (c *Client) Signal(ctx context.Context, instance kbroker.InstanceID, signal string, all bool) (int, error) {
	var reply kbroker.SignalReply
	err := c.once(ctx, subjects.VerbSignal, kbroker.SignalRequest{Instance: instance, Signal: signal, All: all}, &reply)
	return reply.Processes, err
}

// once asks a core for what must not be done twice.
func (c *Client) once(ctx context.Context, verb string, req, reply any) error {
	body, err := json.Marshal(req)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	attempt, cancel := context.WithTimeout(ctx, insideWait)
	defer cancel()
	msg, err := c.request(attempt, &nats.Msg{Subject: subjects.Core(verb, c.tenant), Data: body})
	switch {
	case err == nil:
		return decode(msg, reply)
	case errors.Is(err, kbroker.Refused), errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, nats.ErrNoResponders):
		return kbroker.Errorf(kbroker.Unavailable, "no core serves requests").WithHint("`kbroker status` says what the cluster is missing")
	}
	e := kbroker.Errorf(kbroker.Unavailable, "no core answered (%v); it may have been done", err).WithHint("it is not asked for again by itself")
	e.Executed = kbroker.ExecutedUnknown
	return e
}

// execution is a command that runs elsewhere.
type execution struct {
	Exec
	client   *Client
	end      *flow.End
	frames   string // where those of the command come
	to, name string

	size       atomic.Pointer[kbroker.TerminalSize]
	interrupts atomic.Int64
	over       atomic.Bool
}

func (s *execution) arrive(m *nats.Msg) {
	var f kbroker.ExecFrame
	if json.Unmarshal(m.Data, &f) == nil {
		s.end.Arrive(f)
	}
}

func (s *execution) send(f kbroker.ExecFrame) {
	f.Session = s.name
	if body, err := json.Marshal(f); err == nil {
		_ = s.client.conn.Publish(s.to, body) // what is not sent comes again
	}
}

func (s *execution) holds(f *kbroker.ExecFrame) {
	f.Size, f.Interrupts, f.Over = s.size.Load(), int(s.interrupts.Load()), s.over.Load()
}

// run moves what is read and written until the command has ended.
func (s *execution) run(parent context.Context) (int, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(parent))
	var parts sync.WaitGroup
	defer func() {
		s.over.Store(true)
		cancel()
		parts.Wait()
		_ = s.client.conn.FlushTimeout(time.Second) // the last word is that it is over
	}()
	silent := make(chan error, 1)
	parts.Go(func() { silent <- s.end.Run(ctx) })
	parts.Go(func() { s.resize(ctx) })
	go s.read(ctx) // a read of a terminal cannot be ended
	ended := make(chan outcome, 1)
	parts.Go(func() {
		if o, ok := s.write(ctx); ok {
			ended <- o
		}
	})
	interrupted, grace := parent.Done(), (<-chan time.Time)(nil)
	for {
		select {
		case o := <-ended:
			return o.code, o.err
		case <-silent:
			e := kbroker.Errorf(kbroker.Unavailable, "the host of instance %s was not heard for %v; it ends the command, if that still runs", s.Instance, flow.Silence)
			e.Executed = kbroker.ExecutedUnknown
			return 0, e
		case <-interrupted:
			interrupted, grace = nil, time.After(interruptGrace)
			s.interrupts.Add(1)
			s.end.Stir()
		case <-grace:
			return 0, context.Cause(parent)
		}
	}
}

// resize tells of new sizes of the terminal.
func (s *execution) resize(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case size := <-s.Size:
			s.size.Store(&size)
			s.end.Stir()
		}
	}
}

// read passes standard input on, and its end.
func (s *execution) read(ctx context.Context) {
	buf := make([]byte, kbroker.MaxExecData)
	for s.Stdin != nil {
		n, err := s.Stdin.Read(buf)
		if n > 0 && !s.end.Put(ctx, kbroker.ExecFrame{Stream: kbroker.ExecStdin, Data: slices.Clone(buf[:n])}) {
			return
		}
		if err != nil {
			break
		}
	}
	s.end.Put(ctx, kbroker.ExecFrame{Stream: kbroker.ExecStdin, End: true})
}

// outcome is how it ended.
type outcome struct {
	code int
	err  error
}

// write writes what the command does, until its end, or that of who reads it.
func (s *execution) write(ctx context.Context) (outcome, bool) {
	for {
		f, ok := s.end.Next(ctx)
		if !ok {
			return outcome{}, false
		}
		if f.Exit != nil {
			return outcome{code: f.Exit.Code}, true
		}
		to := s.Stdout
		if f.Stream == kbroker.ExecStderr {
			to = s.Stderr
		}
		if to != nil {
			if _, err := to.Write(f.Data); err != nil {
				return outcome{err: fmt.Errorf("write the output of the command: %w", err)}, true
			}
		}
		s.end.Took()
	}
}
