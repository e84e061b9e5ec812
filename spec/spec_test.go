package spec_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

const full = `name: bank
services:
  teller: {run: bin/teller}
  ledger:
    build: go build -o bin/ledger ./ledger   # a comment
    run: bin/ledger
    args: ["--verbose", -n, 5]
    env: {LOG: info, MASK: 0x10, ON: true, EMPTY: ""}
    count: {min: 2, max: 20}
    scale: {busy: 0.8, cpu: 1.5, requests: 200, mailbox: 10, objects: 10_000, buffer: 1, down: 10m}
    resources: {cpu: 0.25, memory: 1.5GiB, cpu_limit: 2, pids: 100, fds: 1024}
    ports: [web, admin]
    health: {ready: http, port: web, path: /up, interval: 500ms, timeout: 200ms, failures: 2, successes: 3, start: 1m, live: {ready: tcp, port: admin}}
    sandbox: strict
    update: {parallel: 2, min_healthy: 0s, deadline: 1m30s, auto_rollback: true}
    stop: {signal: SIGINT, grace: 1m}
    spread: none
    require: ["disk == ssd", 'zone != "rack 4"']
    calls: [mail/smtp, shop/*]
    objects: [rate, {kind: account, schema: 3, lowest: 2}, {kind: room, schema: 1}]
  audit:
    artifact:
      path: bin/audit
      sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
  web:
    artifact: {path: web.tar.gz, command: bin/web}
object_streams: 16
topics: {keep: 36h, max_bytes: 256MiB}
`

func TestParse(t *testing.T) {
	app, err := spec.Parse([]byte(full), "app.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plain := kbroker.Service{
		Count:     kbroker.Count{Min: 1, Max: 1},
		Resources: kbroker.Resources{CPU: 0.1, MemoryBytes: 64 << 20},
		Health:    kbroker.Health{Check: kbroker.Check{Ready: "sdk", Interval: time.Second}},
		Update:    kbroker.Update{Parallel: 1, MinHealthy: 2 * time.Second, Deadline: 2 * time.Minute},
		Stop:      kbroker.Stop{Signal: "SIGTERM", Grace: 10 * time.Second},
		Spread:    "host",
	}
	teller, audit, web := plain, plain, plain
	teller.Name, teller.Run, teller.Artifact.Path = "teller", "bin/teller", "bin/teller"
	audit.Name = "audit"
	audit.Artifact = kbroker.Artifact{Path: "bin/audit", SHA256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}
	web.Name, web.Artifact = "web", kbroker.Artifact{Path: "web.tar.gz", Command: "bin/web"}
	want := &kbroker.App{Name: "bank", ObjectStreams: 16, Topics: kbroker.TopicLimits{Keep: 36 * time.Hour, MaxBytes: 256 << 20}, Services: []kbroker.Service{audit, {
		Name: "ledger", Build: "go build -o bin/ledger ./ledger", Run: "bin/ledger",
		Artifact:  kbroker.Artifact{Path: "bin/ledger"},
		Args:      []string{"--verbose", "-n", "5"},
		Env:       map[string]string{"LOG": "info", "MASK": "0x10", "ON": "true", "EMPTY": ""},
		Count:     kbroker.Count{Min: 2, Max: 20},
		Scale:     &kbroker.Scale{Busy: 0.8, CPU: 1.5, Requests: 200, Mailbox: 10, Objects: 10_000, Buffer: 1, Down: 10 * time.Minute},
		Resources: kbroker.Resources{CPU: 0.25, MemoryBytes: 3 << 29, CPULimit: 2, MemoryLimitBytes: 3 << 29, PIDs: 100, Files: 1024},
		Ports:     []kbroker.Port{{Name: "admin"}, {Name: "web"}},
		Health: kbroker.Health{
			Check:     kbroker.Check{Ready: "http", Port: "web", Path: "/up", Interval: 500 * time.Millisecond, Timeout: 200 * time.Millisecond, Failures: 2},
			Successes: 3, Start: time.Minute,
			Live: &kbroker.Check{Ready: "tcp", Port: "admin", Interval: time.Second},
		},
		Sandbox: kbroker.SandboxStrict,
		Update:  kbroker.Update{Parallel: 2, Deadline: 90 * time.Second, AutoRollback: true},
		Stop:    kbroker.Stop{Signal: "SIGINT", Grace: time.Minute},
		Spread:  "none",
		Require: []string{"disk == ssd", `zone != "rack 4"`},
		Calls:   []string{"mail/smtp", "shop/*"},
		Objects: []kbroker.KindName{"account", "rate", "room"}, Schemas: map[kbroker.KindName]kbroker.Schema{"account": {Number: 3, Lowest: 2}},
	}, teller, web}}
	if !reflect.DeepEqual(app, want) {
		t.Errorf("parsed\n%+v\nwant\n%+v", app, want)
	}
}

// TestAPolicyOfItsOwn: its program is the app's, and the built-in policy that takes over is
// the one that the spec names.
func TestAPolicyOfItsOwn(t *testing.T) {
	const text = "name: x\nservices: {a: {run: b}}\nallocator: {run: bin/policy, build: go build -o bin/policy ./policy, policy: pack}\n"
	app, err := spec.Parse([]byte(text), "app.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := &kbroker.OwnPolicy{Build: "go build -o bin/policy ./policy", Run: "bin/policy", Artifact: kbroker.Artifact{Path: "bin/policy"}}
	if !reflect.DeepEqual(app.Own, want) || app.Policy != kbroker.PolicyPack {
		t.Errorf("own policy %+v beside %q, want %+v beside pack", app.Own, app.Policy, want)
	}
}

func TestParseTakes(t *testing.T) {
	for name, src := range map[string]string{
		"a document mark and CRLF":        "---\r\nname: x\r\nservices:\r\n  a:\r\n    run: b\r\n...\r\n",
		"an alias of a whole environment": "name: x\nservices:\n  a: {run: a, env: &e {A: b}}\n  b: {run: a, env: *e}\n",
		"a zero count":                    "name: x\nservices: {a: {run: b, count: 0}}",
		"a scale with nothing in it":      "name: x\nservices: {a: {run: b, count: {min: 1, max: 2}, scale: {}}}",
		"a scale down to nothing":         "name: x\nservices: {a: {run: b, count: {min: 0, max: 2}, scale: {buffer: 0}}}",
		"the least of a scale":            "name: x\nservices: {a: {run: b, objects: [room], count: {min: 1, max: 2}, scale: {busy: 0.001, cpu: 0.001, requests: 0.5, mailbox: 0.1, objects: 1, down: 1s}}}",
		"the most of a scale":             "name: x\nservices: {a: {run: b, objects: [room], count: {min: 1, max: 2}, scale: {busy: 1, cpu: 100, requests: 1_000_000_000, mailbox: 1000000000, objects: 1000000000, buffer: 10000, down: 24h}}}",
		"a byte order mark":               "\ufeffname: x\nservices: {a: {run: b}}",
		"a block of text":                 "name: x\nservices:\n  a:\n    run: b\n    env:\n      SCRIPT: |\n        one\n        two\n",
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := spec.Parse([]byte(src), "app.yaml"); err != nil {
				t.Error(err)
			}
		})
	}
}

// in puts a line into an otherwise valid service: it is line 4, column 5.
func in(line string) string { return "name: x\nservices:\n  a:\n    " + line + "\n    run: b\n" }

// scaled is in for a service whose count has room for the scale, in line 5.
func scaled(scale string) string { return in("count: {min: 2, max: 20}\n    scale: " + scale) }

func TestParseFindings(t *testing.T) {
	for _, c := range []struct {
		name, src string
		want      []string // "line:column: the beginning of the message", in order
		hint      string   // part of the first finding's hint
	}{
		{"an empty file", "", []string{"1:1: the spec is empty"}, "services"},
		{"only a comment", "# nothing\n", []string{"1:1: the spec is empty"}, ""},
		{"binary junk", "name: x\n\x7fELF\x02", []string{"2:1: this is not text"}, "right file"},
		{"not UTF-8", "name: caf\xe9\n", []string{"1:10: this is not text"}, ""},
		{"a tab as indent", "name: x\nservices:\n\ta: 1\n", []string{"3:1: not valid YAML"}, "spaces"},
		{"a list that does not end", "name: x\nservices: [1,\n", []string{"2:11: not valid YAML"}, ""},
		{"plain text", "hello world\n", []string{`1:1: the spec is "hello world", want a mapping`}, "name: NAME"},
		{"a list", "- a\n", []string{"1:1: the spec is a list, want a mapping"}, ""},
		{"two documents", "name: x\nservices: {a: {run: b}}\n---\nname: y\n", []string{"3:1: a second document"}, "one app per file"},
		{"a directive", "%YAML 1.2\n---\nname: x\n", []string{"1:1: YAML directives"}, ""},
		{"no name", "services: {a: {run: b}}\n", []string{"1:1: app name is empty"}, "lower-case"},
		{"no services", "name: x\n", []string{"1:1: the app has no service"}, ""},
		{"services that are null", "name: x\nservices:\n", []string{"2:1: services is empty, want a mapping"}, ""},
		{"services that are none", "name: x\nservices: {}\n", []string{"2:11: the app has no service"}, ""},
		{"no program", "name: x\nservices:\n  a:\n    count: 2\n", []string{"3:3: services.a has no program"}, "run: FILE"},
		{"a name with a dot", "name: my.app\nservices: {a: {run: b}}\n", []string{`1:7: app name "my.app" is not valid`}, "without a dot"},
		{"a name that is a number", "name: 5\nservices: {a: {run: b}}\n", []string{"1:7: name is 5, want text"}, "quotes"},
		{"a name that is too long", "name: " + strings.Repeat("a", 41) + "\nservices: {a: {run: b}}\n", []string{"1:7: app name"}, ""},
		{"a service name with a dot", "name: x\nservices:\n  a.b:\n    run: c\n", []string{`3:3: service name "a.b"`}, "without a dot"},
		{"the reserved service name", "name: x\nservices:\n  allocator:\n    run: c\n", []string{"3:3: service name allocator is reserved"}, "another name"},
		{"a service that is text", "name: x\nservices:\n  a: bin/a\n", []string{`3:6: services.a is "bin/a", want a mapping`}, ""},
		{"a repeated service", "name: x\nservices:\n  a: {run: b}\n  a: {run: c}\n", []string{`4:3: key "a" appears twice`}, "line 3"},

		{"an unknown key", in("cuont: 3"), []string{`4:5: unknown key "cuont" in services.a`}, `did you mean "count"?`},
		{"an unknown key like nothing", in("zzzzzz: 3"), []string{`4:5: unknown key "zzzzzz"`}, "known here: build, run, artifact"},
		{"an unknown key of the app", "name: x\nservice: {}\nservices: {a: {run: b}}\n", []string{`2:1: unknown key "service"`}, `"services"`},
		{"an unknown nested key", in("stop: {signel: SIGINT}"), []string{`4:12: unknown key "signel" in services.a.stop`}, `"signal"`},
		{"a repeated key", in("count: 1\n    count: 2"), []string{`5:5: key "count" appears twice`}, "line 4"},
		{"a merge key", in("<<: {count: 2}"), []string{"4:5: YAML merge keys"}, ""},
		{"a tag", in("count: !!int 2"), []string{"4:12: YAML tags such as !!int"}, ""},
		{"a complex key", in("? a\n    : 1"), []string{"4:5: a key of services.a is not plain text"}, ""},
		{"an alias without an anchor", in("env: *e"), []string{`4:10: there is no anchor "e"`}, "&NAME"},
		{"an anchor in itself", in("env: &e {A: *e}"), []string{`4:17: services.a.env.A is a mapping, want text`}, ""},

		{"a call of an app", in("calls: [bank]"), []string{`4:13: services.a.calls[0] is "bank", want an app and a service`}, "app/*"},
		{"a call of no name", in("calls: [bank/*, ba*k/x]"), []string{`4:21: app name "ba*k" is not valid`}, ""},
		{"a call of two services", in("calls: [bank/a/b]"), []string{`4:13: service name "a/b" is not valid`}, ""},
		{"a call twice", in("calls: [bank/a, bank/a]"), []string{`4:21: services.a.calls[1]: "bank/a" is there twice`}, ""},
		{"a topic of no app", in("subscribes: [orders]"), []string{`4:18: services.a.subscribes[0] is "orders", want an app and a topic`}, "app/*"},
		{"a topic of no name", in("subscribes: [shop/*, shop/Or]"), []string{`4:26: topic name "Or" is not valid`}, ""},
		{"calls that are no list", in("calls: bank/a"), []string{`4:12: services.a.calls is "bank/a", want a list`}, "[item, item]"},

		{"a kind with a bad name", in("objects: [account, My.Room]"), []string{`4:24: kind name "My.Room" is not valid`}, "without a dot"},
		{"a kind twice", in("objects: [account, room, account]"), []string{`4:30: services.a.objects[2]: "account" is there twice`}, "remove it"},
		{"objects of two services", "name: x\nservices:\n  a: {run: b, objects: [room]}\n  c: {run: d, objects: [account, room]}\n", []string{`4:24: services.c.objects: service a has objects already`}, "one service of an app has its objects"},
		{"objects of three services", "name: x\nservices:\n  e: {run: f, objects: [x]}\n  a: {run: b, objects: [room]}\n  c:\n    run: d\n    objects: [account]\n", []string{`3:24: services.e.objects: service a has objects already`, `7:14: services.c.objects: service a has objects already`}, "an app of its own"},
		{"a placed kind that takes more than there is", in("slots: 10\n    objects: [account, {kind: room, placed: {slots: 11}}]"), []string{`5:45: services.a.objects[1].placed: 11 slots, an instance has 10`}, "slots"},
		{"a placed kind that takes less than nothing", in("objects: [{kind: room, placed: {slots: -1}}]"), []string{`4:36: services.a.objects[0].placed: -1 slots, 0 cores, 0B; want 0 to 1048576 slots, to 1024 cores`}, "what one of its objects takes"},
		{"no slots", in("slots: 0"), []string{`4:12: services.a.slots is 0`}, "slots"},
		{"a kind without a name", in("objects: [{schema: 2}]"), []string{"4:15: services.a.objects[0] does not name its kind"}, "kind: account"},
		{"a schema of nothing", in("objects: [{kind: room, schema: 0}]"), []string{"4:36: services.a.objects[0].schema is 0, want a number from 1"}, ""},
		{"a schema that is written lower than any", in("objects: [{kind: room, schema: 2, lowest: 0}]"), []string{"4:47: services.a.objects[0].lowest is 0, want a number from 1 to 2"}, "Downgrade"},
		{"a schema that is written higher than its own", in("objects: [{kind: room, lowest: 2}]"), []string{"4:36: services.a.objects[0].lowest is 2, want a number from 1 to 1"}, "Downgrade"},
		{"a kind that is a number", in("objects: [5]"), []string{"4:15: services.a.objects[0] is 5, want text"}, "quotes"},
		{"a kind that is no list", in("objects: account"), []string{`4:14: services.a.objects is "account", want a list of kinds`}, "[item, item]"},
		{"more kinds than allowed", in("objects: [" + strings.Repeat("a, ", spec.MaxKinds) + "b]"), []string{"4:14: services.a.objects has 65 kinds, at most 64"}, ""},
		{"streams of another number", in("objects: [a]") + "object_streams: 3\n", []string{"6:17: object_streams is 3, want one of 1, 4, 16"}, "leave it out"},
		{"no streams", in("objects: [a]") + "object_streams: 0\n", []string{"6:17: object_streams is 0, want one of 1, 4, 16"}, "leave it out"},
		{"streams in words", in("objects: [a]") + "object_streams: four\n", []string{`6:17: object_streams is "four", want a whole number`}, ""},
		{"streams without objects", in("count: 1") + "object_streams: 4\n", []string{"6:17: object_streams is 4, and no service has objects"}, "objects: [account]"},
		{"events that are kept too short", in("count: 1") + "topics: {keep: 1s}\n", []string{"6:16: topics.keep is 1s, want 1m0s to"}, "168h"},
		{"events that are not kept", in("count: 1") + "topics: {keep: 0s}\n", []string{"6:16: topics.keep is 0"}, "168h"},
		{"no room for events", in("count: 1") + "topics: {max_bytes: 0B}\n", []string{"6:21: topics.max_bytes is 0"}, "1GiB"},
		{"little room for events", in("count: 1") + "topics: {max_bytes: 1kB}\n", []string{"6:21: topics.max_bytes is 1000B, want 1MiB to 16TiB"}, "1GiB"},
		{"topics as a list", in("count: 1") + "topics: [orders]\n", []string{"6:9: topics is"}, ""},
		{"on_disconnect", in("on_disconnect: stop"), []string{`4:5: key "on_disconnect" is not supported`}, ""},
		{"a policy that is none", "name: x\nservices: {a: {run: b}}\nallocator: {policy: fair}\n", []string{`3:21: allocator.policy is "fair", want spread or balanced or pack`}, ""},
		{"a policy without a program", "name: x\nservices: {a: {run: b}}\nallocator: {run: \"\"}\n", []string{`3:18: allocator.run is empty`}, "allocator.Run"},
		{"a policy's program that is a number", "name: x\nservices: {a: {run: b}}\nallocator: {run: 5}\n", []string{`3:18: allocator.run is 5, want text`}, "quotes"},
		{"a policy that is built and not run", "name: x\nservices: {a: {run: b}}\nallocator:\n  policy: pack\n  build: make\n", []string{`5:3: allocator.build makes a program, and allocator.run does not say which`}, "run: bin/policy"},
		{"a policy with an unknown key", "name: x\nservices: {a: {run: b}}\nallocator: {runs: c}\n", []string{`3:13: unknown key "runs" in allocator`}, `did you mean "run"?`},
		{"a policy of its own that falls back to none", "name: x\nservices: {a: {run: b}}\nallocator: {run: c, policy: fair}\n", []string{`3:29: allocator.policy is "fair", want spread or balanced or pack`}, ""},
		{"health over http without a port", in("health: {ready: http}"), []string{`4:13: services.a.health does not say which port to look at, the service has 0`}, "ports"},
		{"health over a port that is not there", in("ports: [web]\n    health: {ready: tcp, port: wep}"), []string{`5:32: services.a.health.port is "wep", the service has no port of this name`}, "ports"},
		{"health by an unknown way", in("health: {ready: grpc}"), []string{`4:21: services.a.health.ready is "grpc", want sdk or http or tcp or exec or alive`}, ""},
		{"a path of a check that has none", in("ports: [web]\n    health: {ready: tcp, path: /}"), []string{`5:32: services.a.health.path is only for the check http, this one is tcp`}, ""},
		{"a check without a command", in("health: {ready: exec}"), []string{`4:13: services.a.health has no command to run`}, ""},
		{"life without a way", in("health: {live: {interval: 1s}}"), []string{`4:20: services.a.health.live does not say how to look`}, "http"},
		{"life by the SDK's word", in("health: {live: sdk}"), []string{`4:20: services.a.health.live.ready is "sdk", want http or tcp or exec or off`}, ""},
		{"a check a thousand and one times", in("health: {failures: 1001}"), []string{`4:24: services.a.health.failures is 1001, want 1 to 1000`}, ""},
		{"a port twice", in("ports: {web: 80, admin: 80}"), []string{`4:18: services.a.ports.web and "admin" have the same number 80`}, ""},
		{"a port 0", in("ports: {web: 0}"), []string{`4:18: services.a.ports.web is 0, want a number from 1 to 65535`}, "[http]"},
		{"a port with a bad name", in("ports: [Web]"), []string{`4:12: port name "Web" is not valid`}, ""},
		{"a limit below what is reserved", in("resources: {memory: 64MiB, memory_limit: 32MiB}"), []string{`4:46: services.a.resources.memory_limit 32MiB is below memory 64MiB`}, ""},
		{"fewer files than anything needs", in("resources: {fds: 3}"), []string{`4:22: services.a.resources.fds is 3, want 16 to 1048576`}, ""},
		{"an unknown sandbox", in("sandbox: loose"), []string{`4:14: services.a.sandbox is "loose", want strict`}, ""},

		{"count -1", in("count: -1"), []string{"4:12: services.a.count is -1, want 0 or more"}, ""},
		{"a fraction of an instance", in("count: 1.5"), []string{"4:12: services.a.count is 1.5, want a whole number"}, ""},
		{"a count in words", in("count: three"), []string{`4:12: services.a.count is "three", want a whole number`}, ""},
		{"a count without an end", in("count: 99999999999999999999"), []string{"4:12: services.a.count is"}, ""},
		{"more instances than allowed", in("count: 10001"), []string{"4:12: services.a.count is 10001, at most 10000"}, ""},
		{"a count without max", in("count: {min: 2}"), []string{"4:12: services.a.count needs both min and max"}, "min: 2"},
		{"max below min", in("count: {min: 3, max: 2}"), []string{"4:12: services.a.count: max 2 is below min 3"}, ""},
		{"a count of nothing", in("count:"), []string{"4:5: services.a.count is empty, want a whole number"}, ""},
		{"a scale of one number", in("count: 3\n    scale: {busy: 0.5}"), []string{"5:5: services.a.scale has nothing to decide, count is 3"}, "count: {min: 2, max: 20}"},
		{"a scale of the default count", in("scale: {}"), []string{"4:5: services.a.scale has nothing to decide, count is 1"}, "count: {min: 2, max: 20}"},
		{"a scale of equal bounds", in("count: {min: 2, max: 2}\n    scale: {buffer: 1}"), []string{"5:5: services.a.scale has nothing to decide, count is 2"}, "or remove scale"},
		{"a scale of one number that cannot be read", in("scale: {busy: x}"), []string{"4:5: services.a.scale has nothing to decide", `4:19: services.a.scale.busy is "x", want a number`}, "count: {min: 2, max: 20}"},
		{"a scale of a count that cannot be read", in("count: {min: 2}\n    scale: {busy: 0.5}"), []string{"4:12: services.a.count needs both min and max"}, ""},
		{"a scale that is a number", scaled("0.7"), []string{"5:12: services.a.scale is 0.7, want a mapping with the keys busy, cpu"}, ""},
		{"a scale of nothing", scaled(""), []string{"5:5: services.a.scale is empty, want a mapping"}, ""},
		{"an unknown key of a scale", scaled("{bussy: 0.7}"), []string{`5:13: unknown key "bussy" in services.a.scale`}, `did you mean "busy"?`},
		{"busy at nothing", scaled("{busy: 0}"), []string{"5:19: services.a.scale.busy is 0"}, "leave it out for no such target"},
		{"busy in parts of a hundred", scaled("{busy: 70}"), []string{"5:19: services.a.scale.busy is 70, want more than 0, at most 1"}, "0.7"},
		{"busy with a sign of parts", scaled("{busy: 70%}"), []string{`5:19: services.a.scale.busy is "70%", want a number`}, "0.7"},
		{"cpu at nothing", scaled("{cpu: 0.0}"), []string{"5:18: services.a.scale.cpu is 0"}, "leave it out for no such target"},
		{"cpu of more cores than there are", scaled("{cpu: 100.5}"), []string{"5:18: services.a.scale.cpu is 100.5, want more than 0, at most 100"}, "cores"},
		{"cpu that is no number", scaled("{cpu: .nan}"), []string{"5:18: services.a.scale.cpu is .nan, want a number"}, "cores"},
		{"requests at nothing", scaled("{requests: 0}"), []string{"5:23: services.a.scale.requests is 0"}, "leave it out for no such target"},
		{"requests below nothing", scaled("{requests: -1}"), []string{"5:23: services.a.scale.requests is -1, want more than 0, at most 1000000000"}, "in a second"},
		{"requests without end", scaled("{requests: .inf}"), []string{"5:23: services.a.scale.requests is .inf, want a number"}, "in a second"},
		{"more requests than allowed", scaled("{requests: 1000000001}"), []string{"5:23: services.a.scale.requests is 1.000000001e+09, want more than 0, at most 1000000000"}, ""},
		{"a mailbox of nothing", scaled("{mailbox: 0}") + "    objects: [room]\n", []string{"5:22: services.a.scale.mailbox is 0"}, "leave it out for no such target"},
		{"a mailbox below nothing", scaled("{mailbox: -5}") + "    objects: [room]\n", []string{"5:22: services.a.scale.mailbox is -5, want more than 0"}, "that wait"},
		{"no objects as a target", scaled("{objects: 0}") + "    objects: [room]\n", []string{"5:22: services.a.scale.objects is 0"}, "leave it out for no such target"},
		{"more objects than allowed", scaled("{objects: 10000000000}") + "    objects: [room]\n", []string{"5:22: services.a.scale.objects is 1e+10, want more than 0"}, "in the memory"},
		{"targets of a service without objects", scaled("{mailbox: 10, objects: 100}"), []string{
			"5:22: services.a.scale.mailbox is 10, and the service has no objects", "5:35: services.a.scale.objects is 100, and the service has no objects",
		}, "objects: [account]"},
		{"targets of a service whose objects cannot be read", scaled("{mailbox: 10, objects: 100}") + "    objects: room\n", []string{`7:14: services.a.objects is "room", want a list`}, ""},
		{"a buffer below nothing", scaled("{buffer: -1}"), []string{"5:21: services.a.scale.buffer is -1, want 0 to 10000"}, "beyond what the targets need"},
		{"a buffer of more than allowed", scaled("{buffer: 10001}"), []string{"5:21: services.a.scale.buffer is 10001, want 0 to 10000"}, ""},
		{"a part of an instance as buffer", scaled("{buffer: 0.5}"), []string{"5:21: services.a.scale.buffer is 0.5, want a whole number"}, ""},
		{"down at once", scaled("{down: 0s}"), []string{"5:19: services.a.scale.down is 0"}, "leave it out for 5m"},
		{"down too soon", scaled("{down: 999ms}"), []string{"5:19: services.a.scale.down is 999ms, want 1s to 24h0m0s"}, "10m"},
		{"down too late", scaled("{down: 25h}"), []string{"5:19: services.a.scale.down is 25h0m0s, want 1s to 24h0m0s"}, ""},
		{"down without unit", scaled("{down: 300}"), []string{"5:19: services.a.scale.down is 300, want a duration"}, "10s"},
		{"no cpu", in("resources: {cpu: 0}"), []string{"4:22: services.a.resources.cpu is 0, want 0.001 to 1024"}, "cores"},
		{"cpu in thousandths", in("resources: {cpu: 100m}"), []string{`4:22: services.a.resources.cpu is "100m", want a number`}, "cores"},
		{"cpu without end", in("resources: {cpu: .inf}"), []string{"4:22: services.a.resources.cpu is .inf, want a number"}, ""},
		{"memory without unit", in("resources: {memory: 64}"), []string{"4:25: services.a.resources.memory is 64, want a size"}, "64MiB"},
		{"memory below zero", in("resources: {memory: -64MiB}"), []string{`4:25: services.a.resources.memory is "-64MiB", want a size`}, ""},
		{"no memory", in("resources: {memory: 0MiB}"), []string{"4:25: services.a.resources.memory is 0B, want 1MiB to 16TiB"}, ""},
		{"a duration without unit", in("stop: {grace: 10}"), []string{"4:19: services.a.stop.grace is 10, want a duration"}, "10s"},
		{"no grace", in("stop: {grace: 0s}"), []string{"4:19: services.a.stop.grace is 0s, want 100ms to 1h0m0s"}, ""},
		{"a negative duration", in("update: {min_healthy: -1s}"), []string{"4:27: services.a.update.min_healthy is -1s"}, ""},
		{"a deadline nobody can meet", in("update: {deadline: 2s}"), []string{"4:24: services.a.update.deadline 2s is not longer"}, "min_healthy"},
		{"an interval of a day", in("health: {interval: 24h}"), []string{"4:24: services.a.health.interval is 24h0m0s, want 100ms to 1m0s"}, ""},
		{"parallel 0", in("update: {parallel: 0}"), []string{"4:24: services.a.update.parallel is 0, want 1 to 10000"}, ""},
		{"a boolean in words", in("update: {auto_rollback: yes}"), []string{`4:29: services.a.update.auto_rollback is "yes", want true or false`}, ""},
		{"a signal without SIG", in("stop: {signal: TERM}"), []string{`4:20: services.a.stop.signal is "TERM"`}, `did you mean "SIGTERM"?`},
		{"an unknown spread", in("spread: hosts"), []string{`4:13: services.a.spread is "hosts", want host or none`}, `"host"`},
		{"an unknown readiness", in("health: {ready: skd}"), []string{`4:21: services.a.health.ready is "skd"`}, `"sdk"`},
		{"a constraint without operator", in(`require: ["disk ssd"]`), []string{`4:15: services.a.require[0]: constraint "disk ssd"`}, "LABEL == VALUE"},
		{"a constraint that is no text", in(`require: ["a == b", 5]`), []string{"4:25: services.a.require[1] is 5, want text"}, ""},
		{"constraints that are no list", in("require: disk == ssd"), []string{`4:14: services.a.require is "disk == ssd", want a list`}, "[item, item]"},
		{"an argument that is a list", in("args: [[a]]"), []string{"4:12: services.a.args[0] is a list, want text"}, ""},
		{"a variable without a value", in("env:\n      A:"), []string{"5:7: services.a.env.A has no value"}, `""`},
		{"a variable of the agent", in("env: {KBROKER_INSTANCE: x}"), []string{"4:29: environment variables KBROKER_*"}, ""},
		{"a variable name with =", in(`env: {"A=B": x}`), []string{`4:18: "A=B" is not the name`}, ""},

		{"run and artifact", in("artifact: {path: x, sha256: " + digest + "}"), []string{"4:15: services.a has both run and artifact"}, "one of the two"},
		{"an artifact without digest", "name: x\nservices:\n  a:\n    artifact: {path: b}\n", []string{"4:15: services.a.artifact has no sha256"}, "run: FILE"},
		{"a digest that is none", "name: x\nservices:\n  a:\n    artifact: {path: b, sha256: abc}\n", []string{`4:33: services.a.artifact.sha256 is "abc", want a SHA-256 digest`}, "64"},
		{"an artifact without path", archive("{command: bin/web}"), []string{"4:15: services.a.artifact has no path"}, "local file"},
		{"an artifact without command", archive("{path: web.tar.gz}"), []string{"4:15: services.a.artifact has no sha256"}, "`command`"},
		{"a command of nothing", archive("{path: web.tar.gz, command: ''}"), []string{"4:43: services.a.artifact.command is empty"}, "bin/web"},
		{"a command that is a list", archive("{path: web.tar.gz, command: [a, b]}"), []string{"4:43: services.a.artifact.command is a list, want text"}, ""},
		{"a command of the host", archive("{path: web.tar.gz, command: /bin/sh}"), []string{`4:43: services.a.artifact.command is "/bin/sh", want a path in the archive`}, "bin/web"},
		{"a command outside", archive("{path: web.tar.gz, command: ../../bin/sh}"), []string{`4:43: services.a.artifact.command is "../../bin/sh", want a path in the archive, without ..`}, ""},
		{"a command with arguments", archive("{path: web.tar.gz, command: bin/web -v}"), []string{`4:43: services.a.artifact.command is "bin/web -v", want a path without blanks`}, "args"},
		{"a command of a program", in("command: bin/web"), []string{`4:5: unknown key "command" in services.a`}, ""},
		{"a column after letters of two bytes", in("env: {Ä: ö, B: [1]}"), []string{"4:20: services.a.env.B is a list"}, ""},

		{
			"everything at once", "nme: x\nservices:\n  a:\n    count: -1\n    cpu: 1\n  b:\n    run: 7\n    stop: {grace: x}\n",
			[]string{
				`1:1: unknown key "nme" in the spec`,
				"1:1: app name is empty",
				"3:3: services.a has no program to run",
				"4:12: services.a.count is -1",
				`5:5: unknown key "cpu" in services.a`,
				"7:10: services.b.run is 7, want text",
				`8:19: services.b.stop.grace is "x", want a duration`,
			},
			`"name"`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			app, err := spec.Parse([]byte(c.src), "app.yaml")
			var errs spec.Errors
			if !errors.As(err, &errs) || !errors.Is(err, kbroker.Invalid) || app != nil {
				t.Fatalf("Parse = %+v, %v, want nil and Errors that are kbroker.Invalid", app, err)
			}
			if len(errs) != len(c.want) {
				t.Fatalf("%d findings, want %d:\n%v", len(errs), len(c.want), err)
			}
			for i, want := range c.want {
				if got := errs[i].Error(); !strings.HasPrefix(got, "app.yaml:"+want) {
					t.Errorf("finding %d is\n%s\nwant\napp.yaml:%s", i, got, want)
				}
			}
			if !strings.Contains(errs[0].Hint, c.hint) {
				t.Errorf("hint %q, want one with %q", errs[0].Hint, c.hint)
			}
		})
	}
}

func archive(artifact string) string {
	return "name: x\nservices:\n  a:\n    artifact: " + artifact + "\n"
}

const digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestErrorShowsPlaceLineAndHint(t *testing.T) {
	_, err := spec.Parse([]byte("name: x\nservices:\n  a: {run: b, cuont: 2}\n"), "dir/app.yaml")
	want := `dir/app.yaml:3:15: unknown key "cuont" in services.a
     2 | services:
>    3 |   a: {run: b, cuont: 2}
       |               ^
  hint: did you mean "count"?`
	if err == nil || err.Error() != want {
		t.Errorf("error is\n%v\nwant\n%s", err, want)
	}
	if e := kbroker.AsError(err); e.Code != kbroker.Invalid {
		t.Errorf("code %q, want invalid", e.Code)
	}
}

func TestExcerptOfALongLineShowsTheColumn(t *testing.T) {
	_, err := spec.Parse([]byte("name: x\nservices: {a: {run: "+strings.Repeat("b", 5000)+", cuont: 2}}\n"), "app.yaml")
	lines := strings.Split(err.Error(), "\n")
	if len(lines) != 5 || len(lines[2]) > 120 {
		t.Fatalf("error is\n%v\nwant 5 lines, none of them long", err)
	}
	if at := strings.Index(lines[3], "^"); !strings.HasPrefix(lines[2][at:], "cuont") {
		t.Errorf("the mark is not under the key:\n%s\n%s", lines[2], lines[3])
	}
}

// Each of these takes a naive reader minutes or all memory.
func TestBombs(t *testing.T) {
	laughs := "name: x\nservices:\n  a:\n    run: b\n    env: &x0 {A: [a]}\n"
	for i := range 40 {
		laughs += fmt.Sprintf("    x%d: &x%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*x%d, ", i), 10))
	}
	laughs += "    args: *x40\n"
	many := "name: x\nservices:\n  a: {run: b, env: {" + strings.Repeat("A: x, ", 50_000) + "}}\n"
	wide := strings.Builder{}
	wide.WriteString("name: x\nservices:\n  a: {run: b, env: &e {")
	for i := range 5000 {
		fmt.Fprintf(&wide, "V%d: x, ", i)
	}
	wide.WriteString("Z: z}}\n")
	for i := range 5000 {
		fmt.Fprintf(&wide, "  b%d: {run: b, env: *e}\n", i)
	}
	for name, c := range map[string]struct{ src, want string }{
		"brackets":         {strings.Repeat("[", spec.MaxBytes), "deep"},
		"braces":           {strings.Repeat("{a: ", spec.MaxBytes/4), "deep"},
		"dashes":           {strings.Repeat("- ", spec.MaxBytes/2), "deep"},
		"question marks":   {strings.Repeat("? ", spec.MaxBytes/2), "deep"},
		"tags":             {"a: " + strings.Repeat("!a ", 10_000) + "b", "deep"},
		"anchors":          {"a: " + strings.Repeat("&a ", 10_000) + "b", "deep"},
		"indentation":      {staircase(500), "deep"},
		"a billion laughs": {laughs, "services.a.args[0] is a list"},
		"repeated keys":    {many, "appears twice"},
		"a wide alias":     {wide.String(), "expands to more than 100000 values"},
		"one byte too many": {
			"name: x\nservices: {a: {run: b}}\n#" + strings.Repeat("x", spec.MaxBytes), "more than 1 MiB",
		},
		"a hundred megabytes": {strings.Repeat("a: b\n", 20<<20), "more than 1 MiB"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := spec.Parse([]byte(c.src), "app.yaml")
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %.300v, want one with %q", err, c.want)
			}
			if took := time.Since(start); took > 30*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func staircase(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func TestDocumentPlacesWhatIsFoundAfterwards(t *testing.T) {
	d, err := spec.ParseDocument([]byte(full), "app.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct{ line, column int }{
		"services.ledger.run":           {6, 10},
		"services.ledger.require[1]":    {18, 30},
		"services.ledger.artifact.path": {4, 3}, // not in the file: its service
		"services.audit.artifact.path":  {23, 13},
		"services.audit.count":          {21, 3}, // a default
		"services.teller":               {3, 11},
		"name":                          {1, 7},
		"":                              {1, 1},
		"no.such":                       {1, 1},
	} {
		e := d.At(path, "wrong at %s", path).WithHint("look")
		if e.Line != want.line || e.Column != want.column {
			t.Errorf("%q is at %d:%d, want %d:%d", path, e.Line, e.Column, want.line, want.column)
		}
		if e.Message != "wrong at "+path || e.Hint != "look" || !errors.Is(e, kbroker.Invalid) {
			t.Errorf("%q makes %+v", path, e)
		}
	}
}

// Parsing is deterministic and what it accepts is valid, also on the wire.
func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(in("count: -1")))
	f.Add([]byte("name: x\nservices:\n  a: {run: a, env: &e {A: b}}\n  b: {run: a, env: *e, require: ['a == b']}\n"))
	f.Add([]byte("? a\n: !!str b\n<<: *c\n"))
	f.Add([]byte("a: |\n  b\n\tc"))
	f.Fuzz(func(t *testing.T, src []byte) {
		d, err := spec.ParseDocument(src, "f")
		if err != nil {
			var errs spec.Errors
			if !errors.As(err, &errs) || len(errs) == 0 {
				t.Fatalf("error %T %v, want Errors", err, err)
			}
			for _, e := range errs {
				if e.Line < 1 || e.Column < 1 || e.Message == "" || e.Error() == "" {
					t.Fatalf("finding %+v has no place or no message", e)
				}
			}
			return
		}
		app := d.App()
		for i := range app.Services {
			app.Services[i].Artifact.SHA256 = digest
		}
		if err := spec.Validate(app); err != nil {
			t.Fatalf("parsed, but not valid: %v", err)
		}
	})
}

func TestExamplesParse(t *testing.T) {
	files, err := filepath.Glob("../examples/*/app.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 2 {
		t.Fatalf("found only %q", files)
	}
	for _, file := range files {
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := spec.Parse(src, file); err != nil {
			t.Error(err)
		}
	}
}
