package ownership

import (
	"slices"
	"time"
)

// Bounds of what an object knows of its callers.
const (
	// maxRing bounds the requests that are known to have taken effect.
	maxRing = 1024
	// maxMarks bounds the sessions of which it is known up to where their requests are over.
	maxMarks = 4096
	// maxRingBytes bounds their answers.
	maxRingBytes = 128 << 10
	// maxReplyBytes bounds the answer that is kept of one; of a larger one it is known
	// that there was one.
	maxReplyBytes = 1 << 10
)

// Entry is a request that has taken effect.
type Entry struct {
	Session  string        `json:"s"`
	Sequence uint64        `json:"n"`
	Once     string        `json:"o,omitempty"`
	Hash     uint64        `json:"h"` // of what was asked
	At       time.Duration `json:"t"` // the object's age then
	Reply    []byte        `json:"r,omitempty"`
	Cut      bool          `json:"c,omitempty"` // the reply is too large to be kept
	Refused  []byte        `json:"-"`           // of a message of an outbox
}

// Mark is up to where the requests of a session are over: none below it takes effect.
type Mark struct {
	Session string        `json:"s"`
	Below   uint64        `json:"n"`
	At      time.Duration `json:"t"` // the object's age when the session was last heard of
	// Refused, of an outbox: what the last of its messages was refused with.
	Refused []byte `json:"r,omitempty"`
}

// is reports whether a call is the one that has taken effect: also if its turn was repeated,
// by which it has another session.
func (e Entry) is(c *Call) bool {
	return e.Session == c.Session && e.Sequence == c.Sequence || c.Once != "" && e.Once == c.Once
}

// window is half of how long the mark of a session is kept.
func window(session string, times Times) time.Duration {
	if ordered(session) {
		return outboxWindow
	}
	return times.Window
}

// verdict of what is known of a request.
type verdict int

const (
	isNew     verdict = iota
	isKnown           // it has taken effect
	isOther           // another one took effect under its id
	isExpired         // it is too old to tell
	isTooMany         // there is no room to remember it
)

// knows says what the record knows of a call.
func (r *Record) knows(c *Call, age time.Duration, times Times) (verdict, Entry) {
	for _, e := range r.Ring {
		if !e.is(c) {
			continue
		}
		if e.Hash != c.Hash {
			return isOther, e
		}
		return isKnown, e
	}
	i := slices.IndexFunc(r.Marks, func(m Mark) bool { return m.Session == c.Session })
	switch {
	case i < 0 || c.Sequence >= r.Marks[i].Below:
	case ordered(c.Session) && ruleOutboxMark && c.Sequence == r.Marks[i].Below-1:
		return isKnown, Entry{Refused: r.Marks[i].Refused}
	case ordered(c.Session) && ruleOutboxMark:
		return isKnown, Entry{} // its outbox has gone on
	case !ordered(c.Session):
		return isExpired, Entry{}
	}
	if !ordered(c.Session) && c.Age > times.Window-times.WindowMargin || ordered(c.Session) && i < 0 && r.forgot(c, age, times) {
		return isExpired, Entry{}
	}
	kept := r.after(c, age, times)
	size := 0
	for _, e := range kept.Ring {
		size += len(e.Reply)
	}
	if len(kept.Ring) >= maxRing || size > maxRingBytes-maxReplyBytes || len(kept.Marks) >= maxMarks {
		return isTooMany, Entry{}
	}
	return isNew, Entry{}
}

// forgot reports whether a message of an outbox of which there is no mark may have had its
// outcome, and the mark of that was forgotten: then it is older than what was forgotten last.
// An object's age is less than the time that has passed since.
func (r *Record) forgot(c *Call, age time.Duration, times Times) bool {
	return r.Forgot > 0 && c.Age+times.WindowMargin >= age-r.Forgot
}

// after is the record without what need not be known any more when a call is taken: what
// its caller has confirmed, and what is older than the window. Both leave a mark. The
// ring and the marks are copies.
func (r *Record) after(c *Call, age time.Duration, times Times) Record {
	out := *r
	out.Age = age
	out.Ring, out.Marks = nil, slices.Clone(r.Marks)
	mark := func(session string, below uint64, at time.Duration) {
		i := slices.IndexFunc(out.Marks, func(m Mark) bool { return m.Session == session })
		if i < 0 {
			out.Marks = append(out.Marks, Mark{Session: session, Below: below, At: at})
			return
		}
		out.Marks[i].Below, out.Marks[i].At = max(out.Marks[i].Below, below), max(out.Marks[i].At, at)
	}
	for _, e := range r.Ring {
		switch {
		case e.Session == c.Session && e.Sequence < c.Confirmed:
			if ruleMark {
				mark(e.Session, c.Confirmed, age)
			}
		case age-e.At > times.Window:
			if ruleWindowMark {
				mark(e.Session, e.Sequence+1, e.At)
			}
		default:
			out.Ring = append(out.Ring, e)
		}
	}
	out.Marks = slices.DeleteFunc(out.Marks, func(m Mark) bool {
		old := age-m.At > 2*window(m.Session, times) && !slices.ContainsFunc(out.Ring, func(e Entry) bool { return e.Session == m.Session })
		if old && ordered(m.Session) {
			out.Forgot = max(out.Forgot, m.At+1)
		}
		return old
	})
	return out
}

// leavesMark reports whether a call is remembered whatever it does: a message has one
// outcome.
func (c *Call) leavesMark() bool { return ordered(c.Session) || c.removes != 0 }

// remember adds a call that takes effect, or a message that is refused.
func (r *Record) remember(c *Call, reply, refused []byte) {
	if ordered(c.Session) {
		m := Mark{Session: c.Session, Below: c.Sequence + 1, At: r.Age, Refused: refused}
		if i := slices.IndexFunc(r.Marks, func(m Mark) bool { return m.Session == c.Session }); i >= 0 {
			r.Marks[i] = m
		} else {
			r.Marks = append(r.Marks, m)
		}
		return
	}
	e := Entry{Session: c.Session, Sequence: c.Sequence, Once: c.Once, Hash: c.Hash, At: r.Age, Reply: reply}
	if len(reply) > maxReplyBytes {
		e.Reply, e.Cut = nil, true
	}
	r.Ring = append(r.Ring, e)
}
