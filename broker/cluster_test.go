package broker

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// childEnv makes this test binary run one broker, of the configuration in it,
// until SIGTERM: the only way to kill a core as a crash does.
const childEnv = "KBROKER_TEST_BROKER"

var long = flag.Bool("long", false, "run the longer rows too")

func needLong(t *testing.T) {
	t.Helper()
	if !*long {
		t.Skip("long: run with `go test ./broker -long`")
	}
}

func TestMain(m *testing.M) {
	if c := os.Getenv(childEnv); c != "" {
		os.Exit(child(c))
	}
	os.Exit(m.Run())
}

func child(config string) int {
	var cfg Config
	if err := json.Unmarshal([]byte(config), &cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	cfg.Grants = testGrants
	cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	cfg.Removed = func() (removed []kbroker.HostID) {
		b, err := os.ReadFile(removedIn(cfg))
		if err == nil {
			err = json.Unmarshal(b, &removed)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(os.Stderr, err)
		}
		return removed
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	b, err := New(cfg)
	if err == nil {
		err = b.Run(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// removedIn is the file in which a child finds the cores that the operator has
// removed.
func removedIn(cfg Config) string { return filepath.Join(filepath.Dir(cfg.Dir), "removed.json") }

// freeAddr is an address that is this test's.
func freeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
}

// configOf a host that knows the given others.
func configOf(t testing.TB, name kbroker.HostID, found bool, others ...Config) Config {
	t.Helper()
	cfg := Config{
		Host: name, Found: found, ClusterID: "test-" + strconv.Itoa(os.Getpid()) + "-" + t.Name(),
		Grants: testGrants,
		Dir:    filepath.Join(t.TempDir(), string(name)), ClientAddr: freeAddr(t), RouteAddr: freeAddr(t),
	}
	for _, o := range others {
		cfg.Cores = append(cfg.Cores, kbroker.CoreAddr{Host: o.Host, Client: o.ClientAddr, Route: o.RouteAddr})
	}
	return cfg
}

// host is a broker that runs in this process.
type host struct {
	*Broker
	t      testing.TB
	cancel context.CancelFunc
	done   chan error
	once   sync.Once
	result error
}

func start(t testing.TB, cfg Config) *host {
	t.Helper()
	if os.Getenv("KBROKER_TEST_LOG") != "" { // with -v: what the servers say
		cfg.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("host", cfg.Host)
	}
	b, err := New(cfg)
	if err != nil {
		t.Fatalf("new broker %s: %v", cfg.Host, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &host{Broker: b, t: t, cancel: cancel, done: make(chan error, 1)}
	go func() { h.done <- b.Run(ctx) }()
	t.Cleanup(func() { _ = h.stop() })
	return h
}

// stop ends the broker in order and returns what Run returned.
func (h *host) stop() error {
	h.once.Do(func() {
		h.cancel()
		select {
		case h.result = <-h.done:
		case <-time.After(20 * time.Second):
			h.t.Errorf("broker %s: Run did not return within 20 s", h.cfg.Host)
		}
	})
	return h.result
}

func (h *host) awaitReady(within time.Duration) {
	h.t.Helper()
	select {
	case <-h.Ready():
	case err := <-h.done:
		h.t.Fatalf("broker %s ended: %v", h.cfg.Host, err)
	case <-time.After(within):
		h.t.Fatalf("broker %s is not ready after %v; members %+v", h.cfg.Host, within, h.Members())
	}
}

func (h *host) conn() *nats.Conn {
	h.t.Helper()
	select {
	case <-h.Listening():
	case <-time.After(10 * time.Second):
		h.t.Fatalf("broker %s does not listen after 10 s", h.cfg.Host)
	}
	nc, err := h.Connect()
	if err != nil {
		h.t.Fatalf("connect to %s: %v", h.cfg.Host, err)
	}
	h.t.Cleanup(nc.Close)
	return nc
}

// childHost is a broker in a process of its own.
type childHost struct {
	cfg Config
	cmd *exec.Cmd
}

func startChild(t testing.TB, cfg Config) *childHost {
	t.Helper()
	b, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(b))
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &childHost{cfg: cfg, cmd: cmd}
	t.Cleanup(c.kill)
	return c
}

// kill is kill -9; it returns when the process has gone.
func (c *childHost) kill() {
	if c.cmd.ProcessState == nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	}
}

func (c *childHost) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		t.Fatalf("signal %v to %s: %v", s, c.cfg.Host, err)
	}
}

// testGrants are those of all clusters of the tests, which have a second tenant.
var testGrants = func() *grants.Authority {
	g, err := grants.New(make([]byte, grants.SecretSize), "other")
	if err != nil {
		panic(err)
	}
	return g
}()

// asCore are the options of a client that may do everything.
func asCore(t testing.TB) []nats.Option {
	t.Helper()
	acc, err := newAccounts(testGrants)
	if err != nil {
		t.Fatal(err)
	}
	options, err := acc.core.options()
	if err != nil {
		t.Fatal(err)
	}
	return options
}

// dial connects a plain client to the given cores.
func dial(t testing.TB, cores ...Config) *nats.Conn {
	t.Helper()
	var nc *nats.Conn
	urls := ""
	for _, c := range cores {
		urls += "nats://" + c.ClientAddr + ","
	}
	wait.Until(t, 10*time.Second, func() (err error) {
		nc, err = nats.Connect(urls[:len(urls)-1], append(asCore(t), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond),
			nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2), nats.DontRandomize())...)
		return err
	})
	t.Cleanup(nc.Close)
	return nc
}

// createControl creates the control stream with one replica, as founding does.
func createControl(t testing.TB, nc *nats.Conn) {
	t.Helper()
	wait.Until(t, 10*time.Second, func() error {
		return createStream(nc, &server.Placement{Tags: []string{subjects.TagCore}})
	})
}

// createStandalone is createControl on a server without tags.
func createStandalone(nc *nats.Conn) error { return createStream(nc, nil) }

func createStream(nc *nats.Conn, placement *server.Placement) error {
	body, err := json.Marshal(server.StreamConfig{
		Name: subjects.ControlStream, Subjects: []string{subjects.ControlAll}, MaxMsgsPer: 1,
		Discard: server.DiscardNew, Storage: server.FileStorage, AllowRollup: true, DenyDelete: true, AllowDirect: true,
		Replicas: 1, AllowMsgTTL: true, SubjectDeleteMarkerTTL: time.Minute, AllowAtomicPublish: true,
		MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxConsumers: -1, Placement: placement,
		RePublish: &server.RePublish{Source: subjects.ControlAll, Destination: subjects.ControlChanged},
		Metadata:  map[string]string{"kept": "yes"},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 150*time.Millisecond)
	defer cancel()
	var r server.JSApiStreamCreateResponse
	if err := ask(ctx, nc, fmt.Sprintf(server.JSApiStreamCreateT, subjects.ControlStream), body, &r); err != nil {
		return err
	}
	return r.ToError()
}

func streamOf(nc *nats.Conn, name string) (*server.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return (&membership{conn: nc}).streamInfo(ctx, name)
}

// writer makes compare-and-set writes to the control stream, one after the
// other, and knows what was acknowledged.
type writer struct {
	conn   *nats.Conn
	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.Mutex // guards what follows
	acked     map[string]uint64
	writes    int
	unknown   int // writes without an answer
	lastAck   time.Time
	gap       time.Duration
	violation error
}

const (
	writerKeys    = 50
	writerTimeout = 500 * time.Millisecond
)

// startWriter starts one that goes on where the stopped one before it ended.
func startWriter(t testing.TB, nc *nats.Conn, before *writer) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{conn: nc, cancel: cancel, done: make(chan struct{}), acked: map[string]uint64{}, lastAck: time.Now()}
	if before != nil {
		maps.Copy(w.acked, before.acked)
	}
	go func() {
		defer close(w.done)
		for n := 0; ctx.Err() == nil; n++ {
			w.write(ctx, "app.test.k"+strconv.Itoa(n%writerKeys))
		}
	}()
	t.Cleanup(w.stop)
	return w
}

func (w *writer) stop() { w.cancel(); <-w.done }

// write sends one value until an answer is certain.
func (w *writer) write(ctx context.Context, key string) {
	for ctx.Err() == nil {
		w.mu.Lock()
		expected := w.acked[key]
		w.mu.Unlock()
		m := nats.NewMsg(subjects.Control(key))
		m.Header.Set(nats.ExpectedLastSubjSeqHdr, strconv.FormatUint(expected, 10))
		m.Data = []byte("value after " + strconv.FormatUint(expected, 10))
		attempt, cancel := context.WithTimeout(ctx, writerTimeout)
		reply, err := w.conn.RequestMsgWithContext(attempt, m)
		cancel()
		var ack server.JSPubAckResponse
		if err == nil {
			err = json.Unmarshal(reply.Data, &ack)
		}
		if err == nil && ack.Error == nil {
			w.ack(key, ack.Sequence)
			return
		}
		if ctx.Err() == nil && w.settle(ctx, key, expected) {
			return
		}
	}
}

// settle finds out whether a write without a good answer was applied.
func (w *writer) settle(ctx context.Context, key string, expected uint64) bool {
	w.mu.Lock()
	w.unknown++
	w.mu.Unlock()
	for ctx.Err() == nil {
		sequence, data, err := leaderRead(ctx, w.conn, key)
		switch {
		case err != nil:
			continue
		case sequence < expected:
			// A leader that was frozen answers from its past until it hears of
			// the new one. If nobody knows better, no write follows, and check
			// finds what was lost.
			continue
		case sequence == expected:
			return false // not applied, or not yet: the same compare-and-set again
		case data == "value after "+strconv.FormatUint(expected, 10):
			w.ack(key, sequence)
			return true
		default:
			w.mu.Lock()
			w.violation = fmt.Errorf("key %s has sequence %d and %q, want %d or the write after it", key, sequence, data, expected)
			w.mu.Unlock()
			w.cancel()
			return false
		}
	}
	return false
}

func (w *writer) ack(key string, sequence uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.gap = max(w.gap, now.Sub(w.lastAck))
	w.lastAck, w.acked[key] = now, sequence
	w.writes++
}

// takeGap returns the longest time between two acknowledgements since the last
// call.
func (w *writer) takeGap() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	gap := max(w.gap, time.Since(w.lastAck))
	w.gap = 0
	return gap
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writes
}

// check reads every acknowledged write back from the stream's leader.
func (w *writer) check(t testing.TB) {
	t.Helper()
	w.stop()
	if w.violation != nil {
		t.Error(w.violation)
	}
	if len(w.acked) == 0 {
		t.Error("no write was acknowledged")
	}
	for key, want := range w.acked {
		wait.Until(t, 10*time.Second, func() error {
			got, data, err := leaderRead(context.Background(), w.conn, key)
			if err != nil {
				return err
			}
			// The last write may have been cut off by stop and applied.
			if got != want && data != "value after "+strconv.FormatUint(want, 10) {
				return fmt.Errorf("key %s: sequence %d in the store, %d was acknowledged", key, got, want)
			}
			return nil
		})
	}
}

func leaderRead(ctx context.Context, nc *nats.Conn, key string) (sequence uint64, data string, err error) {
	ctx, cancel := context.WithTimeout(ctx, writerTimeout)
	defer cancel()
	body, err := json.Marshal(server.JSApiMsgGetRequest{LastFor: subjects.Control(key)})
	if err != nil {
		return 0, "", err
	}
	var r server.JSApiMsgGetResponse
	if err := ask(ctx, nc, fmt.Sprintf(server.JSApiMsgGetT, subjects.ControlStream), body, &r); err != nil {
		return 0, "", err
	}
	switch {
	case r.Error != nil && r.Error.ErrCode == uint16(server.JSNoMessageFoundErr):
		return 0, "", nil
	case r.Error != nil:
		return 0, "", r.Error
	case r.Message == nil:
		return 0, "", errors.New("empty answer")
	}
	return r.Message.Sequence, string(r.Message.Data), nil
}
