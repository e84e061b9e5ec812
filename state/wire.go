package state

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Error codes of the server's API that mean something to us (errors.json of
// nats-server 2.15.2).
const (
	// codeNoPeers: no server can take the stream, as far as the leader knows.
	codeNoPeers jetstream.ErrorCode = 10005
	// codeWrongSequence is a definite mismatch of an expected revision.
	codeWrongSequence jetstream.ErrorCode = 10071
	// codeInFlight says that another write on the subject is under way: it
	// proves nothing but that this one was not taken.
	codeInFlight jetstream.ErrorCode = 10164
	// codeIncompleteBatch: the commit came to a leader that has not all of the batch;
	// codeManyBatches: too many are open. Nothing of it is taken.
	codeIncompleteBatch jetstream.ErrorCode = 10176
	codeManyBatches     jetstream.ErrorCode = 10210
	// codeNoMessage is a leader read that found nothing.
	codeNoMessage jetstream.ErrorCode = 10037
)

// Headers of the server that the jetstream package does not name.
const (
	headerOperation = "KV-Operation"
	operationDelete = "DEL"
	operationPurge  = "PURGE"
	headerBatch     = "Nats-Batch-Id"
	headerCommit    = "Nats-Batch-Commit"
	headerMarker    = "Nats-Marker-Reason"
	headerPending   = "Nats-Num-Pending"
	// headerExpectedSubject has an expected revision be that of another subject.
	headerExpectedSubject = "Nats-Expected-Last-Subject-Sequence-Subject"
)

// readAttempt bounds one read through a stream's leader.
const readAttempt = time.Second

// code is the server's error code in err, or 0.
func code(err error) jetstream.ErrorCode {
	if e, ok := errors.AsType[*jetstream.APIError](err); ok {
		return e.ErrorCode
	}
	return 0
}

// message is one stored message.
type message struct {
	subject string
	seq     uint64
	header  nats.Header
	data    []byte
	at      time.Time // when the leader has stored it, by its clock
}

// deleted reports whether m only says that its key is gone.
func deleted(h nats.Header) bool {
	switch h.Get(headerOperation) {
	case operationDelete, operationPurge:
		return true
	}
	return h.Get(headerMarker) != ""
}

// readLast reads the last message of a subject through the stream's leader. It
// returns nil when there is none.
func readLast(ctx context.Context, conn *nats.Conn, stream, subject string) (*message, error) {
	return leaderRead(ctx, conn, stream, map[string]any{"last_by_subj": subject})
}

// readNext reads the first message at or after seq, of subjects that match, through the
// stream's leader. It returns nil when there is none.
func readNext(ctx context.Context, conn *nats.Conn, stream string, seq uint64, match string) (*message, error) {
	return leaderRead(ctx, conn, stream, map[string]any{"seq": seq, "next_by_subj": match})
}

func leaderRead(ctx context.Context, conn *nats.Conn, stream string, query map[string]any) (*message, error) {
	body, err := json.Marshal(query)
	if err != nil {
		return nil, fmt.Errorf("encode the read: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	m, err := answered(ctx, func() (*nats.Msg, error) { return conn.RequestWithContext(ctx, subjects.LeaderRead(stream), body) })
	if err != nil {
		return nil, fmt.Errorf("read stream %s through its leader: %w", stream, err)
	}
	var reply struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  string    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := json.Unmarshal(m.Data, &reply); err != nil {
		return nil, fmt.Errorf("read stream %s through its leader: decode the reply: %w", stream, err)
	}
	switch {
	case reply.Error != nil && reply.Error.ErrorCode == codeNoMessage:
		return nil, nil
	case reply.Error != nil:
		return nil, fmt.Errorf("read stream %s through its leader: %w", stream, reply.Error)
	case reply.Message == nil:
		return nil, fmt.Errorf("read stream %s through its leader: the reply holds no message", stream)
	}
	out := &message{subject: reply.Message.Subject, seq: reply.Message.Seq, data: reply.Message.Data, at: reply.Message.Time}
	if reply.Message.Header != "" {
		raw, err := base64.StdEncoding.DecodeString(reply.Message.Header)
		if err != nil {
			return nil, fmt.Errorf("read stream %s: decode headers of message %d: %w", stream, out.seq, err)
		}
		if out.header, err = nats.DecodeHeadersMsg(raw); err != nil {
			return nil, fmt.Errorf("read stream %s: decode headers of message %d: %w", stream, out.seq, err)
		}
	}
	return out, nil
}

// lastSequence asks the stream's leader for the stream's last sequence.
func lastSequence(ctx context.Context, js jetstream.JetStream, stream string) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	s, err := streamOf(ctx, js, stream)
	if err != nil {
		return 0, fmt.Errorf("ask for the state of stream %s: %w", stream, err)
	}
	return s.CachedInfo().State.LastSeq, nil
}

// While a server takes over who is to be kept out, JetStream's API has no responders on
// it for some milliseconds: who asks, asks again after unansweredPause, for at most
// unansweredFor.
const (
	unansweredPause = 5 * time.Millisecond
	unansweredFor   = 250 * time.Millisecond
)

// answered asks JetStream's API until somebody is there to answer, for unansweredFor and
// within ctx, and returns the last answer.
func answered[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	for last := time.Now().Add(unansweredFor); ; {
		v, err := ask()
		// The jetstream package says so of a request without responders.
		nobody := errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrJetStreamNotEnabled)
		if !nobody || !time.Now().Before(last) || ctx.Err() != nil {
			return v, err
		}
		sleep(ctx, unansweredPause)
	}
}

// streamOf is js.Stream, answered.
func streamOf(ctx context.Context, js jetstream.JetStream, name string) (jetstream.Stream, error) {
	return answered(ctx, func() (jetstream.Stream, error) { return js.Stream(ctx, name) })
}

// newMsg is a message with headers: batches need them, even if empty.
func newMsg(subject string, data []byte) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: data, Header: nats.Header{}}
}

// newRecord is a message that carries v as JSON. Records are made of plain
// fields: one that does not marshal is a bug of this program.
func newRecord(subject string, v any) *nats.Msg {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("state: a %T does not marshal: %v", v, err))
	}
	return newMsg(subject, b)
}

// newMarker is a message that deletes a key; the marker itself is collected
// after markerTTL.
func newMarker(subject string) *nats.Msg { return newMarkerFor(subject, markerTTL) }

func newMarkerFor(subject string, ttl time.Duration) *nats.Msg {
	m := newMsg(subject, nil)
	m.Header.Set(headerOperation, operationDelete)
	m.Header.Set(jetstream.MsgTTLHeader, ttl.String())
	return m
}

// expect makes m a compare-and-set: it is taken only while rev is the revision
// of its subject, 0 for none.
func expect(m *nats.Msg, rev uint64) {
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, strconv.FormatUint(rev, 10))
}

// headerUint reads a number from a header of the server, which comes last: a stored
// message may be an answer of the server, with headers of that time.
func headerUint(h nats.Header, name string) (uint64, bool) {
	v := h[name]
	if len(v) == 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(v[len(v)-1], 10, 64)
	return n, err == nil
}

// unavailable is the error of what is only a matter of time. The cause stays in
// its message alone: the error crosses processes.
func unavailable(cause error, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if cause == nil {
		return kbroker.Errorf(kbroker.Unavailable, "%s", what)
	}
	return kbroker.Errorf(kbroker.Unavailable, "%s: %v", what, cause)
}
