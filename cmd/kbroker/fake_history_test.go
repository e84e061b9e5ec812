package main

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// fakeStory are the events of the fake core.
func fakeStory() []kbroker.Event {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	three := 3
	return []kbroker.Event{
		{Sequence: 1, Time: at, Kind: kbroker.EventLeader, Host: "h1", By: "super h1 epoch 7", Message: "host h1 leads", Epoch: 7},
		{Sequence: 2, Time: at, Kind: kbroker.EventMoved, Tenant: "default", App: "hello", Service: "hello", Instance: "hello-hello-1", Host: "h2", By: "super h1 epoch 7", Message: "stopped: host h2 is lost, replaced by hello-hello-2 on h1"},
		{Sequence: 3, Time: at, Kind: kbroker.EventCrashed, Tenant: "default", App: "duo", Instance: "duo-one-1", Host: "h1", By: "agent h1", Message: "exit code 3: \x1b[31mpanic", Exit: &kbroker.Exit{Code: &three, At: at}},
	}
}

// fakeAudit is the trail of the fake core.
func fakeAudit() (all []kbroker.AuditRecord) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	ann := kbroker.Caller{Name: "ann", Role: "admin", Key: "UANN", Tenant: "default", Address: "10.0.0.9"}
	var last kbroker.AuditRecord
	for i, r := range []kbroker.AuditRecord{
		{Action: kbroker.AuditFound, Object: "cluster kb-1", Outcome: kbroker.AuditDone, Actor: kbroker.Caller{Host: "h1", Role: "core"}, Message: "the cluster was founded"},
		{Action: "scale", Object: "app hello", Outcome: kbroker.AuditDone, Actor: ann, Changes: 1, OldRevision: 17, Revision: 19, Message: "version 2, by scale: hello: count 1 -> 3"},
		{Action: "join", Object: "token abcdefghijkl", Outcome: kbroker.AuditRefused, Code: kbroker.Refused, Actor: kbroker.Caller{Host: "x1"}, Changes: 1, Count: 9, Message: "a host needs \x1b[31ma token"},
	} {
		r.Time, r.By = at.Add(time.Duration(i)*time.Hour), "super h1 p1 epoch 7"
		last = r.After(last)
		r = last
		r.Sequence = uint64(i + 1)
		all = append(all, r)
	}
	return all
}

// audit answers with a page; tampered is what somebody has done to the trail.
func (f *fakeCore) audit(r kbroker.AuditRequest) kbroker.AuditReply {
	all := fakeAudit()
	page := kbroker.AuditReply{Records: []kbroker.AuditRecord{}, Last: uint64(len(all))}
	switch f.tampered {
	case "altered":
		all[1].Actor.Name = "bob"
	case "removed":
		all = append(all[:1], all[2:]...)
	case "cut":
		all = all[:2]
	case "leaderless":
		page.Last = 0
	case "garbage":
		page.Unreadable = "what is stored at sequence 4 is no record"
	}
	if r.After != nil {
		page.Next = *r.After
	}
	for _, rec := range all {
		if (r.After == nil || rec.Sequence > *r.After) && (r.Before == 0 || rec.Sequence < r.Before) {
			page.Records, page.Next = append(page.Records, rec), rec.Sequence
		}
	}
	page.Missing = f.tampered == "cut" && len(page.Records) == 0
	return page
}

// told answers history, plan, events and why.
func (f *fakeCore) told(verb string, m *nats.Msg) (reply any, known bool, err error) {
	switch verb {
	case subjects.VerbHistory:
		var r kbroker.ListRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, true, err
		}
		if f.deployed[r.App].Name == "" {
			return nil, true, kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App)
		}
		return []kbroker.HistoryRow{
			{Version: 2, Cause: "scale", Created: time.Now().Add(-90 * time.Second), Changes: []string{"hello: count 1 -> 3; program changed"}, Wanted: true, Good: true, Running: 3},
			{Version: 1, Cause: "deploy", Created: time.Now().Add(-50 * time.Hour), Changes: []string{}},
		}, true, nil
	case subjects.VerbEvents:
		var r kbroker.EventsRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, true, err
		}
		page := kbroker.EventsReply{Events: []kbroker.Event{}, Next: 3}
		for _, e := range fakeStory() {
			if (r.After == nil || e.Sequence > *r.After) && (r.App == "" || e.App == r.App) && !e.Time.Before(r.Since) {
				page.Events = append(page.Events, e)
			}
		}
		page.Events = page.Events[max(0, len(page.Events)-max(1, r.Limit)):]
		return page, true, nil
	case subjects.VerbAudit:
		var r kbroker.AuditRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, true, err
		}
		return f.audit(r), true, nil
	case subjects.VerbDevelop:
		var r kbroker.DevelopRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, true, err
		}
		account, err := nkeys.CreateAccount()
		if err != nil {
			return nil, true, err
		}
		claims := jwt.NewUserClaims(r.Key)
		if f.life > 0 {
			claims.Expires = time.Now().Add(f.life).Unix()
		}
		signed, err := claims.Encode(account)
		return kbroker.SignReply{Credential: signed}, true, err
	case subjects.VerbWhy:
		var r kbroker.WhyRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, true, err
		}
		reply, err := f.why(r)
		return reply, true, err
	case subjects.VerbPlan:
		var r kbroker.PlanRequest
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, true, err
		}
		reply, err := f.plan(r)
		return reply, true, err
	}
	return nil, false, nil
}

func (f *fakeCore) why(r kbroker.WhyRequest) (any, error) {
	out := kbroker.WhyReply{Basis: kbroker.Basis{Core: "h1", Current: f.leader, Notes: []string{}}}
	if !f.leader {
		out.Basis.Notes = []string{"no super leads: what runs goes on"}
	}
	switch {
	case r.Instance == "hello-hello-1":
		out.Instance = &kbroker.WhyInstance{
			State: kbroker.StateExited, Host: "h2", Reason: "host h2 is lost", Events: fakeStory()[1:2],
			Status: &kbroker.Status{State: kbroker.StateExited, Version: 2, Epoch: 4, Restarts: 1, Exit: &kbroker.Exit{Signal: "SIGKILL"}},
		}
	case r.Instance != "":
		return nil, kbroker.Errorf(kbroker.NotFound, "app %q has no instance %q", r.App, r.Instance)
	case r.App != "hello":
		return nil, kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App)
	default:
		out.App = &kbroker.WhyApp{
			Row: f.apps("hello")[0], Cause: "rollback to 1", Created: time.Now().Add(-time.Hour), Rollout: kbroker.Rollout{State: kbroker.RolloutDone},
			Demand: &kbroker.Demand{Epoch: 3, Wanted: map[kbroker.ServiceName]int{"hello": 3}, Reason: "load", Refused: "it panicked:\nno"},
			Policy: kbroker.PolicyOwn, Instead: kbroker.PolicyPack,
			Services: []kbroker.WhyService{{
				Service: "hello", Count: kbroker.Count{Min: 2, Max: 9}, Wanted: 3, Placed: 2, Ready: 1, Troubles: []string{"hello-hello-2 on h1 is backoff: exit code 3"},
				Hosts: []kbroker.HostFit{
					{Host: "h1", Fits: true, Rank: 1, Same: 2, Why: []string{}, Ask: kbroker.Resources{CPU: 0.5, MemoryBytes: 64 << 20}, Free: kbroker.Resources{CPU: 2, MemoryBytes: 8 << 30}},
					{Host: "h2", Why: []string{"lost", "does not meet disk == ssd"}},
				},
			}},
			Events: fakeStory()[1:2],
		}
	}
	return out, nil
}

// fakeIndex is the check index of what the fake core has.
const fakeIndex = 4711

func (f *fakeCore) plan(r kbroker.PlanRequest) (any, error) {
	if _, err := f.deploy(kbroker.DeployRequest{App: r.App, DryRun: true}); err != nil {
		return nil, err
	}
	s := r.App.Services[0]
	out := kbroker.PlanReply{App: r.App.Name, Version: 3, From: 2, CheckIndex: fakeIndex, Unplaced: []kbroker.UnplacedPlan{}, Warnings: []string{}}
	change := kbroker.ServicePlan{Service: s.Name, Change: kbroker.ServiceChanged, Mode: kbroker.ModeRolling, Before: 3, After: 3, Changes: []string{"program changed"}}
	switch {
	case f.deployed[r.App.Name].Name == "":
		out.From, change = 0, kbroker.ServicePlan{Service: s.Name, Change: kbroker.ServiceNew, Mode: kbroker.ModeStart, After: 2, Changes: []string{}}
		out.Unplaced = append(out.Unplaced, kbroker.UnplacedPlan{Service: s.Name, Count: 1, Hosts: []kbroker.HostFit{{Host: "h2", Why: []string{"lost"}}}})
		if s.Artifact.SHA256 == "" {
			change.Changes = append(change.Changes, "program would be built and uploaded")
		}
	case s.Artifact.SHA256 == f.deployed[r.App.Name].Services[0].Artifact.SHA256:
		out.Version, out.Unchanged, change.Change, change.Mode, change.Changes = 2, true, kbroker.ServiceUnchanged, "", []string{}
	default:
		for i := range 6 {
			out.Start = append(out.Start, kbroker.PlannedInstance{Service: s.Name, Host: "h1", Instance: kbroker.InstanceID(fmt.Sprintf("%s-%s-%d", r.App.Name, s.Name, i))})
		}
		out.Leave = append(out.Leave, kbroker.PlannedInstance{Service: s.Name, Host: "h2", Instance: "old"})
		out.Warnings = append(out.Warnings, "host h2 is lost: nothing is placed on it")
	}
	out.Services = []kbroker.ServicePlan{change}
	return out, nil
}

// undone answers rollback and restart.
func (f *fakeCore) undone(verb string, m *nats.Msg) (any, error) {
	var r struct {
		App      kbroker.AppName
		Service  kbroker.ServiceName
		Instance kbroker.InstanceID
		Version  int
	}
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, err
	}
	switch {
	case f.deployed[r.App].Name == "":
		return nil, kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App)
	case r.Version > 2:
		return nil, kbroker.Errorf(kbroker.NotFound, "app %q has no version %d", r.App, r.Version).WithHint("it has 1, 2")
	case r.Version == 2:
		return kbroker.DeployReply{Version: 2, Unchanged: true}, nil
	}
	f.writes = append(f.writes, fmt.Sprintf("%s %s %s %s %d", verb, r.App, r.Service, r.Instance, r.Version))
	return kbroker.DeployReply{Version: 2}, nil
}
