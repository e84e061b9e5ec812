package broker

import (
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/prometheus/client_golang/prometheus"
)

// countWithin is how long a reader of metrics waits for the server's counters.
// The server takes locks for some of them that it also holds while it writes to
// the disk.
const countWithin = 500 * time.Millisecond

// counts are the core's server's own counters.
type counts struct {
	vars       *server.Varz
	js         *server.JSInfo
	remotes    int
	slow       server.SlowConsumersStats
	stale      server.StaleConnectionStats
	metaLeader bool
}

// measure is one metric: of the broker, or of its server's counters.
type measure[T any] struct {
	desc   *prometheus.Desc
	kind   prometheus.ValueType
	value  func(T) float64
	labels []string // values
}

func desc(what, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName("kbroker", "broker", what), help, labels, nil)
}

var (
	descAnswers = desc("answers", "1 if the counters of the NATS server are part of this answer, 0 while it starts or does not tell them in time.")
	descSlow    = desc("slow_consumers_total", "Connections that were closed because they did not take what was sent to them.", "kind")
	descStale   = desc("stale_connections_total", "Connections that were closed because they did not answer to pings.", "kind")
)

// ofBroker are there from the start, whatever the server does.
var ofBroker = []measure[*Broker]{
	{desc: desc("listening", "1 if clients can connect."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return oneIf(b.listens()) }},
	{desc: desc("ready", "1 if JetStream has answered since the start, and had this core as a current member."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return oneIf(b.isReady()) }},
	{desc: desc("writable", "1 if a write to the control store was acknowledged lately."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return oneIf(b.Writable()) }},
	{desc: desc("canary_age_seconds", "Time since the last acknowledged test write to the control store was sent; since the start while there was none."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return b.canaryAge().Seconds() }},
	{desc: desc("witness", "1 if the witness of the cluster runs in this process."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return oneIf(b.HasWitness()) }},
	{desc: desc("meta_members", "Members of the JetStream meta group, the witness included, as last seen; 0 without a leader."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return float64(b.Members().Size) }},
	{desc: desc("stream_replicas", "Replicas of the stream that has the fewest, as last seen; 0 if that is not known."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return float64(b.Members().Replicas) }},
	{desc: desc("settled", "1 if every stream has the replicas that it should have, all current, and no member is changing."), kind: prometheus.GaugeValue, value: func(b *Broker) float64 { return oneIf(b.Members().Settled) }},
}

var ofServer = []measure[counts]{
	{desc: desc("connections", "Clients that are connected to this core, those in its own process too."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.vars.Connections) }},
	{desc: desc("connections_total", "Clients that have connected to this core since its start."), kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.vars.TotalConnections) }},
	{desc: desc("routes", "Connections to other cores, several to each; and to the witness."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.vars.Routes) }},
	{desc: desc("remotes", "Servers that this core has routes to; the witness is one."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.remotes) }},
	{desc: desc("subscriptions", "Subscriptions that this core knows of."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.vars.Subscriptions) }},
	{desc: desc("received_messages_total", "Messages from clients and other cores."), kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.vars.InMsgs) }},
	{desc: desc("sent_messages_total", "Messages to clients and other cores."), kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.vars.OutMsgs) }},
	{desc: desc("received_bytes_total", "Bytes of messages from clients and other cores."), kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.vars.InBytes) }},
	{desc: desc("sent_bytes_total", "Bytes of messages to clients and other cores."), kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.vars.OutBytes) }},
	{desc: descSlow, kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.slow.Clients) }, labels: []string{"client"}},
	{desc: descSlow, kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.slow.Routes) }, labels: []string{"route"}},
	{desc: descStale, kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.stale.Clients) }, labels: []string{"client"}},
	{desc: descStale, kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.stale.Routes) }, labels: []string{"route"}},
	{desc: desc("meta_leader", "1 if this core leads the JetStream meta group."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return oneIf(c.metaLeader) }},
	{desc: desc("jetstream_store_bytes", "Bytes that streams have on this core's disk."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.js.Store) }},
	{desc: desc("jetstream_store_limit_bytes", "Bytes that streams may have on this core's disk."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.js.Config.MaxStore) }},
	{desc: desc("jetstream_memory_bytes", "Bytes that streams have in this core's memory."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.js.Memory) }},
	{desc: desc("jetstream_memory_limit_bytes", "Bytes that streams may have in this core's memory."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.js.Config.MaxMemory) }},
	{desc: desc("jetstream_streams", "Streams of which this core has a replica."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.js.Streams) }},
	{desc: desc("jetstream_consumers", "Consumers of which this core has a replica."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.js.Consumers) }},
	{desc: desc("jetstream_messages", "Messages in the streams of this core."), kind: prometheus.GaugeValue, value: func(c counts) float64 { return float64(c.js.Messages) }},
	{desc: desc("jetstream_api_requests_total", "Requests to the JetStream API that this core has taken."), kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.js.API.Total) }},
	{desc: desc("jetstream_api_errors_total", "Requests to the JetStream API that this core has answered with an error."), kind: prometheus.CounterValue, value: func(c counts) float64 { return float64(c.js.API.Errors) }},
}

// Collector has the metrics of this core's broker. Reading them asks nobody but
// the server in this process, for countWithin at most.
func (b *Broker) Collector() prometheus.Collector { return collector{b} }

type collector struct{ *Broker }

func (c collector) Describe(out chan<- *prometheus.Desc) {
	out <- descAnswers
	for _, m := range ofBroker {
		out <- m.desc
	}
	for _, m := range ofServer {
		out <- m.desc
	}
}

func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, m := range ofBroker {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(c.Broker), m.labels...)
	}
	n, ok := c.counts()
	out <- prometheus.MustNewConstMetric(descAnswers, prometheus.GaugeValue, oneIf(ok))
	if !ok {
		return
	}
	for _, m := range ofServer {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(n), m.labels...)
	}
}

// counts asks the server, beside the caller and one question at a time; false
// when it does not listen yet, or has not answered within countWithin. A question
// that is still out then ends with the server's lock: nobody waits for it, so
// that a disk that hangs does not also keep the host from stopping.
func (b *Broker) counts() (counts, bool) {
	if !b.listens() {
		return counts{}, false
	}
	bound := time.NewTimer(countWithin)
	defer bound.Stop()
	select {
	case b.counting <- struct{}{}:
	case <-bound.C:
		return counts{}, false
	}
	answer := make(chan counts, 1)
	go func() {
		defer func() { <-b.counting }()
		if n, err := countsOf(b.core); err == nil {
			answer <- n
		} else {
			close(answer)
		}
	}()
	select {
	case n, ok := <-answer:
		return n, ok
	case <-bound.C:
		return counts{}, false
	}
}

func countsOf(s *server.Server) (counts, error) {
	vars, err := s.Varz(nil)
	if err != nil {
		return counts{}, err
	}
	js, err := s.Jsz(nil)
	if err != nil {
		return counts{}, err
	}
	return counts{
		vars: vars, js: js, remotes: s.NumRemotes(), metaLeader: s.JetStreamIsLeader(),
		slow:  server.SlowConsumersStats{Clients: s.NumSlowConsumersClients(), Routes: s.NumSlowConsumersRoutes()},
		stale: server.StaleConnectionStats{Clients: s.NumStaleConnectionsClients(), Routes: s.NumStaleConnectionsRoutes()},
	}, nil
}

func (b *Broker) listens() bool {
	select {
	case <-b.listening:
		return true
	default:
		return false
	}
}

// canaryAge is how long ago the last write that was acknowledged had been sent;
// without one, since the start.
func (b *Broker) canaryAge() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.alive.IsZero() {
		return time.Since(b.began)
	}
	return time.Since(b.alive)
}

func oneIf(is bool) float64 {
	if is {
		return 1
	}
	return 0
}
