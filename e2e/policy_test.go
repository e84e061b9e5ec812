package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestAPolicyOfItsOwn: an app under load, with and without objects, changes how it decides
// again and again: by the built-in policy, by one of its own, and by versions of that which
// panic, hang, want too much, or end their process. No call fails and no shard moves; what is
// refused is said, and the built-in policy decides meanwhile.
func TestAPolicyOfItsOwn(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	p := newPolicies(c)
	p.deploy("")
	c.waitReady(30*time.Second, "counter", "counter", 3, nil)
	owned := c.shardsOf("counter")
	waiting := c.startChild(rateJob, []string{"counter/waiter.wait", "100/1h"})
	counters := c.startChild(countJob, []string{(4 * calmPause).String()})
	began := time.Now()
	for _, step := range []struct {
		how     string // empty: built in
		waiters int
		refused string
	}{
		{how: "3", waiters: 3},
		{how: "4", waiters: 4},
		{how: "panics", waiters: 2, refused: "it panicked: no (policy/main.go:"},
		{how: "3", waiters: 3},
		{how: "hangs", waiters: 2, refused: "it has not answered within 1s"},
		{how: "7", waiters: 2, refused: "it wants 7 of service waiter, more than the 6 of its count"},
		{how: "dies", waiters: 2, refused: "its program has crashed"},
		{how: "", waiters: 2},
		{how: "3", waiters: 3},
		{how: "", waiters: 2},
	} {
		p.build(step.how)
		from := time.Now()
		p.deploy(step.how)
		deployed := time.Since(from)
		p.decides(step.how, step.refused, step.waiters)
		t.Logf("RESULT policy %q: deployed after %v, %d waiters are wanted after %v; refused: %q",
			step.how, deployed.Round(100*time.Millisecond), step.waiters, time.Since(from).Round(100*time.Millisecond), step.refused)
		if is := c.shardsOf("counter"); show(is) != show(owned) {
			t.Errorf("by policy %q shards are owned as %v, were as %v", step.how, show(is), show(owned))
		}
	}
	p.saidInEvents(began)
	var rate rated
	waiting.report(&rate)
	var counted counting
	counters.report(&counted)
	failed, sent := 0, 0
	for _, s := range rate.Seconds {
		failed += s.Failed
		sent += s.Sent
	}
	t.Logf("RESULT 10 changes of the policy: %d of %d requests failed; of %d calls of counters %d failed, %d are unknown, %d histories are broken",
		failed, sent, counted.Calls, counted.Failed, counted.Unknown, len(counted.Broken))
	if failed+counted.Failed+counted.Unknown+len(counted.Broken) > 0 || sent == 0 || counted.Calls == 0 {
		t.Errorf("%q %v", rate.Errs, counted.Broken)
	}
}

// TestAPolicyThatIsNone: a program that does not call allocator.Run takes nobody's place.
func TestAPolicyThatIsNone(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	p := newPolicies(c)
	p.deploy("3")
	p.decides("3", "", 3)
	buildInto(t, p.dir, "none", "./testdata/waiter")
	p.write("none", 10*time.Second)
	out, code := c.try("deploy", p.spec)
	if code != 1 || !strings.Contains(out, "counter-allocator-") {
		t.Errorf("the deploy ended with %d and said %s, want that its allocator keeps it from getting done", code, out)
	}
	p.decides("3", "", 3)
}

// policies are the versions of an app that differ in their policy.
type policies struct {
	c         *cluster
	dir, spec string
	built     map[string]bool
}

func newPolicies(c *cluster) *policies {
	dir := c.t.TempDir()
	buildInto(c.t, dir, "counter", "./testdata/counter")
	buildInto(c.t, dir, "waiter", "./testdata/waiter")
	return &policies{c: c, dir: dir, spec: filepath.Join(dir, "app.yaml"), built: map[string]bool{}}
}

// build builds the policy that does that, once, and returns its file; of an empty one none.
func (p *policies) build(how string) (program string) {
	p.c.t.Helper()
	if how == "" {
		return ""
	}
	program = "policy-" + how
	if !p.built[how] {
		p.built[how] = true
		cmd := exec.Command("go", "build", "-ldflags", "-X main.how="+how, "-o", filepath.Join(p.dir, program), "./testdata/policy")
		if out, err := cmd.CombinedOutput(); err != nil {
			p.c.t.Fatalf("build a policy: %v\n%s", err, out)
		}
	}
	return program
}

// deploy has the app decide by a policy of its own that does that; empty: by the built-in one.
func (p *policies) deploy(how string) {
	p.c.t.Helper()
	p.write(p.build(how), 2*time.Minute)
	p.c.must("deploy", p.spec)
}

// write writes the spec with that program of a policy, and that deadline of a rollout.
func (p *policies) write(program string, deadline time.Duration) {
	p.c.t.Helper()
	text := fmt.Sprintf(`name: counter
services:
  counter: {run: counter, count: 3, objects: [counter], update: {deadline: %[1]v}}
  waiter:
    run: waiter
    count: {min: 2, max: 6}
    scale: {down: 5s}
    update: {deadline: %[1]v}
`, deadline)
	if program != "" {
		text += fmt.Sprintf("allocator: {run: %s, policy: spread}\n", program)
	}
	writeFile(p.c.t, p.spec, text, 0o600)
}

// decides waits until the app decides so: by its own policy, which is refused for that or is
// not, or by the built-in one; and so many waiters are wanted.
func (p *policies) decides(how, refused string, waiters int) {
	p.c.t.Helper()
	policy := kbroker.PolicyOwn
	if how == "" {
		policy = kbroker.PolicySpread
	}
	wait.Until(p.c.t, 60*time.Second, func() error {
		out, code := p.c.try("allocator", "counter", "-o", "json")
		var r kbroker.AllocatorReply
		if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil {
			return fmt.Errorf("kbroker allocator: exit code %d: %s", code, out)
		}
		wanted := 0
		for _, s := range r.Services {
			if s.Service == "waiter" {
				wanted = s.Wanted
			}
		}
		if r.Policy != policy || (r.Refused == "") != (refused == "") || !strings.Contains(r.Refused, refused) || wanted != waiters {
			return fmt.Errorf("policy %s, refused %q, %d waiters wanted; want %s, %q, %d", r.Policy, r.Refused, wanted, policy, refused, waiters)
		}
		return nil
	})
	if refused != "" {
		text := "own, refused: " + refused
		p.c.says(20*time.Second, text, []string{"allocator", "counter"}, []string{"why", "counter"})
		p.c.says(5*time.Second, "spread decides", []string{"allocator", "counter"}, []string{"why", "counter"})
	}
}

// saidInEvents holds that each refusal was an event, and its end another one.
func (p *policies) saidInEvents(since time.Time) {
	p.c.t.Helper()
	events, err := list[kbroker.Event](p.c, "events", "--app", "counter", "--since", time.Since(since).String())
	if err != nil {
		p.c.t.Fatal(err)
	}
	var said []string
	for _, e := range events {
		if e.Kind == kbroker.EventPolicy {
			said = append(said, e.Message)
		}
	}
	p.c.t.Logf("RESULT events of the policy:\n%s", strings.Join(said, "\n"))
	for _, text := range []string{"refused: it panicked: no (", "refused: it has not answered", "refused: it wants 7", "refused: its program has crashed", "decides"} {
		if n := strings.Count(strings.Join(said, "\n"), text); n == 0 || n > 4 && text != "decides" {
			p.c.t.Errorf("%d events say %q: %q", n, text, said)
		}
	}
}
