package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// readsAtOnce are under way for one request.
	readsAtOnce = 8
	// workMarkerTTL is how long the marker of a message or a reminder stays, and of a lease:
	// objects have thousands of them, all are read when one is loaded, and what is late is
	// refused by the object's record in its batch, or as there is nothing where it expects
	// something. Leases are read each second, each start has one, and a first one that is so
	// late is of who holds none any more: it is never renewed.
	workMarkerTTL = time.Minute
	// maxReadBytes bounds the records of an answer, their keys among them.
	maxReadBytes = kbroker.MaxBatchBytes
)

// OwnRead reads records of the ownership or of the objects of an app, which has so many
// streams of objects, as they are at the leader of their stream; see kbroker.OwnReadRequest.
// They are not of one moment: what is decided by several is written with their revisions.
// A leader that is cut off from the others answers for a while, with what it knows: what is
// read says what to try, and an accepted write who was right.
//
// Errors: Invalid - the request is none, its keys are none, or not of one stream;
// Unavailable - the leader does not answer.
func (s *Store) OwnRead(ctx context.Context, k AppKey, streams int, r kbroker.OwnReadRequest) (kbroker.OwnReadReply, error) {
	if err := r.Check(); err != nil {
		return kbroker.OwnReadReply{}, err
	}
	if r.Since > 0 {
		same, err := s.sameBelow(ctx, k, streams, r.Match, r.Since)
		if err != nil || same {
			return kbroker.OwnReadReply{Same: same}, err
		}
	}
	keys, total, floor := r.Keys, len(r.Keys), uint64(0)
	if r.Match != "" {
		below, named, err := s.keysBelow(ctx, k, streams, r.Match, r.After)
		if err != nil {
			return kbroker.OwnReadReply{}, err
		}
		keys, total, floor = below[:min(len(below), kbroker.MaxReadKeys)], len(below), named
	}
	at, err := ownPlace(k, streams, keys)
	out := kbroker.OwnReadReply{At: kbroker.Revision(floor)}
	if err != nil || len(keys) == 0 {
		return out, err
	}
	read, size := 0, 0
	for rec, err := range s.readMany(ctx, at, keys, floor) {
		if err != nil {
			return kbroker.OwnReadReply{}, err
		}
		if size += len(rec.Key) + len(rec.Value); size > maxReadBytes && read > 0 {
			out.More = true
			return out, nil
		}
		read++
		if r.Match == "" || rec.Exists() {
			out.Records = append(out.Records, rec)
		}
	}
	if out.More = read < total; out.More && len(out.Records) == 0 {
		// All that was looked at has gone meanwhile: who asks goes on behind the last.
		return s.OwnRead(ctx, k, streams, kbroker.OwnReadRequest{Match: r.Match, After: keys[read-1]})
	}
	return out, nil
}

// OwnWrite writes a batch of one stream of an app, which has so many streams of objects;
// see kbroker.OwnWriteRequest. Of the lease of its allocators it stores its own encoding.
// Further errors: Invalid - the request is none, its keys are none, or not of one stream.
//
// A core decides nothing and remembers nothing between two requests. It publishes what it
// was sent once, or again only where nobody had it. So what holds for a batch at the
// stream holds for one behind a core, also if the core was paused, and the batch is late: it
// is refused if anything that it expects has been written since. Who asks has given that
// attempt up, and finds out what became of it by a read, or by the same batch once more.
//
// A record that is taken away leaves a marker for markerTTL, as a deleted key of the control
// store does, so that its revision is still there for a write that is late; a lease, and a
// message or a reminder of an object, for workMarkerTTL. One that comes even later, and alone
// expects that there is nothing, is taken.
func (s *Store) OwnWrite(ctx context.Context, k AppKey, streams int, r kbroker.OwnWriteRequest) (kbroker.OwnWriteReply, error) {
	if err := r.Check(); err != nil {
		return kbroker.OwnWriteReply{}, err
	}
	var keys []string
	for _, w := range r.Writes {
		if keys = append(keys, w.Key); w.Guard != "" {
			keys = append(keys, w.Guard)
		}
	}
	at, err := ownPlace(k, streams, keys)
	if err != nil {
		return kbroker.OwnWriteReply{}, err
	}
	msgs := make([]*nats.Msg, len(r.Writes))
	for i, w := range r.Writes {
		if msgs[i], err = ownRecord(k, at, w); err != nil {
			return kbroker.OwnWriteReply{}, err
		}
	}
	last, err := answered(ctx, func() (uint64, error) { return publishBatchAtOnce(ctx, s.js, msgs) })
	if err != nil {
		return kbroker.OwnWriteReply{}, ownError(err, k, r.Writes)
	}
	return kbroker.OwnWriteReply{First: kbroker.Revision(last - uint64(len(msgs)-1))}, nil
}

// ownError says what became of a batch.
func ownError(err error, k AppKey, writes []kbroker.Write) error {
	what := fmt.Sprintf("write %d records of app %s, the first %s", len(writes), k.App, writes[0])
	outcome := func(code kbroker.Code, executed kbroker.Executed) error {
		e := kbroker.Errorf(code, "%s: %v", what, err)
		e.Executed = executed
		return e
	}
	switch code(err) {
	case codeWrongSequence:
		return outcome(kbroker.Conflict, kbroker.ExecutedNo)
	case codeInFlight, codeIncompleteBatch, codeManyBatches:
		return outcome(kbroker.Overloaded, kbroker.ExecutedNo)
	}
	if errors.Is(err, nats.ErrNoResponders) {
		return outcome(kbroker.Unavailable, kbroker.ExecutedNo) // nobody leads the stream
	}
	return outcome(kbroker.Unavailable, kbroker.ExecutedUnknown)
}

// ownAt is a stream, and what its subjects are but for the key.
type ownAt struct{ stream, prefix string }

// ownPlace finds the one stream in which records are stored.
func ownPlace(k AppKey, streams int, keys []string) (at ownAt, err error) {
	for i, key := range keys {
		stream, prefix, ok := subjects.StoredAt(k.Tenant, k.App, streams, key)
		if !ok || subjects.ParseOwnKey(key).Table == subjects.OwnUnknown {
			return at, kbroker.Errorf(kbroker.Invalid, "%.80q is not a key of app %s, which has %d streams of objects", key, k.App, streams)
		}
		if i > 0 && at.stream != stream {
			return at, kbroker.Errorf(kbroker.Invalid, "%s is in stream %s, %s in %s: want all in one", keys[0], at.stream, key, stream)
		}
		at = ownAt{stream, prefix}
	}
	return at, nil
}

// ownRecord is a write as a message of a batch.
func ownRecord(k AppKey, at ownAt, w kbroker.Write) (*nats.Msg, error) {
	subject := at.prefix + w.Key
	m := newMsg(subject, w.Value)
	table := subjects.ParseOwnKey(w.Key).Table
	switch {
	case table == subjects.OwnAllocatorLease:
		var l kbroker.AllocatorLease
		if err := json.Unmarshal(w.Value, &l); err != nil || !IsAllocatorOf(k.App, l.Holder) {
			return nil, kbroker.Errorf(kbroker.Invalid, "%s of app %s: want the lease of one of its allocators", w.Key, k.App)
		}
		m = newRecord(subject, recordOf(l))
	case len(w.Value) == 0 && (table == subjects.OwnOut || table == subjects.OwnDue || table == subjects.OwnLease):
		m = newMarkerFor(subject, workMarkerTTL)
	case len(w.Value) == 0:
		m = newMarker(subject)
	case table < subjects.OwnState && len(w.Value) > kbroker.MaxOwnershipBytes:
		return nil, kbroker.Errorf(kbroker.Invalid, "%s has %d bytes, at most %d are allowed", w.Key, len(w.Value), kbroker.MaxOwnershipBytes)
	}
	if w.Guard == "" {
		expect(m, uint64(w.Expected))
		return m, nil
	}
	expect(m, uint64(w.GuardAt))
	m.Header.Set(headerExpectedSubject, at.prefix+w.Guard)
	return m, nil
}

// readAll reads records through the leader, side by side, in the order of their keys.
func (s *Store) readAll(ctx context.Context, at ownAt, keys []string) ([]kbroker.Stored, error) {
	records, failed := make([]kbroker.Stored, len(keys)), make([]error, len(keys))
	var reads sync.WaitGroup
	for i, key := range keys {
		reads.Go(func() {
			records[i].Key = key
			m, err := readLast(ctx, s.cfg.Conn, at.stream, at.prefix+key)
			if failed[i] = err; err != nil || m == nil {
				return
			}
			if records[i].Revision = kbroker.Revision(m.seq); !deleted(m.header) {
				records[i].Value = m.data
			}
		})
	}
	reads.Wait()
	for i, err := range failed {
		if err != nil {
			return nil, unavailable(err, "read %s", keys[i])
		}
	}
	return records, nil
}

// sameBelow reports whether no record below match was written after a revision.
func (s *Store) sameBelow(ctx context.Context, k AppKey, streams int, match string, since kbroker.Revision) (bool, error) {
	stream, prefix, err := below(k, streams, match)
	if err != nil {
		return false, err
	}
	m, err := readNext(ctx, s.cfg.Conn, stream, uint64(since)+1, prefix+match+".>")
	if err != nil {
		return false, unavailable(err, "ask what was written below %s", match)
	}
	return m == nil, nil
}

// below is where the records are whose keys begin with match.
func below(k AppKey, streams int, match string) (stream, prefix string, err error) {
	stream, prefix, ok := subjects.StoredAt(k.Tenant, k.App, streams, match)
	if !ok {
		err = kbroker.Errorf(kbroker.Invalid, "%.80q is not the beginning of keys of app %s, which has %d streams of objects", match, k.App, streams)
	}
	return stream, prefix, err
}

// keysBelow are the keys below match that come after one, sorted: what is deleted is among
// them for as long as its marker. floor is the last sequence that the leader has named with the
// first of them: what is written later may be missing.
func (s *Store) keysBelow(ctx context.Context, k AppKey, streams int, match, after string) (keys []string, floor uint64, err error) {
	stream, prefix, err := below(k, streams, match)
	if err != nil {
		return nil, 0, err
	}
	for offset, total := 0, 1; offset < total; {
		page, err := s.subjectsOf(ctx, stream, prefix+match+".>", offset)
		if err != nil {
			return nil, 0, unavailable(err, "list the records below %s", match)
		}
		for subject := range page.State.Subjects {
			key := strings.TrimPrefix(subject, prefix)
			if key > after && subjects.ParseOwnKey(key).Table != subjects.OwnUnknown {
				keys = append(keys, key)
			}
		}
		if offset == 0 {
			floor = page.State.Last
		}
		offset, total = offset+len(page.State.Subjects), page.Total
		if len(page.State.Subjects) == 0 {
			break // what there was has gone
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys), floor, nil
}

// listing is what the leader of a stream says of its subjects: a page of them, how many there
// are, how many the stream has, and its last sequence.
type listing struct {
	Error *jetstream.APIError `json:"error"`
	Total int                 `json:"total"`
	State struct {
		Subjects map[string]uint64 `json:"subjects"`
		Last     uint64            `json:"last_seq"`
		All      int               `json:"num_subjects"`
	} `json:"state"`
}

// subjectsOf asks the leader of a stream for a page of its subjects. It goes through all that
// the filter matches, also for an empty page; without a filter it tells what it knows.
func (s *Store) subjectsOf(ctx context.Context, stream, filter string, offset int) (reply listing, err error) {
	body, err := json.Marshal(map[string]any{"subjects_filter": filter, "offset": offset})
	if err != nil {
		return reply, fmt.Errorf("encode the question: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	m, err := answered(ctx, func() (*nats.Msg, error) {
		return s.cfg.Conn.RequestWithContext(ctx, subjects.LeaderInfo(stream), body)
	})
	if err != nil {
		return reply, fmt.Errorf("ask the leader of stream %s for subjects: %w", stream, err)
	}
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return reply, fmt.Errorf("subjects of stream %s: decode the reply: %w", stream, err)
	}
	if reply.Error != nil {
		return reply, fmt.Errorf("subjects of stream %s: %w", stream, reply.Error)
	}
	return reply, nil
}
