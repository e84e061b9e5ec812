package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestLookSeesWhatAnotherCoreHasSeen: `up` is told of three replicas by one
// core, and the next question, to another, must not be answered with one.
func TestLookSeesWhatAnotherCoreHasSeen(t *testing.T) {
	t.Parallel()
	a := start(t, configOf(t, "a", true))
	a.awaitReady(10 * time.Second)
	createControl(t, a.conn())
	b := start(t, configOf(t, "b", false, a.cfg))
	b.awaitReady(10 * time.Second)
	c := start(t, configOf(t, "c", false, a.cfg, b.cfg))
	hosts := []*host{a, b, c}
	replicas := func(h *host) (n int) {
		wait.Until(t, 10*time.Second, func() error {
			if err := h.Look(t.Context()); err != nil {
				return err
			}
			if n = h.Members().Replicas; n == 0 {
				return fmt.Errorf("%s does not know the streams", h.cfg.Host)
			}
			return nil
		})
		return n
	}
	wait.Until(t, 20*time.Second, func() error {
		for _, h := range hosts {
			if m := h.Members(); m.Replicas == 3 {
				return nil
			}
		}
		return errors.New("no core has seen three replicas")
	})
	for _, h := range hosts {
		if n := replicas(h); n != 3 {
			t.Errorf("%s sees %d replicas after another core saw three", h.cfg.Host, n)
		}
	}
}

func TestOneHostGrowsToThreeUnderWrites(t *testing.T) {
	t.Parallel()
	began := time.Now()
	a := start(t, configOf(t, "a", true))
	a.awaitReady(10 * time.Second)
	nc := a.conn()
	createControl(t, nc)
	t.Logf("founded, control stream created: %v", time.Since(began))
	wait.Until(t, 5*time.Second, func() error {
		if m := a.Members(); !a.Writable() || !m.Witness || m.Size != 2 || m.Replicas != 1 {
			return fmt.Errorf("one host: writable %t, members %+v", a.Writable(), m)
		}
		return nil
	})
	for _, s := range []*server.Server{a.core, a.witnessServer()} {
		if c := s.JetStreamConfig(); !c.SyncAlways {
			t.Errorf("%s acknowledges before it has synced", s.Name())
		}
	}
	w := startWriter(t, nc, nil)

	began = time.Now()
	b := start(t, configOf(t, "b", false, a.cfg))
	b.awaitReady(10 * time.Second)
	t.Logf("b joined: %v, longest gap %v", time.Since(began), w.takeGap())
	wait.Until(t, 5*time.Second, func() error {
		if m := a.Members(); !m.Current["b"] || !m.Witness || m.Size != 3 || m.Replicas != 1 {
			return fmt.Errorf("two hosts: members %+v, want b current, the witness, size 3, one replica", m)
		}
		return nil
	})

	began = time.Now()
	c := start(t, configOf(t, "c", false, a.cfg, b.cfg))
	c.awaitReady(10 * time.Second)
	t.Logf("c joined: %v, longest gap %v", time.Since(began), w.takeGap())
	for _, h := range []*host{a, b, c} {
		wait.Until(t, 20*time.Second, func() error {
			if m := h.Members(); m.Witness || m.Size != 3 || m.Replicas != 3 || len(m.Current) != 3 || !m.Current["a"] || !m.Current["b"] || !m.Current["c"] {
				return fmt.Errorf("three hosts, seen by %s: %+v, want a, b and c current with three replicas", h.cfg.Host, m)
			}
			if !h.Writable() {
				return fmt.Errorf("three hosts: %s cannot write", h.cfg.Host)
			}
			return nil
		})
	}
	t.Logf("witness retired and three replicas: %v after c started, longest gap %v, %d writes, %d without an answer", time.Since(began), w.takeGap(), w.count(), w.unknown)
	wait.Until(t, 5*time.Second, func() error {
		info, err := streamOf(nc, subjects.ControlStream)
		if err != nil {
			return err
		}
		current := 0
		for _, p := range info.Cluster.Replicas {
			if p.Current && !p.Offline {
				current++
			}
		}
		if current != 2 || info.Config.Metadata["kept"] != "yes" || info.Config.RePublish == nil || !info.Config.AllowAtomicPublish {
			return fmt.Errorf("control stream: %d current replicas beside the leader, config %+v", current, info.Config)
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(a.cfg.Dir, retiredFile)); err != nil {
		t.Errorf("the retired witness is not remembered: %v", err)
	}
	if _, err := os.Stat(filepath.Join(a.cfg.Dir, witnessDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the witness's store is still there: %v", err)
	}

	// A founder that stops in order hands over before it goes: the others
	// write on, and it comes back without a witness.
	w.check(t)
	other := startWriter(t, b.conn(), w)
	began = time.Now()
	if err := a.stop(); err != nil {
		t.Errorf("stop a: %v", err)
	}
	t.Logf("a stopped in order: %v, longest gap of b's writes %v", time.Since(began), other.takeGap())
	again := start(t, a.cfg)
	again.awaitReady(15 * time.Second)
	if again.witnessServer() != nil {
		t.Error("the restarted founder runs a retired witness")
	}
	other.check(t)
}

func TestRestartedSingleHostWritesWithinTwoSeconds(t *testing.T) {
	cfg := configOf(t, "solo", true)
	a := start(t, cfg)
	a.awaitReady(10 * time.Second)
	createControl(t, a.conn())
	w := startWriter(t, a.conn(), nil)
	wait.Until(t, 5*time.Second, func() error {
		if n := w.count(); n < 100 {
			return fmt.Errorf("%d writes, want 100", n)
		}
		return nil
	})
	w.check(t)
	for range 3 {
		if err := a.stop(); err != nil {
			t.Fatalf("stop: %v", err)
		}
		began := time.Now()
		a = start(t, cfg)
		first := startWriter(t, a.conn(), w)
		wait.Until(t, 2*time.Second, func() error {
			if first.count() == 0 {
				return errors.New("no write since the restart")
			}
			return nil
		})
		write := time.Since(began)
		a.awaitReady(5 * time.Second)
		t.Logf("restart: first write %v, meta leader %v", write, time.Since(began))
		wait.Until(t, 3*time.Second, func() error {
			if !a.Writable() {
				return errors.New("the canary does not sing after the restart")
			}
			return nil
		})
		first.check(t)
		w = first
	}
}

func TestFreshJoinersDoNotFormAClusterWithoutTheFounder(t *testing.T) {
	t.Parallel()
	a := configOf(t, "a", true)
	b := configOf(t, "b", false, a)
	c := configOf(t, "c", false, a, b)
	hb, hc := start(t, b), start(t, c)
	hb.conn()
	hc.conn()
	// Longer than the longest election timeout, twice over.
	deadline := time.Now().Add(2 * raftTimes[1].tuned)
	for time.Now().Before(deadline) {
		select {
		case <-hb.Ready():
			t.Fatal("b is ready without a founder")
		case <-hc.Ready():
			t.Fatal("c is ready without a founder")
		case <-time.After(100 * time.Millisecond):
		}
		for _, h := range []*host{hb, hc} {
			if m := h.Members(); m.Leader {
				t.Fatalf("%s sees a meta leader without a founder: %+v", h.cfg.Host, m)
			}
		}
	}
	ha := start(t, a)
	for _, h := range []*host{ha, hb, hc} {
		h.awaitReady(20 * time.Second)
	}
}

func TestFatalServerEndsRunWithAnError(t *testing.T) {
	cfg := configOf(t, "a", true)
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	// JetStream cannot start where a file is in the way.
	if err := os.MkdirAll(filepath.Join(cfg.Dir, storeDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, storeDir, "jetstream"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Run(t.Context()) }()
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("Run returned nil, want the server's fatal error")
		}
		t.Log(err)
	case <-time.After(20 * time.Second):
		t.Fatal("Run did not return within 20 s of a fatal error")
	}
}

func TestServerThatStopsByItselfEndsRunWithAnError(t *testing.T) {
	a := start(t, configOf(t, "a", true))
	a.awaitReady(10 * time.Second)
	if err := a.core.DisableJetStream(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-a.done:
		a.done <- err
		if err == nil {
			t.Fatal("Run returned nil after JetStream was disabled")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Run goes on without JetStream")
	}
}

func TestTakenPortIsRefused(t *testing.T) {
	a := start(t, configOf(t, "a", true))
	a.conn()
	cfg := configOf(t, "b", true)
	cfg.RouteAddr = a.cfg.RouteAddr
	b, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Run(t.Context()); !errors.Is(err, kbroker.Refused) {
		t.Fatalf("Run with a taken port: %v, want refused", err)
	}
}

func TestAnonymousClientsAreOutsideTheSystemAccount(t *testing.T) {
	a := start(t, configOf(t, "a", true))
	a.awaitReady(10 * time.Second)
	for name, as := range map[string]nats.Option{"nobody": nats.Name("nobody"), "a guess": nats.UserInfo("sys", "guess")} {
		refused := make(chan error, 1)
		nc, err := nats.Connect("nats://"+a.cfg.ClientAddr, as, nats.CustomInboxPrefix(subjects.GateInbox),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if m, err := nc.Request("$SYS.REQ.SERVER.PING.JSZ", nil, 500*time.Millisecond); err == nil {
			t.Errorf("the system API answers %s: %s", name, m.Data)
		}
		if err := <-refused; !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestStoreBytesCountsWhatIsThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, storeDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, storeDir, "x"), make([]byte, 12345), 0o600); err != nil {
		t.Fatal(err)
	}
	used, err := usedBytes(filepath.Join(dir, storeDir))
	if err != nil || used != 12345 {
		t.Errorf("usedBytes = %d, %v, want 12345", used, err)
	}
	if all, err := storeBytes(dir); err != nil || all <= 0 {
		t.Errorf("storeBytes = %d, %v, want a share of the disk", all, err)
	}
}

// TestAClientCannotRemoveACore: what a client sends gets into the server's log,
// where the server also says that it was removed.
func TestAClientCannotRemoveACore(t *testing.T) {
	heard := make(chan string, 256)
	cfg := configOf(t, "a", true)
	cfg.Log = slog.New(slog.NewTextHandler(lines(heard), nil))
	h := start(t, cfg)
	h.awaitReady(15 * time.Second)
	conn, err := net.Dial("tcp", cfg.ClientAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "CONNECT {}\r\nSUB %s\r\n", removedText); err != nil {
		t.Fatal(err)
	}
	for said := ""; !strings.Contains(said, removedText); {
		select {
		case said = <-heard:
		case <-time.After(10 * time.Second):
			t.Fatal("the server's log does not have what the client sent")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 2 { // one round of the membership loop for sure
		if err := h.Look(ctx); err != nil {
			t.Fatalf("the membership loop does not look: %v", err)
		}
	}
	if err := h.stop(); err != nil {
		t.Errorf("the broker ended with %v", err)
	}
	if removed, err := Removed(cfg.Dir); err != nil || removed {
		t.Errorf("the directory is that of a removed core: %t, %v", removed, err)
	}
}

// TestACoreThatIsPutOutWaitsForTheRecord: only a removal by the operator ends a
// core for good.
func TestACoreThatIsPutOutWaitsForTheRecord(t *testing.T) {
	a := start(t, configOf(t, "a", true))
	a.awaitReady(15 * time.Second)
	createControl(t, a.conn())
	var known atomic.Bool
	cfg := configOf(t, "b", false, a.cfg)
	cfg.Removed = func() []kbroker.HostID {
		if known.Load() {
			return []kbroker.HostID{"b"}
		}
		return nil
	}
	b := start(t, cfg)
	b.awaitReady(15 * time.Second)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	m := &membership{b: a.Broker, system: a.system}
	if err := m.act(ctx, action{deed: removeCore, host: "b"}); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, func() error {
		if b.core.JetStreamEnabled() {
			return errors.New("the JetStream of b is on")
		}
		return nil
	})
	for range 2 { // one round for sure
		if err := b.Look(ctx); err != nil {
			t.Fatalf("the membership loop does not look: %v", err)
		}
	}
	if removed, err := Removed(cfg.Dir); err != nil || removed {
		t.Errorf("without a record the directory is that of a removed core: %t, %v", removed, err)
	}
	known.Store(true)
	select {
	case err := <-b.done:
		b.done <- err
		if !errors.Is(err, kbroker.Refused) {
			t.Errorf("the broker ended with %v, want refused", err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("a core that was removed goes on")
	}
	if removed, err := Removed(cfg.Dir); err != nil || !removed {
		t.Errorf("the directory is that of a removed core: %t, %v", removed, err)
	}
}

// lines are what is written, as long as there is room.
type lines chan string

func (l lines) Write(b []byte) (int, error) {
	select {
	case l <- string(b):
	default:
	}
	return len(b), nil
}
