package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// requestTimeout bounds one question to a core; another one is asked next.
const requestTimeout = 2 * time.Second

// request asks on a subject and decodes the JSON answer into out. Errors: that
// of the answer; Unavailable when nobody answered.
func request(ctx context.Context, conn *nats.Conn, subject string, in, out any) error {
	reply, err := ask(ctx, conn, subject, in, requestTimeout)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(reply.Data, out); err != nil {
		return fmt.Errorf("answer on %s: %w", subject, err)
	}
	return nil
}

// ask is request for an answer that is not JSON, with a timeout of its own.
func ask(ctx context.Context, conn *nats.Conn, subject string, in any, timeout time.Duration) (*nats.Msg, error) {
	body, err := json.Marshal(in)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	reply, err := conn.RequestWithContext(ctx, subject, body)
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Unavailable, "ask %s: %v", subject, err)
	}
	return reply, replyError(reply)
}

// replyError is the error that a reply carries, or nil.
func replyError(m *nats.Msg) error {
	code := m.Header.Get(subjects.HeaderCode)
	if code == "" {
		return nil
	}
	e := &kbroker.Error{}
	if err := json.Unmarshal(m.Data, e); err != nil {
		e.Message = fmt.Sprintf("%s answered %s", m.Subject, code)
	}
	e.Code = cmp.Or(e.Code, kbroker.Code(code))
	return e
}

// respond answers m with v, or with err if it is not nil. Whoever asked is
// gone when it cannot be sent: there is nobody to tell.
func respond(m *nats.Msg, v any, err error) error {
	reply := nats.NewMsg(m.Reply)
	if err != nil {
		e := kbroker.AsError(err)
		reply.Header.Set(subjects.HeaderCode, string(e.Code))
		v = e
	}
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	reply.Data = body
	if !subjects.IsInbox(m.Reply) {
		return fmt.Errorf("an answer is wanted on %q, which is no inbox", m.Reply)
	}
	return m.RespondMsg(reply)
}
