package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nats.go"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxSessions bounds the commands that run inside instances at a time.
	maxSessions = 32
	// maxInside may wait to be looked at; the broker drops further ones. Frames come
	// again.
	maxInside = 1024
)

// insider does what is asked inside of instances: it runs commands there, and signals
// their processes. Only a core can ask it to, who has looked at who asks and has told the
// audit trail; frames of a session come from whoever knows its name.
type insider struct {
	host    kbroker.HostID
	conn    *nats.Conn
	log     *slog.Logger
	running func(context.Context, kbroker.StatusKey) (*process, record, error)
	begin   func(record, kbroker.ExecRequest) (*command, error)
	scanner *scanner

	mu       sync.Mutex
	sessions map[string]*session
}

func (a *Agent) newInsider() *insider {
	return &insider{
		host: a.cfg.Host, conn: a.cfg.Conn, log: a.log, running: a.runs, begin: a.beginCommand, scanner: &a.scanner,
		sessions: map[string]*session{},
	}
}

// run works until ctx ends; what it has started ends with it.
func (s *insider) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	asked := make(chan *nats.Msg, maxInside)
	for _, verb := range []string{subjects.VerbExec, subjects.VerbSignal, subjects.VerbSession} {
		sub, err := s.conn.ChanSubscribe(subjects.Host(s.host, verb, "*"), asked)
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", verb, err)
		}
		defer sub.Unsubscribe()
	}
	room := make(chan struct{}, maxSessions)
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-asked:
			if s.arrive(m) {
				continue
			}
			select {
			case room <- struct{}{}:
			default:
				s.respond(m, nil, kbroker.Errorf(kbroker.Overloaded, "host %s runs %d commands inside instances", s.host, maxSessions))
				continue
			}
			work.Go(func() {
				defer func() { <-room }()
				s.serve(ctx, m)
			})
		}
	}
}

// arrive hands a frame to its session; false: it is none.
func (s *insider) arrive(m *nats.Msg) bool {
	if subjects.HostVerb(m.Subject) != subjects.VerbSession {
		return false
	}
	var f kbroker.ExecFrame
	if err := json.Unmarshal(m.Data, &f); err != nil {
		return true // nobody's
	}
	s.mu.Lock()
	at := s.sessions[f.Session]
	s.mu.Unlock()
	if at != nil {
		at.end.Arrive(f)
	}
	return true
}

func (s *insider) serve(ctx context.Context, m *nats.Msg) {
	tenant, _ := subjects.TenantOf(m.Subject)
	if subjects.HostVerb(m.Subject) == subjects.VerbSignal {
		reply, err := s.signal(ctx, tenant, m.Data)
		s.respond(m, reply, err)
		return
	}
	at, reply, err := s.open(ctx, tenant, m.Data)
	s.respond(m, reply, err)
	if at == nil {
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.sessions, reply.Session)
	}()
	at.run(ctx)
}

func (s *insider) respond(m *nats.Msg, reply any, err error) {
	if err := respond(m, reply, err); err != nil {
		s.log.Debug("not answered", "subject", m.Subject, "err", err)
	}
}

// open starts a command. A nil session: there is none to run.
func (s *insider) open(ctx context.Context, tenant kbroker.TenantID, body []byte) (*session, kbroker.ExecReply, error) {
	reply := kbroker.ExecReply{Host: s.host}
	var r kbroker.ExecRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, reply, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	if err := r.Check(); err != nil {
		return nil, reply, err
	}
	if !subjects.IsInbox(r.Answers) {
		return nil, reply, kbroker.Errorf(kbroker.Invalid, "the frames of a session are wanted on %q, which is no inbox", r.Answers)
	}
	k := kbroker.StatusKey{Tenant: tenant, Instance: r.Instance}
	if err := validKey(k); err != nil {
		return nil, reply, err
	}
	_, of, err := s.running(ctx, k)
	if err != nil {
		return nil, reply, err
	}
	c, err := s.begin(of, r)
	switch {
	case errors.Is(err, unix.ENOENT):
		reply.Exit = &kbroker.ExecExit{Code: kbroker.ExecNotFound, Message: fmt.Sprintf("%s: command not found in instance %s", r.Command[0], r.Instance)}
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EPERM):
		reply.Exit = &kbroker.ExecExit{Code: kbroker.ExecNotRunnable, Message: fmt.Sprintf("%s: cannot be run in instance %s: %v", r.Command[0], r.Instance, err)}
	case err != nil:
		return nil, reply, err
	}
	if err != nil {
		return nil, reply, nil
	}
	reply.Session = randomHex() + randomHex()
	at := newSession(reply.Session, r.Answers, s.conn, c, s.scanner, s.log.With("instance", r.Instance))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[reply.Session] = at
	return at, reply, nil
}

// runs is the process of an instance. Errors: NotFound; Refused - it does not run.
func (a *Agent) runs(ctx context.Context, k kbroker.StatusKey) (*process, record, error) {
	type answer struct {
		process *process
		record  record
		err     error
	}
	got := make(chan answer, 1)
	if !a.post(ctx, func() {
		i := a.instances[k]
		switch {
		case i == nil || !i.speaks():
			got <- answer{err: kbroker.Errorf(kbroker.NotFound, "host %s has no instance %s", a.cfg.Host, k.Instance).WithHint("`kbroker ps` lists them")}
		case i.process == nil || i.phase != phaseUp:
			got <- answer{err: kbroker.Errorf(kbroker.Refused, "instance %s does not run: it is %s", k.Instance, i.status(a.cfg.Host).State).WithHint("`kbroker why` says more")}
		default:
			got <- answer{i.process, i.record, nil}
		}
	}) {
		return nil, record{}, ctx.Err()
	}
	g := <-got
	return g.process, g.record, g.err
}

// signal signals the main process of an instance, or all of them.
func (s *insider) signal(ctx context.Context, tenant kbroker.TenantID, body []byte) (kbroker.SignalReply, error) {
	reply := kbroker.SignalReply{Host: s.host}
	var r kbroker.SignalRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return reply, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	sig := unix.SignalNum(r.Signal)
	if sig == 0 {
		return reply, kbroker.Errorf(kbroker.Invalid, "there is no signal %q on host %s", r.Signal, s.host)
	}
	k := kbroker.StatusKey{Tenant: tenant, Instance: r.Instance}
	if err := validKey(k); err != nil {
		return reply, err
	}
	p, _, err := s.running(ctx, k)
	if err != nil {
		return reply, err
	}
	all := []procID{p.id}
	if r.All {
		if all, err = p.family(); err != nil {
			return reply, err
		}
	}
	for _, id := range all {
		err := signalProcess(id, sig)
		if errors.Is(err, errGone) {
			continue
		}
		if err != nil {
			return reply, err
		}
		reply.Processes++
	}
	s.log.Info("signalled", "instance", r.Instance, "signal", r.Signal, "processes", reply.Processes)
	return reply, nil
}

// family is the process and whatever is in its control group; where it has none, in its
// process group, or bears its name.
func (p *process) family() ([]procID, error) {
	all, err := p.scanner.scan()
	if err != nil {
		return nil, err
	}
	in := map[int]bool{}
	if p.group != nil {
		found, err := p.group.Processes()
		if err != nil {
			return nil, err
		}
		for _, pid := range found {
			in[pid] = true
		}
	}
	var out []procID
	for _, m := range all { // scanned before the group was read: who is in both is who it was
		if m.ended() {
			continue
		}
		if m.procID == p.id || in[m.PID] || p.group == nil && (m.Group == p.id.PID || m.Incarnation == p.incarnation) {
			out = append(out, m.procID)
		}
	}
	return out, nil
}
