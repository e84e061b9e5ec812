package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// writer makes compare-and-set writes to the control store, one after the other,
// and remembers what was acknowledged.
type writer struct {
	c    *cluster
	nc   *nats.Conn
	end  context.CancelFunc
	done chan struct{}

	acked  map[string]uint64 // sequence by key
	values map[string]string
	writes int
	gap    time.Duration
	lost   error
}

func (c *cluster) writer() *writer {
	c.t.Helper()
	target, err := client.Find(c.dir)
	if err != nil {
		c.t.Fatal(err)
	}
	nc, err := nats.Connect(target.Servers[0], nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{c: c, nc: nc, end: cancel, done: make(chan struct{}), acked: map[string]uint64{}, values: map[string]string{}}
	go w.run(ctx)
	c.t.Cleanup(func() {
		cancel()
		<-w.done
		nc.Close()
	})
	return w
}

func (w *writer) run(ctx context.Context) {
	defer close(w.done)
	const keys = 50
	for n, last := 0, time.Now(); ctx.Err() == nil && w.lost == nil; n++ {
		w.write(ctx, "test.key."+strconv.Itoa(n%keys), strconv.Itoa(n))
		w.gap, last = max(w.gap, time.Since(last)), time.Now()
	}
}

// write sends one value until its fate is known.
func (w *writer) write(ctx context.Context, key, value string) {
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

// check ends the writes and reads every acknowledged one back.
func (w *writer) check() {
	w.c.t.Helper()
	w.end()
	<-w.done
	if w.lost != nil {
		w.c.t.Error(w.lost)
	}
	if w.writes == 0 {
		w.c.t.Error("no write was acknowledged")
	}
	for key, want := range w.acked {
		wait.Until(w.c.t, 10*time.Second, func() error {
			seq, value, err := w.read(context.Background(), key)
			if err == nil && seq < want {
				err = fmt.Errorf("key %s holds %q at %d; %q was acknowledged at %d", key, value, seq, w.values[key], want)
			}
			return err
		})
	}
	w.c.t.Logf("%d acknowledged writes, none lost; longest time without one %v", w.writes, w.gap.Round(time.Millisecond))
}
