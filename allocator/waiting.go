package allocator

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxWaiting and maxWaitingBytes bound what waits for an instance of one service.
	maxWaiting      = 1000
	maxWaitingBytes = 4 << 20
	// waitsFor is how long a request waits that says no deadline, waitsMost how long any
	// does, streamWaits one that begins a stream: its caller gives up then (sdk.DefaultTimeout).
	waitsFor    = 10 * time.Second
	waitsMost   = time.Minute
	streamWaits = 5 * time.Second
	// lastWord is how long before its deadline a caller is told that nothing has run: later
	// it would not hear it.
	lastWord = 100 * time.Millisecond
)

// kept is a request that waits. Times are of the allocator's clock.
type kept struct {
	msg  *nats.Msg
	call string // the same of all attempts of a call; empty: it has no id
	// until is when it has waited for long enough, ends when its caller gives up; 0: nobody
	// knows.
	until, ends time.Duration
	earlier     []string // where answers to earlier attempts go
}

func newKept(now time.Duration, m *nats.Msg) *kept {
	r := &kept{msg: m, until: now + waitsFor}
	if ms, err := strconv.ParseInt(m.Header.Get(subjects.HeaderTimeout), 10, 64); err == nil {
		left := time.Duration(min(max(ms, 0), int64(24*time.Hour/time.Millisecond))) * time.Millisecond
		r.ends = now + left
		r.until = now + min(left-lastWord, waitsMost)
	}
	if m.Header.Get(subjects.HeaderStream) != "" {
		r.until = min(r.until, now+streamWaits-lastWord)
	}
	if id := m.Header.Get(subjects.HeaderRequestID); id != "" {
		// An id can be of the application's own: two processes that have the same one each
		// want an answer. A process has one inbox.
		inbox := m.Reply[:strings.LastIndexByte(m.Reply, '.')+1]
		r.call = m.Subject + " " + id + " " + inbox
	}
	return r
}

// late reports whether it has waited for long enough.
func (r *kept) late(now time.Duration) bool { return now >= r.until }

// gone reports whether its caller has given up.
func (r *kept) gone(now time.Duration) bool { return r.ends > 0 && now >= r.ends }

// message is what an instance gets: the request as it came, with the time that is left of
// its deadline.
func (r *kept) message(now time.Duration) *nats.Msg {
	m := &nats.Msg{Subject: r.msg.Subject, Reply: r.msg.Reply, Header: r.msg.Header, Data: r.msg.Data}
	if r.ends > 0 {
		left := (r.ends - now + time.Millisecond - 1) / time.Millisecond
		m.Header.Set(subjects.HeaderTimeout, strconv.FormatInt(int64(left), 10))
	}
	return m
}

// waiting are the requests that wait for an instance of a service, in the order in which
// their calls came. The zero value is ready. Not safe for concurrent use.
type waiting struct {
	all   []*kept
	bytes int
}

// take keeps a request, or reports that there is no room for it. A later attempt of a call
// takes the place of the earlier one: only one of them runs.
func (w *waiting) take(r *kept) bool {
	place, free := len(w.all), maxWaitingBytes-w.bytes
	if r.call != "" {
		if i := slices.IndexFunc(w.all, func(o *kept) bool { return o.call == r.call }); i >= 0 {
			place, free = i, free+w.all[i].msg.Size()
		}
	}
	if r.msg.Size() > free || place == maxWaiting {
		return false
	}
	w.bytes = maxWaitingBytes - free + r.msg.Size()
	if place == len(w.all) {
		w.all = append(w.all, r)
		return true
	}
	was := w.all[place]
	r.earlier = append(was.earlier, was.msg.Reply)
	w.all[place] = r
	return true
}

// late takes out those that have waited for long enough.
func (w *waiting) late(now time.Duration) (out []*kept) {
	w.all = slices.DeleteFunc(w.all, func(r *kept) bool {
		if !r.late(now) {
			return false
		}
		out, w.bytes = append(out, r), w.bytes-r.msg.Size()
		return true
	})
	return out
}

// empty takes out all.
func (w *waiting) empty() []*kept {
	all := w.all
	*w = waiting{}
	return all
}
