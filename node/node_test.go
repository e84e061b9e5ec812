package node

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// anyone is the option of a client that believes whoever answers, in TLS.
var anyone = nats.Secure(&tls.Config{InsecureSkipVerify: true})

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// start runs a host until the test, or what it returns, ends it.
func start(t *testing.T, cfg Config) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, cfg) }()
	stopped := false
	stop = func() error {
		stopped = true
		cancel()
		return end(ended)
	}
	t.Cleanup(func() {
		if !stopped {
			if err := stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return stop
}

// end is what a host ends with that is to end.
func end(ended <-chan error) error {
	select {
	case err := <-ended:
		return err
	case <-time.After(20 * time.Second):
		return errors.New("the host did not end within 20 s")
	}
}

func readMembership(dir string) (*membership, error) {
	raw, err := os.ReadFile(filepath.Join(dir, membershipFile))
	if err != nil {
		return nil, err
	}
	m := &membership{path: filepath.Join(dir, membershipFile)}
	return m, json.Unmarshal(raw, m)
}

// TestAHostFoundsAndComesBack runs a real host: it founds a cluster, leads it,
// ends, and is the same one at its next start, with nothing but its directory.
func TestAHostFoundsAndComesBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "h1")
	stop := start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	first := awaitLeader(t, dir)
	checkContext(t, dir, first)

	if err := Run(context.Background(), Config{Dir: dir}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a second agent on the directory: %v, want refused", err)
	}
	if err := stop(); err != nil {
		t.Fatalf("the host ended with %v, want nil", err)
	}
	stop = start(t, Config{Dir: dir})
	second := awaitLeader(t, dir)
	if first.ClusterID != second.ClusterID || first.Client != second.Client || first.Route != second.Route || second.Host != "h1" {
		t.Errorf("the host was %+v and came back as %+v", first, second)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for name, cfg := range map[string]Config{
		"another name": {Dir: dir, Name: "h2"},
		"another port": {Dir: dir, ClientPort: 1},
		"another role": {Dir: dir, Role: kbroker.RoleWorker},
	} {
		if err := Run(context.Background(), cfg); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

// checkContext holds that who may read the directory of a core can use the cluster.
func checkContext(t *testing.T, dir string, m *membership) {
	t.Helper()
	path := filepath.Join(dir, connect.ContextFile)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s is %v, %v; want mode 0600", path, info, err)
	}
	target, err := connect.Find(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(target.Servers) != 1 || target.Servers[0] != "nats://"+m.Client || target.Tenant != kbroker.DefaultTenant || target.CA == "" {
		t.Errorf("the context of %s is %+v, want its own server and the roots", dir, target)
	}
	c, err := credential.Parse([]byte(target.Credential))
	if err != nil || c.Name() != "admin at h1" || c.Check(time.Now().AddDate(100, 0, 0)) != nil {
		t.Errorf("its credential is of %q, %v; want that of an admin, for ever", c.Name(), err)
	}
	nc, err := target.Connect(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if reply, err := nc.Request(subjects.Core(subjects.VerbStatus, kbroker.DefaultTenant), nil, 5*time.Second); err != nil || reply.Header.Get(subjects.HeaderCode) != "" {
		t.Errorf("as it says, status is %v, %v", reply, err)
	}
}

// TestTheContextOfACoreFollowsTheOthers: it is taken elsewhere, where nothing else
// tells of them. That of a worker is none of its business.
func TestTheContextOfACoreFollowsTheOthers(t *testing.T) {
	founder := newFounder(t, "kb-test")
	second := joined(t, founder, "h2")
	second.Client = "127.0.0.1:2"
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	cores := func() []kbroker.CoreAddr { return []kbroker.CoreAddr{{Host: "h1", Client: "127.0.0.1:1"}} }
	go func() {
		ended <- second.follow(ctx, cores, func() []kbroker.HostID { return nil }, discard())
	}()
	dir := filepath.Dir(second.path)
	wait.Until(t, 10*time.Second, func() error {
		target, err := connect.Find(dir)
		if err == nil && strings.Join(target.Servers, ",") != "nats://127.0.0.1:2,nats://127.0.0.1:1" {
			err = fmt.Errorf("servers are %v", target.Servers)
		}
		return err
	})
	cancel()
	if err := end(ended); err != nil {
		t.Fatal(err)
	}
	worker := &membership{path: filepath.Join(t.TempDir(), membershipFile), Role: kbroker.RoleWorker}
	if err := worker.writeContext(); err != nil {
		t.Fatal(err)
	}
	if _, err := connect.Find(filepath.Dir(worker.path)); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("the context of a worker: %v, want none", err)
	}
}

// dial connects to a core as one.
func (m *membership) dial(opts ...nats.Option) (*nats.Conn, error) {
	self, err := m.target()
	if err != nil {
		return nil, err
	}
	secure, err := self.Secure()
	if err != nil {
		return nil, err
	}
	return nats.Connect(url(m.Client), append(secure, opts...)...)
}

// awaitLeader waits until the host of dir is ready and leads.
func awaitLeader(t *testing.T, dir string) *membership {
	t.Helper()
	var m *membership
	wait.Until(t, 20*time.Second, func() (err error) {
		if m, err = readMembership(dir); err != nil {
			return err
		}
		nc, err := m.dial(nats.Timeout(time.Second))
		if err != nil {
			return err
		}
		defer nc.Close()
		reply, err := nc.Request(subjects.Core(subjects.VerbHosts, kbroker.DefaultTenant), nil, time.Second)
		if err != nil {
			return err
		}
		var rows []kbroker.HostRow
		if err := json.Unmarshal(reply.Data, &rows); err != nil {
			return err
		}
		if len(rows) != 1 || rows[0].State != kbroker.HostReady || !rows[0].Super {
			return fmt.Errorf("hosts are %s", reply.Data)
		}
		return nil
	})
	return m
}

// TestAHostIsAdmittedOnce plays the core that a host joins through.
func TestAHostIsAdmittedOnce(t *testing.T) {
	founder := newFounder(t, "kb-test")
	srv := natstest.StartTLS(t, founder.clients())
	nc := srv.Connect(t, anyone)
	answers := []kbroker.JoinReply{
		{Wait: "host h9 is joining"},
		{Admitted: true, ClusterID: "kb-test", Generation: 4, Cores: []kbroker.CoreAddr{{Host: "h1", Client: "127.0.0.1:1", Route: "127.0.0.1:2"}}},
	}
	asked := make(chan kbroker.JoinRequest, 16)
	heard := 0 // by the subscription's goroutine alone
	natstest.Listen(t, nc, subjects.Join, func(m *nats.Msg) {
		var r kbroker.JoinRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			t.Errorf("join request %q: %v", m.Data, err)
		}
		reply, err := answers[min(heard, len(answers)-1)], error(nil)
		heard++
		asked <- r
		if reply.Admitted {
			err = founder.admit(r, &reply)
		}
		answer, jsonErr := json.Marshal(reply)
		if err = errors.Join(err, jsonErr); err == nil {
			err = m.Respond(answer)
		}
		if err != nil {
			t.Errorf("answer a join: %v", err)
		}
	})
	dir := t.TempDir()
	cfg := Config{Name: "h2", Advertise: "127.0.0.1", Join: []string{"127.0.0.1:1", srv.URL}, TokenFile: tokenFile(t, founder)}
	log := discard()
	m, err := establish(t.Context(), dir, cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	first, second := <-asked, <-asked
	if first.Route != second.Route || first.Fingerprint == "" || first.Fingerprint != second.Fingerprint || first.Host != "h2" || first.Role != kbroker.RoleCore || first.Client == first.Route {
		t.Errorf("asked as %+v, then as %+v; want the same host with two ports", first, second)
	}
	if m.ClusterID != "kb-test" || m.Founded || len(m.Cores) != 1 || m.Generation != 4 {
		t.Errorf("admitted as %+v", m)
	}
	if got := m.servers(); len(got) != 2 || got[0] != "nats://"+first.Client || got[1] != "nats://127.0.0.1:1" {
		t.Errorf("servers are %v, want the own first", got)
	}
	// Killed before its broker saw itself in the cluster: it asks again, as the
	// same host.
	m.Cores = []kbroker.CoreAddr{{Host: "h1", Client: strings.TrimPrefix(srv.URL, "nats://")}}
	if err := m.save(); err != nil {
		t.Fatal(err)
	}
	again, err := establish(t.Context(), dir, Config{}, log)
	if err != nil || again.ClusterID != m.ClusterID || again.Route != m.Route {
		t.Fatalf("at the next start it is %+v, %v", again, err)
	}
	if third := <-asked; third.ClusterID != "kb-test" || third.Route != first.Route {
		t.Errorf("asked again as %+v, want as a host that was admitted", third)
	}
	// Killed after that: nobody is asked any more.
	if err := os.MkdirAll(brokerDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(brokerDir(dir), "joined"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := establish(t.Context(), dir, Config{}, log); err != nil || len(asked) != 0 {
		t.Errorf("a member asked to be admitted: %v", err)
	}
}

// TestAHostKeepsItsPortsWhileItAsks: killed before it has heard the answer, it
// may have been admitted with them.
func TestAHostKeepsItsPortsWhileItAsks(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{Name: "h2", Advertise: "127.0.0.1", Join: []string{"127.0.0.1:1"}, TokenFile: tokenFile(t, newFounder(t, "kb-test"))}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := establish(ctx, dir, cfg, discard()); err == nil {
		t.Fatal("admitted by nobody")
	}
	first, err := readMembership(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := establish(ctx, dir, cfg, discard()); err == nil {
		t.Fatal("admitted by nobody")
	}
	second, err := readMembership(dir)
	if err != nil || first.Client != second.Client || first.Route != second.Route {
		t.Errorf("it asked as %+v and then as %+v, %v; want the same ports", first, second, err)
	}
}

// TestACoreThatWasRemovedIsForgotten: the others are kept, whether an answer
// names them or not; a worker keeps what the last answer named.
func TestACoreThatWasRemovedIsForgotten(t *testing.T) {
	addr := func(h kbroker.HostID) kbroker.CoreAddr {
		return kbroker.CoreAddr{Host: h, Client: string(h) + ":1", Route: string(h) + ":2"}
	}
	core := &membership{Host: "h1", Role: kbroker.RoleCore, Client: "h1:1", Cores: []kbroker.CoreAddr{addr("h2"), addr("h3")}}
	if core.learn([]kbroker.CoreAddr{addr("h1"), addr("h2")}, nil) {
		t.Errorf("an answer without h3 changed the list to %v", core.Cores)
	}
	if !core.learn([]kbroker.CoreAddr{addr("h1"), addr("h2"), addr("h4")}, []kbroker.HostID{"h3"}) || len(core.Cores) != 2 || core.Cores[1] != addr("h4") {
		t.Errorf("after h3 was removed and h4 has joined: %v", core.Cores)
	}
	worker := &membership{Host: "w1", Role: kbroker.RoleWorker, Cores: []kbroker.CoreAddr{addr("h1"), addr("h2"), addr("h3")}}
	if worker.learn(nil, nil) || len(worker.servers()) != 3 {
		t.Errorf("no answer changed the list to %v", worker.Cores)
	}
	first := map[string]bool{}
	for range 200 {
		first[worker.servers()[0]] = true
	}
	if len(first) != 3 {
		t.Errorf("a worker's first servers are only %v of 3", first)
	}
	if !worker.learn([]kbroker.CoreAddr{addr("h1"), addr("h4")}, nil) || len(worker.servers()) != 2 {
		t.Errorf("a worker does not follow an answer: %v", worker.Cores)
	}
}

func TestEstablishRefuses(t *testing.T) {
	founder := newFounder(t, "kb-test")
	srv := natstest.StartTLS(t, founder.clients())
	refusal, err := json.Marshal(kbroker.Errorf(kbroker.Refused, "a host named h2 is a member already"))
	if err != nil {
		t.Fatal(err)
	}
	natstest.Listen(t, srv.Connect(t, anyone), subjects.Join, func(m *nats.Msg) {
		if err := m.RespondMsg(&nats.Msg{Data: refusal, Header: nats.Header{subjects.HeaderCode: {string(kbroker.Refused)}}}); err != nil {
			t.Errorf("refuse: %v", err)
		}
	})
	for name, tc := range map[string]struct {
		cfg  Config
		file string
		want kbroker.Code
		// others: it is the cluster that refuses.
		others bool
	}{
		"neither founded nor joined": {cfg: Config{Name: "h1", Advertise: "127.0.0.1"}, want: kbroker.Invalid},
		"founded and joined":         {cfg: Config{Name: "h1", Advertise: "127.0.0.1", Found: true, Join: []string{"x"}}, want: kbroker.Invalid},
		"no address to be reached":   {cfg: Config{Name: "h1", Found: true}, want: kbroker.Invalid},
		"a name with a dot":          {cfg: Config{Name: "h.1", Advertise: "127.0.0.1", Found: true}, want: kbroker.Invalid},
		"a worker that founds":       {cfg: Config{Name: "w1", Role: kbroker.RoleWorker, Found: true}, want: kbroker.Invalid},
		"a worker with a port":       {cfg: Config{Name: "w1", Role: kbroker.RoleWorker, Join: []string{"x"}, ClientPort: 4222}, want: kbroker.Invalid},
		"a role that is none":        {cfg: Config{Name: "w1", Role: "boss", Advertise: "127.0.0.1", Join: []string{"x"}}, want: kbroker.Invalid},
		"a name that is taken":       {cfg: Config{Name: "h2", Advertise: "127.0.0.1", Join: []string{srv.URL}, TokenFile: tokenFile(t, founder)}, want: kbroker.Refused, others: true},
		"a host without a token":     {cfg: Config{Name: "h2", Advertise: "127.0.0.1", Join: []string{srv.URL}}, want: kbroker.Invalid},
		"a token that is not there":  {cfg: Config{Name: "h2", Advertise: "127.0.0.1", Join: []string{srv.URL}, TokenFile: "/none"}, want: kbroker.Invalid},
		"a damaged file":             {file: "{", want: kbroker.Refused},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.file != "" {
				if err := os.WriteFile(filepath.Join(dir, membershipFile), []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			foreseen := tc.cfg
			foreseen.Dir = dir
			checked := foreseen.Check()
			_, err := establish(t.Context(), dir, tc.cfg, discard())
			if !errors.Is(err, tc.want) {
				t.Fatalf("%v, want code %s", err, tc.want)
			}
			if !tc.others && (checked == nil || checked.Error() != err.Error()) {
				t.Errorf("Check says %v, the start %v", checked, err)
			} else if tc.others && checked != nil {
				t.Errorf("Check says %v about what only the cluster can refuse", checked)
			}
			if m, err := readMembership(dir); err == nil && m.ClusterID != "" {
				t.Errorf("a refused host is a member: %+v", m)
			}
		})
	}
}
