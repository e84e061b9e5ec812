package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// writeToken puts a token into a file of its own.
func writeToken(t *testing.T, token pki.Token) (file string) {
	t.Helper()
	text, err := token.Written()
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// tokenFile has a token for the cluster of a founder, which nobody has made there.
func tokenFile(t *testing.T, founder *identity) string {
	t.Helper()
	return writeToken(t, pki.NewToken(pki.FingerprintOf(founder.root)))
}

// newToken has a token that the cluster of a running core knows.
func newToken(t *testing.T, core *membership, role kbroker.Role) (file string) {
	t.Helper()
	token := pki.NewToken("")
	hash := sha256.Sum256(token.Secret[:])
	body, err := json.Marshal(kbroker.TokenRequest{ID: token.ID, Hash: hash[:], Role: role, TTL: kbroker.TokenTTL})
	if err != nil {
		t.Fatal(err)
	}
	var reply kbroker.TokenReply
	wait.Until(t, 20*time.Second, func() error {
		nc, err := core.dial()
		if err != nil {
			return err
		}
		defer nc.Close()
		m, err := nc.Request(subjects.Super(subjects.VerbToken, kbroker.DefaultTenant, subjects.NoKey), body, 3*time.Second)
		if err != nil {
			return err
		}
		if m.Header.Get(subjects.HeaderCode) != "" {
			return errors.New(string(m.Data))
		}
		return json.Unmarshal(m.Data, &reply)
	})
	token.Root = reply.Root
	return writeToken(t, token)
}

// loud collects what a host logs.
type loud struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *loud) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *loud) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *loud) logger() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// TestAHostJoinsWithAToken, once: another one is refused with it, what it is told it
// tells, the leader logs whom it refused, and nobody logs the secret.
func TestAHostJoinsWithAToken(t *testing.T) {
	work := t.TempDir()
	log := &loud{}
	start(t, Config{Dir: filepath.Join(work, "a"), Name: "a", Found: true, Advertise: "127.0.0.1", Log: log.logger()})
	a := awaitLeader(t, filepath.Join(work, "a"))
	file := newToken(t, a, kbroker.RoleWorker)
	cfg := func(name kbroker.HostID, role kbroker.Role) Config {
		return Config{Dir: filepath.Join(work, string(name)), Name: name, Role: role, Join: []string{a.Client}, TokenFile: file, Log: log.logger()}
	}
	core := cfg("b", kbroker.RoleCore)
	core.Advertise = "127.0.0.1"
	if err := Run(t.Context(), core); !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "is for a worker") || kbroker.AsError(err).Hint == "" {
		t.Errorf("a core with a worker's token: %v", err)
	}
	worker := cfg("w1", kbroker.RoleWorker)
	stop := start(t, worker)
	wait.Until(t, 20*time.Second, func() error {
		_, err := Roots(worker.Dir)
		return err
	})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), cfg("w2", kbroker.RoleWorker)); !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "was used by host w1") {
		t.Errorf("a second host with the token: %v, want refused", err)
	}
	raw, err := os.ReadFile(file)
	if err := errors.Join(err, os.Remove(file)); err != nil {
		t.Fatal(err)
	}
	start(t, worker) // it never needs it again
	wait.Until(t, 20*time.Second, func() error {
		if n := strings.Count(log.String(), `"host":"w2"`); !strings.Contains(log.String(), "join refused") || n == 0 {
			return errors.New("the leader has not logged that w2 was refused")
		}
		return nil
	})
	secret := strings.TrimSpace(string(raw))[18:50]
	if said := log.String(); strings.Contains(said, secret) || strings.Contains(said, string(raw[:40])) {
		t.Errorf("a log has the secret of a token")
	}
}

// TestAHostSendsNothingToAnotherCluster: not its token, nor anything else.
func TestAHostSendsNothingToAnotherCluster(t *testing.T) {
	founder, other := newFounder(t, "kb-test"), newFounder(t, "kb-test")
	plain := natstest.Start(t)
	foreign := natstest.StartTLS(t, other.clients())
	for name, srv := range map[string]*natstest.Server{"another root": foreign, "no TLS": plain} {
		t.Run(name, func(t *testing.T) {
			heard := make(chan string, 16)
			options := []nats.Option{anyone}
			if srv == plain {
				options = nil
			}
			natstest.Listen(t, srv.Connect(t, options...), ">", func(m *nats.Msg) { heard <- m.Subject })
			cfg := Config{Dir: t.TempDir(), Name: "h2", Advertise: "127.0.0.1", Join: []string{srv.URL}, TokenFile: tokenFile(t, founder)}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			err := Run(ctx, cfg)
			e := kbroker.AsError(err)
			if err == nil || e.Code != kbroker.Refused || !strings.Contains(e.Message, "is not of the cluster that the token is for") || !strings.Contains(e.Hint, "nothing was sent") {
				t.Errorf("%v with hint %q, want refused with a hint", err, e.Hint)
			}
			select {
			case subject := <-heard:
				t.Errorf("it sent something on %s", subject)
			default:
			}
		})
	}
	// A listener that takes what comes hears a greeting of TLS, and no word of NATS.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer c.Close()
		_, _ = c.Write([]byte("INFO {\"server_id\":\"x\",\"tls_required\":true,\"max_payload\":1048576}\r\n"))
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 1<<16)
		n, _ := c.Read(b)
		got <- b[:n]
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	const name = "a-name-that-no-key-has" // a greeting has many bytes that are drawn
	if err := Run(ctx, Config{Dir: t.TempDir(), Name: name, Advertise: "127.0.0.1", Join: []string{l.Addr().String()}, TokenFile: tokenFile(t, founder)}); err != nil {
		t.Errorf("%v, want it to wait until it is called off", err)
	}
	if b := <-got; len(b) == 0 || b[0] != 0x16 || bytes.Contains(b, []byte(name)) || bytes.Contains(b, []byte("CONNECT")) {
		t.Errorf("before it knows whom it talks to it has sent %q", b)
	}
}

// TestTheAnswerNamesThePinnedRoot: a cluster that admits a host and names other roots
// is not taken for the one of the token.
func TestTheAnswerNamesThePinnedRoot(t *testing.T) {
	founder, other := newFounder(t, "kb-test"), newFounder(t, "kb-test")
	m := newHost(t, "kb-test", "w1")
	m.Role = kbroker.RoleWorker
	reply := kbroker.JoinReply{Admitted: true, Generation: 1, Roots: string(pki.EncodeCerts(other.roots...))}
	if err := m.takeIdentity(reply, nil, pki.FingerprintOf(founder.root)); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
		t.Errorf("other roots: %v, want refused with a hint", err)
	}
	if _, err := os.Stat(m.identityDir()); err == nil {
		t.Error("it keeps them")
	}
	reply.Roots += string(pki.EncodeCerts(founder.roots...))
	own, err := m.ownKey()
	if err != nil {
		t.Fatal(err)
	}
	reply.Credential, err = founder.grants.Sign(grants.User{Role: grants.Worker, Key: own.Key(), Tags: map[string][]string{grants.TagHost: {"w1"}}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.takeIdentity(reply, nil, pki.FingerprintOf(founder.root)); err != nil {
		t.Errorf("two roots, the pinned one among them: %v", err)
	}
}

// TestAnAdmittedHostShowsATokenWhenItMust: its admission was taken back, and is
// forgotten.
func TestAnAdmittedHostShowsATokenWhenItMust(t *testing.T) {
	founder := newFounder(t, "kb-test")
	srv := natstest.StartTLS(t, founder.clients())
	shown := make(chan bool, 16)
	natstest.Listen(t, srv.Connect(t, anyone), subjects.Join, func(m *nats.Msg) {
		var r kbroker.JoinRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Error(err)
		}
		shown <- r.Token != nil
		reply := kbroker.JoinReply{Admitted: true, ClusterID: "kb-test", Generation: 1, Cores: []kbroker.CoreAddr{{Host: "h1", Client: strings.TrimPrefix(srv.URL, "nats://")}}}
		err := founder.admit(r, &reply)
		answer := &nats.Msg{}
		if r.Token == nil {
			answer.Header = nats.Header{subjects.HeaderCode: {string(kbroker.Refused)}}
			answer.Data, _ = json.Marshal(kbroker.Errorf(kbroker.Refused, "a host needs a token to join"))
		} else {
			answer.Data, _ = json.Marshal(reply)
		}
		if err := errors.Join(err, m.RespondMsg(answer)); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	cfg := Config{Name: "h2", Advertise: "127.0.0.1", Join: []string{srv.URL}, TokenFile: tokenFile(t, founder)}
	if _, err := establish(t.Context(), dir, cfg, discard()); err != nil {
		t.Fatal(err)
	}
	if _, err := establish(t.Context(), dir, cfg, discard()); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, true} {
		if got := <-shown; got != want {
			t.Errorf("question %d showed a token: %t; want one only of a host of no cluster, or after a refusal", i+1, got)
		}
	}
	if _, err := establish(t.Context(), dir, Config{}, discard()); !errors.Is(err, kbroker.Refused) {
		t.Errorf("without a token it is %v, want refused", err)
	}
}
