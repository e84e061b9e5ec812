// Package broker is the embedded nats-server of one core host: its
// configuration, its membership in the cluster, its accounts and its health.
//
// A cluster is founded by one host, which runs a second, tiny server in the
// same process: the witness, a voter of the JetStream meta group without data.
// With it one host is a legal cluster. Two more cores join; then the witness is
// removed and every stream gets three replicas (step.go has the protocol,
// docs/adr/0001-witness.md why).
//
// Invariants:
//   - a directory belongs to one host of one cluster for ever (identity.go);
//   - a fresh joiner never elects a meta leader without the founding side
//     (joinRoutes);
//   - members and replicas change one at a time, and only while every member
//     is current;
//   - a server that gives up ends Run with an error, never the process.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of starting.
const (
	// listenWithin bounds the time from start to listening.
	listenWithin = 15 * time.Second
	listenPoll   = 5 * time.Millisecond
)

// Config of a Broker.
type Config struct {
	Host kbroker.HostID
	// Dir is the broker's own directory; created 0700.
	Dir string
	// ClusterID is unique per cluster, so that two never merge.
	ClusterID string
	// ClientAddr and RouteAddr are host:port to listen on, with fixed ports.
	ClientAddr string
	RouteAddr  string
	// Routes is the TLS of the routes, of both sides: each shows who it is, and
	// takes cores of the cluster alone. nil: plain text, for a broker that is alone.
	Routes *tls.Config `json:"-"`
	// Clients is the TLS of the client port, likewise.
	Clients *tls.Config `json:"-"`
	// Grants say who may connect, and what they may do.
	Grants *grants.Authority `json:"-"`
	// Found: this host founds the cluster. It runs the witness until that is
	// retired. At a later start the directory knows.
	Found bool
	// Cores are the other cores it knows. A fresh core that does not found
	// needs at least one, a live one that admitted it.
	Cores []kbroker.CoreAddr
	// Removed are the cores that the operator has removed; asked at every round
	// of the membership loop. nil: none. This core removes them from the meta
	// group when nothing is lost by it; if it is among them, Run ends when that
	// has been done.
	Removed func() []kbroker.HostID `json:"-"`
	// Refused is told whom the core's server turns away, with who they are as far as it
	// knows; and how many more it has counted and does not know. It does not wait. nil:
	// nobody is told.
	Refused func(r kbroker.AuditRecord, more int) `json:"-"`
	// StockRaft leaves the server's raft timing and elections alone.
	StockRaft bool
	Log       *slog.Logger // nil: discard
}

func (c Config) validate() error {
	if err := kbroker.CheckName("host", string(c.Host)); err != nil {
		return err
	}
	if c.Dir == "" || c.ClusterID == "" || c.Grants == nil {
		return kbroker.Errorf(kbroker.Invalid, "a broker needs a directory, a cluster id and grants")
	}
	if _, _, err := hostPort("client", c.ClientAddr); err != nil {
		return err
	}
	_, _, err := hostPort("route", c.RouteAddr)
	return err
}

// Broker is the embedded server of one core host. Safe for concurrent use.
type Broker struct {
	cfg    Config
	id     identity
	joined bool // at an earlier start
	acc    *accounts
	tuned  bool
	log    *slog.Logger

	listening chan struct{}
	ready     chan struct{}
	looks     chan chan<- struct{} // to the membership loop; it closes what it gets
	fatal     chan error           // capacity 1: the first is what Run returns
	counting  chan struct{}        // capacity 1: taken by who asks the server for its counters
	began     time.Time
	core      *server.Server
	system    *nats.Conn // in SYS, from listening to the end
	others    leavers
	refused   refusals
	// saidRemoved: the log of the core's server says that it was removed.
	saidRemoved atomic.Bool

	mu      sync.Mutex // guards what follows
	witness *server.Server
	members Members
	alive   time.Time // the canary's last acknowledged write was sent
}

// New claims the directory. Errors: Invalid - the configuration; Refused - the
// directory is that of another host or cluster, or has lost its store.
func New(cfg Config) (*Broker, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	id, err := claimDir(cfg.Dir, cfg.Grants.System(), identity{ClusterID: cfg.ClusterID, Host: cfg.Host, Founder: cfg.Found}, len(cfg.Cores) > 0)
	if err != nil {
		return nil, err
	}
	joined, err := exists(filepath.Join(cfg.Dir, joinedFile))
	if err != nil {
		return nil, err
	}
	if !id.Founder && !joined && len(cfg.Cores) == 0 {
		return nil, kbroker.Errorf(kbroker.Invalid, "host %s knows no core of cluster %s to join", cfg.Host, cfg.ClusterID)
	}
	acc, err := newAccounts(cfg.Grants)
	if err != nil {
		return nil, err
	}
	b := &Broker{
		cfg: cfg, id: id, joined: joined, acc: acc, log: cfg.Log,
		listening: make(chan struct{}), ready: make(chan struct{}), looks: make(chan chan<- struct{}), fatal: make(chan error, 1),
		counting: make(chan struct{}, 1), began: time.Now(),
	}
	if !cfg.StockRaft {
		if err := tuneOnce(); err != nil {
			b.log.Error("raft timing stays stock: failover takes 4 to 9 s", "err", err)
		} else {
			b.tuned = true
		}
	}
	return b, nil
}

// Listening is closed when clients can connect, in-process ones too: long
// before JetStream is current.
func (b *Broker) Listening() <-chan struct{} { return b.listening }

// Ready is closed when JetStream answers: a meta leader is known, and has this
// server as a current member.
func (b *Broker) Ready() <-chan struct{} { return b.ready }

// RaftTuned reports whether the tuned raft timing is in force, and so which
// times may be relied on.
func (b *Broker) RaftTuned() bool { return b.tuned }

// Connect opens an in-process connection in the account of control and
// applications. It reconnects by itself, for ever; the caller closes it.
// Unavailable before Listening.
func (b *Broker) Connect(opts ...nats.Option) (*nats.Conn, error) {
	select {
	case <-b.listening:
		return b.acc.core.connect(b.core, opts...)
	default:
		return nil, kbroker.Errorf(kbroker.Unavailable, "the broker of host %s does not listen yet", b.cfg.Host)
	}
}

// Members is the last observation of the membership loop. While Run runs, its
// members are at most two seconds old, its streams five; who decides by them
// calls Look first. Its map and its list are the caller's to read, not to write.
func (b *Broker) Members() Members {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.members
}

// Look has the membership loop look again now, streams included, and returns
// when Members is what it saw, or with ctx's error. It costs a question to every
// stream: for people, not for loops.
func (b *Broker) Look(ctx context.Context) error {
	seen := make(chan struct{})
	select {
	case b.looks <- seen:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-seen:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Writable reports whether a compare-and-set write to the control stream was
// acknowledged within the last 3 s.
func (b *Broker) Writable() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.alive.IsZero() && time.Since(b.alive) < writableFor
}

// Run starts the servers and keeps the membership until ctx ends; then it
// hands its leaderships over, stops them and returns nil. Any other return is
// a failure of the node. It runs once.
func (b *Broker) Run(ctx context.Context) error {
	if err := portsFree(b.cfg.ClientAddr, b.cfg.RouteAddr); err != nil {
		return err
	}
	err := b.start(ctx)
	if err == nil {
		err = b.serve(ctx)
	}
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	return errors.Join(err, b.stop())
}

// serve runs the loops until ctx ends or one of them or a server fails.
func (b *Broker) serve(ctx context.Context) error {
	conn, err := b.acc.core.connect(b.core)
	if err != nil {
		return fmt.Errorf("connect to the embedded server: %w", err)
	}
	defer conn.Close()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var loops sync.WaitGroup
	defer loops.Wait()
	defer cancel()
	loops.Go(func() {
		m := &membership{b: b, system: b.system, conn: conn, restart: b.joined}
		if err := m.run(ctx); err != nil {
			b.fail(err)
		}
	})
	loops.Go(func() {
		c := &canary{conn: conn, subject: subjects.Control(subjects.KeyCanary(b.cfg.Host))}
		c.run(ctx, b.noteAlive)
	})
	if b.cfg.Refused != nil {
		loops.Go(func() { b.tellRefused(ctx) })
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-b.fatal:
		return err
	}
}

// start starts the core's server, then the witness beside it if there is one,
// and returns when they listen.
func (b *Broker) start(ctx context.Context) error {
	retired, err := exists(filepath.Join(b.cfg.Dir, retiredFile))
	if err != nil {
		return err
	}
	if retired {
		if err := os.RemoveAll(filepath.Join(b.cfg.Dir, witnessDir)); err != nil {
			return fmt.Errorf("delete the retired witness's store: %w", err)
		}
	}
	o, err := coreOptions(b.cfg, b.acc, coreRoutes(b.cfg, b.id, b.joined))
	if err != nil {
		return err
	}
	if b.core, err = b.startServer(ctx, o, coreNoise); err != nil {
		return err
	}
	if b.id.Founder && !retired {
		if o, err = witnessOptions(b.cfg, b.acc, witnessRoutes(b.cfg, b.joined)); err != nil {
			return err
		}
		w, err := b.startServer(ctx, o, witnessNoise)
		b.mu.Lock()
		b.witness = w
		b.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if b.system, err = b.acc.system.connect(b.core); err != nil {
		return fmt.Errorf("connect to the system account: %w", err)
	}
	if err := b.others.listen(b.system); err != nil {
		return err
	}
	close(b.listening)
	b.log.Info("broker listens", "client", b.cfg.ClientAddr, "route", b.cfg.RouteAddr)
	return nil
}

// startServer returns when the server listens. The server is returned with an
// error too, if there is one to stop.
func (b *Broker) startServer(ctx context.Context, o *server.Options, noise []string) (*server.Server, error) {
	s, err := server.NewServer(o)
	if err != nil {
		return nil, fmt.Errorf("make nats server %s: %w", o.ServerName, err)
	}
	l := &logger{log: b.log.With("server", o.ServerName), noise: noise, fatal: b.fail}
	if o.ServerName == string(b.cfg.Host) {
		l.removed = func() { b.saidRemoved.Store(true) }
		if b.cfg.Refused != nil {
			l.refused = b.refused.note
		}
	}
	s.SetLoggerV2(l, false, false, false)
	s.Start()
	deadline := time.NewTimer(listenWithin)
	defer deadline.Stop()
	poll := time.NewTicker(listenPoll)
	defer poll.Stop()
	for s.Addr() == nil || s.ClusterAddr() == nil {
		select {
		case err := <-b.fatal:
			return s, err
		case <-ctx.Done():
			return s, ctx.Err()
		case <-deadline.C:
			return s, fmt.Errorf("nats server %s does not listen after %v", o.ServerName, listenWithin)
		case <-poll.C:
		}
	}
	return s, nil
}

// fail makes Run return err, if it is the first failure.
func (b *Broker) fail(err error) {
	select {
	case b.fatal <- err:
	default:
	}
}

func (b *Broker) note(o observation) {
	members := membersOf(o)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.members = members
}

// noteReady remembers on disk that this core is a member before it says so.
func (b *Broker) noteReady(o observation) error {
	if b.isReady() || !o.cores()[b.cfg.Host] || !b.core.JetStreamIsCurrent() {
		return nil
	}
	if !b.joined {
		if err := durable.Replace(filepath.Join(b.cfg.Dir, joinedFile), nil, 0o600); err != nil {
			return err
		}
	}
	close(b.ready)
	b.log.Info("broker is ready", "size", o.size)
	return nil
}

func (b *Broker) isReady() bool {
	select {
	case <-b.ready:
		return true
	default:
		return false
	}
}

func (b *Broker) noteAlive(sent time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.alive = sent
}

func (b *Broker) witnessServer() *server.Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.witness
}

// HasWitness reports whether the witness runs in this process: this host founded
// the cluster, and has two votes of the meta group until that has three cores.
func (b *Broker) HasWitness() bool { return b.witnessServer() != nil }

// takeWitness makes the caller the one who stops the witness.
func (b *Broker) takeWitness() *server.Server {
	b.mu.Lock()
	defer b.mu.Unlock()
	w := b.witness
	b.witness = nil
	return w
}

// portsFree says in our words what the server would say by a Fatalf later.
func portsFree(addrs ...string) error {
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return kbroker.Errorf(kbroker.Refused, "cannot listen on %s: %v", addr, err).
				WithHint("another process has the port; the broker's ports are fixed once chosen")
		}
		if err := l.Close(); err != nil {
			return fmt.Errorf("probe %s: %w", addr, err)
		}
	}
	return nil
}

// usedBytes is the size of all files under dir; 0 if there is none.
func usedBytes(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", dir, err)
	}
	return sum, nil
}
