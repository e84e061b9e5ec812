//go:build linux

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestNetlabGrow: one host becomes two and three under load and writes, then one
// of them loses power for good and another takes its place.
func TestNetlabGrow(t *testing.T) {
	needLong(t)
	for round := range 2 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			c := newLab(t, 4, 1, 0)
			c.must("deploy", "../examples/wordcount/app.yaml")
			c.waitReady(10*time.Second, "wordcount", "wordcount", 3, nil)
			load := c.startLoad(5 * time.Minute)
			written := c.startWrites(c.servers())
			<-time.After(2 * time.Second) // of load and writes alone
			for i := 2; i <= 3; i++ {
				began := time.Now()
				c.join(c.lab.Host(i), false)
				c.whole(60 * time.Second)
				t.Logf("RESULT %d hosts are whole after %v", i, time.Since(began).Round(10*time.Millisecond))
			}
			// What runs on the first host moves to where it can be lost.
			c.must("drain", "h1", "--timeout", "30s")
			c.must("undrain", "h1")
			h2 := c.lab.Host(2)
			runs := len(h2.Processes())
			fault := c.powerOff(h2)
			c.waitReady(30*time.Second, "wordcount", "wordcount", 3, func(r kbroker.InstanceRow) bool { return *r.Host != "h2" })
			t.Logf("RESULT h2 lost power with %d processes: instances ready elsewhere after %v", runs, time.Since(fault).Round(10*time.Millisecond))
			c.trace(fault)
			wait.Until(t, 20*time.Second, func() error {
				if out, code := c.try("remove", "h2"); code != 0 {
					return fmt.Errorf("remove: exit code %d: %s", code, out)
				}
				return nil
			})
			c.hosts--
			began := time.Now()
			c.join(c.lab.Host(4), false)
			c.whole(60 * time.Second)
			t.Logf("RESULT h2 is replaced by h4 after %v", time.Since(began).Round(10*time.Millisecond))
			// The two that are left of the first four hold everything.
			c.powerOff(c.lab.Host(1))
			c.waitReady(30*time.Second, "wordcount", "wordcount", 3, func(r kbroker.InstanceRow) bool { return *r.Host != "h1" })
			c.powerOn(c.lab.Host(1))
			c.whole(60 * time.Second)
			r := load.stop()
			t.Logf("RESULT load: %s", show(r))
			if load.err != nil || r.Failed > 0 || r.Words != r.WordsLocal {
				t.Errorf("load failed (%v): %s", load.err, load.stderr.String())
			}
			written()
			c.settled(30*time.Second, "wordcount", 3)
		})
	}
}
