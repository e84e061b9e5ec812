package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/subjects"
)

// writer makes compare-and-set writes to the control store, one after the other,
// and remembers what was acknowledged.
type writer struct {
	nc     *nats.Conn
	prefix string // of its keys; nobody else writes them
	end    context.CancelFunc
	done   chan struct{}

	acked  map[string]uint64 // sequence by key
	values map[string]string
	writes int
	gap    time.Duration // the longest time without an acknowledgement
	gapAt  time.Time     // when it began
	lost   error

	open struct{ Key, Value string } // sent last; its fate may be unknown
}

// readBack bounds how long it may take to read all acknowledged writes back.
const readBack = 30 * time.Second

// startWriter lets a writer begin on a connection, which stays the caller's.
func startWriter(nc *nats.Conn) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{
		nc: nc, prefix: "test." + strconv.FormatInt(time.Now().UnixNano(), 36) + ".", end: cancel,
		done: make(chan struct{}), acked: map[string]uint64{}, values: map[string]string{},
	}
	go w.run(ctx)
	return w
}

func (c *cluster) writer() *writer {
	c.t.Helper()
	target := c.target()
	nc, err := connectTo(target, target.Servers[0])
	if err != nil {
		c.t.Fatal(err)
	}
	w := startWriter(nc)
	c.t.Cleanup(func() {
		w.stop()
		nc.Close()
	})
	return w
}

// target is the cluster, as commands find it, for who may do what a core may.
func (c *cluster) target() client.Target {
	c.t.Helper()
	target, err := client.Find(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	target.CredentialFile = c.coreCreds()
	return target
}

// firstConnection bounds how long the first connection may take: on a network
// that loses frames one attempt may be in vain.
const firstConnection = 10 * time.Second

// connectTo makes a connection that leaves a silent server as those of the
// product do, and never gives up once it was made. It begins with the first
// server. The target says whom it believes.
func connectTo(target client.Target, servers ...string) (*nats.Conn, error) {
	options, err := target.Secure()
	if err != nil {
		return nil, err
	}
	options = append(options, nats.DontRandomize(), nats.Timeout(time.Second),
		nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.PingInterval(900*time.Millisecond), nats.MaxPingsOutstanding(2))
	for began := time.Now(); ; {
		nc, err := nats.Connect(strings.Join(servers, ","), options...)
		if err == nil || time.Since(began) > firstConnection {
			return nc, err
		}
		<-time.After(50 * time.Millisecond)
	}
}

// stop ends the writes.
func (w *writer) stop() {
	w.end()
	<-w.done
}

func (w *writer) run(ctx context.Context) {
	defer close(w.done)
	const keys = 50
	for n, last := 0, time.Now(); ctx.Err() == nil && w.lost == nil; n++ {
		w.write(ctx, w.prefix+strconv.Itoa(n%keys), strconv.Itoa(n))
		if took := time.Since(last); took > w.gap {
			w.gap, w.gapAt = took, last
		}
		last = time.Now()
	}
}

// write sends one value until its fate is known.
func (w *writer) write(ctx context.Context, key, value string) {
	w.open.Key, w.open.Value = key, value
	for ctx.Err() == nil && w.lost == nil {
		m := nats.NewMsg(subjects.Control(key))
		m.Header.Set(nats.ExpectedLastSubjSeqHdr, strconv.FormatUint(w.acked[key], 10))
		m.Data = []byte(value)
		var ack struct {
			Seq uint64 `json:"seq"`
		}
		if err := w.ask(ctx, m, &ack); err == nil && ack.Seq > 0 {
			w.acked[key], w.values[key] = ack.Seq, value
			w.writes++
			return
		}
		// Refused, or not answered: it may have been applied.
		seq, stored, err := w.read(ctx, key)
		switch {
		case err != nil:
		case seq == w.acked[key]: // not applied, or not yet
		case stored == value:
			w.acked[key], w.values[key] = seq, value
			return
		case seq > w.acked[key]:
			w.lost = fmt.Errorf("key %s holds %q at %d; %q was acknowledged at %d", key, stored, seq, w.values[key], w.acked[key])
		}
	}
}

func (w *writer) ask(ctx context.Context, m *nats.Msg, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	reply, err := w.nc.RequestMsgWithContext(ctx, m)
	if err != nil {
		return err
	}
	return json.Unmarshal(reply.Data, into)
}

// read reads a key through the stream's leader.
func (w *writer) read(ctx context.Context, key string) (seq uint64, value string, err error) {
	var r struct {
		Message struct {
			Seq  uint64 `json:"seq"`
			Data []byte `json:"data"`
		} `json:"message"`
		Error *struct {
			Code int `json:"err_code"`
		} `json:"error"`
	}
	body, err := json.Marshal(map[string]string{"last_by_subj": subjects.Control(key)})
	if err != nil {
		return 0, "", err
	}
	err = w.ask(ctx, &nats.Msg{Subject: subjects.LeaderRead(subjects.ControlStream), Data: body}, &r)
	const noMessage = 10037
	switch {
	case err != nil:
		return 0, "", err
	case r.Error != nil && r.Error.Code == noMessage:
		return 0, "", nil
	case r.Error != nil || r.Message.Seq == 0:
		return 0, "", errors.New("the leader did not answer")
	}
	return r.Message.Seq, string(r.Message.Data), nil
}

// verify ends the writes and reads every acknowledged one back: what a key holds
// is the last acknowledged value, or the one that was being written at the end.
func (w *writer) verify() error {
	w.stop()
	switch {
	case w.lost != nil:
		return w.lost
	case w.writes == 0:
		return errors.New("no write was acknowledged")
	}
	ctx, cancel := context.WithTimeout(context.Background(), readBack)
	defer cancel()
	for key, want := range w.acked {
		for {
			seq, value, err := w.read(ctx, key)
			if err == nil && (seq == want && value == w.values[key] || seq > want && key == w.open.Key && value == w.open.Value) {
				break
			}
			if ctx.Err() != nil {
				return fmt.Errorf("key %s holds %q at %d (%w); %q was acknowledged at %d", key, value, seq, err, w.values[key], want)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	return nil
}

// check holds that no acknowledged write is lost.
func (w *writer) check(t *testing.T) {
	t.Helper()
	if err := w.verify(); err != nil {
		t.Errorf("after %d acknowledged writes: %v", w.writes, err)
		return
	}
	t.Logf("%d acknowledged writes, none lost; longest time without one %v", w.writes, w.gap.Round(time.Millisecond))
}
