package broker

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/kbroker/kbroker/internal/metricstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func metricsOf(t *testing.T, b *Broker) map[string]float64 {
	t.Helper()
	return metricstest.Values(t, b.Collector())
}

func TestMetricsFollowTheServer(t *testing.T) {
	t.Parallel()
	b, err := New(configOf(t, "z", true))
	if err != nil {
		t.Fatal(err)
	}
	if m := metricsOf(t, b); m["kbroker_broker_answers"] != 0 || m["kbroker_broker_listening"] != 0 || len(m) != len(ofBroker)+1 {
		t.Errorf("a broker that does not run has %v", m)
	}

	h := start(t, configOf(t, "a", true))
	h.awaitReady(10 * time.Second)
	nc := h.conn()
	before := metricsOf(t, h.Broker)
	createControl(t, nc)
	sub, err := nc.SubscribeSync("some.where")
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := nc.Publish("some.where", make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	other := h.conn()
	if err := other.Flush(); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := sub.NextMsg(5 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	wait.Until(t, 10*time.Second, func() error {
		m := metricsOf(t, h.Broker)
		grown := func(name string, least float64) error {
			if m[name]-before[name] < least {
				return fmt.Errorf("%s was %v and is %v, want %v more", name, before[name], m[name], least)
			}
			return nil
		}
		for name, least := range map[string]float64{
			"kbroker_broker_connections": 1, "kbroker_broker_connections_total": 1, "kbroker_broker_subscriptions": 1,
			"kbroker_broker_received_messages_total": 100, "kbroker_broker_sent_messages_total": 100,
			"kbroker_broker_received_bytes_total": 100_000, "kbroker_broker_sent_bytes_total": 100_000,
			"kbroker_broker_jetstream_streams": 1, "kbroker_broker_jetstream_messages": 1, "kbroker_broker_jetstream_store_bytes": 1,
			"kbroker_broker_jetstream_api_requests_total": 1, "kbroker_broker_writable": 1,
		} {
			if err := grown(name, least); err != nil {
				return err
			}
		}
		for name, want := range map[string]float64{
			"kbroker_broker_answers": 1, "kbroker_broker_listening": 1, "kbroker_broker_ready": 1, "kbroker_broker_witness": 1,
			"kbroker_broker_remotes": 1, "kbroker_broker_meta_members": 2, "kbroker_broker_stream_replicas": 1,
			"kbroker_broker_slow_consumers_total client": 0, "kbroker_broker_stale_connections_total route": 0,
		} {
			if got, there := m[name]; !there || got != want {
				return fmt.Errorf("%s is %v (%t), want %v", name, got, there, want)
			}
		}
		if age := m["kbroker_broker_canary_age_seconds"]; age < 0 || age > writableFor.Seconds() {
			return fmt.Errorf("the canary is %v s old while writes succeed", age)
		}
		if limit := m["kbroker_broker_jetstream_store_limit_bytes"]; limit < 1<<20 {
			return fmt.Errorf("the store may have %v bytes", limit)
		}
		return nil
	})
	problems, err := testutil.CollectAndLint(h.Collector())
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
}

// TestMetricsDoNotWaitForTheServer: its locks may be held for as long as a disk
// hangs.
func TestMetricsDoNotWaitForTheServer(t *testing.T) {
	t.Parallel()
	h := start(t, configOf(t, "a", true))
	h.awaitReady(10 * time.Second)
	h.counting <- struct{}{} // an earlier question is out
	began := time.Now()
	m := metricsOf(t, h.Broker)
	if took := time.Since(began); took > 4*countWithin || m["kbroker_broker_answers"] != 0 || m["kbroker_broker_listening"] != 1 {
		t.Errorf("after %v: %v", took, m)
	}
	<-h.counting
	if m := metricsOf(t, h.Broker); m["kbroker_broker_answers"] != 1 {
		t.Errorf("when it answers again: %v", m)
	}
}

// TestASlowConsumerIsCounted: a client that does not read is closed and counted.
func TestASlowConsumerIsCounted(t *testing.T) {
	t.Parallel()
	h := start(t, configOf(t, "a", true))
	h.awaitReady(10 * time.Second)
	flood := subjects.GateInbox + ".flood" // which everybody may hear
	slow := deafClient(t, h.cfg.ClientAddr, flood)
	defer slow.Close()
	nc := h.conn()
	load := make([]byte, 512<<10)
	wait.Until(t, 20*time.Second, func() error {
		for range 64 {
			if err := nc.Publish(flood, load); err != nil {
				return err
			}
		}
		if err := nc.FlushTimeout(nats.DefaultTimeout); err != nil {
			return err
		}
		if n := metricsOf(t, h.Broker)["kbroker_broker_slow_consumers_total client"]; n < 1 {
			return fmt.Errorf("%v slow consumers are counted", n)
		}
		return nil
	})
}

// deafClient subscribes and never reads what it is sent.
func deafClient(t *testing.T, addr, subject string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(c, "CONNECT {\"verbose\":false}\r\nSUB %s 1\r\nPING\r\n", subject); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(c)
	for line := ""; !strings.HasPrefix(line, "PONG"); {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return c
}
