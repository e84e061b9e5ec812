package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// mirrored fails unless the meta leader's host sees every stream mirrored.
func mirrored(t testing.TB, hosts ...*host) {
	t.Helper()
	wait.Until(t, 20*time.Second, func() error {
		for _, h := range hosts {
			if err := h.Look(t.Context()); err != nil {
				return err
			}
			if m := h.Members(); !m.Mirrored || !m.Settled {
				return fmt.Errorf("%s sees no mirrors of all: %+v", h.cfg.Host, m)
			}
		}
		return nil
	})
}

// extraStream creates a stream of one replica, pinned to a host.
func extraStream(t testing.TB, nc *nats.Conn, cfg server.StreamConfig) {
	t.Helper()
	wait.Until(t, 10*time.Second, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		var r server.JSApiStreamCreateResponse
		if err := (&membership{conn: nc}).change(ctx, fmt.Sprintf(server.JSApiStreamCreateT, cfg.Name), cfg, &r); err != nil {
			return err
		}
		return r.ToError()
	})
}

func pinned(h kbroker.HostID) *server.Placement {
	return &server.Placement{Tags: []string{subjects.TagCore, subjects.TagHost(h)}}
}

// put writes one message and returns its sequence. A stream that was just made on another
// server is answered for before the route between has its subjects.
func put(t testing.TB, nc *nats.Conn, subject, data string, header nats.Header) uint64 {
	t.Helper()
	m := nats.NewMsg(subject)
	m.Data, m.Header = []byte(data), header
	reply, err := nc.RequestMsg(m, 2*time.Second)
	for end := time.Now().Add(2 * time.Second); errors.Is(err, nats.ErrNoResponders) && time.Now().Before(end); {
		<-time.After(5 * time.Millisecond)
		reply, err = nc.RequestMsg(m, 2*time.Second)
	}
	if err != nil {
		t.Fatalf("put %s: %v", subject, err)
	}
	var ack server.JSPubAckResponse
	if err := json.Unmarshal(reply.Data, &ack); err != nil || ack.Error != nil {
		t.Fatalf("put %s: %s", subject, reply.Data)
	}
	return ack.Sequence
}

// last reads the last message of a subject from a stream's leader; its sequence
// is 0 if there is none.
func last(nc *nats.Conn, stream, subject string) (*server.StoredMsg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var r server.JSApiMsgGetResponse
	body, err := json.Marshal(server.JSApiMsgGetRequest{LastFor: subject})
	if err != nil {
		return nil, err
	}
	if err := ask(ctx, nc, fmt.Sprintf(server.JSApiMsgGetT, stream), body, &r); err != nil {
		return nil, err
	}
	if r.Error != nil && r.Error.ErrCode == uint16(server.JSNoMessageFoundErr) {
		return &server.StoredMsg{}, nil
	}
	if r.Error != nil {
		return nil, r.Error
	}
	return r.Message, nil
}

func TestAMirrorFollowsBatchesMarkersAndDeletes(t *testing.T) {
	t.Parallel()
	a := start(t, configOf(t, "a", true))
	a.awaitReady(10 * time.Second)
	nc := a.conn()
	createControl(t, nc)
	b := start(t, configOf(t, "b", false, a.cfg))
	b.awaitReady(10 * time.Second)
	mirrored(t, a)
	mirror := subjects.MirrorOf(subjects.ControlStream, "b")

	key := func(n int) string { return subjects.Control("app.test.k" + strconv.Itoa(n)) }
	// A batch of three, one of which is there already.
	put(t, nc, key(0), "old", nil)
	for i, h := range []nats.Header{{}, {}, {"Nats-Batch-Commit": {"1"}}} {
		h.Set("Nats-Batch-Id", "batch")
		h.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		m := &nats.Msg{Subject: key(i), Data: []byte("batched"), Header: h}
		if i < 2 {
			if _, err := nc.RequestMsg(m, time.Second); err != nil {
				t.Fatal(err)
			}
			continue
		}
		put(t, nc, m.Subject, "batched", h)
	}
	// A delete, a purge by roll-up, and one that expires and leaves a marker.
	put(t, nc, key(3), "doomed", nil)
	put(t, nc, key(3), "", nats.Header{"KV-Operation": {"DEL"}})
	put(t, nc, key(4), "doomed", nil)
	put(t, nc, key(4), "", nats.Header{"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}})
	put(t, nc, key(5), "expires", nats.Header{"Nats-TTL": {"1s"}})

	// The last of a key that expires and was written to again.
	put(t, nc, key(6), "stays", nil)

	for i := range 5 {
		wait.Until(t, 5*time.Second, func() error { return sameLast(nc, subjects.ControlStream, mirror, key(i)) })
	}
	wait.Until(t, 10*time.Second, func() error {
		m, err := last(nc, subjects.ControlStream, key(5))
		if err != nil {
			return err
		}
		if string(m.Data) == "expires" {
			return errors.New("not expired yet")
		}
		return sameLast(nc, subjects.ControlStream, mirror, key(5))
	})
	sameContent(t, nc, subjects.ControlStream, mirror)
	source, err := streamOf(nc, subjects.ControlStream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := streamOf(nc, mirror)
	if err != nil {
		t.Fatal(err)
	}
	if info.Cluster.Leader != "b" || source.Cluster.Leader != "a" {
		t.Errorf("the mirror is on %s and the stream on %s, want b and a", info.Cluster.Leader, source.Cluster.Leader)
	}
}

// keysOf the stream, with the number of messages of each.
func keysOf(nc *nats.Conn, stream string) (map[string]uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	body, err := json.Marshal(server.JSApiStreamInfoRequest{SubjectsFilter: ">"})
	if err != nil {
		return nil, err
	}
	var r server.JSApiStreamInfoResponse
	if err := ask(ctx, nc, fmt.Sprintf(server.JSApiStreamInfoT, stream), body, &r); err != nil {
		return nil, err
	}
	if r.Error != nil {
		return nil, r.Error
	}
	return r.State.Subjects, nil
}

// sameContent fails unless the mirror comes to have the keys of the stream and
// the last message of each. Nobody may write meanwhile.
func sameContent(t testing.TB, nc *nats.Conn, stream, mirror string) {
	t.Helper()
	wait.Until(t, 10*time.Second, func() error {
		want, err := keysOf(nc, stream)
		if err != nil {
			return err
		}
		got, err := keysOf(nc, mirror)
		if err != nil {
			return err
		}
		if len(want) == 0 || !maps.Equal(got, want) {
			return fmt.Errorf("%s has %d keys, %s %d: %v, want %v", mirror, len(got), stream, len(want), got, want)
		}
		for subject := range want {
			// The canary writes all the time.
			if strings.Contains(subject, ".canary.") {
				continue
			}
			if err := sameLast(nc, stream, mirror, subject); err != nil {
				return err
			}
		}
		return nil
	})
}

// sameLast: the last message of a subject is the same in the mirror, but for
// the headers of its batch and of its condition: the server drops those.
func sameLast(nc *nats.Conn, stream, mirror, subject string) error {
	want, err := last(nc, stream, subject)
	if err != nil {
		return err
	}
	got, err := last(nc, mirror, subject)
	if err != nil {
		return err
	}
	if got.Sequence != want.Sequence || string(got.Data) != string(want.Data) || !maps.Equal(headersOf(got), headersOf(want)) {
		return fmt.Errorf("%s in %s: %d %q %q, want %d %q %q", subject, mirror, got.Sequence, got.Data, got.Header, want.Sequence, want.Data, want.Header)
	}
	return nil
}

// headersOf a message by name, without those of a batch or a condition.
func headersOf(m *server.StoredMsg) map[string]string {
	headers := map[string]string{}
	for line := range strings.SplitSeq(string(m.Header), "\r\n") {
		name, value, ok := strings.Cut(line, ":")
		if ok && !strings.HasPrefix(name, "Nats-Batch-") && !strings.HasPrefix(name, "Nats-Expected-") {
			headers[name] = strings.TrimSpace(value)
		}
	}
	return headers
}

func TestMirrorsComeAndGoAsTheClusterGrows(t *testing.T) {
	t.Parallel()
	a := start(t, configOf(t, "a", true))
	a.awaitReady(10 * time.Second)
	nc := a.conn()
	createControl(t, nc)
	b := start(t, configOf(t, "b", false, a.cfg))
	b.awaitReady(10 * time.Second)
	// One that is pinned as streams are that are made beside the control stream,
	// and one that somebody put elsewhere.
	extraStream(t, nc, server.StreamConfig{Name: "beside", Subjects: []string{"beside.>"}, Storage: server.FileStorage, Replicas: 1, MaxMsgsPer: 1, Placement: pinned("a")})
	extraStream(t, nc, server.StreamConfig{Name: "elsewhere", Subjects: []string{"elsewhere.>"}, Storage: server.FileStorage, Replicas: 1, Placement: pinned("b")})
	w := startWriter(t, nc, nil)
	for i := range 50 {
		put(t, nc, fmt.Sprint("beside.", i), "x", nil)
		put(t, nc, fmt.Sprint("elsewhere.", i), "x", nil)
	}
	mirrored(t, a, b)
	t.Logf("mirrored under writes, longest gap %v", w.takeGap())
	w.check(t)
	sameContent(t, nc, subjects.ControlStream, subjects.MirrorOf(subjects.ControlStream, "b"))
	sameContent(t, nc, "beside", subjects.MirrorOf("beside", "b"))
	sameContent(t, nc, "elsewhere", subjects.MirrorOf("elsewhere", "a"))
	w = startWriter(t, nc, w)
	for _, s := range a.Members().Streams {
		want := kbroker.HostID("b")
		if s.Name == "elsewhere" {
			want = "a"
		}
		if s.Mirror != want || s.Replicas != 1 || s.Current != 1 || s.Leader == want {
			t.Errorf("stream %+v, want one replica and a mirror on %s", s, want)
		}
	}
	if m := a.Members(); m.Replicas != 1 || len(m.Streams) != 3 {
		t.Errorf("members %+v, want three streams with one replica, no mirror among them", m)
	}

	c := start(t, configOf(t, "c", false, a.cfg, b.cfg))
	c.awaitReady(10 * time.Second)
	settled(t, 3, 3, a, b, c)
	w.check(t)
	for _, name := range []string{"beside", "elsewhere"} {
		info, err := streamOf(nc, name)
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Msgs != 50 || info.Config.Placement != nil {
			t.Errorf("stream %s has %d messages and placement %+v after it was raised, want 50 and none", name, info.State.Msgs, info.Config.Placement)
		}
	}
}

// settled fails unless all hosts see that many streams, with three current
// replicas each, that many cores, and no mirror.
func settled(t testing.TB, cores, streams int, hosts ...*host) {
	t.Helper()
	wait.Until(t, 30*time.Second, func() error {
		for _, h := range hosts {
			if err := h.Look(t.Context()); err != nil {
				return err
			}
			m := h.Members()
			if !m.Settled || m.Size != cores || len(m.Streams) != streams || m.Replicas != 3 {
				return fmt.Errorf("%s sees %+v, want %d cores and %d streams settled", h.cfg.Host, m, cores, streams)
			}
			names, err := (&membership{conn: h.conn()}).streamNames(t.Context())
			if err != nil {
				return err
			}
			if len(names) != streams {
				return fmt.Errorf("streams %v, want no mirror among them", names)
			}
		}
		return nil
	})
}

// The second of two goes for good: the operator removes it, and what is left is
// what was there before it joined.
func TestRemovalOfTheSecondOfTwoLeadsBackToOneHost(t *testing.T) {
	t.Parallel()
	var removed atomic.Pointer[[]kbroker.HostID]
	cfg := configOf(t, "a", true)
	cfg.Removed = func() []kbroker.HostID {
		if r := removed.Load(); r != nil {
			return *r
		}
		return nil
	}
	a := start(t, cfg)
	a.awaitReady(10 * time.Second)
	nc := a.conn()
	createControl(t, nc)
	w := startWriter(t, nc, nil)
	b := startChild(t, configOf(t, "b", false, cfg))
	mirrored(t, a)
	b.kill()
	removed.Store(&[]kbroker.HostID{"b"})
	wait.Until(t, 20*time.Second, func() error {
		if err := a.Look(t.Context()); err != nil {
			return err
		}
		if m := a.Members(); !m.Settled || m.Size != 2 || !m.Witness || len(m.Current) != 1 {
			return fmt.Errorf("members %+v, want a and its witness", m)
		}
		names, err := (&membership{conn: nc}).streamNames(t.Context())
		if err == nil && (len(names) != 1 || names[0] != subjects.ControlStream) {
			err = fmt.Errorf("streams %v, want the control stream alone", names)
		}
		return err
	})
	t.Logf("back to one host under writes, longest gap %v", w.takeGap())
	// Another second core is welcome.
	c := start(t, configOf(t, "c", false, cfg))
	c.awaitReady(10 * time.Second)
	mirrored(t, a, c)
	w.check(t)
}
