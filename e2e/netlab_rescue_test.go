//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker/e2e/netlab"
	"github.com/kbroker/kbroker/internal/wait"
)

// TestNetlabRescueLosesPower: both of two cores lose power, and the founder's
// never comes back. The rescue of the other one loses power too, later and later
// in its middle, until one comes to its end. What the copy had is there.
func TestNetlabRescueLosesPower(t *testing.T) {
	needLong(t)
	c := newLab(t, 2, 2, 0)
	c.must("deploy", "../examples/wordcount/app.yaml")
	c.settled(20*time.Second, "wordcount", 3)
	writing := c.startChild(writerJob, c.servers())
	<-time.After(3 * time.Second) // of writes
	var want writes
	if writing.report(&want); want.Lost != "" || want.Acknowledged == 0 {
		t.Fatalf("%d writes before the fault, %s", want.Acknowledged, want.Lost)
	}
	wait.Until(t, 20*time.Second, func() error {
		if s := c.stored(); s.Copied < want.Newest {
			return fmt.Errorf("the copy has come to %d of %d", s.Copied, want.Newest)
		}
		return nil
	})
	c.powerOff(c.lab.Hosts()...)

	second := c.lab.Host(2)
	second.PowerOn()
	cuts := c.rescueWithoutPower(second)
	c.hosts = 1
	c.start(second)
	c.aim()
	c.whole(30 * time.Second)
	c.settled(30*time.Second, "wordcount", 3)
	got := c.stored()
	for key, acked := range want.Values {
		value := got.Values[key]
		if value != acked && (key != want.Open.Key || value != want.Open.Value) {
			t.Errorf("key %s holds %q, %q was acknowledged", key, value, acked)
		}
	}
	t.Logf("RESULT %d rescues lost power; %d acknowledged writes to %d keys, 0 lost", cuts, want.Acknowledged, len(want.Values))
}

// stored is what the control store holds.
func (c *labCluster) stored() stored {
	c.t.Helper()
	var s stored
	c.startChild(valuesJob, c.servers()).report(&s)
	return s
}

// rescueWithoutPower rescues a host that loses power after a while, longer each
// time, until a rescue ended before that; it returns how many did not.
func (c *labCluster) rescueWithoutPower(h *netlab.Host) (cuts int) {
	c.t.Helper()
	const first, laterBy, most = 30 * time.Millisecond, 90 * time.Millisecond, 60
	data := filepath.Join(h.Dir, "data")
	for ; cuts < most; cuts++ {
		if cuts%4 == 3 {
			// The agent's start ends a swap that has begun, and waits for the
			// founder otherwise.
			h.Start(kbrokerBin, c.args[h.Name]...)
			<-time.After(300 * time.Millisecond)
			h.PowerOff()
			h.PowerOn()
		}
		h.Start(kbrokerBin, "agent", "rescue", "--dir", data, "--yes", "-o", "json")
		<-time.After(first + time.Duration(cuts)*laterBy)
		h.PowerOff()
		h.PowerOn()
		var m struct {
			RescuedFrom string `json:"rescued_from"`
		}
		raw, err := os.ReadFile(filepath.Join(data, "membership.json"))
		if err == nil {
			err = json.Unmarshal(raw, &m)
		}
		if err != nil {
			c.t.Fatalf("the membership after %d cuts: %v", cuts+1, err)
		}
		out, err := os.ReadFile(h.Output)
		if err != nil {
			c.t.Fatal(err)
		}
		if strings.Contains(string(out), "panic") {
			c.t.Fatalf("after %d cuts:\n%s", cuts+1, out)
		}
		if m.RescuedFrom == "" {
			continue
		}
		if _, err := os.Stat(filepath.Join(data, "rescue.json")); errors.Is(err, os.ErrNotExist) {
			return cuts
		}
	}
	c.t.Fatalf("no rescue ended within %v", first+most*laterBy)
	return 0
}
