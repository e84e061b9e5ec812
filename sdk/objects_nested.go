package sdk

import (
	"sync"
	"time"
)

const (
	// nestedSession is what the sessions end with of calls that turns make.
	nestedSession = "-n"
	// nestedLasts is how long behind its deadline a turn may be repeated that was not stored:
	// its own call is not sent again after resendWithin, and refused by its age then.
	nestedLasts = resendWithin + 5*time.Second
)

// nested are the calls of objects that a turn makes. If the turn is repeated, as the instance
// dies, or as its call was sent twice and it has failed, they are made again, and must be
// known: they are confirmed, and forgotten by their owners, when the turn is stored, or else
// when it cannot be repeated any more. Safe for concurrent use.
type nested struct {
	lasts time.Duration // from the first of them, if the turn is not stored

	mu    sync.Mutex
	open  int          // that are under way
	calls []nestedCall // that may have taken effect
	known bool         // the turn is stored
	later *time.Timer
}

// nestedCall is one of a client. (The call itself is used again for others.)
type nestedCall struct {
	client   *Client
	sequence uint64
}

func (c nestedCall) confirm() { c.client.nested.end(c.sequence) }

// nests are the turn's nested, made for the first of them.
func (t *turn) nests() *nested {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.nested == nil {
		t.nested = &nested{lasts: max(time.Until(t.heard.deadline), 0) + nestedLasts}
	}
	return t.nested
}

// hasNested reports whether a call is under way, or may have taken effect: then the turn is
// stored, though it has changed nothing.
func (t *turn) hasNested() bool {
	t.mu.Lock()
	n := t.nested
	t.mu.Unlock()
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.open+len(n.calls) > 0
}

func (n *nested) begin() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open++
}

// end is for a call that has its answer, or will have none; without an effect nobody remembers
// it. It may be one that the turn did not wait for.
func (n *nested) end(c nestedCall, effect bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.open--
	if n.known || !effect {
		c.confirm()
		return
	}
	n.calls = append(n.calls, c)
	if n.later == nil {
		n.later = time.AfterFunc(n.lasts, n.confirm)
	}
}

// stored is for a turn that is known from now on.
func (t *turn) stored() {
	if t == nil || t.readOnly {
		return
	}
	t.mu.Lock()
	n := t.nested
	t.mu.Unlock()
	if n == nil {
		return
	}
	n.mu.Lock()
	n.known = true
	n.mu.Unlock()
	n.confirm()
}

func (n *nested) confirm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.later != nil {
		n.later.Stop()
		n.later = nil
	}
	for _, c := range n.calls {
		c.confirm()
	}
	n.calls = nil
}
