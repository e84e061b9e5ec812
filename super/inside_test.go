package super

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// askAs asks a core with an inbox of its own, as who has a key.
func (d *desktop) askAs(key, verb string, in, out any) error {
	d.t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	inbox := subjects.Inbox(key) + ".answer"
	answers, err := d.nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { _ = answers.Unsubscribe() }()
	if err := d.nc.PublishRequest(subjects.Core(verb, tenant), inbox, body); err != nil {
		return err
	}
	m, err := answers.NextMsg(5 * time.Second)
	if err != nil {
		return err
	}
	if m.Header.Get(subjects.HeaderCode) != "" {
		var e kbroker.Error
		if err := json.Unmarshal(m.Data, &e); err != nil {
			return err
		}
		return &e
	}
	return json.Unmarshal(m.Data, out)
}

// TestWhatIsAskedInsideAnInstance reaches the agent of its host when it is in the trail, by
// whom, with the name of a command and without its arguments; and nothing else does.
func TestWhatIsAskedInsideAnInstance(t *testing.T) {
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &kbroker.DeployReply{})
	})
	var instance kbroker.InstanceID
	wait.Until(t, 10*time.Second, func() error {
		var rows []kbroker.InstanceRow
		if err := d.ask(subjects.Core(subjects.VerbInstances, tenant), kbroker.ListRequest{}, &rows); err != nil {
			return err
		}
		for _, r := range rows {
			if r.Instance != nil && r.Service != kbroker.AllocatorService {
				instance = *r.Instance
				return nil
			}
		}
		return errors.New("nothing is placed")
	})
	mine := subjects.Inbox("ME") + ".frames"
	exec := kbroker.ExecRequest{Instance: instance, Command: []string{"login", "--password", "hunter2"}, Answers: mine}
	if err := d.askAs("ME", subjects.VerbExec, exec, nil); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("without an agent: %v", err)
	}
	asked := make(chan *nats.Msg, 100)
	for _, verb := range []string{subjects.VerbExec, subjects.VerbSignal} {
		if _, err := d.nc.Subscribe(subjects.Host("h1", verb, tenant), func(m *nats.Msg) {
			all, err := d.trail()
			if err != nil || all[len(all)-1].Action != verb {
				t.Errorf("the agent is asked to %s before the trail tells it: %v", verb, err)
			}
			asked <- m
			_ = m.Respond([]byte(`{"host": "h1", "session": "s1", "processes": 1}`))
		}); err != nil {
			t.Fatal(err)
		}
	}
	var reply kbroker.ExecReply
	if err := d.askAs("ME", subjects.VerbExec, exec, &reply); err != nil || reply.Session != "s1" {
		t.Fatalf("exec: %+v, %v", reply, err)
	}
	if err := d.askAs("ME", subjects.VerbSignal, kbroker.SignalRequest{Instance: instance, Signal: "SIGHUP"}, &kbroker.SignalReply{}); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		verb string
		in   any
		want kbroker.Code
	}{
		"output for somebody else":   {subjects.VerbExec, kbroker.ExecRequest{Instance: instance, Command: []string{"ls"}, Answers: subjects.Inbox("YOU") + ".x"}, kbroker.Invalid},
		"output for the control":     {subjects.VerbExec, kbroker.ExecRequest{Instance: instance, Command: []string{"ls"}, Answers: subjects.View("h1")}, kbroker.Invalid},
		"no such instance":           {subjects.VerbExec, kbroker.ExecRequest{Instance: "shop-web-99", Command: []string{"ls"}, Answers: mine}, kbroker.NotFound},
		"a wildcard for an instance": {subjects.VerbSignal, kbroker.SignalRequest{Instance: "*", Signal: "SIGHUP"}, kbroker.Invalid},
		"no instance":                {subjects.VerbSignal, kbroker.SignalRequest{Signal: "SIGHUP"}, kbroker.Invalid},
		"words for a signal":         {subjects.VerbSignal, kbroker.SignalRequest{Instance: instance, Signal: "SIGHUP and more"}, kbroker.Invalid},
	} {
		if err := d.askAs("ME", test.verb, test.in, nil); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
	}
	if len(asked) != 2 {
		t.Errorf("the agent was asked %d times, want 2", len(asked))
	}
	all, err := d.trail()
	if err != nil {
		t.Fatal(err)
	}
	var told []kbroker.AuditRecord
	for _, r := range all {
		if strings.Contains(r.Message, "hunter2") {
			t.Errorf("the trail has an argument: %+v", r)
		}
		if r.Action == subjects.VerbExec || r.Action == subjects.VerbSignal {
			told = append(told, r)
		}
	}
	want := []string{"runs login on host h1", "runs login on host h1", "sends SIGHUP to its process on host h1"}
	if len(told) != len(want) {
		t.Fatalf("the trail tells %+v", told)
	}
	for i, r := range told {
		if r.Message != want[i] || r.Actor.Key != "ME" || r.Object != "instance "+string(instance) || r.Outcome != kbroker.AuditDone {
			t.Errorf("record %d is %+v, want %q by ME", i, r, want[i])
		}
	}
}
