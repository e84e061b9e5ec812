package state

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// trail appends to the audit trail. Many processes do: each record is taken only behind
// the one that its writer has read last, and so the chain never forks. Safe for
// concurrent use.
type trail struct {
	conn *nats.Conn
	js   jetstream.JetStream

	writing sync.Mutex // one append at a time, its answer included; guards what follows
	known   bool       // last and end are what was read, or written, last
	last    kbroker.AuditRecord
	end     uint64 // sequence of the stream's end
	// doubts are attempts whose outcome is not known, by record: at which sequence the
	// record is, if it is anywhere.
	doubts map[string]uint64
}

func newTrail(conn *nats.Conn, js jetstream.JetStream) *trail {
	return &trail{conn: conn, js: js, doubts: map[string]uint64{}}
}

// append writes the record that next makes, behind the last one; false from it: there is
// nothing to write. Its ID is id. It tries until ctx ends; then it may have been written
// all the same, which an append of the same ID finds out. Unavailable then.
func (t *trail) append(ctx context.Context, id string, next func(last kbroker.AuditRecord) (kbroker.AuditRecord, bool)) error {
	t.writing.Lock()
	defer t.writing.Unlock()
	var cause error
	for stuck := 0; ; {
		done, err := t.settle(ctx, id)
		if err == nil && done {
			return nil
		}
		if _, doubted := t.doubts[id]; !doubted || code(cause) != codeWrongSequence {
			stuck = 0
		} else if stuck++; stuck > auditStuck { // the end of the stream was removed
			stuck, t.known = 0, false
			clear(t.doubts)
		}
		if err == nil && !t.known {
			err = t.look(ctx)
		}
		if err == nil {
			r, wanted := next(t.last)
			if !wanted {
				return nil
			}
			r.ID = id
			if err = t.write(ctx, r.After(t.last)); err == nil {
				return nil
			}
		}
		if errors.Is(err, kbroker.Internal) {
			return err
		}
		cause = cmp.Or(err, cause)
		if sleep(ctx, auditPause); ctx.Err() != nil {
			return unavailable(cause, "write the audit trail")
		}
	}
}

// write makes one attempt. After an error the record is in doubt.
func (t *trail) write(ctx context.Context, r kbroker.AuditRecord) error {
	m := newRecord(subjects.AuditRecord, r)
	m.Header.Set(jetstream.ExpectedLastSeqHeader, strconv.FormatUint(t.end, 10))
	attempt, cancel := context.WithTimeout(ctx, auditAttempt)
	defer cancel()
	ack, err := t.js.PublishMsg(attempt, m)
	if err != nil {
		if len(t.doubts) >= auditDoubts {
			clear(t.doubts)
		}
		t.doubts[r.ID] = t.end + 1
		return fmt.Errorf("write audit record %d: %w", r.Number, err)
	}
	t.last, t.end = r, ack.Sequence
	return nil
}

// settle finds out whether an attempt whose outcome was not known has written the record.
// As long as there is nothing where it would be, only another attempt at the same place
// is safe: of those at most one is taken.
func (t *trail) settle(ctx context.Context, id string) (done bool, err error) {
	at, ok := t.doubts[id]
	if !ok {
		return false, nil
	}
	m, err := readNext(ctx, t.conn, subjects.AuditStream, at, ">")
	switch {
	case err != nil:
		return false, err
	case m == nil && t.known && t.end+1 == at:
		return false, nil
	case m == nil:
		return false, fmt.Errorf("stream %s is known to go on at %d, and its leader does not know yet", subjects.AuditStream, at)
	}
	delete(t.doubts, id)
	r, err := decodeAudit(m.data)
	if err == nil && r.ID == id && m.seq == at {
		if t.end < at {
			t.last, t.end = r, at
		}
		return true, nil
	}
	if t.end < m.seq {
		t.known = false // somebody else was first
	}
	return false, nil
}

// forget drops what was read of a stream that is not there any more.
func (t *trail) forget() {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.known = false
	clear(t.doubts)
}

// look reads the last record and the end of the stream. Internal: it cannot be read.
func (t *trail) look(ctx context.Context) error {
	end, err := lastSequence(ctx, t.js, subjects.AuditStream)
	if err != nil {
		return err
	}
	m, err := readLast(ctx, t.conn, subjects.AuditStream, subjects.AuditRecord)
	if err != nil {
		return err
	}
	t.last, t.end = kbroker.AuditRecord{}, end
	if m != nil {
		if t.last, err = t.readable(ctx, m); err != nil {
			return err
		}
		t.end = max(end, m.seq)
	}
	t.known = true
	return nil
}

// readable is the last record up to m. What is none, and was put there by somebody else,
// is passed over: the chain goes on, and who verifies it finds out. Internal: a newer
// build has written it, or there is too much of it.
func (t *trail) readable(ctx context.Context, m *message) (kbroker.AuditRecord, error) {
	seq := m.seq
	for range auditForeign {
		if m != nil {
			r, err := decodeAudit(m.data)
			// An answer of JetStream's API that was sent here is a copy of another message.
			if err == nil && m.header.Get(jetstream.StreamHeader) == "" && r.Hash == r.Sum() {
				return r, nil
			}
			if errors.Is(err, errAuditForm) {
				return r, kbroker.Errorf(kbroker.Internal, "the record of the audit trail at sequence %d is not readable: %v", seq, err).
					WithHint("a newer kbroker may have written it; upgrade this host")
			}
		}
		if seq--; seq == 0 {
			return kbroker.AuditRecord{}, nil
		}
		var err error
		if m, err = leaderRead(ctx, t.conn, subjects.AuditStream, map[string]any{"seq": seq}); err != nil {
			return kbroker.AuditRecord{}, err
		}
	}
	return kbroker.AuditRecord{}, kbroker.Errorf(kbroker.Internal, "the end of the audit trail, from sequence %d on, has no record that is readable", seq)
}

// errAuditForm: a record is of a form that this build does not know.
var errAuditForm = errors.New("its form is another one")

// begin writes the first record of a trail that has none.
func (t *trail) begin(ctx context.Context, first kbroker.AuditRecord) error {
	return t.append(ctx, first.ID, func(last kbroker.AuditRecord) (kbroker.AuditRecord, bool) { return first, last.Number == 0 })
}

// told is how many changes the trail tells, as this process read or wrote it last.
func (t *trail) told(ctx context.Context) (uint64, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	if !t.known {
		if err := t.look(ctx); err != nil {
			return 0, err
		}
	}
	return t.last.Changes, nil
}

// decodeAudit reads a record. One of another form, or with anything in it that is not
// hashed, is an error.
func decodeAudit(data []byte) (kbroker.AuditRecord, error) {
	var r kbroker.AuditRecord
	var form struct {
		Form int `json:"form"`
	}
	if json.Unmarshal(data, &form) == nil && form.Form > kbroker.AuditForm {
		return r, fmt.Errorf("%w: %d, and this build knows %d", errAuditForm, form.Form, kbroker.AuditForm)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return r, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return r, errors.New("something follows the record")
	}
	if r.Form != kbroker.AuditForm {
		return r, fmt.Errorf("form %d is none", r.Form)
	}
	return r, nil
}
