package super

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// desktop is a Super on a real server; the test plays the agent of its host.
type desktop struct {
	*Super
	t    *testing.T
	nc   *nats.Conn
	stop func() // may be called early
}

func startSuper(t *testing.T, change ...func(*Config)) *desktop {
	t.Helper()
	srv := natstest.Start(t)
	return superOn(t, func() *nats.Conn { return srv.Connect(t) }, change...)
}

// superOn runs a Super on the server that connect connects to.
func superOn(t *testing.T, connect func() *nats.Conn, change ...func(*Config)) *desktop {
	t.Helper()
	d := &desktop{t: t, nc: connect()}
	cfg := Config{
		Host: "h1", Process: "p1", ClusterID: "kb-test", Found: true, Dir: t.TempDir(), Conn: connect(),
		Members: func() Members {
			return Members{Known: true, Current: map[kbroker.HostID]bool{"h1": true}, Replicas: 1, Writable: true}
		},
		SignUser: func(u kbroker.User, _ kbroker.UserRequest) (string, error) {
			if u.Name == "forged" {
				return "", errors.New("its key is none")
			}
			return fmt.Sprintf("signed for %s of %s", u.Name, u.Tenant), nil
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	d.Super = s
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Errorf("super ended: %v", err)
		}
	})
	beat, err := json.Marshal(kbroker.Heartbeat{
		Host: "h1", Role: kbroker.RoleCore, PID: 7, Labels: map[string]string{"arch": "amd64"},
		Capacity: kbroker.Resources{CPU: 2, MemoryBytes: 4 << 30}, Client: "127.0.0.1:1", Route: "127.0.0.1:2",
	})
	if err != nil {
		t.Fatal(err)
	}
	running.Go(func() {
		for tick := time.NewTicker(100 * time.Millisecond); ; {
			if err := d.nc.Publish(subjects.Heartbeat("h1"), beat); err != nil {
				t.Errorf("heartbeat: %v", err)
			}
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
		}
	})
	d.stop = func() { cancel(); running.Wait() }
	t.Cleanup(d.stop)
	return d
}

// ask sends a request as a client would and decodes the reply into out.
func (d *desktop) ask(subject string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return d.send(&nats.Msg{Subject: subject, Data: body}, out)
}

func (d *desktop) send(m *nats.Msg, out any) error {
	reply, err := d.nc.RequestMsg(m, 5*time.Second)
	if err != nil {
		return err
	}
	if reply.Header.Get(subjects.HeaderCode) != "" {
		var e kbroker.Error
		if err := json.Unmarshal(reply.Data, &e); err != nil {
			return err
		}
		return &e
	}
	return json.Unmarshal(reply.Data, out)
}

func TestDeployReachesTheHostsView(t *testing.T) {
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	var deployed kbroker.DeployReply
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &deployed)
	})
	if deployed.Version != 1 {
		t.Fatalf("deployed %+v, want version 1", deployed)
	}
	var view kbroker.ViewReply
	wait.Until(t, 10*time.Second, func() error {
		if err := d.ask(subjects.View("h1"), kbroker.ViewRequest{Host: "h1"}, &view); err != nil {
			return err
		}
		if len(view.Placements) != 5 {
			return fmt.Errorf("%d placements, want 3 instances and 2 allocators", len(view.Placements))
		}
		return nil
	})
	if view.Head.Hash != kbroker.PlacementsHash(view.Placements) || view.Head.Count != 5 {
		t.Errorf("head %+v does not fit the view, whose hash is %s", view.Head, kbroker.PlacementsHash(view.Placements))
	}

	// The agent reports all ready: the rollout is done.
	report := kbroker.ReportRequest{Host: "h1", Process: "p1", Number: 1}
	for _, p := range view.Placements {
		report.Statuses = append(report.Statuses, kbroker.Status{
			Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: p.Host,
			Version: p.Version, Epoch: p.Epoch, State: kbroker.StateReady, PID: 42,
		})
	}
	var accepted kbroker.ReportReply
	if err := d.ask(subjects.Report("h1"), report, &accepted); err != nil || !accepted.Accepted {
		t.Fatalf("report: %+v, %v; want accepted", accepted, err)
	}
	if err := d.ask(subjects.Report("h1"), report, &accepted); err != nil || accepted.Accepted {
		t.Errorf("the same report again: %+v, %v; want refused", accepted, err)
	}
	wait.Until(t, 10*time.Second, func() error {
		var apps []kbroker.AppRow
		if err := d.ask(subjects.Core(subjects.VerbApps, tenant), kbroker.ListRequest{}, &apps); err != nil {
			return err
		}
		if len(apps) != 1 || apps[0].Rollout != kbroker.RolloutDone || apps[0].Ready != 3 || apps[0].Wanted != 3 {
			return fmt.Errorf("apps are %+v, want one, done, 3 of 3 ready", apps)
		}
		return nil
	})
	var rows []kbroker.InstanceRow
	if err := d.ask(subjects.Core(subjects.VerbInstances, tenant), kbroker.ListRequest{}, &rows); err != nil || len(rows) != 5 {
		t.Fatalf("%d rows, %v; want 5", len(rows), err)
	}
	for _, r := range rows {
		if r.State != kbroker.StateReady || r.PID == nil || *r.PID != 42 {
			t.Errorf("row %+v, want ready with pid 42", r)
		}
	}
	wait.Until(t, 5*time.Second, func() error {
		var hosts []kbroker.HostRow
		if err := d.ask(subjects.Core(subjects.VerbHosts, tenant), kbroker.ListRequest{}, &hosts); err != nil {
			return err
		}
		if len(hosts) != 1 || hosts[0].State != kbroker.HostReady || !hosts[0].Super || hosts[0].PID == nil || *hosts[0].PID != 7 || hosts[0].Instances != 5 {
			return fmt.Errorf("hosts are %+v, want h1, ready, the super, pid 7, 5 instances", hosts)
		}
		return nil
	})
	if err := d.ask(subjects.Super(subjects.VerbStop, tenant, subjects.NoKey), kbroker.StopRequest{App: "none"}, &deployed); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("stop of an app that is not there: %v, want not found", err)
	}
}

// TestAHostCannotUseUpTheReportsOfItsName: it may say any generation, and only the one that
// it was given counts.
func TestAHostCannotUseUpTheReportsOfItsName(t *testing.T) {
	d := startSuper(t)
	wait.Until(t, 10*time.Second, func() error {
		if s := d.store.Load(); s == nil || s.Host("h1").Generation != firstGeneration {
			return errors.New("the founder is not on record")
		}
		return nil
	})
	for n, generation := range []int{math.MaxInt, firstGeneration} {
		var reply kbroker.ReportReply
		r := kbroker.ReportRequest{Host: "h1", Generation: generation, Process: "p", Number: uint64(n + 1)}
		if err := d.ask(subjects.Report("h1"), r, &reply); err != nil || !reply.Accepted {
			t.Errorf("report %d of generation %d: %+v, %v; want accepted", r.Number, generation, reply, err)
		}
	}
}

// TestReadsAreAnsweredWithoutTheStore: people look at a cluster when it has lost
// its majority, and a client gives a core one second to answer.
func TestReadsAreAnsweredWithoutTheStore(t *testing.T) {
	const attempt = time.Second
	c := natstest.StartCluster(t, 3)
	wait.Until(t, 20*time.Second, func() error { return state.Found(t.Context(), c.Connect(t, 0)) })
	holds := c.StreamLeader(subjects.ControlStream)
	d := superOn(t, func() *nats.Conn { return c.Connect(t, (holds+1)%3) })
	for _, stopped := range []bool{false, true} {
		if stopped {
			c.Stop(holds)
		}
		for _, verb := range []string{subjects.VerbStatus, subjects.VerbHosts, subjects.VerbInstances, subjects.VerbApps} {
			wait.Until(t, 10*time.Second, func() error {
				m, err := d.nc.Request(subjects.Core(verb, tenant), []byte("{}"), attempt)
				if err == nil && m.Header.Get(subjects.HeaderCode) != "" {
					err = fmt.Errorf("answer %s", m.Data)
				}
				if err != nil {
					return fmt.Errorf("%s, store stopped: %v: %w", verb, stopped, err)
				}
				return nil
			})
		}
	}
}

// TestUnknownTenantsAreRefused: a stream would be made for each.
func TestUnknownTenantsAreRefused(t *testing.T) {
	d := startSuper(t)
	var nothing any
	begin := kbroker.ArtifactBegin{SHA256: hex.EncodeToString(make([]byte, 32)), SizeBytes: 1}
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	for subject, request := range map[string]any{
		subjects.Core(subjects.VerbArtifactBegin, "junk"):           begin,
		subjects.Super(subjects.VerbDeploy, "junk", subjects.NoKey): kbroker.DeployRequest{App: app},
	} {
		wait.Until(t, 10*time.Second, func() error {
			if err := d.ask(subject, request, &nothing); !errors.Is(err, kbroker.NotFound) {
				return fmt.Errorf("%s: %v, want not found", subject, err)
			}
			return nil
		})
	}
}

// TestWhatAnEarlierProcessUnpackedIsRemoved: nobody would ever evict it.
func TestWhatAnEarlierProcessUnpackedIsRemoved(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "served", "unpack-1")
	if err := os.MkdirAll(filepath.Dir(left), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(left, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newServing(dir, nil).clear(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

func TestUploadIsVisibleOnlyWhole(t *testing.T) {
	d := startSuper(t)
	content := bytes.Repeat([]byte("kbroker "), kbroker.ArtifactChunkBytes/4) // two chunks
	sum := sha256.Sum256(content)
	digest := hex.EncodeToString(sum[:])
	begin := kbroker.ArtifactBegin{SHA256: digest, SizeBytes: int64(len(content))}
	var session kbroker.ArtifactBeginReply
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Core(subjects.VerbArtifactBegin, tenant), begin, &session)
	})
	to := subjects.Upload(session.Core, tenant, session.Session)
	chunk := func(subject string, offset int, data []byte) error {
		var r kbroker.ArtifactChunkReply
		return d.send(&nats.Msg{Subject: subject, Data: data, Header: nats.Header{subjects.HeaderOffset: {strconv.Itoa(offset)}}}, &r)
	}
	commit := func(subject string) error {
		var r struct{}
		return d.send(&nats.Msg{Subject: subject, Header: nats.Header{subjects.HeaderCommit: {"1"}}}, &r)
	}
	get := kbroker.ArtifactGet{SHA256: digest, MaxBytes: kbroker.ArtifactChunkBytes}
	var nothing any
	if err := d.ask(subjects.Core(subjects.VerbArtifactGet, tenant), get, &nothing); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("get before the upload: %v, want not found", err)
	}
	for range 2 { // each chunk sent twice, as after a lost answer
		for at := 0; at < len(content); at += kbroker.ArtifactChunkBytes {
			if err := chunk(to, at, content[at:at+kbroker.ArtifactChunkBytes]); err != nil {
				t.Fatalf("chunk at %d: %v", at, err)
			}
		}
	}
	if err := chunk(to, len(content), []byte("x")); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a chunk beyond the end: %v, want invalid", err)
	}
	if err := commit(to); err != nil {
		t.Fatalf("commit: %v", err)
	}
	var got []byte
	for len(got) < len(content) {
		body, err := json.Marshal(kbroker.ArtifactGet{SHA256: digest, Offset: int64(len(got)), MaxBytes: kbroker.ArtifactChunkBytes})
		if err != nil {
			t.Fatal(err)
		}
		m, err := d.nc.Request(subjects.Core(subjects.VerbArtifactGet, tenant), body, 5*time.Second)
		if err != nil || m.Header.Get(subjects.HeaderSize) != strconv.Itoa(len(content)) || len(m.Data) == 0 {
			t.Fatalf("get at %d: %v, header %v", len(got), err, m)
		}
		got = append(got, m.Data...)
	}
	if !bytes.Equal(got, content) {
		t.Error("what was handed out is not what was uploaded")
	}
	if err := d.ask(subjects.Core(subjects.VerbArtifactBegin, tenant), begin, &session); err != nil || !session.Have {
		t.Errorf("begin again: %+v, %v; want have", session, err)
	}

	// A wrong digest: nothing becomes visible.
	begin.SHA256 = hex.EncodeToString(make([]byte, 32))
	if err := d.ask(subjects.Core(subjects.VerbArtifactBegin, tenant), begin, &session); err != nil {
		t.Fatal(err)
	}
	to = subjects.Upload(session.Core, tenant, session.Session)
	for at := 0; at < len(content); at += kbroker.ArtifactChunkBytes {
		if err := chunk(to, at, content[at:at+kbroker.ArtifactChunkBytes]); err != nil {
			t.Fatal(err)
		}
	}
	if err := commit(to); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("commit of a wrong digest: %v, want invalid", err)
	}
	get.SHA256 = begin.SHA256
	if err := d.ask(subjects.Core(subjects.VerbArtifactGet, tenant), get, &nothing); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("get of a wrong digest: %v, want not found", err)
	}
}
