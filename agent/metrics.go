package agent

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kbroker/kbroker"
)

// ticksPerSecond is the unit of processor time in /proc, the same on every Linux
// that Go runs on.
const ticksPerSecond = 100

// counters is what the agent counts for its metrics and for nothing else. Safe for
// concurrent use.
type counters struct {
	restarts prometheus.Counter
	reports  prometheus.Histogram
	unheard  prometheus.Counter
}

func newCounters() *counters {
	return &counters{
		restarts: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "kbroker", Subsystem: "agent", Name: "restarts_total",
			Help: "Instances that were started again after they had ended by themselves.",
		}),
		reports: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "kbroker", Subsystem: "agent", Name: "report_duration_seconds",
			Help:    "Time from a report of instances to the answer of a core; what it has accepted is stored by then.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 12), // 1 ms to requestTimeout
		}),
		unheard: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "kbroker", Subsystem: "agent", Name: "reports_unheard_total",
			Help: "Reports of instances that no core has answered in time, or that failed there; they are sent again.",
		}),
	}
}

// reported notes the end of a report.
func (c *counters) reported(took time.Duration, err error) {
	if err != nil {
		c.unheard.Inc()
		return
	}
	c.reports.Observe(took.Seconds())
}

func desc(what, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("kbroker", "agent", what), help, labels, nil)
}

// instanceLabels name an instance; there are as many as this host runs. The label
// instance itself is Prometheus's, for whom it reads from.
var instanceLabels = []string{"tenant", "app", "service", "instance_id"}

var (
	descInfo       = desc("info", "Always 1; the labels say which host and build this is.", "host", "role", "version", "goversion")
	descInstances  = desc("instances", "Instances of this host by state.", "state")
	descSent       = desc("heartbeats_sent_total", "Heartbeats that were sent.")
	descSkipped    = desc("heartbeats_skipped_total", "Heartbeats that were not sent because no core was connected.")
	descSilent     = desc("heartbeat_answer_age_seconds", "Time since a core has answered a heartbeat; since the start while none has.")
	descUnreported = desc("unreported_instances", "Instances of which the last status has not been stored by a core yet.")

	descUp       = desc("instance_up", "1 if the instance has a process.", instanceLabels...)
	descReady    = desc("instance_ready", "1 if the instance answers.", instanceLabels...)
	descRestarts = desc("instance_restarts_total", "How often the instance was started again after it had ended by itself; of its present placement.", instanceLabels...)
	descResident = desc("instance_resident_memory_bytes", "Memory of all processes of the instance: as its control group counts it, or where it has none what its process and those that descend from it have resident.", instanceLabels...)
	descOutput   = desc("instance_output_bytes_total", "What the instance has written to its output.", instanceLabels...)
	descDropped  = desc("instance_output_dropped_bytes_total", "How much of the instance's output was removed to keep it in bounds.", instanceLabels...)
	descFiles    = desc("instance_open_files", "Open files of the instance's own process, without its children.", instanceLabels...)
	descPIDs     = desc("instance_pids", "Processes and threads of the instance; without a control group: of its process and those that descend from it.", instanceLabels...)
	descCPU      = desc("instance_cpu_seconds_total", "Processor time of all processes of the instance, those that have ended included; without a control group: of its process and those that descend from it.", instanceLabels...)
)

// instanceStates are those that an agent reports.
var instanceStates = []kbroker.InstanceState{
	kbroker.StatePending, kbroker.StateStarting, kbroker.StateRunning, kbroker.StateReady,
	kbroker.StateDraining, kbroker.StateBackoff, kbroker.StateExited,
}

// Collector has the metrics of this host's agent and its instances. Reading them
// waits for neither the loop nor a core; it reads a few small files for each instance
// that runs, and where instances have no control groups one for each process of the
// machine.
func (a *Agent) Collector() prometheus.Collector { return collector{a} }

type collector struct{ *Agent }

func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range c.own() {
		m.Describe(out)
	}
	for _, d := range []*prometheus.Desc{
		descInfo, descInstances, descSent, descSkipped, descSilent, descUnreported,
		descUp, descReady, descRestarts, descResident, descCPU, descFiles, descPIDs, descOutput, descDropped,
	} {
		out <- d
	}
	for _, m := range objectMetrics {
		out <- m.desc
	}
}

func (c collector) own() []prometheus.Collector {
	return []prometheus.Collector{c.counters.restarts, c.counters.reports, c.counters.unheard}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, m := range c.own() {
		m.Collect(out)
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	count := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
	}
	gauge(descInfo, 1, string(c.cfg.Host), string(c.cfg.Role), c.cfg.Version, runtime.Version())
	sent, skipped, silent := c.heart.counted()
	count(descSent, float64(sent))
	count(descSkipped, float64(skipped))
	gauge(descSilent, silent.Seconds())
	gauge(descUnreported, float64(c.reporter.unsaid()))

	written := c.outputs.Totals()
	byState, m := map[kbroker.InstanceState]int{}, &measurer{}
	for _, s := range c.reporter.known() {
		byState[s.State]++
		labels := []string{string(s.Tenant), string(s.App), string(s.Service), string(s.Instance)}
		k := kbroker.StatusKey{Tenant: s.Tenant, Instance: s.Instance}
		w, up := c.sampler.watchedOf(k)
		gauge(descUp, oneIf(up), labels...)
		gauge(descReady, oneIf(s.State == kbroker.StateReady), labels...)
		count(descRestarts, float64(s.Restarts), labels...)
		if w, ok := written[k]; ok {
			count(descOutput, float64(w.WrittenBytes), labels...)
			count(descDropped, float64(w.DroppedBytes), labels...)
		}
		if up {
			u := m.usage(w)
			measured(gauge, descResident, u.memoryBytes, labels)
			measured(gauge, descPIDs, u.pids, labels)
			measured(gauge, descFiles, u.openFiles, labels)
			if u.cpu != nil {
				count(descCPU, u.cpu.Seconds(), labels...)
			}
			if f := c.sampler.objectsOf(k); f != nil {
				for _, m := range objectMetrics {
					out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.of(f), labels...)
				}
			}
		}
	}
	for _, s := range instanceStates {
		gauge(descInstances, float64(byState[s]), string(s))
	}
}

// known are the statuses of the instances that are there.
func (r *reporter) known() []kbroker.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]kbroker.Status, 0, len(r.states))
	for _, e := range r.states {
		if !e.gone {
			out = append(out, e.status)
		}
	}
	return out
}

// footprint is what a process has taken of its machine.
type footprint struct {
	residentBytes uint64
	cpu           time.Duration
	waitedFor     time.Duration // of those whom it has started and waited for
	threads       int64
}

// parseFootprint parses /proc/PID/stat.
func parseFootprint(pid int, b []byte) (footprint, error) {
	const user, system, children, systemChildren, threads, resident = 11, 12, 13, 14, 17, 21 // after the name; proc(5)
	f, err := statFields(pid, b, resident)
	if err != nil {
		return footprint{}, err
	}
	var n [6]uint64
	for i, field := range []int{user, system, children, systemChildren, threads, resident} {
		if n[i], err = strconv.ParseUint(f[field], 10, 64); err != nil {
			return footprint{}, fmt.Errorf("stat of process %d: %w", pid, err)
		}
	}
	return footprint{
		residentBytes: n[5] * uint64(os.Getpagesize()),
		cpu:           time.Duration(n[0]+n[1]) * (time.Second / ticksPerSecond),
		waitedFor:     time.Duration(n[2]+n[3]) * (time.Second / ticksPerSecond),
		threads:       int64(n[4]),
	}, nil
}

// measured tells what is known.
func measured[T int | int64](tell func(*prometheus.Desc, float64, ...string), d *prometheus.Desc, v *T, labels []string) {
	if v != nil {
		tell(d, float64(*v), labels...)
	}
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
