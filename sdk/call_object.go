package sdk

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/boottime"
	"github.com/kbroker/kbroker/subjects"
)

// resendWithin is how long a call of an object is sent again that may have run: owners know
// calls for a minute, and take no older one.
const resendWithin = 45 * time.Second

// Object is an object to call, by "app/kind:id". A name that is not valid fails the call.
// Inside a handler or a turn it is called over the app's connection, elsewhere over that of
// the first New or Dial of the process.
//
// A call of an object takes effect once, however often it is sent again: while nobody serves
// the object, as it is moved or its owner has died, until the deadline; and when an answer
// does not come. See Objects.
func Object(name string) Target {
	app, o, err := kbroker.ParseObject(name)
	return Target{app: app, object: o, err: err}
}

// Object is an object to call over the app's connection; see Object.
func (a *App) Object(name string) Target {
	t := Object(name)
	t.client = a.client
	return t
}

// Object is an object to call; see Object.
func (c *Client) Object(name string) Target {
	t := Object(name)
	t.client = c
	return t
}

// Linearizable has a call of a ReadOnly method be confirmed by a write: what it shows holds
// even if the clock of the owner's host stood still meanwhile, as that of a virtual machine
// that is moved. Other calls are so anyway.
func Linearizable() CallOption { return func(c *call) { c.linearizable = true } }

func (t Target) isObject() bool { return t.object.Kind != "" }

// inWork are the calls of a client to objects that are not over, in the order of their
// sequences. The zero value is ready.
type inWork struct {
	mu   sync.Mutex
	all  []callInWork
	head int
}

type callInWork struct {
	sequence uint64
	over     bool
}

// begin takes the next sequence, and says below which all calls are over.
func (w *inWork) begin(next *atomic.Uint64) (sequence, confirmed uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	sequence = next.Add(1)
	if len(w.all) == cap(w.all) && w.head > len(w.all)/2 { // rather than grow
		w.all = w.all[:copy(w.all, w.all[w.head:])]
		w.head = 0
	}
	w.all = append(w.all, callInWork{sequence: sequence})
	return sequence, w.all[w.head].sequence
}

func (w *inWork) end(sequence uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := slices.BinarySearchFunc(w.all[w.head:], sequence, func(c callInWork, s uint64) int {
		switch {
		case c.sequence < s:
			return -1
		case c.sequence > s:
			return 1
		}
		return 0
	})
	if ok {
		w.all[w.head+at].over = true
	}
	for w.head < len(w.all) && w.all[w.head].over {
		w.head++
	}
	if w.head == len(w.all) {
		w.all, w.head = w.all[:0], 0
	}
}

// identify gives the call its id, and the headers that it has beside those of all calls.
func (c *call) identify(r *request) *kbroker.Error {
	var within chain
	var root []string
	if r != nil {
		if within = r.waiting(); within != "" && r.root.id != "" {
			root = []string{r.root.String()}
		}
		if c.id == "" && r.turn != nil {
			c.once = nestedID(r, c.to, c.method)
		}
	}
	if !c.to.isObject() {
		if within != "" {
			c.header = nats.Header{subjects.HeaderChain: {string(within)}}
			if root != nil {
				c.header[subjects.HeaderRoot] = root
			}
		}
		switch {
		case c.once != "":
			c.id = c.once + ":1"
		case c.id == "":
			c.id = c.client.session + ":" + strconv.FormatUint(c.client.seq.Add(1), 10)
		}
		return nil
	}
	if e := within.refuse(c.to.app, c.to.object); e != nil {
		return e
	}
	c.repeat = isIdempotent // its owner knows it by its id
	c.header = nats.Header{subjects.HeaderObject: {subjects.EscapeID(c.to.object.ID)}}
	if within != "" {
		c.header[subjects.HeaderChain] = []string{string(within)}
	}
	if root != nil {
		c.header[subjects.HeaderRoot] = root
	}
	if c.linearizable {
		c.header[subjects.HeaderLinearizable] = []string{"1"}
	}
	switch {
	case c.once != "":
		c.nested = r.turn.nests()
		c.nested.begin()
		c.header[subjects.HeaderOnce] = []string{c.once}
		c.numbered(c.client.session+nestedSession, &c.client.nested)
	case c.id == "":
		c.numbered(c.client.session, &c.client.inWork)
	}
	if _, _, ok := splitID(c.id); !ok {
		return notRun(kbroker.Errorf(kbroker.Invalid, "the request id %.80q is none of a call to an object", c.id).
			WithHint("<session>:<sequence>, the session of at most %d letters, digits, dots, - and _", maxSessionBytes))
	}
	return nil
}

// numbered gives the call the next sequence of a session.
func (c *call) numbered(session string, work *inWork) {
	next := &c.client.seq
	if work == &c.client.nested {
		next = &c.client.nestedSeq
	}
	sequence, confirmed := work.begin(next)
	c.sequence = sequence
	c.id = session + ":" + strconv.FormatUint(sequence, 10)
	c.header[subjects.HeaderConfirmed] = []string{strconv.FormatUint(confirmed, 10)}
}

// done says that the call is over. That of a turn is not before the turn cannot be repeated,
// but for one that only reads, or has not run: no owner remembers it.
func (c *call) done() {
	switch {
	case c.sequence == 0:
	case c.once == "":
		c.client.inWork.end(c.sequence)
	default:
		c.nested.end(nestedCall{c.client, c.sequence}, !c.reads && !c.never)
	}
}

// nestedID names a call that a turn makes: when the turn is repeated, elsewhere too, its
// calls have the same names, and the owners of the objects know them by those.
func nestedID(r *request, to Target, method string) string {
	h := sha256.New()
	for _, part := range []string{r.id, strconv.FormatUint(r.turn.calls.Add(1), 10), to.String(), method} {
		_, _ = h.Write(append([]byte(part), 0)) // never fails
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// stamp tells the owner how old the call is: as long as it is certain that no attempt has
// run, it begins with each. Its clock is not set, and goes on while the machine sleeps.
func (c *call) stamp(now time.Time) {
	if !c.to.isObject() {
		return
	}
	since := boottime.Now()
	if c.begun == 0 || c.unanswered() == 0 {
		c.begun = since
		if c.since != 0 {
			c.begun = c.since
		}
		c.header[subjects.HeaderSent] = []string{strconv.FormatInt(now.UnixMilli(), 10)}
	}
	c.header[subjects.HeaderAge] = []string{strconv.FormatInt((since - c.begun).Milliseconds(), 10)}
}

// tooOld reports whether the call must not be sent again.
func (c *call) tooOld() bool {
	return c.to.isObject() && c.unanswered() > 0 && boottime.Now()-c.begun > resendWithin
}

// unanswered are the attempts that may have run, or may run yet.
func (c *call) unanswered() int { return len(c.open) + c.unclear }

// againOf is what an error of an object's owner means, if it does not end the call.
func (c *call) againOf(e *kbroker.Error, crossing bool) (event, bool) {
	switch {
	case !c.to.isObject():
		return 0, false
	case crossing && c.header[subjects.HeaderChain] == nil:
		c.goOnAs()
		return refusedNow, true
	case e.Executed == kbroker.ExecutedNo && (e.Code == kbroker.Moved || e.Code == kbroker.DeadlineExceeded):
		return refusedNow, true
	case e.Executed == kbroker.ExecutedUnknown && e.Code == kbroker.Unavailable:
		c.unclear++
		return unclear, true
	}
	return 0, false
}
