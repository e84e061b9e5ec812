package state

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// manyAtOnce are read by one question: a server answers no more.
	manyAtOnce = 1024
	// manyBytes bounds the answer.
	manyBytes = 2 << 20
	// manyTimeout is how long the answer is waited for, some ten times as long as it takes: a host
	// that has died without a word may be the one that is asked, and who asks may be its heir.
	manyTimeout = 200 * time.Millisecond
)

// Of the server: up to which sequence the one who answers has the stream.
const headerUpTo = "Nats-UpTo-Sequence"

// OwnBelow reads all records of the ownership of an app that are below the beginning of a key,
// as OwnRead does, and with few questions. Errors: Invalid, Unavailable.
func (s *Store) OwnBelow(ctx context.Context, k AppKey, match string) ([]kbroker.Stored, error) {
	keys, floor, err := s.keysBelow(ctx, k, 0, match, "")
	if err != nil {
		return nil, err
	}
	at, err := ownPlace(k, 0, keys)
	if err != nil {
		return nil, err
	}
	var all []kbroker.Stored
	for r, err := range s.readMany(ctx, at, keys, floor) {
		if err != nil {
			return nil, err
		}
		if r.Exists() {
			all = append(all, r)
		}
	}
	return all, nil
}

// readMany reads records as they are at the leader, or were written since, in the order of
// their keys, up to the first error. floor is the last sequence of the stream that the leader
// has named since the reader has begun; 0: it is still to be asked.
//
// Any server that has the stream answers a question for many. It may be behind the leader, or
// has just come back: what it answers counts only if it has the stream up to floor. What is not
// in its answer, and all where nobody has one that counts, is read from the leader one by one.
func (s *Store) readMany(ctx context.Context, at ownAt, keys []string, floor uint64) iter.Seq2[kbroker.Stored, error] {
	return func(yield func(kbroker.Stored, error) bool) {
		found := map[string]kbroker.Stored{}
		if len(keys) > readsAtOnce {
			if err := s.readTogether(ctx, at, keys, floor, found); err != nil {
				s.cfg.Log.Debug("records are read one by one", "object", at.stream, "err", err)
			}
		}
		for i, key := range keys {
			r, is := found[key]
			if !is {
				var absent []string
				for _, next := range keys[i:] {
					if _, is := found[next]; !is && len(absent) < readsAtOnce {
						absent = append(absent, next)
					}
				}
				records, err := s.readAll(ctx, at, absent)
				if err != nil {
					yield(r, err)
					return
				}
				for _, a := range records {
					found[a.Key] = a
				}
				r = found[key]
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

// readTogether finds what it can by few questions.
func (s *Store) readTogether(ctx context.Context, at ownAt, keys []string, floor uint64, found map[string]kbroker.Stored) error {
	if floor == 0 {
		var err error
		if floor, err = lastSequence(ctx, s.js, at.stream); err != nil {
			return err
		}
	}
	for some := range slices.Chunk(keys, manyAtOnce) {
		answer, err := s.askMany(ctx, at, some, floor)
		if err != nil {
			return err
		}
		maps.Copy(found, answer)
	}
	return nil
}

// askMany asks any server for the records that it has of keys; it has the stream up to floor.
func (s *Store) askMany(ctx context.Context, at ownAt, keys []string, floor uint64) (map[string]kbroker.Stored, error) {
	wanted := make([]string, len(keys))
	for i, key := range keys {
		wanted[i] = at.prefix + key
	}
	body, err := json.Marshal(map[string]any{"multi_last": wanted, "max_bytes": manyBytes})
	if err != nil {
		return nil, fmt.Errorf("encode the question: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, manyTimeout)
	defer cancel()
	inbox := s.cfg.Conn.NewInbox()
	sub, err := s.cfg.Conn.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("hear the answer: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // it fails when the connection is closed
	if err := s.cfg.Conn.PublishRequest(subjects.AnyRead(at.stream), inbox, body); err != nil {
		return nil, fmt.Errorf("ask for records of stream %s: %w", at.stream, err)
	}
	found := make(map[string]kbroker.Stored, len(keys))
	for before := uint64(0); ; {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			return nil, fmt.Errorf("read %d records of stream %s: %w", len(keys), at.stream, err)
		}
		prev, named := headerUint(m.Header, jetstream.LastSequenceHeader)
		if !named || prev != before { // each names the one before it, so that a lost one is seen
			return nil, fmt.Errorf("read %d records of stream %s: %v follows message %d", len(keys), at.stream, m.Header, before)
		}
		seq, stored := headerUint(m.Header, jetstream.SequenceHeader)
		if !stored {
			if has, _ := headerUint(m.Header, headerUpTo); has < floor {
				return nil, fmt.Errorf("read %d records of stream %s: who answers has it up to %d, its leader to %d", len(keys), at.stream, has, floor)
			}
			return found, nil
		}
		before = seq
		subject := m.Header[jetstream.SubjectHeader]
		r := kbroker.Stored{Key: strings.TrimPrefix(subject[len(subject)-1], at.prefix), Revision: kbroker.Revision(seq)}
		if !deleted(m.Header) {
			r.Value = m.Data
		}
		found[r.Key] = r
	}
}
