package agent

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

func TestAnAgentAnswersForItsHost(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	p := placement("shop-web-1", "run")
	c.want(p)
	a := c.startAgent(t.TempDir())
	c.awaitState(p.Instance, kbroker.StateReady)
	ask := func() (out kbroker.Checkup) {
		t.Helper()
		m, err := c.conn.Request(subjects.Host(testHost, subjects.VerbCheckup, kbroker.DefaultTenant), nil, 10*time.Second)
		if err == nil {
			err = json.Unmarshal(m.Data, &out)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	first := ask()
	if first.Host != testHost || first.Process != a.cfg.Dir.Process || first.Instances != 1 || !first.Proven || first.Stuck ||
		len(first.Orphans) != 0 || first.Core != nil {
		t.Errorf("checkup %+v", first)
	}
	if d := first.Disk; d.TotalBytes <= 0 || d.FreeBytes > d.TotalBytes || d.Path != a.cfg.Dir.Path || d.Error != "" {
		t.Errorf("disk %+v", d)
	}
	if s := first.Sync; s.Count == 0 || s.Median <= 0 || s.Worst < s.Median || s.Error != "" {
		t.Errorf("syncs %+v", s)
	}
	if first.Memory.TotalBytes <= first.Memory.AvailableBytes || first.Files.Limit <= first.Files.Open || first.Files.Open == 0 {
		t.Errorf("memory %+v, files %+v", first.Memory, first.Files)
	}
	if again := ask(); again.Now.Sub(first.Now) < syncFresh && !reflect.DeepEqual(again.Sync, first.Sync) {
		t.Errorf("measured %+v and %+v within %v", first.Sync, again.Sync, again.Now.Sub(first.Now))
	}

	// A process with the host's mark that no instance accounts for.
	stray := foreign(t, envHostDir+"="+a.cfg.Dir.Path, envIncarnation+"=shop-web-9.0000000000000009")
	found := ask().Orphans
	if len(found) != 1 || found[0].PID != stray.PID || found[0].Incarnation != "shop-web-9.0000000000000009" {
		t.Errorf("orphans %+v, want process %d", found, stray.PID)
	}
}

func TestSyncSummary(t *testing.T) {
	got := summary([]time.Duration{9, 1, 5}, errors.New("disk full"))
	if want := (kbroker.SyncCheckup{Count: 3, Median: 5, Worst: 9, Error: "disk full"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := summary(nil, nil); got != (kbroker.SyncCheckup{}) {
		t.Errorf("nothing measured: %+v", got)
	}
}

func TestFullPressure(t *testing.T) {
	const text = "some avg10=12.50 avg60=1.00 avg300=0.10 total=5\nfull avg10=3.25 avg60=0.50 avg300=0.00 total=4\n"
	for in, want := range map[string]float64{text: 3.25, "": 0, strings.Split(text, "\n")[0]: 0} {
		if got := fullPressure(in); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}
