package state

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// replicate raises the buckets to three replicas and waits until all are
// current.
func replicate(t testing.TB, conn *nats.Conn) {
	t.Helper()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatalf("jetstream: %v", err)
	}
	for _, name := range []string{subjects.ControlStream, subjects.StatusStream} {
		wait.Until(t, 30*time.Second, func() error {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			s, err := js.Stream(ctx, name)
			if err != nil {
				return err
			}
			info := s.CachedInfo()
			if info.Config.Placement == nil || !slices.Equal(info.Config.Placement.Tags, []string{subjects.TagCore}) {
				return fmt.Errorf("%s is placed by %+v, want tag %s", name, info.Config.Placement, subjects.TagCore)
			}
			if info.Config.Replicas != 3 {
				cfg := info.Config
				cfg.Replicas = 3
				_, err := js.UpdateStream(ctx, cfg)
				return errors.Join(err, errors.New("just updated"))
			}
			if info.Cluster == nil || len(info.Cluster.Replicas) != 2 {
				return fmt.Errorf("%s has not two followers yet", name)
			}
			for _, r := range info.Cluster.Replicas {
				if !r.Current {
					return fmt.Errorf("replica %s of %s is not current", r.Name, name)
				}
			}
			return nil
		})
	}
}

// load writes records of its own keys as fast as the store takes them, and
// knows for each what was acknowledged.
type load struct {
	js    jetstream.JetStream
	acked []atomic.Int64 // the counter in the record of key i
}

func loadKey(i int) kbroker.HostID { return kbroker.HostID(fmt.Sprintf("load-%d", i)) }

func (l *load) run(ctx context.Context) error {
	type sent struct {
		key     int
		counter int64
		ack     jetstream.PubAckFuture
	}
	const inFlight = 256
	waiting := make(chan sent, inFlight)
	var acks sync.WaitGroup
	acks.Go(func() {
		for s := range waiting {
			select {
			case <-s.ack.Ok():
				l.acked[s.key].Store(s.counter)
			case <-s.ack.Err(): // of unknown outcome: a later one may tell
			case <-time.After(5 * time.Second):
			}
		}
	})
	pad := map[string]string{"pad": strings.Repeat("x", 1000)}
	for counter := int64(1); ctx.Err() == nil; counter++ {
		for i := range l.acked {
			m := newRecord(subjects.Control(subjects.KeyHost(loadKey(i))), kbroker.Host{Name: loadKey(i), Labels: pad, Capacity: kbroker.Resources{MemoryBytes: counter}})
			ack, err := l.js.PublishMsgAsync(m, jetstream.WithStallWait(5*time.Second))
			if err == nil {
				waiting <- sent{i, counter, ack}
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	close(waiting)
	acks.Wait()
	return nil
}

// want is what everybody who reads from now on must see.
func (l *load) want() []int64 {
	w := make([]int64, len(l.acked))
	for i := range l.acked {
		w[i] = l.acked[i].Load()
	}
	return w
}

// behind counts the keys of which hosts shows less than what was acknowledged.
func behind(want []int64, hosts map[kbroker.HostID]kbroker.Host) (missing, stale int) {
	for i, counter := range want {
		h, ok := hosts[loadKey(i)]
		switch {
		case !ok && counter > 0:
			missing++
		case h.Capacity.MemoryBytes < counter:
			stale++
		}
	}
	return missing, stale
}

// unbarriered reads all hosts through this connection until nothing more comes,
// as a reader would who takes the end of the answers for the end of the store.
func unbarriered(js jetstream.JetStream) map[kbroker.HostID]kbroker.Host {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	hosts := map[kbroker.HostID]kbroker.Host{}
	for next := uint64(1); ; {
		before := next
		answer, err := jetstreamext.GetBatch(ctx, js, subjects.ControlStream, chunkMessages, jetstreamext.GetBatchSeq(next))
		if err != nil {
			return hosts
		}
		for m, err := range answer {
			if err != nil {
				break
			}
			next = m.Sequence + 1
			r := decode(message{subject: m.Subject, seq: m.Sequence, header: m.Header, data: m.Data}, subjects.ControlKey)
			if h, ok := r.value.(kbroker.Host); ok {
				hosts[h.Name] = h
			}
		}
		if next < before+chunkMessages/2 {
			return hosts
		}
	}
}

// A core that restarts answers reads before it has caught up (FAULTS, section
// 0), without an error. A view through that core must be complete all the same:
// it shows every write that was acknowledged before it was asked for.
func TestAViewDuringACoresCatchUpIsComplete(t *testing.T) {
	c := natstest.StartCluster(t, 3)
	if err := Found(testContext(t, 20*time.Second), c.Connect(t, 0)); err != nil {
		t.Fatalf("found: %v", err)
	}
	replicate(t, c.Connect(t, 0))
	leader := c.StreamLeader(subjects.ControlStream)
	if leader < 0 {
		t.Fatal("the control stream has no leader")
	}
	victim := (leader + 1) % 3
	js, err := jetstream.New(c.Connect(t, leader))
	if err != nil {
		t.Fatalf("jetstream: %v", err)
	}
	l := &load{js: js, acked: make([]atomic.Int64, 3000)}
	stopLoad := start(t, l.run)
	atLeast := func(counter int64) {
		t.Helper()
		wait.Until(t, 60*time.Second, func() error {
			if got := l.acked[len(l.acked)-1].Load(); got < counter {
				return fmt.Errorf("the load is in round %d, waiting for %d", got, counter)
			}
			return nil
		})
	}
	atLeast(1)
	c.Stop(victim)
	atLeast(l.acked[0].Load() + 5)

	c.Restart(t, victim)
	conn := c.Connect(t, victim)
	if js, err = jetstream.New(conn); err != nil {
		t.Fatalf("jetstream: %v", err)
	}
	var s *Store
	wait.Until(t, 20*time.Second, func() (err error) {
		s, err = Open(testContext(t, 2*time.Second), Config{Conn: conn, Host: "h2", Process: "p", Times: Stock})
		return err
	})
	start(t, s.Run)
	var views, reads, liars int
	for began := time.Now(); time.Since(began) < 5*time.Second; views++ {
		want := l.want()
		hosts := unbarriered(js)
		if missing, stale := behind(want, hosts); missing+stale > 0 {
			liars++
		}
		reads++
		want = l.want()
		v := view(t, s)
		if missing, stale := behind(want, v.Hosts); missing+stale > 0 {
			t.Fatalf("view %d at sequence %d, %v after the restart: of %d keys %d are missing and %d stale", views, v.Sequence, time.Since(began), len(want), missing, stale)
		}
	}
	stopLoad()
	t.Logf("%d views were complete; %d of %d reads without a barrier were not", views, liars, reads)
}

// lagging is the API as a client sees it whose direct reads are answered by a
// replica that has the stream only up to a sequence.
func lagging(t testing.TB, conn *nats.Conn, upTo func() uint64) jetstream.JetStream {
	t.Helper()
	const prefix = "lagging"
	answer := func(m *nats.Msg) {
		inbox := conn.NewRespInbox()
		sub, err := conn.SubscribeSync(inbox)
		if err != nil {
			t.Errorf("subscribe: %v", err)
			return
		}
		defer sub.Unsubscribe()
		if err := conn.PublishRequest("$JS.API."+strings.TrimPrefix(m.Subject, prefix+"."), inbox, m.Data); err != nil {
			t.Errorf("relay: %v", err)
			return
		}
		end := &nats.Msg{Subject: m.Reply, Header: nats.Header{"Status": {"404"}, "Description": {"Message Not Found"}}}
		for {
			r, err := sub.NextMsg(2 * time.Second)
			if err != nil {
				return
			}
			seq, found := headerUint(r.Header, jetstream.SequenceHeader)
			if !found || seq > upTo() {
				break
			}
			end.Header = nats.Header{"Status": {"204"}, "Description": {"EOB"}}
			_ = conn.PublishMsg(&nats.Msg{Subject: m.Reply, Header: r.Header, Data: r.Data})
		}
		_ = conn.PublishMsg(end)
	}
	_, err := conn.Subscribe(prefix+".>", func(m *nats.Msg) {
		if strings.HasSuffix(m.Subject, "DIRECT.GET."+subjects.ControlStream) {
			answer(m)
			return
		}
		_ = conn.PublishRequest("$JS.API."+strings.TrimPrefix(m.Subject, prefix+"."), m.Reply, m.Data)
	})
	if err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	js, err := jetstream.NewWithAPIPrefix(conn, prefix)
	if err != nil {
		t.Fatalf("jetstream: %v", err)
	}
	return js
}

func TestAViewThroughAReplicaThatLagsIsComplete(t *testing.T) {
	for name, healsAfter := range map[string]time.Duration{"it catches up": 300 * time.Millisecond, "it never catches up": time.Hour} {
		t.Run(name, func(t *testing.T) {
			srv, writer := founded(t)
			l, _, _ := leading(t, writer)
			const n = 1500
			var until uint64
			for part := range 2 {
				var changes []Change
				for i := range n / 2 {
					changes = append(changes, PutHost{kbroker.Host{Name: kbroker.HostID(fmt.Sprintf("host-%d-%d", part, i))}})
				}
				mustCommit(t, l, view(t, writer), changes...)
				if part == 0 {
					until = view(t, writer).Sequence
				}
			}
			var last atomic.Uint64
			last.Store(until)
			js := lagging(t, srv.Connect(t), last.Load)
			if got := len(unbarriered(js)); got >= n {
				t.Fatalf("a read without a barrier found all %d hosts: this test tests nothing", got)
			}
			s := open(t, srv.Connect(t), Config{Host: "h2"})
			s.follow[0].js = js
			relay(t, s, 0, func() bool { return true }) // it would show the gap
			began := time.Now()
			heal := time.AfterFunc(healsAfter, func() { last.Store(math.MaxUint64) })
			defer heal.Stop()
			start(t, s.Run)
			for range 3 {
				if v := view(t, s); len(v.Hosts) != n {
					t.Fatalf("a view holds %d of %d hosts", len(v.Hosts), n)
				}
				mustCommit(t, l, view(t, writer), PutPlacement{placement("h1", "shop-web-1", view(t, writer).Sequence)})
			}
			if took := time.Since(began); took < min(healsAfter, stallAfter) {
				t.Fatalf("the views were there after %v although the replica lagged", took)
			}
		})
	}
}
