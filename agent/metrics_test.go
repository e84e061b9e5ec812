package agent

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/metricstest"
	"github.com/kbroker/kbroker/internal/wait"
)

func metricsOf(t *testing.T, a *Agent) map[string]float64 {
	t.Helper()
	return metricstest.Values(t, a.Collector(), "state", "instance_id")
}

func TestMetricsFollowTheInstances(t *testing.T) {
	c := newCore(t)
	a := c.startAgent(t.TempDir())
	awaitMetrics := func(want map[string]float64) map[string]float64 {
		t.Helper()
		var m map[string]float64
		wait.Until(t, 10*time.Second, func() error {
			m = metricsOf(t, a.Agent)
			for name, value := range want {
				if got, there := m[name]; !there || got != value {
					return fmt.Errorf("%s is %v (there: %t), want %v", name, got, there, value)
				}
			}
			return nil
		})
		return m
	}
	awaitMetrics(map[string]float64{"kbroker_agent_info": 1, "kbroker_agent_instances ready": 0, "kbroker_agent_restarts_total": 0})

	p := placement("shop-web-1", "run")
	c.want(p)
	pid := c.awaitState(p.Instance, kbroker.StateReady).PID
	m := awaitMetrics(map[string]float64{
		"kbroker_agent_instances ready": 1, "kbroker_agent_instances exited": 0, "kbroker_agent_unreported_instances": 0,
		"kbroker_agent_instance_up shop-web-1": 1, "kbroker_agent_instance_ready shop-web-1": 1, "kbroker_agent_instance_restarts_total shop-web-1": 0,
	})
	wait.Until(t, 10*time.Second, func() error { // it may not have begun yet
		if rss := metricsOf(t, a.Agent)["kbroker_agent_instance_resident_memory_bytes shop-web-1"]; rss < 1<<20 || rss > 1<<30 {
			return fmt.Errorf("the test binary has %v bytes of memory", rss)
		}
		return nil
	})
	if m["kbroker_agent_heartbeats_sent_total"] < 1 || m["kbroker_agent_report_duration_seconds"] < 1 {
		t.Errorf("%v heartbeats were sent, %v reports answered", m["kbroker_agent_heartbeats_sent_total"], m["kbroker_agent_report_duration_seconds"])
	}
	if age := m["kbroker_agent_heartbeat_answer_age_seconds"]; age > 3 {
		t.Errorf("the last heartbeat was answered %v s ago", age)
	}

	kill(t, pid, unix.SIGKILL)
	awaitMetrics(map[string]float64{
		"kbroker_agent_restarts_total": 1, "kbroker_agent_instance_restarts_total shop-web-1": 1,
		"kbroker_agent_instances ready": 1, "kbroker_agent_instance_up shop-web-1": 1,
	})

	problems, err := testutil.CollectAndLint(a.Collector())
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}

	// What is gone is not told any more; what was counted of it stays.
	c.want(tombstone(p))
	c.awaitState(p.Instance, kbroker.StateExited)
	awaitMetrics(map[string]float64{"kbroker_agent_instances exited": 1, "kbroker_agent_instance_up shop-web-1": 0})
	c.want()
	c.awaitGone(p.Instance)
	m = awaitMetrics(map[string]float64{"kbroker_agent_instances exited": 0, "kbroker_agent_restarts_total": 1})
	if _, there := m["kbroker_agent_instance_up shop-web-1"]; there {
		t.Error("an instance that is gone still has metrics")
	}

	// Without a core heartbeats are not answered, and reading waits for nobody.
	before := metricsOf(t, a.Agent)
	c.srv.Shutdown()
	wait.Until(t, 10*time.Second, func() error {
		began := time.Now()
		m := metricsOf(t, a.Agent)
		if took := time.Since(began); took > time.Second {
			t.Errorf("reading took %v without a core", took)
		}
		if m["kbroker_agent_heartbeats_skipped_total"] <= before["kbroker_agent_heartbeats_skipped_total"] || m["kbroker_agent_heartbeat_answer_age_seconds"] < 1 {
			return fmt.Errorf("%v heartbeats were skipped, the last was answered %v s ago", m["kbroker_agent_heartbeats_skipped_total"], m["kbroker_agent_heartbeat_answer_age_seconds"])
		}
		return nil
	})
}

func TestParseFootprint(t *testing.T) {
	f, err := parseFootprint(42, []byte("42 (a) (b c) S 1 40 39 0 -1 4194560 0 0 0 0 130 70 0 0 20 0 1 0 987654 555 3\n"))
	if want := (footprint{residentBytes: 3 * uint64(os.Getpagesize()), cpu: 2 * time.Second, threads: 1}); err != nil || f != want {
		t.Errorf("%+v %v, want %+v", f, err, want)
	}
	year := 365 * 24 * time.Hour
	if f, err = parseFootprint(42, []byte("42 (a) S 1 40 39 0 -1 4194560 0 0 0 0 31536000000 0 0 0 20 0 1 0 987654 555 3")); err != nil || f.cpu != 10*year {
		t.Errorf("ten years of processor time, a month on 120 of them, are %v %v", f.cpu, err)
	}
	for _, bad := range []string{"", "42 (a) S 1", "42 (a) S 1 40 39 0 -1 4194560 0 0 0 0 x 70 0 0 20 0 1 0 987654 555 3"} {
		if f, err := parseFootprint(42, []byte(bad)); err == nil {
			t.Errorf("%q parsed as %+v", bad, f)
		}
	}
	me, err := self()
	if err != nil {
		t.Fatal(err)
	}
	if p, ok := spentBy(me.PID); !ok || p.residentBytes < 1<<20 || p.procID != me.procID || p.threads < 2 {
		t.Errorf("this process: %+v %t", p, ok)
	}
}
