package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of restoring.
const (
	restoreReadyWithin = 30 * time.Second
	restoreAttempt     = 5 * time.Second
	// restoreInFlight messages are not acknowledged yet; each is of at most
	// maxPayloadBytes and is synced before it is, within restoreAck.
	restoreInFlight = 64
	restoreAck      = 30 * time.Second
)

// Change turns a stored message of a stream into those to write in its place.
// At the end of each stream it is asked with nil for what is to follow.
type Change func(stream string, m *nats.Msg) ([]*nats.Msg, error)

// RestoreConfig says what is made of mirrors.
type RestoreConfig struct {
	Host kbroker.HostID // founds the new cluster
	// Dir is the new broker's directory; it must not exist.
	Dir       string
	ClusterID string // of the new cluster
	Grants    *grants.Authority
	Change    Change // nil: everything as it was
	Log       *slog.Logger
}

// Restore founds a cluster of one host in a new directory with what the mirrors
// hold: all streams with one replica, and under sequences of their own, but for those
// that keep them (subjects.CopiedUpTo). When it returns nil all was written, synced and counted, and the broker has stopped.
func Restore(ctx context.Context, cfg RestoreConfig, m *Mirrors) error {
	addrs, err := loopbackAddrs(2)
	if err != nil {
		return err
	}
	b, err := New(Config{
		Host: cfg.Host, Dir: cfg.Dir, ClusterID: cfg.ClusterID, Grants: cfg.Grants, Found: true,
		ClientAddr: addrs[0], RouteAddr: addrs[1], Log: cfg.Log,
	})
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- b.Run(running) }()
	err = b.restore(running, cfg, m, ended)
	stop()
	return errors.Join(err, <-ended)
}

// restore waits for the broker and fills it.
func (b *Broker) restore(ctx context.Context, cfg RestoreConfig, m *Mirrors, ended chan error) error {
	select {
	case <-b.Ready():
	case err := <-ended:
		ended <- nil
		return fmt.Errorf("the new broker ended: %w", err)
	case <-time.After(restoreReadyWithin):
		return kbroker.Errorf(kbroker.Unavailable, "the new broker is not ready after %v", restoreReadyWithin)
	case <-ctx.Done():
		return ctx.Err()
	}
	conn, err := b.Connect(nats.Name("kbroker rescue"))
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn, jetstream.WithPublishAsyncMaxPending(restoreInFlight), jetstream.WithPublishAsyncTimeout(restoreAck))
	if err != nil {
		return fmt.Errorf("open jetstream: %w", err)
	}
	for _, s := range m.Streams() {
		w := &restorer{conn: conn, js: js, stream: s, change: cfg.Change}
		if err := w.run(ctx, m); err != nil {
			return fmt.Errorf("restore stream %s: %w", s.Name, err)
		}
	}
	return nil
}

// restorer writes one stream.
type restorer struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	stream MirroredStream
	change Change

	pending []jetstream.PubAckFuture
	last    uint64 // highest sequence acknowledged
	written uint64
}

func (w *restorer) run(ctx context.Context, m *Mirrors) error {
	if err := w.create(ctx); err != nil {
		return err
	}
	change := w.change
	if change == nil {
		change = func(_ string, m *nats.Msg) ([]*nats.Msg, error) {
			if m == nil {
				return nil, nil
			}
			return []*nats.Msg{m}, nil
		}
	}
	write := func(m *nats.Msg) error {
		out, err := change(w.stream.Name, m)
		if err != nil {
			return err
		}
		for _, m := range out {
			if err := w.publish(ctx, m); err != nil {
				return err
			}
		}
		return nil
	}
	if err := m.Each(ctx, w.stream, write); err != nil {
		return err
	}
	if err := write(nil); err != nil {
		return err
	}
	if err := w.settle(ctx, 0); err != nil {
		return err
	}
	if err := w.verify(ctx); err != nil {
		return err
	}
	return w.sameSequences(ctx)
}

// create makes the stream as it was, on this core: a mirror's lost source was
// pinned to another, or to none.
func (w *restorer) create(ctx context.Context) error {
	config := w.stream.config
	config.Replicas = 1
	config.Placement = &server.Placement{Tags: []string{subjects.TagCore}}
	if _, keeps := config.Metadata[subjects.CopiedUpTo]; keeps {
		config.FirstSeq = w.stream.first
		config.Metadata = maps.Clone(config.Metadata)
		config.Metadata[subjects.CopiedUpTo] = "0" // until all is written
	}
	var r server.JSApiStreamCreateResponse
	ctx, cancel := context.WithTimeout(ctx, restoreAttempt)
	defer cancel()
	if err := (&membership{conn: w.conn}).change(ctx, fmt.Sprintf(server.JSApiStreamCreateT, config.Name), config, &r); err != nil {
		return fmt.Errorf("create it: %w", err)
	}
	return r.ToError()
}

// publish sends a message without what held only when it was first written: its
// condition, its batch, the roll-up that it was, and the ID by which one that
// was sent twice was found within minutes: the writes of days are sent within
// those now. What the server itself wrote says that a key is gone: it is.
func (w *restorer) publish(ctx context.Context, m *nats.Msg) error {
	if m.Header.Get(server.JSMarkerReason) != "" {
		return nil
	}
	for name := range m.Header {
		if strings.HasPrefix(name, "Nats-Expected-") || strings.HasPrefix(name, "Nats-Batch-") || name == server.JSMsgRollup || name == server.JSMsgId {
			m.Header.Del(name)
		}
	}
	future, err := w.js.PublishMsgAsync(m)
	if err != nil {
		return fmt.Errorf("write %s: %w", m.Subject, err)
	}
	w.pending = append(w.pending, future)
	w.written++
	return w.settle(ctx, restoreInFlight-1)
}

// settle waits until at most that many messages are not acknowledged.
func (w *restorer) settle(ctx context.Context, most int) error {
	for len(w.pending) > most {
		f := w.pending[0]
		w.pending = w.pending[1:]
		select {
		case ack := <-f.Ok():
			w.last = max(w.last, ack.Sequence)
		case err := <-f.Err():
			return fmt.Errorf("write %s: %w", f.Msg().Subject, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// verify compares what the stream says with what was acknowledged. The canary
// may have written meanwhile.
func (w *restorer) verify(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restoreAttempt)
	defer cancel()
	info, err := (&membership{conn: w.conn}).streamInfo(ctx, w.stream.Name)
	if err != nil {
		return err
	}
	if info.State.LastSeq < w.last || w.last < w.written {
		return fmt.Errorf("%d messages were written, the last as %d, and the stream ends at %d", w.written, w.last, info.State.LastSeq)
	}
	return nil
}

// sameSequences says in the metadata of a stream that keeps its sequences that it has: each
// message is where it was. One that ended while the copy was read has moved those behind it.
func (w *restorer) sameSequences(ctx context.Context) error {
	before, keeps := w.stream.config.Metadata[subjects.CopiedUpTo]
	if !keeps || w.written == 0 || w.last != w.stream.last || w.written != w.last-w.stream.first+1 {
		return nil
	}
	same := w.last
	if before != "" { // it was a copy itself
		n, _ := strconv.ParseUint(before, 10, 64) // what is no number says nothing of any other
		same = min(same, n)
	}
	ctx, cancel := context.WithTimeout(ctx, restoreAttempt)
	defer cancel()
	m := &membership{conn: w.conn}
	info, err := m.streamInfo(ctx, w.stream.Name)
	if err != nil {
		return err
	}
	config := info.Config
	config.Metadata[subjects.CopiedUpTo] = strconv.FormatUint(same, 10)
	var r server.JSApiStreamUpdateResponse
	if err := m.change(ctx, fmt.Sprintf(server.JSApiStreamUpdateT, config.Name), config, &r); err != nil {
		return fmt.Errorf("say that it has its sequences: %w", err)
	}
	return r.ToError()
}

// loopbackAddrs are addresses that are free now.
func loopbackAddrs(n int) ([]string, error) {
	var addrs []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, fmt.Errorf("pick a port: %w", err)
		}
		defer l.Close()
		addrs = append(addrs, l.Addr().String())
	}
	return addrs, nil
}
