package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
)

// ofTheMachine are the checks whose findings are the test machine's, not the
// cluster's.
var ofTheMachine = []string{"disk", "sync", "memory", "clock"}

// findings is what the doctor finds wrong with the cluster.
func (c *cluster) findings() ([]client.Finding, error) {
	var all []client.Finding
	cmd := c.client(context.Background(), kbrokerBin, "doctor", "-o", "json")
	out, err := cmd.Output()
	if code := cmd.ProcessState.ExitCode(); code != 0 && code != 1 {
		return nil, fmt.Errorf("doctor: exit code %d: %w", code, err)
	}
	if err := json.Unmarshal(out, &all); err != nil {
		return nil, fmt.Errorf("doctor printed %q: %w", out, err)
	}
	return slices.DeleteFunc(all, func(f client.Finding) bool { return slices.Contains(ofTheMachine, f.Check) }), nil
}

// well waits until the doctor finds nothing.
func (c *cluster) well(timeout time.Duration) {
	c.t.Helper()
	wait.Until(c.t, timeout, func() error {
		found, err := c.findings()
		if err == nil && len(found) > 0 {
			err = fmt.Errorf("the doctor finds %s", show(found))
		}
		return err
	})
}

// TestDoctor: a whole cluster has no finding; of one without an agent, and of
// one without a majority, the doctor says what is wrong and what mends it, and
// that does.
func TestDoctor(t *testing.T) {
	needLong(t)
	c := up(t, 3)
	c.must("deploy", "../examples/hello/app.yaml")
	c.waitReady(10*time.Second, "hello", "hello", 3, nil)
	c.well(20 * time.Second)
	for _, dead := range [][]string{{"h2"}, {"h2", "h3"}} {
		want := map[string]client.Severity{"host": client.SeverityError}
		for _, host := range dead {
			c.kill(host, true)
		}
		if len(dead) == 2 {
			want["leader"] = client.SeverityError
		}
		wait.Until(t, 20*time.Second, func() error {
			found, err := c.findings()
			if err != nil {
				return err
			}
			for check, severity := range want {
				if !slices.ContainsFunc(found, func(f client.Finding) bool {
					return f.Check == check && f.Severity == severity && f.Command == "kbroker up"
				}) {
					return fmt.Errorf("no finding of the check %s: %s", check, show(found))
				}
			}
			return nil
		})
		c.up()
		c.well(30 * time.Second)
	}
}
