package spec_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

// deployed is a valid app as deploy sends it.
func deployed(t *testing.T) *kbroker.App {
	t.Helper()
	app, err := spec.Parse([]byte(full), "app.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for i := range app.Services {
		app.Services[i].Artifact = kbroker.Artifact{Path: "bin/x", SHA256: digest, SizeBytes: 5, Arch: "amd64"}
	}
	return app
}

func TestValidateTakesWhatDeploySends(t *testing.T) {
	if err := spec.Validate(deployed(t)); err != nil {
		t.Error(err)
	}
	app := deployed(t)
	app.Services[0].Env, app.Services[0].Ports = map[string]string{"PORT": "80"}, nil
	if err := spec.Validate(app); err != nil {
		t.Errorf("the variable PORT of a service without ports: %v", err)
	}
	app = deployed(t)
	app.Services[1].Scale = &kbroker.Scale{}
	if err := spec.Validate(app); err != nil {
		t.Errorf("a scale without targets: %v", err)
	}
	app = deployed(t)
	app.Services[0].Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello}
	if err := spec.Validate(app); err != nil {
		t.Errorf("the built-in hello: %v", err)
	}
}

func TestValidateRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(app *kbroker.App, s *kbroker.Service)
		want   string
	}{
		{"a name with a dot", func(a *kbroker.App, s *kbroker.Service) { a.Name = "a.b" }, `app name "a.b" is not valid`},
		{"a wildcard as name", func(a *kbroker.App, s *kbroker.Service) { a.Name = ">" }, "app name"},
		{"the variable of a port", func(a *kbroker.App, s *kbroker.Service) { s.Env = map[string]string{"PORT_X": "1"} }, "PORT_X is set by the agent"},
		{"the variable of the only port", func(a *kbroker.App, s *kbroker.Service) {
			s.Env, s.Ports = map[string]string{"PORT": "1"}, []kbroker.Port{{Name: "http"}}
		}, "PORT is set by the agent"},
		{"the variable of the address", func(a *kbroker.App, s *kbroker.Service) { s.Env = map[string]string{"HOST_ADDRESS": "::1"} }, "HOST_ADDRESS is set by the agent"},
		{"no service", func(a *kbroker.App, s *kbroker.Service) { a.Services = nil }, "no service"},
		{"too many services", func(a *kbroker.App, s *kbroker.Service) { a.Services = make([]kbroker.Service, 101) }, "101 services"},
		{"a repeated service", func(a *kbroker.App, s *kbroker.Service) { a.Services[1].Name = a.Services[0].Name }, "appears twice"},
		{"services in disorder", func(a *kbroker.App, s *kbroker.Service) {
			a.Services[0], a.Services[2] = a.Services[2], a.Services[0]
		}, "not sorted"},
		{"the reserved name", func(a *kbroker.App, s *kbroker.Service) { s.Name = "allocator" }, "reserved"},
		{"a service name with a blank", func(a *kbroker.App, s *kbroker.Service) { s.Name = "a b" }, "service name"},
		{"no digest", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.SHA256 = "" }, "exactly one"},
		{"a digest and a built-in", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.Builtin = "hello" }, "exactly one"},
		{"an unknown built-in", func(a *kbroker.App, s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: "rm"} }, "no built-in"},
		{"the allocator as a service", func(a *kbroker.App, s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: "allocator"} }, "no built-in"},
		{"a policy without a digest", func(a *kbroker.App, s *kbroker.Service) { a.Own = &kbroker.OwnPolicy{Run: "bin/policy"} }, "wants the digest of its program"},
		{"a policy that is built in", func(a *kbroker.App, s *kbroker.Service) {
			a.Own = &kbroker.OwnPolicy{Artifact: kbroker.Artifact{Builtin: kbroker.BuiltinAllocator}}
		}, "wants a program of its own"},
		{"a policy with a strange digest", func(a *kbroker.App, s *kbroker.Service) {
			a.Own = &kbroker.OwnPolicy{Artifact: kbroker.Artifact{SHA256: "../x"}}
		}, "SHA-256"},
		{"a short digest", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.SHA256 = digest[1:] }, "SHA-256"},
		{"an upper-case digest", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.SHA256 = strings.ToUpper(digest) }, "SHA-256"},
		{"a digest with a path in it", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.SHA256 = "../" + digest[3:] }, "SHA-256"},
		{"a negative size", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.SizeBytes = -1 }, "artifact of -1 bytes"},
		{"a huge artifact", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.SizeBytes = 1 << 40 }, "artifact of"},
		{"a strange architecture", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.Arch = "../x" }, "architecture"},
		{"a command that leads out", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.Command = "a/../../b" }, "without .."},
		{"a command of the host", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.Command = "/bin/sh" }, "without a / in front"},
		{"a command with a zero byte", func(a *kbroker.App, s *kbroker.Service) { s.Artifact.Command = "a\x00b" }, "zero byte"},
		{"a command of a built-in", func(a *kbroker.App, s *kbroker.Service) {
			s.Artifact = kbroker.Artifact{Builtin: "hello", Command: "bin/web"}
		}, "not possible for a built-in"},
		{"an argument with a zero byte", func(a *kbroker.App, s *kbroker.Service) { s.Args = []string{"a\x00b"} }, "services.ledger.args[0] contains a zero byte"},
		{"too many arguments", func(a *kbroker.App, s *kbroker.Service) { s.Args = make([]string, 257) }, "257 arguments"},
		{"a variable without a name", func(a *kbroker.App, s *kbroker.Service) { s.Env = map[string]string{"": "x"} }, "name of an environment variable"},
		{"a long variable", func(a *kbroker.App, s *kbroker.Service) { s.Env = map[string]string{"A": strings.Repeat("x", 9000)} }, "9000 bytes"},
		{"a service that is too big", func(a *kbroker.App, s *kbroker.Service) {
			for range 10 {
				s.Args = append(s.Args, strings.Repeat("x", 8000))
			}
		}, "at most 32768"},
		{"a negative count", func(a *kbroker.App, s *kbroker.Service) { s.Count = kbroker.Count{Min: -1, Max: 1} }, "count is -1"},
		{"a count of nothing to nothing", func(a *kbroker.App, s *kbroker.Service) { s.Count = kbroker.Count{Min: 1} }, "max 0 is below min 1"},
		{"too many instances", func(a *kbroker.App, s *kbroker.Service) { s.Count.Max = math.MaxInt }, "at most 10000"},
		{"a scale of one number", func(a *kbroker.App, s *kbroker.Service) { s.Count = kbroker.Count{Min: 3, Max: 3} }, "services.ledger.scale has nothing to decide, count is 3"},
		{"a part that is no number", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Busy = math.NaN() }, "scale.busy is NaN"},
		{"a part of more than all", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Busy = 1.01 }, "scale.busy is 1.01"},
		{"a load that is no number", func(a *kbroker.App, s *kbroker.Service) { s.Scale.CPU = math.NaN() }, "scale.cpu is NaN"},
		{"a load below nothing", func(a *kbroker.App, s *kbroker.Service) { s.Scale.CPU = -0.5 }, "scale.cpu is -0.5"},
		{"requests without end", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Requests = math.Inf(1) }, "scale.requests is +Inf"},
		{"a mailbox without end", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Mailbox = math.Inf(1) }, "scale.mailbox is +Inf"},
		{"objects below nothing", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Objects = math.Inf(-1) }, "scale.objects is -Inf"},
		{"a mailbox without objects", func(a *kbroker.App, s *kbroker.Service) { s.Objects, s.Schemas, s.Scale.Objects = nil, nil, 0 }, "scale.mailbox is 10, and the service has no objects"},
		{"a target of objects without objects", func(a *kbroker.App, s *kbroker.Service) { s.Objects, s.Schemas, s.Scale.Mailbox = nil, nil, 0 }, "scale.objects is 10000, and the service has no objects"},
		{"a buffer below nothing", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Buffer = -1 }, "scale.buffer is -1"},
		{"a buffer of more than allowed", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Buffer = math.MaxInt }, "scale.buffer is"},
		{"down in the past", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Down = -time.Second }, "scale.down is -1s"},
		{"down for ever", func(a *kbroker.App, s *kbroker.Service) { s.Scale.Down = 1 << 62 }, "scale.down is"},
		{"cpu that is no number", func(a *kbroker.App, s *kbroker.Service) { s.Resources.CPU = math.NaN() }, "cpu is NaN"},
		{"no memory", func(a *kbroker.App, s *kbroker.Service) { s.Resources.MemoryBytes = 0 }, "memory is 0B"},
		{"no readiness", func(a *kbroker.App, s *kbroker.Service) { s.Health.Ready = "" }, `does not say how to look`},
		{"no interval", func(a *kbroker.App, s *kbroker.Service) { s.Health.Interval = 0 }, "interval is 0s"},
		{"parallel 0", func(a *kbroker.App, s *kbroker.Service) { s.Update.Parallel = 0 }, "parallel is 0"},
		{"an endless deadline", func(a *kbroker.App, s *kbroker.Service) { s.Update.Deadline = 1000 * time.Hour }, "deadline is 1000h"},
		{"a signal that stops the process", func(a *kbroker.App, s *kbroker.Service) { s.Stop.Signal = "SIGSTOP" }, `signal is "SIGSTOP"`},
		{"a grace of days", func(a *kbroker.App, s *kbroker.Service) { s.Stop.Grace = 48 * time.Hour }, "grace is 48h"},
		{"no spread", func(a *kbroker.App, s *kbroker.Service) { s.Spread = "" }, `spread is ""`},
		{"a broken call", func(a *kbroker.App, s *kbroker.Service) { s.Calls = []string{"x"} }, "calls[0]"},
		{"too many calls", func(a *kbroker.App, s *kbroker.Service) { s.Calls = make([]string, spec.MaxCalls+1) }, "at most 64"},
		{"a broken kind", func(a *kbroker.App, s *kbroker.Service) { s.Objects = []kbroker.KindName{"x.y"} }, "kind name"},
		{"objects of another service", func(a *kbroker.App, s *kbroker.Service) { a.Services[2].Objects = []kbroker.KindName{"till"} }, `services.teller.objects: service ledger has objects already`},
		{"a kind twice", func(a *kbroker.App, s *kbroker.Service) { s.Objects = []kbroker.KindName{"rate", "rate"} }, `"rate" is there twice`},
		{"a schema of no kind", func(a *kbroker.App, s *kbroker.Service) {
			s.Schemas = map[kbroker.KindName]kbroker.Schema{"safe": {Number: 2, Lowest: 2}}
		}, "does not name kind safe, which has a schema"},
		{"two streams of objects", func(a *kbroker.App, s *kbroker.Service) { a.ObjectStreams = 2 }, "object_streams is 2"},
		{"events for a moment", func(a *kbroker.App, s *kbroker.Service) { a.Topics.Keep = time.Second }, "topics.keep is 1s"},
		{"events for ever", func(a *kbroker.App, s *kbroker.Service) { a.Topics.Keep = 1 << 62 }, "topics.keep is"},
		{"events in a negative room", func(a *kbroker.App, s *kbroker.Service) { a.Topics.MaxBytes = -1 }, "topics.max_bytes is -1B"},
		{"a broken constraint", func(a *kbroker.App, s *kbroker.Service) { s.Require = []string{"x"} }, "require[0]"},
		{"too many constraints", func(a *kbroker.App, s *kbroker.Service) { s.Require = make([]string, 33) }, "33 constraints"},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := deployed(t)
			c.change(app, &app.Services[1])
			err := spec.Validate(app)
			if !errors.Is(err, kbroker.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want an invalid one with %q", err, c.want)
			}
		})
	}
}

func TestValidateReportsAllFindings(t *testing.T) {
	app := deployed(t)
	app.Name, app.Services[0].Count.Min, app.Services[2].Spread = "X", -1, "x"
	var errs spec.Errors
	if err := spec.Validate(app); !errors.As(err, &errs) || len(errs) != 3 {
		t.Errorf("error is %v, want three findings", err)
	}
}

// Many services that are each small enough must not add up to a record that
// the control store cannot take.
func TestValidateBoundsTheWholeApp(t *testing.T) {
	app := deployed(t)
	big := app.Services[1]
	big.Objects, big.Scale, app.ObjectStreams = nil, nil, 0
	big.Args = []string{strings.Repeat("x", 8000), strings.Repeat("x", 8000)}
	app.Services = nil
	for i := range 60 {
		s := big
		s.Name = kbroker.ServiceName("s" + string(rune('a'+i/26)) + string(rune('a'+i%26)))
		app.Services = append(app.Services, s)
	}
	if err := spec.Validate(app); err == nil || !strings.Contains(err.Error(), "at most 524288") {
		t.Errorf("error is %v, want one that names the bound", err)
	}
}
