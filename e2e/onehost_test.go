package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// bound of one host's row: what must be there again within it.
const (
	backWithin = 2 * time.Second
	planWithin = 8 * time.Second
)

// TestOneHostIsBackInAMoment: founded, and after kill -9 of its agent, and of everything, a
// single host is there again in a moment.
func TestOneHostIsBackInAMoment(t *testing.T) {
	needLong(t)
	for range 3 {
		c := &cluster{t: t, dir: t.TempDir() + "/cluster", hosts: 1}
		t.Cleanup(c.down)
		began := time.Now()
		go c.start()
		within(t, backWithin, began, "founded, first write", func() error { return c.write() })
		c.up()
		c.must("deploy", "../examples/hello/app.yaml")
		c.waitReady(10*time.Second, "hello", "hello", 3, nil)
		for i, what := range []string{"the agent", "everything"} {
			c.settled(20*time.Second, "hello", 3+i)
			c.kill("h1", i == 0)
			began := time.Now()
			go c.start()
			var all sync.WaitGroup
			for _, check := range []struct {
				name  string
				bound time.Duration
				check func() error
			}{
				{"a CAS write", backWithin, c.write},
				{"a request", backWithin, c.request},
				{"a CLI read", backWithin, c.reads},
				{"a plan", planWithin, func() error { return c.plans(4 + i) }},
			} {
				all.Go(func() { within(t, check.bound, began, what+" killed: "+check.name, check.check) })
			}
			all.Wait()
			c.up()
		}
	}
}

// start is up without its wait for everything.
func (c *cluster) start() {
	_, _ = c.try("up", "--hosts", strconv.Itoa(c.hosts), "--dir", c.dir)
}

// within holds that check succeeds within the bound after began.
func within(t *testing.T, bound time.Duration, began time.Time, what string, check func() error) {
	t.Helper()
	wait.Until(t, 20*time.Second, check)
	took := time.Since(began)
	t.Logf("%s after %v", what, took.Round(10*time.Millisecond))
	if took > bound {
		t.Errorf("%s after %v, want %v", what, took.Round(10*time.Millisecond), bound)
	}
}

// connect connects to the cluster's cores, once they are known: with a credential in
// a file, or as the cluster's context says.
func (c *cluster) connect(file string) (*nats.Conn, error) {
	target, err := client.Find(c.dir)
	if err != nil {
		return nil, err
	}
	target.CredentialFile = file
	options, err := target.Secure()
	if err != nil {
		return nil, err
	}
	return nats.Connect(target.Servers[0], append(options, nats.Timeout(time.Second), nats.NoReconnect())...)
}

// write makes one compare-and-set write to the control store, on a key that the
// system does not know.
func (c *cluster) write() error {
	nc, err := c.connect(c.coreCreds())
	if err != nil {
		return err
	}
	defer nc.Close()
	m := nats.NewMsg(subjects.Control("test.write." + strconv.FormatInt(time.Now().UnixNano(), 36)))
	m.Header.Set(nats.ExpectedLastSubjSeqHdr, "0")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	reply, err := nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return err
	}
	var ack struct {
		Seq   uint64          `json:"seq"`
		Error json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(reply.Data, &ack); err != nil || ack.Seq == 0 {
		return fmt.Errorf("answered %q, %w", reply.Data, err)
	}
	return nil
}

// request is one call of hello, not repeated.
func (c *cluster) request() error {
	nc, err := c.connect("")
	if err != nil {
		return err
	}
	defer nc.Close()
	reply, err := nc.Request(subjects.Method("hello", "hello", "greet"), []byte(`{"name":"Ann"}`), 300*time.Millisecond)
	if err == nil && reply.Header.Get(subjects.HeaderCode) != "" {
		err = fmt.Errorf("answered %q", reply.Data)
	}
	return err
}

func (c *cluster) reads() error {
	rows, err := list[kbroker.InstanceRow](c, "ps")
	if err == nil && len(rows) < 3 {
		err = fmt.Errorf("ps has only %d rows", len(rows))
	}
	return err
}

// plans scales hello and looks whether that was planned.
func (c *cluster) plans(count int) error {
	if out, code := c.try("scale", "hello", strconv.Itoa(count), "--detach", "--timeout", "1s"); code != 0 {
		return fmt.Errorf("scale: exit code %d: %s", code, out)
	}
	rows, err := list[kbroker.InstanceRow](c, "ps", "hello")
	placed := 0
	for _, r := range rows {
		if r.Service == "hello" && r.Instance != nil {
			placed++
		}
	}
	if err == nil && placed < count {
		err = fmt.Errorf("%d of %d are placed", placed, count)
	}
	return err
}
