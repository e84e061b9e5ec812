package super

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// counters is what a Super counts for its metrics and for nothing else. Safe for
// concurrent use.
type counters struct {
	rounds, commits prometheus.Histogram
	roundsFailed    prometheus.Counter
	commitsFailed   *prometheus.CounterVec
	commands        prometheus.Counter
	commandsRefused *prometheus.CounterVec
	// tally is of the last round; nil: this core does not lead.
	tally atomic.Pointer[tally]
}

// tally is what a leader saw in its last round.
type tally struct {
	epoch  uint64
	hosts  map[kbroker.HostState]int // none before the first round
	alarms int
	wanted int // placements that are to run
	stops  int // those that are to go
	apps   int
}

// moments are the bounds of what should take milliseconds and may take ten
// seconds (roundTimeout).
var moments = prometheus.ExponentialBuckets(0.001, 2, 14)

func newCounters() *counters {
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "kbroker", Subsystem: "super", Name: name, Help: help}
	}
	duration := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "kbroker", Subsystem: "super", Name: name, Help: help, Buckets: moments})
	}
	return &counters{
		rounds:          duration("round_duration_seconds", "Time that this core's rounds as the leader took: read, judge, plan, commit."),
		commits:         duration("commit_duration_seconds", "Time that the batches of this core took which were accepted."),
		roundsFailed:    prometheus.NewCounter(counter("rounds_failed_total", "Rounds of this core as the leader that failed.")),
		commitsFailed:   prometheus.NewCounterVec(counter("commits_failed_total", "Batches of this core that were not accepted, or whose outcome is not known."), []string{"code"}),
		commands:        prometheus.NewCounter(counter("commands_total", "Writes for clients that this core as the leader has taken.")),
		commandsRefused: prometheus.NewCounterVec(counter("commands_refused_total", "Writes for clients that this core as the leader has answered with an error."), []string{"code"}),
	}
}

// commit notes the end of a batch.
func (c *counters) commit(took time.Duration, err error) {
	if err != nil {
		c.commitsFailed.WithLabelValues(string(kbroker.AsError(err).Code)).Inc()
		return
	}
	c.commits.Observe(took.Seconds())
}

// command notes the end of a write for a client.
func (c *counters) command(err error) {
	c.commands.Inc()
	if err != nil {
		c.commandsRefused.WithLabelValues(string(errorOf(err).Code)).Inc()
	}
}

// stand notes what the leader of an epoch sees.
func (c *counters) stand(epoch uint64, v *state.View, verdict Verdict, alarms int) {
	s := &tally{epoch: epoch, hosts: map[kbroker.HostState]int{}, alarms: alarms, apps: len(v.Apps)}
	for name, h := range v.Hosts {
		if h.Member() {
			s.hosts[stateOf(h, verdict.States[name])]++
		}
	}
	for _, p := range v.Placements {
		if p.Stop {
			s.stops++
		} else {
			s.wanted++
		}
	}
	c.tally.Store(s)
}

// stateOf is a host's state for people; judged is empty for one that has not
// been seen yet.
func stateOf(h kbroker.Host, judged kbroker.HostState) kbroker.HostState {
	switch {
	case judged == "":
		return h.State
	case judged == kbroker.HostReady && h.Drain != nil:
		return kbroker.HostDraining
	}
	return judged
}

func desc(what, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("kbroker", "super", what), help, labels, nil)
}

var (
	descLeads   = desc("leads", "1 while this core is the leader.")
	descEpoch   = desc("epoch", "Epoch of the leader, as this core has last heard; 0 while it has heard none.")
	descHeard   = desc("heard_hosts", "Hosts that this core itself has heard lately.")
	descWaiting = desc("events_waiting", "Events that wait to be stored.")
	descDropped = desc("events_dropped_total", "Events that were dropped because too many waited.")

	// What follows is known to the leader alone.
	descHosts  = desc("hosts", "Hosts by state, as the leader judges them; on the leader only.", "state")
	descAlarms = desc("alarms", "Alarms of the leader's last round; on the leader only.")
	descWanted = desc("placements", "Instances that are wanted, on all hosts; on the leader only.")
	descStops  = desc("stopping_placements", "Instances that were told to stop, and whose end was not confirmed yet; on the leader only.")
	descApps   = desc("apps", "Apps that were deployed; on the leader only.")
)

// hostStates are those that a member can have.
var hostStates = []kbroker.HostState{kbroker.HostJoining, kbroker.HostReady, kbroker.HostDraining, kbroker.HostSuspect, kbroker.HostLost}

// Collector has the metrics of this core's Super. Reading them waits for nobody.
func (s *Super) Collector() prometheus.Collector { return collector{s} }

type collector struct{ *Super }

func (c collector) own() []prometheus.Collector {
	n := c.counters
	return []prometheus.Collector{n.rounds, n.commits, n.roundsFailed, n.commitsFailed, n.commands, n.commandsRefused}
}

func (c collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range c.own() {
		m.Describe(out)
	}
	for _, d := range []*prometheus.Desc{
		descLeads, descEpoch, descHeard, descWaiting, descDropped,
		descHosts, descAlarms, descWanted, descStops, descApps,
	} {
		out <- d
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, m := range c.own() {
		m.Collect(out)
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	waiting, dropped := c.journal.counted()
	gauge(descWaiting, float64(waiting))
	out <- prometheus.MustNewConstMetric(descDropped, prometheus.CounterValue, float64(dropped))
	hosts, epoch := c.heard.counted()
	gauge(descHeard, float64(hosts))

	s := c.counters.tally.Load()
	if s == nil {
		gauge(descLeads, 0)
		gauge(descEpoch, float64(epoch))
		return
	}
	gauge(descLeads, 1)
	gauge(descEpoch, float64(s.epoch))
	if s.hosts == nil {
		return
	}
	for _, h := range hostStates {
		gauge(descHosts, float64(s.hosts[h]), string(h))
	}
	gauge(descAlarms, float64(s.alarms))
	gauge(descWanted, float64(s.wanted))
	gauge(descStops, float64(s.stops))
	gauge(descApps, float64(s.apps))
}

// counted is how many hosts this core has heard lately, and the highest epoch
// that a leader has named.
func (h *heard) counted() (hosts int, epoch uint64) {
	now := h.clock()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range h.beats {
		if now-b.at < h.suspect {
			hosts++
		}
	}
	return hosts, h.leader.Epoch
}

// counted is how many events wait, and how many were dropped since the start.
func (j *journal) counted() (waiting int, dropped uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.waiting), j.lost
}
