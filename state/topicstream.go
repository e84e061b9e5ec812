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
// its record that says so.
type TopicsWanted struct {
	Limits   kbroker.TopicLimits
	Revision uint64
}

// TopicsWanted is what this core knows of it; false: it knows no such app, which it may
// only be behind.
func (s *Store) TopicsWanted(k AppKey) (TopicsWanted, bool) { return s.control.topics(k) }

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
// any core does, with the first request for them. The error says that nothing was done.
func (s *Store) ensureTopics(ctx context.Context, k AppKey, w TopicsWanted) error {
	w.Limits = w.Limits.Filled()
	if s.topics.has(k, w) {
		return nil
	}
	fresh, err := s.createTopics(ctx, k, w)
	if err != nil {
		return notStored(err)
	}
	if !fresh {
		// What is stored is stored, whatever the limits are.
		if err := s.limitTopics(ctx, k, w); err != nil {
			s.cfg.Log.Warn("the limits of stored events were not changed; tried again in a minute", "app", k.App, "err", err)
		}
	}
	s.topics.put(k, w)
	return nil
}

func (s *Store) createTopics(ctx context.Context, k AppKey, w TopicsWanted) (fresh bool, err error) {
	name, all := subjects.TopicStream(k.Tenant, k.App)
	if _, err := streamOf(ctx, s.js, name); err == nil {
		return false, nil
	} else if !errors.Is(err, jetstream.ErrStreamNotFound) {
		return false, unavailable(err, "look at stream %s", name)
	}
	replicas, placement, err := s.like(ctx)
	if err != nil {
		return false, err
	}
	control, err := s.controlBorn(ctx)
	if err != nil {
		return false, err
	}
	return create(ctx, s.js, jetstream.StreamConfig{
		Name: name, Subjects: []string{all}, Discard: jetstream.DiscardOld,
		MaxAge: w.Limits.Keep, MaxBytes: w.Limits.MaxBytes, Duplicates: topicTwice,
		MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1,
		Storage: jetstream.FileStorage, Replicas: replicas, Placement: placement, DenyDelete: true, AllowDirect: true,
		Metadata: map[string]string{metaTopicRevision: strconv.FormatUint(w.Revision, 10), metaTopicControl: control},
	})
}

// limitTopics has the stream keep what is wanted, unless what it keeps was wanted later:
// this core may be behind. The server has no compare-and-set for a configuration: two cores
// at a time look again after topicsLooked.
func (s *Store) limitTopics(ctx context.Context, k AppKey, w TopicsWanted) error {
	name, _ := subjects.TopicStream(k.Tenant, k.App)
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	stream, err := streamOf(ctx, s.js, name)
	if err != nil {
		return fmt.Errorf("look at stream %s: %w", name, err)
	}
	now := stream.CachedInfo().Config
	if now.MaxAge == w.Limits.Keep && now.MaxBytes == w.Limits.MaxBytes {
		return nil
	}
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
	if _, err := s.js.UpdateStream(ctx, now); err != nil {
		return fmt.Errorf("update stream %s: %w", name, err)
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
