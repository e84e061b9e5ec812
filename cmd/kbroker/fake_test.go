package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/node"
	"github.com/kbroker/kbroker/subjects"
)

// fakeCore is a server on which one core answers the control API: a true but
// small one, without hosts. The names of apps say what becomes of them: hello
// runs, stuck never gets ready, broken crashes, silent runs and never says that
// it is ready, endless does not end, overtaken has changed between a plan and
// its deploy.
type fakeCore struct {
	t   testing.TB
	url string

	mu     sync.Mutex
	leader bool
	writes []string // what has changed the cluster
	// rebalancing is how often it is still told that some of a rebalance is left.
	rebalancing int
	deployed    map[kbroker.AppName]kbroker.App
	stopped     map[kbroker.AppName]bool
	uploads     map[string][]byte // by session
	stored      map[string][]byte // by digest
	tokens      []kbroker.Token
	users       []kbroker.User
	tampered    string        // with its audit trail
	life        time.Duration // of credentials for programs beside the cluster; 0: for ever
}

// fakeNow is when tokens are made, fakeRoot the fingerprint that they have.
var (
	fakeNow  = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fakeRoot = base64.RawURLEncoding.EncodeToString(make([]byte, sha256.Size))
)

// usedToken is one with which a host has joined.
func usedToken() kbroker.Token {
	return kbroker.Token{
		ID: "abcdefghijkl", Role: kbroker.RoleWorker, Created: fakeNow, Expires: fakeNow.Add(kbroker.TokenTTL), By: "ann@laptop",
		Used: &kbroker.TokenUse{Host: "w1", Fingerprint: "x", Generation: 1, At: fakeNow},
	}
}

func newFakeCore(t testing.TB) *fakeCore {
	srv := natstest.Start(t)
	f := &fakeCore{
		t: t, url: srv.URL, leader: true,
		deployed: map[kbroker.AppName]kbroker.App{"bank": fakeBank(), "hello": helloApp(), "duo": {Name: "duo", Services: []kbroker.Service{{Name: "one"}, {Name: "two"}}}},
		stopped:  map[kbroker.AppName]bool{}, uploads: map[string][]byte{}, stored: map[string][]byte{},
		tokens: []kbroker.Token{usedToken()},
	}
	conn := srv.Connect(t)
	for subject, handle := range map[string]func(*nats.Msg) (any, error){
		subjects.CoreAll():                             f.core,
		subjects.SuperAll():                            f.super,
		subjects.AllEndpoints:                          f.endpoints,
		subjects.Upload("h1", "*", "*"):                f.chunk,
		subjects.Host("h1", subjects.VerbLogs, "*"):    f.logs,
		subjects.Host("h1", subjects.VerbCheckup, "*"): f.checkup,
		subjects.Method("hello", "hello", "greet"):     f.greet,
	} {
		if _, err := conn.Subscribe(subject, func(m *nats.Msg) {
			f.mu.Lock()
			reply, err := handle(m)
			f.mu.Unlock()
			if err != nil {
				e := kbroker.AsError(err)
				_ = m.RespondMsg(&nats.Msg{Header: nats.Header{subjects.HeaderCode: {string(e.Code)}}, Data: f.encode(e)})
				return
			}
			_ = m.Respond(f.encode(reply))
		}); err != nil {
			t.Fatalf("subscribe %s: %v", subject, err)
		}
	}
	if err := conn.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
	return f
}

func (f *fakeCore) encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		f.t.Errorf("marshal %T: %v", v, err)
	}
	return b
}

func (f *fakeCore) core(m *nats.Msg) (any, error) {
	verb, _, _ := subjects.ParseAPI(m.Subject)
	if reply, known, err := f.told(verb, m); known {
		return reply, err
	}
	if reply, known, err := f.allocator(verb, m); known {
		return reply, err
	}
	if reply, known, err := f.objects(verb, m); known {
		return reply, err
	}
	if verb == subjects.VerbArtifactBegin {
		var r kbroker.ArtifactBegin
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		f.writes = append(f.writes, "upload")
		if f.stored[r.SHA256] != nil {
			return kbroker.ArtifactBeginReply{Have: true}, nil
		}
		f.uploads[r.SHA256] = make([]byte, r.SizeBytes)
		return kbroker.ArtifactBeginReply{Core: "h1", Session: r.SHA256}, nil
	}
	var r kbroker.ListRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, err
	}
	switch verb {
	case subjects.VerbApps:
		return f.apps(r.App), nil
	case subjects.VerbInstances:
		return measuredFake(f.instances(r.App), r.Wide), nil
	case subjects.VerbHosts:
		pid := 4711
		return []kbroker.HostRow{
			{
				Name: "h1", Role: kbroker.RoleCore, State: kbroker.HostReady, PID: &pid, Super: f.leader, Instances: 2, Client: "127.0.0.1:4222",
				Capacity: kbroker.Resources{CPU: 4, MemoryBytes: 16 << 30}, Reserved: kbroker.Resources{CPU: 0.2, MemoryBytes: 128 << 20}, Labels: map[string]string{},
				Figures: fakeFigures().Hosts[1].Figures,
			},
			{Name: "h2", Role: kbroker.RoleCore, State: kbroker.HostLost, Labels: map[string]string{}},
		}, nil
	case subjects.VerbStatus:
		s := kbroker.StatusReply{ClusterID: "kb-1", Core: "h1", Hosts: 2, HostsUp: 1, Cores: 2, CoresUp: 1, Replicas: 1, Writable: f.leader, Apps: 1, Instances: 3, Ready: 3}
		if f.leader {
			h := kbroker.HostID("h1")
			s.Leader = &h
		} else {
			s.Alarms = []string{"no majority of the cores is up"}
		}
		return s, nil
	case subjects.VerbFigures:
		return fakeFigures(), nil
	case subjects.VerbTokens:
		rows := []kbroker.TokenRow{}
		for _, t := range f.tokens {
			rows = append(rows, t.Row(fakeNow))
		}
		return rows, nil
	case subjects.VerbUsers:
		rows := []kbroker.UserRow{}
		for _, u := range f.users {
			if r.All || u.Revoked.IsZero() {
				rows = append(rows, u.Row(fakeNow))
			}
		}
		return rows, nil
	case subjects.VerbVersion:
		app, ok := f.deployed[r.App]
		if !ok {
			return nil, kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App)
		}
		return kbroker.AppVersion{Version: 2, App: app}, nil
	}
	return nil, kbroker.Errorf(kbroker.Invalid, "verb %q", verb)
}

func (f *fakeCore) apps(only kbroker.AppName) []kbroker.AppRow {
	rows := []kbroker.AppRow{}
	for name, app := range f.deployed {
		if only != "" && only != name {
			continue
		}
		row := kbroker.AppRow{Tenant: kbroker.DefaultTenant, App: name, Version: 2, Rollout: kbroker.RolloutDone, Wanted: 3, Ready: 3, Stopped: f.stopped[name]}
		switch name {
		case "stuck":
			row.Rollout, row.Ready = kbroker.RolloutRunning, 1
			row.Unplaced = []kbroker.Unplaced{{Service: "stuck", Count: 2, Reason: "no host has 900 cpu free"}}
		case "broken", "silent":
			row.Rollout, row.Ready, row.Reason = kbroker.RolloutFailed, 0, "no progress for 2m0s"
		}
		for _, s := range app.Services {
			row.Services = append(row.Services, string(s.Name))
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b kbroker.AppRow) int { return strings.Compare(string(a.App), string(b.App)) })
	return rows
}

func (f *fakeCore) instances(only kbroker.AppName) []kbroker.InstanceRow {
	rows := []kbroker.InstanceRow{}
	add := func(app kbroker.AppName, id kbroker.InstanceID, state kbroker.InstanceState, pid int, message string) {
		if f.stopped[app] && app != "endless" || only != "" && only != app {
			return
		}
		if _, ok := f.deployed[app]; !ok {
			return
		}
		row := kbroker.InstanceRow{Tenant: kbroker.DefaultTenant, App: app, Service: kbroker.ServiceName(app), State: state, Version: 2, Message: message}
		if id != "" {
			host := kbroker.HostID("h1")
			row.Instance, row.Host = &id, &host
		}
		if pid > 0 {
			row.PID = &pid
		}
		rows = append(rows, row)
	}
	add("hello", "hello-hello-1", kbroker.StateReady, 100, "")
	add("hello", "hello-hello-2", kbroker.StateUnmanaged, 0, "the agent of host h1 is not there")
	add("hello", "", kbroker.StatePending, 0, "no host has room")
	add("broken", "broken-broken-1", kbroker.StateBackoff, 0, "exited with 3")
	add("silent", "silent-silent-1", kbroker.StateRunning, 101, "")
	add("endless", "endless-endless-1", kbroker.StateUnmanaged, 102, "the agent of host h1 is not there")
	return rows
}

func (f *fakeCore) super(m *nats.Msg) (any, error) {
	verb, _, _ := subjects.ParseAPI(m.Subject)
	switch verb {
	case subjects.VerbUser, subjects.VerbUserRevoke:
		return f.user(verb, m)
	case subjects.VerbDeploy:
		var r kbroker.DeployRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		return f.deploy(r)
	case subjects.VerbScale:
		var r kbroker.ScaleRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		if _, ok := f.deployed[r.App]; !ok {
			return nil, kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App)
		}
		f.writes = append(f.writes, "scale "+string(r.App)+" "+string(r.Service)+" "+strconv.Itoa(r.Count))
	case subjects.VerbRollback, subjects.VerbRestart:
		return f.undone(verb, m)
	case subjects.VerbToken:
		var r kbroker.TokenRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		f.writes = append(f.writes, strings.TrimSpace("token "+string(r.Role)+" "+string(r.Name)))
		f.tokens = append(f.tokens, kbroker.Token{ID: r.ID, Hash: r.Hash, Role: r.Role, Name: r.Name, Created: fakeNow, Expires: fakeNow.Add(r.TTL), By: r.By})
		return kbroker.TokenReply{Root: fakeRoot, Expires: fakeNow.Add(r.TTL)}, nil
	case subjects.VerbRevoke:
		var r kbroker.RevokeRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		i := slices.IndexFunc(f.tokens, func(t kbroker.Token) bool { return t.ID == r.ID })
		if i < 0 {
			return nil, kbroker.Errorf(kbroker.NotFound, "there is no token %s", r.ID)
		}
		if f.tokens[i].Used != nil {
			return nil, kbroker.Errorf(kbroker.Refused, "host w1 has joined with token %s", r.ID).WithHint("kbroker remove w1")
		}
		f.writes, f.tokens[i].Revoked = append(f.writes, "revoke"), fakeNow
		return kbroker.RevokeReply{}, nil
	case subjects.VerbStop:
		var r kbroker.StopRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, err
		}
		f.writes, f.stopped[r.App] = append(f.writes, "stop "+string(r.App)), true
	}
	return kbroker.DeployReply{Version: 2}, nil
}

func (f *fakeCore) deploy(r kbroker.DeployRequest) (any, error) {
	for _, s := range r.App.Services {
		if s.Artifact.Arch != "" && s.Artifact.Arch != "amd64" {
			return nil, kbroker.Errorf(kbroker.Invalid, "service %s: no known host can ever run it", s.Name).
				WithHint("h1: the program is built for %s, the host is amd64", s.Artifact.Arch)
		}
		if len(s.Require) > 0 {
			return nil, kbroker.Errorf(kbroker.Invalid, "service %s: no known host can ever run it", s.Name).
				WithHint("h1: does not meet %s", s.Require[0])
		}
		if !r.DryRun && s.Artifact.Builtin == "" && f.stored[s.Artifact.SHA256] == nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "service %s: artifact %.12s has not been uploaded", s.Name, s.Artifact.SHA256)
		}
	}
	if own := r.App.Own; own != nil && !r.DryRun && f.stored[own.Artifact.SHA256] == nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "service allocator: artifact %.12s has not been uploaded", own.Artifact.SHA256)
	}
	if own := r.App.Own; own != nil && own.Artifact.Arch == "arm64" {
		return nil, kbroker.Errorf(kbroker.Invalid, "service allocator: no known host can ever run it").WithHint("h1: the program is built for arm64, the host is amd64")
	}
	if r.CheckIndex != 0 && (r.CheckIndex != fakeIndex || r.App.Name == "overtaken") {
		return nil, kbroker.Errorf(kbroker.Refused, "app %q has changed since that plan was made", r.App.Name).WithHint("plan again")
	}
	if !r.DryRun {
		f.writes = append(f.writes, "deploy "+string(r.App.Name))
		f.deployed[r.App.Name], f.stopped[r.App.Name] = r.App, false
	}
	return kbroker.DeployReply{Version: 2}, nil
}

func (f *fakeCore) chunk(m *nats.Msg) (any, error) {
	session := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	file := f.uploads[session]
	if m.Header.Get(subjects.HeaderCommit) != "" {
		sum := sha256.Sum256(file)
		if hex.EncodeToString(sum[:]) != session {
			return nil, kbroker.Errorf(kbroker.Invalid, "the content has another digest")
		}
		f.stored[session] = file
		return struct{}{}, nil
	}
	offset, err := strconv.ParseInt(m.Header.Get(subjects.HeaderOffset), 10, 64)
	if err != nil {
		return nil, err
	}
	return kbroker.ArtifactChunkReply{Received: offset + int64(copy(file[offset:], m.Data))}, nil
}

// checkup is that of a host with a clock of its own and nothing else to say.
func (f *fakeCore) checkup(*nats.Msg) (any, error) {
	return kbroker.Checkup{
		Host: "h1", Role: kbroker.RoleCore, Version: node.Version, PID: 4711, Now: time.Now(), Proven: true,
		Disk: kbroker.DiskCheckup{Path: "/data/h1", FreeBytes: 50 << 30, TotalBytes: 100 << 30},
		Core: &kbroker.CoreCheckup{Fresh: true, Leader: f.leader, Settled: true, Mirrored: true, Writable: f.leader},
	}, nil
}

func (f *fakeCore) logs(m *nats.Msg) (any, error) {
	var r kbroker.LogRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, err
	}
	data := "starting " + string(r.Instance) + "\npanic: no configuration\n"
	if r.Instance == "hello-hello-2" && r.Since != nil {
		const oldest = 3 << 30
		return kbroker.LogReply{Offset: oldest, Oldest: oldest, DroppedBytes: 1 << 30, Next: oldest + int64(len(data)), Data: []byte(data)}, nil
	}
	if r.Offset > int64(len(data)) { // of the instance above
		return kbroker.LogReply{Offset: r.Offset, Next: r.Offset}, nil
	}
	from := int(r.Offset)
	if from < 0 {
		from = max(0, len(data)+from)
	}
	from = min(from, len(data))
	return kbroker.LogReply{Offset: int64(from), Next: int64(len(data)), Data: []byte(data[from:])}, nil
}

// greet shows what it was sent.
func (f *fakeCore) greet(m *nats.Msg) (any, error) {
	var in struct{ Name string }
	if err := json.Unmarshal(m.Data, &in); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "%q is not JSON", m.Data)
	}
	if in.Name == "" {
		return nil, kbroker.Errorf(kbroker.Invalid, "name is empty")
	}
	return map[string]any{"text": "Hello, " + in.Name + "!", "sent": json.RawMessage(m.Data), "id": m.Header.Get(subjects.HeaderRequestID)}, nil
}
