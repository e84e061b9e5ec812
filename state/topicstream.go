package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// topicsLooked is for how long a core takes the limits of a stream of events for what it
	// has seen there. Two cores may have changed them at the same time, the one that knew
	// less last.
	topicsLooked = time.Minute
	// topicsMade bounds the making of a stream for one event: who asks comes again, and others
	// wait for the room.
	topicsMade = time.Second
	// topicTwice is how long the stream knows IDs of messages: none has one.
	topicTwice = time.Second
)

// What is in the metadata of a stream of events: of which revision of the app's record its
// limits are, and of which control store, as revisions begin again in a rescued one.
const (
	metaTopicRevision = "kbroker.app.revision"
	metaTopicControl  = "kbroker.control"
)

// TopicsWanted is how the events of an app's topics are to be stored, and the revision of
// its record that says so; 0: it is not known.
type TopicsWanted struct {
	Limits   kbroker.TopicLimits
	Revision uint64
}

// TopicsWanted is what this core knows of it: nothing of an app that it does not know, as
// there is none, or it is behind.
func (s *Store) TopicsWanted(k AppKey) TopicsWanted { return s.control.topics(k) }

// looked are the limits that streams of events have been seen with. Safe for concurrent use.
type looked struct {
	clock Clock

	mu   sync.Mutex
	apps map[AppKey]lookedAt
}

type lookedAt struct {
	wanted TopicsWanted
	until  time.Duration
}

func (l *looked) has(k AppKey, w TopicsWanted) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at, ok := l.apps[k]
	return ok && at.wanted.Limits == w.Limits && l.clock() < at.until
}

func (l *looked) put(k AppKey, w TopicsWanted) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.apps[k] = lookedAt{w, l.clock() + topicsLooked}
}

func (l *looked) forget(k AppKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.apps, k)
}

// ensureTopics makes the stream of an app's events exist, with the limits that are wanted:
// any core does, with the first event. The error says that nothing was done.
func (s *Store) ensureTopics(ctx context.Context, k AppKey, w TopicsWanted) error {
	w.Limits = w.Limits.Filled()
	if s.topics.has(k, w) {
		return nil
	}
	if w.Revision == 0 {
		return notStored(kbroker.Errorf(kbroker.Unavailable, "core %s does not know app %s", s.cfg.Host, k.App).
			WithHint("events of an app are stored once it is deployed"))
	}
	info, err := s.topicStream(ctx, k)
	switch {
	case err == nil:
		s.limitTopics(ctx, k, w, info.Config)
		return nil
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return notStored(unavailable(err, "the events of app %s", k.App))
	}
	if err := s.createTopics(ctx, k, w); err != nil {
		return notStored(err)
	}
	s.topics.put(k, w)
	return nil
}

// topicStream asks for the state of the stream of an app's events.
func (s *Store) topicStream(ctx context.Context, k AppKey) (*jetstream.StreamInfo, error) {
	name, _ := subjects.TopicStream(k.Tenant, k.App)
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	stream, err := streamOf(ctx, s.js, name)
	if err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", name, err)
	}
	return stream.CachedInfo(), nil
}

func (s *Store) createTopics(ctx context.Context, k AppKey, w TopicsWanted) error {
	ctx, cancel := context.WithTimeout(ctx, topicsMade)
	defer cancel()
	name, all := subjects.TopicStream(k.Tenant, k.App)
	replicas, placement, err := s.like(ctx)
	if err != nil {
		return err
	}
	control, err := s.controlBorn(ctx)
	if err != nil {
		return err
	}
	_, err = create(ctx, s.js, jetstream.StreamConfig{
		Name: name, Subjects: []string{all}, Discard: jetstream.DiscardOld,
		MaxAge: w.Limits.Keep, MaxBytes: w.Limits.MaxBytes, Duplicates: topicTwice,
		MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1,
		Storage: jetstream.FileStorage, Replicas: replicas, Placement: placement, DenyDelete: true, AllowDirect: true,
		Metadata: map[string]string{metaTopicRevision: strconv.FormatUint(w.Revision, 10), metaTopicControl: control, subjects.CopiedUpTo: ""},
	})
	if err != nil {
		// All others have answered.
		return kbroker.AsError(err).WithHint("a core keeps topics.max_bytes of the app's spec, %d MiB, free on its disk: have the cores as much?", w.Limits.MaxBytes>>20)
	}
	return nil
}

// limitTopics has the stream, which is as now says, keep what is wanted. What is stored is
// stored, whatever the limits are: a failure is an operator's affair, and tried again after
// topicsLooked.
func (s *Store) limitTopics(ctx context.Context, k AppKey, w TopicsWanted, now jetstream.StreamConfig) {
	w.Limits = w.Limits.Filled()
	if w.Revision == 0 || s.topics.has(k, w) {
		return
	}
	s.topics.put(k, w)
	if now.MaxAge == w.Limits.Keep && now.MaxBytes == w.Limits.MaxBytes {
		return
	}
	if err := s.changeLimits(ctx, w, now); err != nil {
		s.cfg.Log.Warn("the limits of stored events were not changed; tried again in a minute", "app", k.App, "err", err)
	}
}

// changeLimits changes those of a stream, unless what it has was wanted later: this core may
// be behind. The server has no compare-and-set for a configuration.
func (s *Store) changeLimits(ctx context.Context, w TopicsWanted, now jetstream.StreamConfig) error {
	control, err := s.controlBorn(ctx)
	if err != nil {
		return err
	}
	if later, err := strconv.ParseUint(now.Metadata[metaTopicRevision], 10, 64); err == nil && now.Metadata[metaTopicControl] == control && later > w.Revision {
		return nil
	}
	now.Metadata = maps.Clone(now.Metadata)
	if now.Metadata == nil {
		now.Metadata = map[string]string{}
	}
	now.Metadata[metaTopicRevision], now.Metadata[metaTopicControl] = strconv.FormatUint(w.Revision, 10), control
	now.MaxAge, now.MaxBytes = w.Limits.Keep, w.Limits.MaxBytes
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	if _, err := s.js.UpdateStream(ctx, now); err != nil {
		return fmt.Errorf("update stream %s: %w", now.Name, err)
	}
	return nil
}

// controlBorn tells one control store from another: a rescue makes a new one.
func (s *Store) controlBorn(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	control, err := streamOf(ctx, s.js, subjects.ControlStream)
	if err != nil {
		return "", unavailable(err, "look at the control store")
	}
	return strconv.FormatInt(control.CachedInfo().Created.UnixNano(), 10), nil
}
