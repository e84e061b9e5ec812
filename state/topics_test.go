package state

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

var someTopics = TopicsWanted{Revision: 1}

// publish stores an event as soon as there is a stream that takes it.
func (s *Store) publish(t testing.TB, topic string, r kbroker.TopicPublishRequest) uint64 {
	t.Helper()
	reply, err := s.TopicPublish(testContext(t, 5*time.Second), shopKey, someTopics, topic, r)
	if err != nil {
		t.Fatalf("publish %+v: %v", r, err)
	}
	return reply.Sequence
}

func sentBy(from string, number uint64) kbroker.TopicPublishRequest {
	return kbroker.TopicPublishRequest{From: from, Number: number, Event: fmt.Appendf(nil, "%s %d", from, number)}
}

func sentAgainBy(from string, number uint64) kbroker.TopicPublishRequest {
	r := sentBy(from, number)
	r.Again = true
	return r
}

func (s *Store) readEventsOf(t testing.TB, topic string, r kbroker.TopicReadRequest) kbroker.TopicReadReply {
	t.Helper()
	reply, err := s.TopicRead(testContext(t, 5*time.Second), shopKey, someTopics, topic, r)
	if err != nil {
		t.Fatalf("read %+v: %v", r, err)
	}
	return reply
}

// texts are the events of a topic, read in pages.
func (s *Store) texts(t testing.TB, topic string) []string {
	t.Helper()
	var all []string
	for r := (kbroker.TopicReadRequest{}); ; {
		reply := s.readEventsOf(t, topic, r)
		all = append(all, textsOf(reply)...)
		if len(reply.Events) == 0 {
			return all
		}
		r.After, r.Stream = reply.Last, reply.Stream
	}
}

func textsOf(r kbroker.TopicReadReply) (all []string) {
	for _, e := range r.Events {
		all = append(all, string(e.Data))
	}
	return all
}

func TestEventsOfATopicAreReadInTheirOrder(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	for _, r := range []kbroker.TopicReadRequest{{}, {End: true}} {
		if reply := s.readEventsOf(t, "orders", r); len(reply.Events) != 0 || reply.Last != 0 || reply.Stream != 0 {
			t.Errorf("before there is any: %+v", reply)
		}
	}
	if _, err := s.TopicPublish(t.Context(), shopKey, TopicsWanted{}, "orders", sentBy("a", 1)); !errors.Is(err, kbroker.Unavailable) || kbroker.AsError(err).Executed != kbroker.ExecutedNo {
		t.Errorf("of an app that is not known: %v, want unavailable, executed no", err)
	}
	began := time.Now()
	first := s.publish(t, "orders", sentBy("a", 1))
	s.publish(t, "returns", sentBy("a", 1))
	second := s.publish(t, "orders", sentBy("b", 7))
	s.publish(t, "returns", sentBy("a", 2))
	got := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{})
	if !slices.Equal(textsOf(got), []string{"a 1", "b 7"}) || got.Events[0].Sequence != first || got.Events[1].Sequence != second || got.Last != second || got.First != first {
		t.Fatalf("the events are %+v", got)
	}
	if at := got.Events[0].At; at.Before(began.Add(-time.Second)) || at.After(time.Now().Add(time.Second)) {
		t.Errorf("the first event was stored at %v, the test began at %v", at, began)
	}
	one := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{Limit: 1})
	if !slices.Equal(textsOf(one), []string{"a 1"}) || one.Last != first {
		t.Errorf("of one event is read: %+v", one)
	}
	if rest := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{After: one.Last, Stream: one.Stream}); !slices.Equal(textsOf(rest), []string{"b 7"}) {
		t.Errorf("what follows is %+v", rest)
	}
	if end := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{End: true}); len(end.Events) != 0 || end.Last != second+1 {
		t.Errorf("the end is %+v, want %d", end, second+1)
	}
	if none := s.readEventsOf(t, "nothing", kbroker.TopicReadRequest{After: first}); len(none.Events) != 0 || none.Last != first {
		t.Errorf("of a topic without events is read: %+v", none)
	}
	for name, err := range map[string]error{
		"a topic that is none": errOf(s.TopicPublish(t.Context(), shopKey, someTopics, "a.b", sentBy("a", 1))),
		"to read one":          errOf(s.TopicRead(t.Context(), shopKey, someTopics, "*", kbroker.TopicReadRequest{})),
		"no sender":            errOf(s.TopicPublish(t.Context(), shopKey, someTopics, "a", kbroker.TopicPublishRequest{Number: 1})),
		"too many":             errOf(s.TopicRead(t.Context(), shopKey, someTopics, "a", kbroker.TopicReadRequest{Limit: 1000})),
	} {
		if !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

func errOf[T any](_ T, err error) error { return err }

func TestAPageOfEventsIsBounded(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	var last uint64
	for n := range 6 {
		last = s.publish(t, "orders", kbroker.TopicPublishRequest{From: "a", Number: uint64(n) + 1, Last: last, Event: []byte(strings.Repeat("x", kbroker.MaxTopicEventBytes))})
	}
	got := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{})
	data, err := got.MarshalBinary()
	if err != nil || len(data) > 1<<20 || len(got.Events) != 4 || got.Last != got.Events[3].Sequence {
		t.Errorf("a page has %d events, up to %d, in %d bytes (%v), want 4", len(got.Events), got.Last, len(data), err)
	}
	if rest := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{After: got.Last}); len(rest.Events) != 2 {
		t.Errorf("%d events follow, want 2", len(rest.Events))
	}
	if one := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{Bytes: 1}); len(one.Events) != 1 || one.Last != one.Events[0].Sequence {
		t.Errorf("of one byte there are %d events, want 1", len(one.Events))
	}
	if two := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{Bytes: 5 * kbroker.MaxTopicEventBytes / 2}); len(two.Events) != 2 || two.Last != two.Events[1].Sequence {
		t.Errorf("of room for two and a half there are %d events", len(two.Events))
	}
}

// However an event is sent again, also by who knows nothing of it, it is there once.
func TestAnEventIsStoredOnce(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	first := s.publish(t, "orders", sentBy("a", 1))
	for name, r := range map[string]kbroker.TopicPublishRequest{"a late copy": sentBy("a", 1), "one that is sent again": sentAgainBy("a", 1)} {
		if got := s.publish(t, "orders", r); got != first {
			t.Errorf("%s is at %d, want %d", name, got, first)
		}
	}
	next := sentBy("a", 2)
	next.Last = first
	second := s.publish(t, "orders", next)
	third := s.publish(t, "orders", sentBy("a", 5)) // it does not know its last one
	for name, r := range map[string]kbroker.TopicPublishRequest{
		"a late copy of the second": next, "the second, sent again": sentAgainBy("a", 2), "a late copy of the first": sentBy("a", 1), "a number that was left out": sentAgainBy("a", 4),
	} {
		if got := s.publish(t, "orders", r); got != third {
			t.Errorf("%s is at %d, want what is known of its sender: %d", name, got, third)
		}
	}
	if other := s.publish(t, "returns", sentAgainBy("a", 1)); other <= second {
		t.Errorf("an event of another topic is at %d", other)
	}
	if got, want := s.texts(t, "orders"), []string{"a 1", "a 2", "a 5"}; !slices.Equal(got, want) {
		t.Errorf("stored are %q, want %q", got, want)
	}
}

// Of copies on their way at once one is stored.
func TestCopiesAtOnceAreStoredOnce(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	s.publish(t, "returns", sentBy("a", 1)) // which makes the stream
	const copies, numbers = 8, 20
	var last uint64
	for n := uint64(1); n <= numbers; n++ {
		stored := make(chan uint64, copies)
		for c := range copies {
			r := sentBy("a", n)
			r.Last, r.Again = last, c%2 == 0
			go func() {
				for {
					reply, err := s.TopicPublish(context.Background(), shopKey, someTopics, "orders", r)
					if !errors.Is(err, kbroker.Overloaded) {
						if err != nil {
							t.Errorf("copy %d of event %d: %v", c, n, err)
						}
						stored <- reply.Sequence
						return
					}
				}
			}()
		}
		for c := range copies {
			if got := <-stored; c == 0 {
				last = got
			} else if got != last {
				t.Fatalf("event %d is at %d and at %d", n, last, got)
			}
		}
	}
	if got := s.texts(t, "orders"); len(got) != numbers {
		t.Errorf("%d events are stored, want %d: %q", len(got), numbers, got)
	}
}

// Whatever copies are late, and whatever a sender knows, what is stored of it are its
// numbers, once each and in their order.
func TestLateCopiesStoreNothing(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	run := 0
	rapid.Check(t, func(rt *rapid.T) {
		run++
		topic := fmt.Sprintf("t%d", run)
		var sent []kbroker.TopicPublishRequest
		var want []string
		last := map[string]uint64{}
		number := map[string]uint64{}
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			if len(sent) > 0 && rapid.Bool().Draw(rt, "late") {
				late := rapid.SampledFrom(sent).Draw(rt, "copy")
				late.Again = late.Again || rapid.Bool().Draw(rt, "again")
				s.publish(t, topic, late)
				continue
			}
			from := rapid.SampledFrom([]string{"a", "b"}).Draw(rt, "from")
			number[from] += rapid.Uint64Range(1, 3).Draw(rt, "more")
			r := sentBy(from, number[from])
			if r.Last = last[from]; rapid.Bool().Draw(rt, "forgotten") {
				r.Last = 0
			}
			last[from] = s.publish(t, topic, r)
			sent, want = append(sent, r), append(want, string(r.Event))
		}
		if got := s.texts(t, topic); !slices.Equal(got, want) {
			rt.Fatalf("stored are %q, want %q", got, want)
		}
	})
}

// A topic that is quiet beside others is marked, so that who reads it comes on.
func TestAQuietTopicIsReadOn(t *testing.T) {
	t.Parallel()
	srv, s := founded(t)
	quiet := s.publish(t, "quiet", sentBy("a", 1))
	fill(t, srv.Connect(t), markAfter+1)
	r := kbroker.TopicReadRequest{After: quiet}
	if got := s.readEventsOf(t, "quiet", r); len(got.Events) != 0 || got.Last != quiet {
		t.Errorf("at first is read: %d events, up to %d", len(got.Events), got.Last)
	}
	got := s.readEventsOf(t, "quiet", r)
	if len(got.Events) != 0 || got.Last != quiet+markAfter+2 {
		t.Fatalf("behind its mark are read %d events, up to %d, want %d", len(got.Events), got.Last, quiet+markAfter+2)
	}
	end := got.Last
	if got := s.readEventsOf(t, "quiet", kbroker.TopicReadRequest{After: end}); got.Last != end {
		t.Errorf("at the end is read up to %d", got.Last)
	}
	s.publish(t, "quiet", sentBy("a", 2))
	if got := s.texts(t, "quiet"); !slices.Equal(got, []string{"a 1", "a 2"}) {
		t.Errorf("its events are %q", got)
	}
	if got := s.readEventsOf(t, "quiet", kbroker.TopicReadRequest{After: quiet}); !slices.Equal(textsOf(got), []string{"a 2"}) {
		t.Errorf("behind the first is %q", textsOf(got))
	}
}

// fill stores events of another topic.
func fill(t testing.TB, conn *nats.Conn, n int) {
	t.Helper()
	for range n {
		if err := conn.Publish(subjects.StoredEvent(shopKey.Tenant, shopKey.App, "busy", "b"), []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	stream, _ := subjects.TopicStream(shopKey.Tenant, shopKey.App)
	wait.Until(t, 10*time.Second, func() error {
		m, err := readLast(t.Context(), conn, stream, subjects.StoredEvent(shopKey.Tenant, shopKey.App, "busy", "b"))
		if err == nil && (m == nil || m.seq < uint64(n)) {
			err = errors.New("not all are stored yet")
		}
		return err
	})
}

// The server that leads the stream goes away while senders publish, as it is due after
// each error, and others read. Each event is stored once, in the order of its sender, and
// no reader passes one by, whichever replica answers.
func TestEventsWhoseLeaderGoesAway(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	if err := Found(testContext(t, 20*time.Second), c.Connect(t, 0)); err != nil {
		t.Fatalf("found: %v", err)
	}
	replicate(t, c.Connect(t, 0))
	name, _ := subjects.TopicStream(shopKey.Tenant, shopKey.App)
	open(t, c.Connect(t, 0), Config{}).publish(t, "returns", sentBy("a", 1))
	var leader int
	wait.Until(t, 10*time.Second, func() error {
		if leader = c.StreamLeader(name); leader < 0 {
			return errors.New("nobody leads the stream")
		}
		return nil
	})
	const senders, each, stopped = 4, 40, 15
	stores := []*Store{open(t, c.Connect(t, (leader+1)%3), Config{}), open(t, c.Connect(t, (leader+2)%3), Config{})}
	gone := make(chan struct{})
	sent := make(chan error, senders)
	for i := range senders {
		go func() {
			from, last := fmt.Sprint("s", i), uint64(0)
			for n := uint64(1); n <= each; n++ {
				if i == 0 && n == stopped {
					go func() { c.Stop(leader); close(gone) }()
				}
				r := sentBy(from, n)
				r.Last = last
				for until := time.Now().Add(30 * time.Second); ; {
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					reply, err := stores[i%2].TopicPublish(ctx, shopKey, someTopics, "orders", r)
					cancel()
					if err == nil {
						last = reply.Sequence
						break
					}
					if r.Again = true; time.Now().After(until) {
						sent <- err
						return
					}
				}
			}
			sent <- nil
		}()
	}
	read := make([][]string, len(stores))
	done := make(chan struct{})
	readers := make(chan struct{}, len(stores))
	for i, s := range stores {
		go func() {
			defer func() { readers <- struct{}{} }()
			r := kbroker.TopicReadRequest{Limit: 7}
			for until := time.Now().Add(60 * time.Second); time.Now().Before(until); {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				reply, err := s.TopicRead(ctx, shopKey, someTopics, "orders", r)
				cancel()
				if err != nil {
					continue
				}
				read[i] = append(read[i], textsOf(reply)...)
				r.After, r.Stream = reply.Last, reply.Stream
				select {
				case <-done:
					if len(read[i]) >= senders*each {
						return
					}
				default:
				}
			}
		}()
	}
	for range senders {
		if err := <-sent; err != nil {
			t.Error(err)
		}
	}
	<-gone
	close(done)
	for range stores {
		<-readers
	}
	for i, got := range read {
		number := map[string]int{}
		for _, e := range got {
			from, n, _ := strings.Cut(e, " ")
			if number[from]++; n != fmt.Sprint(number[from]) {
				t.Fatalf("reader %d: event %d of %s is %s", i, number[from], from, n)
			}
		}
		if len(got) != senders*each {
			t.Errorf("reader %d has %d events, want %d", i, len(got), senders*each)
		}
	}
}
