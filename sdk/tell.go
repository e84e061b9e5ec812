package sdk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of what one turn tells others.
const (
	maxTells     = 64
	maxTellBytes = 128 << 10 // arguments of all
)

// Failure is what a method that OnFailure names is called with.
type Failure struct {
	Target string // as Tell was given it
	Method string
	In     json.RawMessage // the argument; one that is no JSON is a string of base64
	Error  *Error          // why it was refused
}

// TellOption changes one Tell.
type TellOption func(*tell)

// OnFailure names a Method of the object whose turn tells: it is called with a Failure, in a
// turn of its own, if the receiver refuses the call for good; so a saga takes back what it has
// done. Of the two, what the receiver does and this, exactly one takes effect. Outside of a
// turn it is a mistake.
func OnFailure(method string) TellOption { return func(t *tell) { t.OnFailure = method } }

// tell is what a turn leaves behind, a call or an event of a topic, as it is stored in the
// outbox: a line of JSON, then the argument.
type tell struct {
	To        receiver  `json:"to"`
	Method    string    `json:"method"`
	OnFailure string    `json:"on_failure,omitempty"`
	At        time.Time `json:"at"`
	// Of a call that a durable subscription makes: the topic whose event it is for, and which
	// of the calls to its service it waits for.
	Event string `json:"event,omitempty"`
	Lane  int    `json:"lane,omitempty"`
	data  []byte
	last  uint64 // of an event: where the one before it is in the topic, then where it is
}

// receiver is whom it is for: an object or a service, as Tell was given it, or a topic of the
// app. A topic is no string in JSON: a build that does not know of it cannot read the message,
// and leaves it to those that do.
type receiver struct{ name, topic string }

// topicReceiver is how one of a topic is stored.
type topicReceiver struct {
	Topic string `json:"topic"`
}

func (r receiver) MarshalJSON() ([]byte, error) {
	if r.topic != "" {
		return json.Marshal(topicReceiver{r.topic})
	}
	return json.Marshal(r.name)
}

func (r *receiver) UnmarshalJSON(b []byte) error {
	if !bytes.HasPrefix(b, []byte("{")) {
		return json.Unmarshal(b, &r.name)
	}
	var of topicReceiver
	err := json.Unmarshal(b, &of)
	if err == nil && of.Topic == "" {
		err = errors.New("a message is for nobody")
	}
	r.topic = of.Topic
	return err
}

func (r receiver) String() string {
	if r.topic != "" {
		return "topic " + r.topic
	}
	return r.name
}

func (t *tell) encode() []byte {
	head, err := json.Marshal(t)
	if err != nil {
		panic("sdk: names do not marshal: " + err.Error())
	}
	return append(append(head, '\n'), t.data...)
}

func decodeTell(b []byte) (*tell, error) {
	head, data, ok := bytes.Cut(b, []byte("\n"))
	t := &tell{data: data}
	if !ok {
		return t, fmt.Errorf("a message of %d bytes has no first line", len(b))
	}
	return t, json.Unmarshal(head, t)
}

// target is whom a call is for.
func (t *tell) target() Target {
	if o := Object(t.To.name); o.err == nil {
		return o
	}
	return Service(t.To.name)
}

// ofHandler reports whether it is a call of a handler of SubscribeDurable.
func (t *tell) ofHandler() bool { return t.Lane != 0 }

// send is the message for the machine: those that are to stay in order have one receiver.
func (t *tell) send(stored []byte) ownership.Send {
	to := t.To.String()
	if t.Lane != 0 {
		to += " " + strconv.Itoa(t.Lane)
	}
	return ownership.Send{To: to, Value: stored}
}

// Tell calls a method whose answer is not wanted.
//
// In a turn of a Method the call is put into the object's outbox: it is stored with what the
// turn does, and if that is taken back there was none; so nil says nothing of its outcome. It
// is sent after that, again and again, across restarts, moves and failures of both sides,
// until its receiver has taken it, or refuses it for good: by an error of its method, or as it
// has no such method. What is overloaded, out of reach or panics is tried again. Calls to one
// receiver are sent in the order in which turns told them, each when the one before has its
// outcome. One to an object takes effect once; a handler of a service may get one several
// times. A turn may tell 64 times, 128 KiB in all; more, a ReadOnly, and a kind that is never
// stored (Durable) are errors: Invalid.
//
// The method of the receiver may run many times before it has its outcome. What it calls itself
// with an effect is known for a minute only: such a method tells on in place of calling.
//
// Elsewhere it is a Call, and returns when the receiver has taken it: an object, when what it
// did is stored.
func Tell(ctx context.Context, to Target, method string, in any, opts ...TellOption) error {
	t := &tell{To: receiver{name: to.String()}, Method: method, At: time.Now()}
	for _, set := range opts {
		set(t)
	}
	turn := turnOf(ctx)
	if turn == nil {
		if t.OnFailure != "" {
			return notRun(kbroker.Errorf(kbroker.Invalid, "OnFailure outside of a turn").WithHint("Tell returns the error"))
		}
		_, err := to.call(ctx, method, in, nil)
		return err
	}
	if to.err != nil {
		return notRun(kbroker.AsError(to.err))
	}
	if err := subjects.CheckMethod(method); err != nil {
		return notRun(kbroker.AsError(err))
	}
	var err error
	if t.data, err = encode(in); err != nil {
		return notRun(kbroker.Errorf(kbroker.Invalid, "the argument of %s %s: %v", to, method, err))
	}
	return turn.tell(t)
}

// tell puts a call into the turn's outbox.
func (t *turn) tell(m *tell) error {
	invalid := func(format string, args ...any) error {
		return notRun(kbroker.Errorf(kbroker.Invalid, format, args...))
	}
	kind := t.keeper.kinds[t.object.Kind]
	switch follow := kind.methods[m.OnFailure]; {
	case t.readOnly:
		return invalid("a ReadOnly of %s tells %s: it stores nothing", t.object, m.To)
	case kind.durable.Volatile:
		return invalid("%s tells %s: objects of its kind are never stored", t.object, m.To)
	case m.OnFailure != "" && (follow == nil || follow.readOnly):
		return invalid("OnFailure: objects of kind %s have no Method %.80q", kind.name, m.OnFailure)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.toldBytes += len(m.data)
	if len(t.tells) >= maxTells || t.toldBytes > maxTellBytes {
		return invalid("a turn of %s tells more than %d times, or %d bytes", t.object, maxTells, maxTellBytes)
	}
	t.tells = append(t.tells, m)
	return nil
}
