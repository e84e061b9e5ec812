package state

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// What is beyond the limits leaves, the oldest first, and a reader sees that it has.
func TestStoredEventsAreLimited(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	w := TopicsWanted{Limits: kbroker.TopicLimits{MaxBytes: 1 << 20}, Revision: 1}
	var last uint64
	for n := range uint64(12) {
		reply, err := s.TopicPublish(testContext(t, 5*time.Second), shopKey, w, "orders", kbroker.TopicPublishRequest{From: "a", Number: n + 1, Last: last, Event: make([]byte, kbroker.MaxTopicEventBytes)})
		if err != nil {
			t.Fatal(err)
		}
		last = reply.Sequence
	}
	got, err := s.TopicRead(testContext(t, 5*time.Second), shopKey, w, "orders", kbroker.TopicReadRequest{})
	if err != nil || len(got.Events) == 0 || got.First < 4 || got.Events[0].Sequence != got.First {
		t.Fatalf("of 12 events of 128 KiB in 1 MiB %d are read, the first of %d (%v)", len(got.Events), got.First, err)
	}
	// A quiet topic that is behind what is kept is marked at once.
	for range 2 {
		got, err = s.TopicRead(testContext(t, 5*time.Second), shopKey, w, "quiet", kbroker.TopicReadRequest{After: 1})
	}
	if err != nil || got.Last != last+1 {
		t.Errorf("a quiet topic is read up to %d (%v), want %d", got.Last, err, last+1)
	}
}

// Where the cores have no room for what a spec asks, events are not stored, and it says why;
// what is there goes on with the limits that it has.
func TestNoRoomForStoredEvents(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	large := TopicsWanted{kbroker.TopicLimits{MaxBytes: 1 << 50}, 2}
	_, err := s.TopicPublish(testContext(t, 5*time.Second), shopKey, large, "orders", sentBy("a", 1))
	if e := kbroker.AsError(err); e == nil || e.Code != kbroker.Unavailable || e.Executed != kbroker.ExecutedNo || !strings.Contains(e.Hint, "topics.max_bytes") {
		t.Errorf("without room: %+v, want unavailable, not executed, and why", e)
	}
	s.publish(t, "orders", sentBy("a", 1))
	if _, err := s.TopicPublish(testContext(t, 5*time.Second), shopKey, large, "orders", sentBy("a", 2)); err != nil {
		t.Errorf("with room for what was wanted before: %v", err)
	}
}

func TestLimitsOfStoredEventsFollowTheSpec(t *testing.T) {
	t.Parallel()
	srv, s := founded(t)
	limits := func() kbroker.TopicLimits {
		t.Helper()
		name, _ := subjects.TopicStream(shopKey.Tenant, shopKey.App)
		stream, err := s.js.Stream(testContext(t, 5*time.Second), name)
		if err != nil {
			t.Fatal(err)
		}
		return kbroker.TopicLimits{Keep: stream.CachedInfo().Config.MaxAge, MaxBytes: stream.CachedInfo().Config.MaxBytes}
	}
	read := func(s *Store, w TopicsWanted) {
		t.Helper()
		if _, err := s.TopicRead(testContext(t, 5*time.Second), shopKey, w, "orders", kbroker.TopicReadRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	day := TopicsWanted{kbroker.TopicLimits{Keep: 24 * time.Hour, MaxBytes: 2 << 20}, 7}
	if _, err := s.TopicPublish(testContext(t, 5*time.Second), shopKey, TopicsWanted{Revision: 5}, "orders", sentBy("a", 1)); err != nil {
		t.Fatal(err)
	}
	if got := limits(); got != (kbroker.TopicLimits{}).Filled() {
		t.Errorf("without a word of the spec they are %+v", got)
	}
	read(s, day)
	if got := limits(); got != day.Limits {
		t.Errorf("they are %+v, want %+v", got, day.Limits)
	}
	// A core that is behind, or has just started, does not put them back.
	read(open(t, srv.Connect(t), Config{}), TopicsWanted{Revision: 5})
	if got := limits(); got != day.Limits {
		t.Errorf("a core that is behind has made them %+v", got)
	}
	hour := TopicsWanted{kbroker.TopicLimits{Keep: time.Minute}, 9}
	read(open(t, srv.Connect(t), Config{}), hour)
	if got := limits(); got != hour.Limits.Filled() {
		t.Errorf("they are %+v, want %+v", got, hour.Limits.Filled())
	}
	// Revisions of a store that was made of a copy begin again.
	name, _ := subjects.TopicStream(shopKey.Tenant, shopKey.App)
	stream, err := s.js.Stream(testContext(t, 5*time.Second), name)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	cfg.Metadata[metaTopicControl] = "another"
	if _, err := s.js.UpdateStream(testContext(t, 5*time.Second), cfg); err != nil {
		t.Fatal(err)
	}
	read(open(t, srv.Connect(t), Config{}), TopicsWanted{day.Limits, 2})
	if got := limits(); got != day.Limits {
		t.Errorf("in a rescued cluster they are %+v, want %+v", got, day.Limits)
	}
}

// A stream that is made anew has other sequences: nobody reads on where the old one was.
func TestAnotherStreamIsReadFromItsBeginning(t *testing.T) {
	t.Parallel()
	_, s := founded(t)
	for n := range uint64(3) {
		s.publish(t, "orders", sentBy("a", n+1))
	}
	was := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{})
	name, _ := subjects.TopicStream(shopKey.Tenant, shopKey.App)
	if err := s.js.DeleteStream(testContext(t, 5*time.Second), name); err != nil {
		t.Fatal(err)
	}
	e := sentAgainBy("a", 4)
	wait.Until(t, 5*time.Second, func() error {
		_, err := s.TopicPublish(testContext(t, time.Second), shopKey, someTopics, "orders", e)
		if err != nil && (!errors.Is(err, kbroker.Unavailable) || kbroker.AsError(err).Executed != kbroker.ExecutedNo) {
			t.Fatalf("publish without a stream: %v", err)
		}
		return err
	})
	got := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{After: was.Last, Stream: was.Stream})
	if !slices.Equal(textsOf(got), []string{"a 4"}) || got.Stream == was.Stream || got.Last != 1 {
		t.Errorf("read %q up to %d, in stream %d after %d", textsOf(got), got.Last, got.Stream, was.Stream)
	}
}

// A stream that was made of a copy has the sequences of the copy. What the copy lacked was
// given to other events since: who had read on further reads these, too.
func TestACopiedStreamIsReadOnWhereTheCopyEnds(t *testing.T) {
	t.Parallel()
	srv, s := founded(t)
	for n := range uint64(5) {
		s.publish(t, "orders", sentBy("a", n+1))
	}
	was := s.readEventsOf(t, "orders", kbroker.TopicReadRequest{})
	name, _ := subjects.TopicStream(shopKey.Tenant, shopKey.App)
	stream, err := s.js.Stream(testContext(t, 5*time.Second), name)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	if err := s.js.DeleteStream(testContext(t, 5*time.Second), name); err != nil {
		t.Fatal(err)
	}
	cfg.FirstSeq, cfg.Metadata[subjects.CopiedUpTo] = 3, "4"
	if _, err := s.js.CreateStream(testContext(t, 5*time.Second), cfg); err != nil {
		t.Fatal(err)
	}
	rescued := open(t, srv.Connect(t), Config{})
	for _, n := range []uint64{3, 4, 6, 7} {
		e := sentAgainBy("a", n)
		e.Last = 5 // as it was
		rescued.publish(t, "orders", e)
	}
	for _, c := range []struct {
		after uint64
		want  []string
	}{{was.Last, []string{"a 6", "a 7"}}, {3, []string{"a 4", "a 6", "a 7"}}, {0, []string{"a 3", "a 4", "a 6", "a 7"}}} {
		if got := rescued.readEventsOf(t, "orders", kbroker.TopicReadRequest{After: c.after, Stream: was.Stream}); !slices.Equal(textsOf(got), c.want) || got.Last != 6 || got.Stream == was.Stream {
			t.Errorf("who had read up to %d reads %q, up to %d", c.after, textsOf(got), got.Last)
		}
	}
}
