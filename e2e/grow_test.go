package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
)

// TestGrowUnderLoad: one host becomes two and three under load and continuous
// writes, then loses one for good and gets another in its place.
func TestGrowUnderLoad(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
	end := c.load(45 * time.Second)
	wait.Until(t, 10*time.Second, func() error { return answering(c) })
	w := c.writer()
	for c.hosts = 2; c.hosts <= 3; c.hosts++ {
		began := time.Now()
		c.up()
		t.Logf("%d hosts after %v", c.hosts, time.Since(began).Round(10*time.Millisecond))
	}
	c.hosts = 3
	c.whole(20 * time.Second)
	// What runs on the first host moves to where it can be lost.
	c.must("drain", "h1", "--timeout", "30s")
	c.must("undrain", "h1")
	c.kill("h1", false)
	wait.Until(t, 20*time.Second, func() error {
		if out, code := c.try("remove", "h1"); code != 0 {
			return fmt.Errorf("remove: exit code %d: %s", code, out)
		}
		return nil
	})
	_, _ = c.try("up", "--dir", c.dir) // h1 comes back, and hears it
	began := time.Now()
	c.up()
	c.whole(20 * time.Second)
	t.Logf("replaced after %v", time.Since(began).Round(10*time.Millisecond))
	end()
	w.check(t)
	c.settled(20*time.Second, "wordcount", 3)
}
