package super

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nuid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// seeWithin is how long the owner of an object may take to say what it knows, actWithin
	// to do something: a turn may run.
	seeWithin = 400 * time.Millisecond
	actWithin = 6 * time.Second
)

// keepers asks owners of objects. Safe for concurrent use.
type keepers struct {
	conn *nats.Conn
	host kbroker.HostID

	mu      sync.Mutex
	waiting map[string]chan *nats.Msg // by question
}

func newKeepers(conn *nats.Conn, host kbroker.HostID) *keepers {
	return &keepers{conn: conn, host: host, waiting: map[string]chan *nats.Msg{}}
}

// heard takes an answer, or that nobody hears the question.
func (k *keepers) heard(m *nats.Msg) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if answer := k.waiting[subjects.QuestionOf(m.Subject)]; answer != nil {
		select {
		case answer <- m:
		default:
		}
	}
}

// noResponders is the status by which a server says that nobody hears a subject
// (docs.nats.io, NATS protocol).
const noResponders = "503"

// ask asks a start. Errors: what it answers; Unavailable - it does not answer: executed no,
// if it has not heard the question.
func (k *keepers) ask(ctx context.Context, tenant kbroker.TenantID, who kbroker.Incarnation, r kbroker.KeeperRequest, within time.Duration) (kbroker.KeeperReply, error) {
	var reply kbroker.KeeperReply
	body, err := json.Marshal(r)
	if err != nil {
		return reply, kbroker.Errorf(kbroker.Internal, "encode the question: %v", err)
	}
	answer, question := make(chan *nats.Msg, 1), nuid.Next()
	k.mu.Lock()
	k.waiting[question] = answer
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.waiting, question)
	}()
	silent := func(executed kbroker.Executed, format string, args ...any) (kbroker.KeeperReply, error) {
		e := kbroker.Errorf(kbroker.Unavailable, format, args...)
		e.Executed = executed
		return reply, e
	}
	if err := k.conn.PublishRequest(subjects.Keeper(tenant, who), subjects.Kept(tenant, who, k.host, question), body); err != nil {
		return silent(kbroker.ExecutedNo, "%s is not asked: %v", who, err)
	}
	late := time.NewTimer(within)
	defer late.Stop()
	select {
	case m := <-answer:
		if m.Header.Get("Status") == noResponders {
			return silent(kbroker.ExecutedNo, "%s does not listen: it has ended, or its SDK is too old to be asked", who.Instance())
		}
		if m.Header.Get(subjects.HeaderCode) != "" {
			e := &kbroker.Error{}
			if err := json.Unmarshal(m.Data, e); err != nil || e.Message == "" {
				e = kbroker.Errorf(kbroker.Internal, "%s answers an error that is not readable", who)
			}
			return reply, e
		}
		if err := json.Unmarshal(m.Data, &reply); err != nil {
			return silent(kbroker.ExecutedUnknown, "the answer of %s is not readable: %v", who, err)
		}
		return reply, nil
	case <-ctx.Done():
		return silent(kbroker.ExecutedUnknown, "%s did not answer: %v", who.Instance(), ctx.Err())
	case <-late.C:
		return silent(kbroker.ExecutedUnknown, "%s did not answer within %v: it hangs, has ended, or its SDK is too old to be asked", who.Instance(), within)
	}
}
