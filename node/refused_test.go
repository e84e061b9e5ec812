package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// admittedWorker is a worker of the cluster of a founder.
func admittedWorker(t *testing.T, founder *identity, name kbroker.HostID) *membership {
	t.Helper()
	m := newHost(t, founder.self.Cluster, name)
	m.Role = kbroker.RoleWorker
	r, box := request(t, m)
	reply := kbroker.JoinReply{Admitted: true, Generation: 1}
	if err := errors.Join(founder.admit(r, &reply), m.takeIdentity(reply, box, ""), m.save()); err != nil {
		t.Fatal(err)
	}
	return m
}

// TestWhomAWorkerBelievesThatItWasRemoved: a core of its own cluster, that says so of
// this host as it was admitted; whatever else it hears is no reason to end anything.
func TestWhomAWorkerBelievesThatItWasRemoved(t *testing.T) {
	founder, stranger := newFounder(t, "kb-test"), newFounder(t, "kb-test")
	removed := kbroker.JoinReply{Removed: true, Host: "w1", Generation: 1}
	for name, tc := range map[string]struct {
		by     *identity
		answer any // nil: none
		want   bool
	}{
		"a core that says so":               {by: founder, answer: removed, want: true},
		"a core of another root":            {by: stranger, answer: removed},
		"a core that means another host":    {by: founder, answer: kbroker.JoinReply{Removed: true, Host: "w2", Generation: 1}},
		"one that means another admission":  {by: founder, answer: kbroker.JoinReply{Removed: true, Host: "w1", Generation: 2}},
		"one that says to wait":             {by: founder, answer: kbroker.JoinReply{Wait: "the broker has no leader"}},
		"one that says nothing":             {by: founder, answer: struct{}{}},
		"one that refuses":                  {by: founder, answer: kbroker.Errorf(kbroker.Refused, "host w1 was removed from the cluster")},
		"one that admits another admission": {by: founder, answer: kbroker.JoinReply{Admitted: true, Generation: 2, Credential: "x"}},
		"one whose answer is unreadable":    {by: founder, answer: 1},
		"nobody who answers":                {by: founder},
	} {
		t.Run(name, func(t *testing.T) {
			m := admittedWorker(t, founder, "w1")
			srv := natstest.StartTLS(t, tc.by.clients())
			m.Cores = []kbroker.CoreAddr{{Host: "h9", Client: "127.0.0.1:1"}, {Host: "h1", Client: strings.TrimPrefix(srv.URL, "nats://")}}
			heard := make(chan kbroker.JoinRequest, 4)
			natstest.Listen(t, srv.Connect(t, anyone), subjects.Join, func(q *nats.Msg) {
				var r kbroker.JoinRequest
				if err := json.Unmarshal(q.Data, &r); err != nil {
					t.Error(err)
				}
				heard <- r
				if tc.answer == nil {
					return
				}
				answer := &nats.Msg{}
				if e, ok := tc.answer.(*kbroker.Error); ok {
					answer.Header = nats.Header{subjects.HeaderCode: {string(e.Code)}}
				}
				var err error
				answer.Data, err = json.Marshal(tc.answer)
				if err := errors.Join(err, q.RespondMsg(answer)); err != nil {
					t.Error(err)
				}
			})
			before, err := os.ReadFile(m.credential())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := m.becameOf(t.Context()); err == nil || errors.Is(err, agent.ErrRemoved) != tc.want {
				t.Errorf("it hears %v; want that it was removed: %t", err, tc.want)
			}
			if after, err := os.ReadFile(m.credential()); err != nil || string(after) != string(before) {
				t.Errorf("its credential is another one: %v", err)
			}
			if tc.by == stranger {
				if len(heard) > 0 {
					t.Errorf("it has asked a stranger: %+v", <-heard)
				}
				return
			}
			if len(heard) == 0 {
				t.Fatal("it has asked nobody")
			}
			r := <-heard
			if _, err := proved(r); err != nil || r.Generation != 1 || r.Token != nil {
				t.Errorf("it has asked with %+v, %v; want its proof, what it was admitted as, and no token", r, err)
			}
		})
	}
}

// TestNothingIsSaidWithoutAProof: not even that a host was removed.
func TestNothingIsSaidWithoutAProof(t *testing.T) {
	founder := newFounder(t, "kb-test")
	m := admittedWorker(t, founder, "w1")
	r, _ := request(t, m)
	for name, reply := range map[string]kbroker.JoinReply{"removed": {Removed: true, Host: "w1", Generation: 1}, "a key taken back": {KeyRevoked: true}} {
		honest := reply
		if err := founder.admit(r, &honest); err != nil || honest.Credential != "" || honest.Roots != "" {
			t.Errorf("%s, with a proof: %+v, %v", name, honest, err)
		}
		other := r
		other.Host = "w2"
		if err := founder.admit(other, &reply); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s, with the proof of another request: %v, want invalid", name, err)
		}
	}
}

// TestAConnectionThatWasGivenUpIsMadeAnew.
func TestAConnectionThatWasGivenUpIsMadeAnew(t *testing.T) {
	m := admittedWorker(t, newFounder(t, "kb-test"), "w1")
	conn := natstest.Start(t).Connect(t)
	conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*lookEvery)
	defer cancel()
	if err := m.stay(ctx, conn, "", discard()); !errors.Is(err, errConnectAnew) {
		t.Errorf("%v, want %v", err, errConnectAnew)
	}
}

// refusedWorker is a worker of a real core.
type refusedWorker struct {
	t     *testing.T
	core  *membership
	nc    *nats.Conn // as a core
	cfg   Config
	log   *loud
	beats chan struct{}
}

func newRefusedWorker(t *testing.T) *refusedWorker {
	t.Helper()
	work := t.TempDir()
	start(t, Config{Dir: filepath.Join(work, "a"), Name: "a", Found: true, Advertise: "127.0.0.1"})
	w := &refusedWorker{t: t, core: awaitLeader(t, filepath.Join(work, "a")), log: &loud{}, beats: make(chan struct{}, 1)}
	w.cfg = Config{
		Dir: filepath.Join(work, "w"), Name: "w", Role: kbroker.RoleWorker, Join: []string{w.core.Client},
		TokenFile: newToken(t, w.core, kbroker.RoleWorker), Log: w.log.logger(),
	}
	var err error
	if w.nc, err = w.core.dial(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.nc.Close)
	if _, err := w.nc.Subscribe(subjects.Heartbeat("w"), func(*nats.Msg) {
		select {
		case w.beats <- struct{}{}:
		default:
		}
	}); err != nil {
		t.Fatal(err)
	}
	return w
}

// heard waits until the worker is let in, and returns the key that it was let in with.
func (w *refusedWorker) heard() string {
	w.t.Helper()
	select {
	case <-w.beats: // of before
	default:
	}
	select {
	case <-w.beats:
	case <-time.After(20 * time.Second):
		w.t.Fatalf("no core hears the worker: %s", w.log)
	}
	c, err := credential.Load(w.member().credential())
	if err == nil {
		err = c.Check(time.Now())
	}
	if err != nil {
		w.t.Fatalf("it is heard without a credential: %v", err)
	}
	return c.Key()
}

func (w *refusedWorker) member() *membership {
	w.t.Helper()
	m, err := readMembership(w.cfg.Dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// cutOff has the key of the worker's connection taken back, by who has a part of its
// directory.
func (w *refusedWorker) cutOff() {
	w.t.Helper()
	m := w.member()
	other := filepath.Join(w.t.TempDir(), "other")
	for _, path := range []string{m.path, filepath.Join(w.cfg.Dir, identityDir, hostKeyFile), filepath.Join(m.identityDir(), rootsFile)} {
		raw, err := os.ReadFile(path)
		to := filepath.Join(other, strings.TrimPrefix(path, w.cfg.Dir))
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, raw, 0o600)); err != nil {
			w.t.Fatal(err)
		}
	}
	m.path = filepath.Join(other, membershipFile)
	if _, err := m.becameOf(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// TestAWorkerThatLostItsCredentialGetsAnotherOne, without a restart; another key is told
// to the cluster, and the one before holds nowhere any more.
func TestAWorkerThatLostItsCredentialGetsAnotherOne(t *testing.T) {
	t.Parallel()
	w := newRefusedWorker(t)
	stop := start(t, w.cfg)
	first := w.heard()
	m := w.member()
	restart := func(what string, change func() error) string {
		t.Helper()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := change(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		stop = start(t, w.cfg)
		return w.heard()
	}
	if key := restart("lost", func() error { return os.Remove(m.credential()) }); key != first {
		t.Errorf("with its key it has another one: %s, want %s", key, first)
	}
	if key := restart("damaged", func() error { return os.WriteFile(m.credential(), []byte("x"), 0o600) }); key != first {
		t.Errorf("with its key it has another one: %s, want %s", key, first)
	}
	old := filepath.Join(t.TempDir(), "old.creds")
	lostBoth := func() error {
		return errors.Join(os.Rename(m.credential(), old), os.WriteFile(m.ownKeyFile(), []byte("x"), 0o600))
	}
	second := restart("lost with its key", lostBoth)
	if second == first {
		t.Error("without its key it has the same one")
	}
	stolen, err := credential.Load(old)
	if err != nil {
		t.Fatal(err)
	}
	secure, err := m.secure()
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, func() error {
		nc, err := nats.Connect(url(w.core.Client), append(secure, stolen.Options()...)...)
		if err == nil {
			nc.Close()
			return errors.New("the key that was lost holds")
		}
		if !errors.Is(err, nats.ErrAuthorization) {
			return fmt.Errorf("refused with %w", err)
		}
		return nil
	})
	// Both files are those of before: what it shows is refused, and what it asks with.
	third := restart("restored", func() error { return errors.Join(stolen.Save(m.credential()), stolen.Save(m.ownKeyFile())) })
	if third == first || third == second {
		t.Errorf("it was let in with %s again", third)
	}
	// Lost while it runs: nothing happens until it has to connect again.
	if err := errors.Join(os.Remove(m.credential()), os.Remove(m.ownKeyFile())); err != nil {
		t.Fatal(err)
	}
	w.cutOff()
	wait.Until(t, 20*time.Second, func() error {
		c, err := credential.Load(m.credential())
		if err == nil {
			err = c.Check(time.Now())
		}
		return err
	})
	fourth := w.heard()
	if fourth == third {
		t.Error("without its key it has the same one")
	}
	// Somebody has asked in its place, and the answer is in its directory.
	if err := os.Remove(m.ownKeyFile()); err != nil {
		t.Fatal(err)
	}
	said := len(w.log.String())
	fifth, err := w.member().becameOf(t.Context())
	if err != nil || fifth == fourth {
		t.Fatalf("asked in its place: %s, %v", fifth, err)
	}
	wait.Until(t, 20*time.Second, func() error {
		if !strings.Contains(w.log.String()[said:], "connecting to the cores anew") {
			return errors.New("it does not connect anew")
		}
		return nil
	})
	if key := w.heard(); key != fifth {
		t.Errorf("it was let in with %s, want %s", key, fifth)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestAWorkerThatWasOffWhenItWasRemovedHearsOfIt: no core lets it in, and so its heartbeat
// is never answered.
func TestAWorkerThatWasOffWhenItWasRemovedHearsOfIt(t *testing.T) {
	t.Parallel()
	w := newRefusedWorker(t)
	stop := start(t, w.cfg)
	key := w.heard()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	app := application(t, w.cfg.Dir)
	wait.Until(t, 30*time.Second, func() error { return remove(t, w.nc, "w") }) // not while it is suspect
	wait.Until(t, 10*time.Second, func() error {                                // and its credential is refused
		out, err := openRevocations(filepath.Join(filepath.Dir(w.core.path), revokedFile), time.Now)
		if err == nil && out.all()[key].IsZero() {
			err = errors.New("its credential was not taken back")
		}
		return err
	})
	left := filepath.Join(w.cfg.Dir, identityDir, ".host.key.123")
	if err := os.WriteFile(left, []byte("a key"), 0o600); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- Run(t.Context(), w.cfg) }()
	select {
	case err := <-ended:
		if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || !strings.Contains(e.Message, "host w was removed from cluster") || e.Hint == "" {
			t.Errorf("it ended with %v, want refused with a hint", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("it goes on: %s", w.log)
	}
	awaitEnd(t, app)
	if past, err := PastOf(w.cfg.Dir); err != nil || !past.Removed {
		t.Errorf("its directory says removed: %+v, %v", past, err)
	}
	if _, err := os.Lstat(left); err == nil {
		t.Error("what a crash had left of a key is still there")
	}
	// The name is used again, in the same directory, of which only the identity is left.
	if err := os.Remove(filepath.Join(w.cfg.Dir, membershipFile)); err != nil {
		t.Fatal(err)
	}
	w.cfg.TokenFile = newToken(t, w.core, kbroker.RoleWorker)
	start(t, w.cfg)
	if again := w.heard(); again == key {
		t.Error("it is admitted anew with the key that was taken back")
	}
	if m := w.member(); m.Generation != 2 {
		t.Errorf("it is admitted as number %d of its name, want 2", m.Generation)
	}
}
