package sdk

import (
	"sync"
	"time"
)

const (
	// nestedSession is what the sessions end with of calls that turns make.
	nestedSession = "-n"
	// nestedLasts is how long a turn may be repeated that was not stored: its own call is
	// not sent again after resendWithin, and refused by its age then.
	nestedLasts = resendWithin + 5*time.Second
)

// nested are the calls of objects that a turn has made, and that may have taken effect. If the
// turn is repeated, as the instance dies, or as its call was sent twice and it has failed,
// they are made again, and must be known: they are confirmed, and forgotten by their owners,
// when the turn is stored, or else when it cannot be repeated any more.
type nested struct {
	mu    sync.Mutex
	calls []nestedCall
	over  bool // the turn has come to its end
	known bool // and is stored
	later *time.Timer
}

// nestedCall is one of a client. (The call itself is used again for others.)
type nestedCall struct {
	client   *Client
	sequence uint64
}

func (c nestedCall) confirm() { c.client.nested.end(c.sequence) }

// made adds a call; it may be one that the turn did not wait for.
func (t *turn) made(c nestedCall) {
	n := &t.nested
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.known:
		c.confirm()
	case n.over:
		time.AfterFunc(nestedLasts, c.confirm)
	default:
		n.calls = append(n.calls, c)
	}
}

func (n *nested) some() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.calls) > 0
}

// end is for a turn that has come to its end: it may be stored now, or never.
func (n *nested) end() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.over = true
	if len(n.calls) > 0 {
		n.later = time.AfterFunc(nestedLasts, n.confirm)
	}
}

// stored is for a turn that is known from now on.
func (t *turn) stored() {
	if t == nil || t.readOnly {
		return
	}
	n := &t.nested
	n.mu.Lock()
	n.known = true
	if n.later != nil {
		n.later.Stop()
	}
	n.mu.Unlock()
	n.confirm()
}

func (n *nested) confirm() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.calls {
		c.confirm()
	}
	n.calls = nil
}
