package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// application is a process as an agent of dir would have started it.
func application(t *testing.T, dir string) (ended <-chan struct{}) {
	t.Helper()
	cmd := exec.Command("/bin/sleep", "300")
	cmd.Env = []string{"KBROKER_HOST_DIR=" + dir}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() { defer close(gone); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-gone })
	return gone
}

func awaitEnd(t *testing.T, application <-chan struct{}) {
	t.Helper()
	select {
	case <-application:
	case <-time.After(10 * time.Second):
		t.Error("the application runs on")
	}
}

// TestTheNextStartEndsWhatARemovedHostRuns: the agent before was killed while it
// did.
func TestTheNextStartEndsWhatARemovedHostRuns(t *testing.T) {
	for name, role := range map[string]kbroker.Role{"core": kbroker.RoleCore, "worker": kbroker.RoleWorker} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			m := &membership{path: filepath.Join(dir, membershipFile), ClusterID: "kb-test", Host: "h2", Role: role, Removed: true}
			if err := m.save(); err != nil {
				t.Fatal(err)
			}
			app := application(t, dir)
			if err := Run(t.Context(), Config{Dir: dir}); !errors.Is(err, kbroker.Refused) {
				t.Errorf("the host ended with %v, want refused", err)
			}
			awaitEnd(t, app)
		})
	}
}

// TestABrokerOfARemovedHostStaysWhileItIsAMember: two that left before they were
// taken out of the group could leave it without a majority. The host hears of its
// removal before the cluster knows: the broker alone runs on, after a restart
// too, until the cluster has removed it.
func TestABrokerOfARemovedHostStaysWhileItIsAMember(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	dirB := filepath.Join(work, "b")
	start(t, Config{Dir: filepath.Join(work, "a"), Name: "a", Found: true, Advertise: "127.0.0.1"})
	a := awaitLeader(t, filepath.Join(work, "a"))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan error, 1)
	token := newToken(t, a, kbroker.RoleCore)
	run := func(ctx context.Context) {
		ended <- Run(ctx, Config{Dir: dirB, Name: "b", Join: []string{a.Client}, TokenFile: token, Advertise: "127.0.0.1"})
	}
	go run(ctx)
	awaitCopies(t, a, "b")
	nc, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	forged, err := nc.Subscribe(subjects.Heartbeat("b"), func(m *nats.Msg) {
		_ = m.Respond([]byte(`{"removed":true}`)) // to a host that asks no more
	})
	if err != nil {
		t.Fatal(err)
	}
	app := application(t, dirB)
	awaitEnd(t, app)
	if err := forged.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	if past, err := PastOf(dirB); err != nil || !past.Removed {
		t.Errorf("its directory says removed: %+v, %v", past, err)
	}
	stop()
	if err := end(ended); !errors.Is(err, kbroker.Refused) {
		t.Errorf("stopped, it ended with %v, want refused", err)
	}
	go run(t.Context())
	awaitCopies(t, a, "a")

	wait.Until(t, 30*time.Second, func() error { // not while it is suspect
		select {
		case err := <-ended:
			t.Fatalf("the broker of a member ended with %v", err)
		default:
		}
		return remove(t, nc, "b")
	})
	select {
	case err := <-ended:
		if !errors.Is(err, kbroker.Refused) {
			t.Errorf("it ended with %v, want refused", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the broker of a core that is no member goes on")
	}
	if expelled, err := broker.Removed(brokerDir(dirB)); err != nil || !expelled {
		t.Errorf("its broker saw that it is no member: %t, %v", expelled, err)
	}
}

// remove asks for the removal of a host.
func remove(t *testing.T, nc *nats.Conn, host kbroker.HostID) error {
	t.Helper()
	body, err := json.Marshal(kbroker.RemoveRequest{Host: host})
	if err != nil {
		t.Fatal(err)
	}
	reply, err := nc.Request(subjects.Super(subjects.VerbRemove, kbroker.DefaultTenant, subjects.NoKey), body, 5*time.Second)
	if err == nil && reply.Header.Get(subjects.HeaderCode) != "" {
		err = fmt.Errorf("not removed: %s", reply.Data)
	}
	return err
}

// TestACoreThatWasOffWhenItWasRemovedHearsOfIt: the routes of the others refuse it,
// and so its broker never does.
func TestACoreThatWasOffWhenItWasRemovedHearsOfIt(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	dirA, dirB := filepath.Join(work, "a"), filepath.Join(work, "b")
	start(t, Config{Dir: dirA, Name: "a", Found: true, Advertise: "127.0.0.1"})
	a := awaitLeader(t, dirA)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	cfg := Config{Dir: dirB, Name: "b", Join: []string{a.Client}, TokenFile: newToken(t, a, kbroker.RoleCore), Advertise: "127.0.0.1"}
	go func() { ended <- Run(ctx, cfg) }()
	awaitCopies(t, a, "b")
	stop()
	if err := end(ended); err != nil {
		t.Fatal(err)
	}
	nc, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	wait.Until(t, 30*time.Second, func() error { return remove(t, nc, "b") }) // not while it is suspect
	wait.Until(t, 20*time.Second, func() error {                              // and its certificate is refused
		m, err := readMember(dirA)
		if err == nil && len(m.Out) == 0 {
			err = errors.New("b is not out")
		}
		return err
	})
	app := application(t, dirB)
	go func() { ended <- Run(t.Context(), cfg) }()
	select {
	case err := <-ended:
		if !errors.Is(err, kbroker.Refused) {
			t.Errorf("it ended with %v, want refused", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it goes on")
	}
	awaitEnd(t, app)
	if expelled, err := broker.Removed(brokerDir(dirB)); err != nil || !expelled {
		t.Errorf("its directory says that it is out: %t, %v", expelled, err)
	}
}

// TestACoreWithoutItsStoreAsksWhetherItWasRemoved: it was, and was killed after
// its server had dropped the store and before that was noted.
func TestACoreWithoutItsStoreAsksWhetherItWasRemoved(t *testing.T) {
	for name, tc := range map[string]struct {
		cluster string
		state   kbroker.HostState
		removed bool
	}{
		"a core that was removed":             {cluster: "test", state: kbroker.HostRemoved, removed: true},
		"a core whose store is damaged":       {cluster: "test", state: kbroker.HostLost},
		"one whose port is another cluster's": {cluster: "other", state: kbroker.HostRemoved},
	} {
		t.Run(name, func(t *testing.T) {
			founder := newFounder(t, tc.cluster)
			srv := natstest.StartTLS(t, founder.clients())
			rows, err := json.Marshal([]kbroker.HostRow{{Name: "h1", State: kbroker.HostReady}, {Name: "h2", State: tc.state}})
			if err != nil {
				t.Fatal(err)
			}
			natstest.Listen(t, srv.Connect(t, anyone), subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant), func(m *nats.Msg) {
				var r kbroker.ListRequest
				if err := errors.Join(json.Unmarshal(m.Data, &r), m.Respond(rows)); err != nil || !r.All {
					t.Errorf("asked with %q: %v", m.Data, err)
				}
			})
			m := joined(t, founder, "h2")
			dir := filepath.Dir(m.path)
			m.Client, m.Route = "127.0.0.1:1", "127.0.0.1:2"
			m.Cores = []kbroker.CoreAddr{{Host: "h3", Client: "127.0.0.1:3"}, {Host: "h1", Client: strings.TrimPrefix(srv.URL, "tls://")}}
			err = errors.Join(m.save(), os.Mkdir(brokerDir(dir), 0o700),
				os.WriteFile(filepath.Join(brokerDir(dir), "identity.json"), []byte(`{"cluster_id":"`+tc.cluster+`","host":"h2"}`), 0o600),
				os.WriteFile(filepath.Join(brokerDir(dir), "joined"), nil, 0o600))
			if err != nil {
				t.Fatal(err)
			}
			app := application(t, dir)
			if err := Run(t.Context(), Config{Dir: dir}); !errors.Is(err, kbroker.Refused) {
				t.Errorf("the host ended with %v, want refused", err)
			}
			if tc.removed {
				awaitEnd(t, app)
			}
			select {
			case <-app:
				if !tc.removed {
					t.Error("the application was ended")
				}
			default:
			}
			if past, err := PastOf(dir); err != nil || past.Removed != tc.removed {
				t.Errorf("the directory is that of a removed host: %+v, %v, want %t", past, err, tc.removed)
			}
		})
	}
}
