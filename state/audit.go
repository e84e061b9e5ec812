package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of the audit trail.
const (
	// auditMaxBytes bounds the trail: its oldest records leave it, and nothing else does.
	auditMaxBytes = 32 << 20
	// auditSlots are the changes that may wait in the control store to be told.
	auditSlots = 64
	// auditAttempt bounds one attempt to write a record, auditPause is between two.
	auditAttempt = 2 * time.Second
	auditPause   = 20 * time.Millisecond
	// auditStuck refusals in a row that nothing explains have the trail looked at anew.
	auditStuck = 50
	// auditDoubts bounds the records in doubt; there is hardly ever one.
	auditDoubts = 256
	// auditForeign messages that are no records may be behind the last one that is.
	auditForeign = 1000
	// auditEnd bounds the question where the trail ends.
	auditEnd = 400 * time.Millisecond
	// auditPageBytes bounds what is read of the stream for one page.
	auditPageBytes = 400 << 10
)

// AuditSlot is the slot in which the n-th change waits to be told.
func AuditSlot(n uint64) int { return int(n % auditSlots) }

// auditStream is the configuration of the trail's stream. Nobody can delete a message of
// it, or purge it, or lift that.
func auditStream(replicas int, placement *jetstream.Placement) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: subjects.AuditStream, Subjects: []string{subjects.AuditAll}, Discard: jetstream.DiscardOld,
		MaxBytes: auditMaxBytes, MaxMsgs: -1, MaxMsgSize: -1, MaxConsumers: -1, MaxMsgsPerSubject: -1,
		Storage: jetstream.FileStorage, Replicas: replicas, Placement: placement,
		DenyDelete: true, DenyPurge: true, AllowDirect: true,
	}
}

// FoundAudit makes the audit trail, with its first record, where there is no control store
// yet: before Found. Otherwise it does nothing. It tries until ctx ends.
func FoundAudit(ctx context.Context, conn *nats.Conn, first kbroker.AuditRecord) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open jetstream: %w", err)
	}
	for there := false; ; sleep(ctx, createPause) {
		if there, err = exists(ctx, js, subjects.ControlStream); err == nil && there {
			return nil
		}
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return unavailable(err, "look for the control store")
		}
	}
	var placement *jetstream.Placement
	if conn.ConnectedClusterName() != "" {
		placement = &jetstream.Placement{Tags: []string{subjects.TagCore}}
	}
	if _, err := create(ctx, js, auditStream(1, placement)); err != nil {
		return err
	}
	return newTrail(conn, js).begin(ctx, first)
}

// exists asks whether there is a stream; a young cluster has nobody to answer for a moment.
func exists(ctx context.Context, js jetstream.JetStream, stream string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, createAttempt)
	defer cancel()
	_, err := streamOf(ctx, js, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return false, nil
	}
	return err == nil, err
}

// EnsureAudit makes the audit trail exist, replicated as the control store is, with first
// as its first record where it has none.
func (s *Store) EnsureAudit(ctx context.Context, first kbroker.AuditRecord) error {
	replicas, placement, err := s.like(ctx)
	if err != nil {
		return err
	}
	fresh, err := create(ctx, s.js, auditStream(replicas, placement))
	if err != nil {
		return err
	}
	if fresh {
		s.trail.forget()
	}
	return s.trail.begin(ctx, first)
}

// AppendAudit writes a record that is of no change of the control store. Unavailable: it
// may be written or not; again with the same ID it will be there once.
func (s *Store) AppendAudit(ctx context.Context, r kbroker.AuditRecord) error {
	return s.trail.append(ctx, r.ID, func(last kbroker.AuditRecord) (kbroker.AuditRecord, bool) {
		r.Changes = last.Changes
		return r, true
	})
}

// Told are the changes in the view that wait to be told, or have been: the newest
// auditSlots, in their order, with the revision with which each was written.
func (v *View) Told() []kbroker.AuditRecord {
	out := slices.SortedFunc(maps.Values(v.audits), func(a, b kbroker.AuditRecord) int { return cmp.Compare(a.Changes, b.Changes) })
	for i := range out {
		out[i].Revision = v.revisions[subjects.KeyAudit(AuditSlot(out[i].Changes))]
	}
	return out
}

// TellChanges appends the changes of the control store that the audit trail does not tell
// yet, each once, whoever else does the same, and returns how many it tells now. who adds
// to an actor what is known of it; nil: nothing.
func (l *Leader) TellChanges(ctx context.Context, who func(context.Context, kbroker.Caller) kbroker.Caller) (told uint64, err error) {
	v, err := l.store.View(ctx)
	if err != nil {
		return 0, err
	}
	t := l.store.trail
	for _, r := range v.Told() {
		for {
			if told, err = t.told(ctx); err != nil {
				return told, err
			}
			if told >= r.Changes {
				break
			}
			if who != nil {
				r.Actor = who(ctx, r.Actor)
			}
			id := r.ID
			hole := told+1 < r.Changes
			if hole {
				id = fmt.Sprintf("lost %d to %d", told+1, r.Changes-1)
			}
			from := told
			err := t.append(ctx, id, func(last kbroker.AuditRecord) (kbroker.AuditRecord, bool) {
				switch {
				case last.Changes != from:
					return r, false
				case hole:
					return lostChanges(from, r), true
				}
				return r, true
			})
			if err != nil {
				return told, err
			}
		}
	}
	return t.told(ctx)
}

// lostChanges tells that those between from and next are not told.
func lostChanges(from uint64, next kbroker.AuditRecord) kbroker.AuditRecord {
	n := next.Changes - 1 - from
	return kbroker.AuditRecord{
		Time: next.Time, Action: kbroker.AuditLost, Outcome: kbroker.AuditDone, Changes: next.Changes - 1, Count: int(n), By: next.By,
		Message: fmt.Sprintf("%d changes are not told: they are not in the control store any more", n),
	}
}

// Room reports whether the n-th change can wait to be told, when told were.
func Room(n, told uint64) bool { return n <= told+auditSlots }

// Audit returns a page of the audit trail, from any replica of the stream; one that lags
// shows less. Unavailable when none answered.
func (s *Store) Audit(ctx context.Context, r kbroker.AuditRequest) (kbroker.AuditReply, error) {
	var out kbroker.AuditReply
	var err error
	if r.After != nil {
		out, err = s.auditAfter(ctx, *r.After)
	} else {
		out, err = s.auditBefore(ctx, r)
	}
	if err != nil && !s.noStream(ctx, subjects.AuditStream, err) {
		return out, unavailable(err, "read the audit trail")
	}
	if out.Records == nil {
		out.Records = []kbroker.AuditRecord{}
	}
	return out, nil
}

// auditAfter is the page after a sequence. Where a replica has nothing more, the leader is
// asked.
func (s *Store) auditAfter(ctx context.Context, after uint64) (out kbroker.AuditReply, err error) {
	out.Next = after
	left, err := s.readAudit(ctx, after+1, chunkMessages, &out)
	if err != nil {
		return out, err
	}
	if out.More = left > 0; out.More {
		return out, nil
	}
	asking, cancel := context.WithTimeout(ctx, auditEnd)
	defer cancel()
	if out.Last, err = lastSequence(asking, s.js, subjects.AuditStream); err != nil {
		out.Last = 0
		return out, nil // there is no leader
	}
	if out.Next == after && after < out.Last {
		m, err := readNext(ctx, s.cfg.Conn, subjects.AuditStream, after+1, ">")
		switch {
		case err != nil:
			return out, err
		case m == nil:
			out.Missing = true
		default:
			addAudit(&out, m.seq, m.data)
		}
	}
	return out, nil
}

// auditBefore is the page before a sequence, or of the newest.
func (s *Store) auditBefore(ctx context.Context, r kbroker.AuditRequest) (out kbroker.AuditReply, err error) {
	limit := uint64(r.Limit)
	if r.Limit <= 0 || r.Limit > kbroker.MaxAuditPerRequest {
		limit = kbroker.MaxAuditPerRequest
	}
	var oldest kbroker.AuditReply
	left, err := s.readAudit(ctx, 1, 1, &oldest)
	if err != nil || oldest.Next == 0 {
		return out, err
	}
	begin, end := oldest.Next, oldest.Next+left+1 // sequences have no gaps
	if r.Before > 0 {
		end = min(end, r.Before)
	}
	if end <= begin {
		return out, nil
	}
	from := max(begin, end-min(end, limit))
	if _, err = s.readAudit(ctx, from, int(end-from), &out); err != nil {
		return kbroker.AuditReply{}, err
	}
	out.More = from > begin
	return out, nil
}

// readAudit adds what follows from a sequence on to a page.
func (s *Store) readAudit(ctx context.Context, from uint64, n int, page *kbroker.AuditReply) (left uint64, err error) {
	opts := []jetstreamext.GetBatchOpt{jetstreamext.GetBatchMaxBytes(auditPageBytes)}
	return s.readPiece(ctx, subjects.AuditStream, from, n, opts, func(m *jetstream.RawStreamMsg) { addAudit(page, m.Sequence, m.Data) })
}

// addAudit adds a message to a page.
func addAudit(page *kbroker.AuditReply, seq uint64, data []byte) {
	r, err := decodeAudit(data)
	switch {
	case err != nil && page.Unreadable == "":
		page.Unreadable = fmt.Sprintf("what is stored at sequence %d is no record: %v", seq, err)
		fallthrough
	case err != nil:
		page.Next = seq
		return
	}
	r.Sequence = seq
	page.Records = append(page.Records, r)
	page.Next = seq
}
