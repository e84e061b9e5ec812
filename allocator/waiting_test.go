package allocator

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/subjects"
)

func asked(id, timeoutMs, reply string) *nats.Msg {
	m := nats.NewMsg(subjects.Method(shop, "web", "m"))
	m.Reply = reply
	if id != "" {
		m.Header.Set(subjects.HeaderRequestID, id)
	}
	if timeoutMs != "" {
		m.Header.Set(subjects.HeaderTimeout, timeoutMs)
	}
	return m
}

func TestARequestWaitsUntilItsDeadline(t *testing.T) {
	const at = time.Hour
	stream := asked("", "86400000", "_INBOX.a.1")
	stream.Header.Set(subjects.HeaderStream, "10")
	for _, c := range []struct {
		name   string
		msg    *nats.Msg
		waits  time.Duration // from now on
		gone   time.Duration // when its caller has given up; 0: never
		passed string        // the time that an instance has if it is passed on a second later
	}{
		{"a little less than its deadline", asked("", "5000", "_INBOX.a.1"), 4900 * time.Millisecond, 5 * time.Second, "4000"},
		{"a minute at most", asked("", "3600000", "_INBOX.a.1"), time.Minute, time.Hour, "3599000"},
		{"not at all if nothing is left", asked("", "0", "_INBOX.a.1"), -lastWord, 0, ""},
		{"for a while without a deadline", asked("", "", "_INBOX.a.1"), waitsFor, 0, ""},
		{"for a while with one that is no number", asked("", "soon", "_INBOX.a.1"), waitsFor, 0, ""},
		{"of a stream as long as its caller waits for it to begin", stream, streamWaits - lastWord, 24 * time.Hour, "86399000"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKept(at, c.msg)
			if k.late(at+c.waits-1) || !k.late(at+c.waits) {
				t.Errorf("it waits until %v after it came, want %v", k.until-at, c.waits)
			}
			if c.gone > 0 && !k.gone(at+c.gone) || k.gone(at+c.gone-1) {
				t.Errorf("its caller gives up at %v, want %v", k.ends-at, c.gone)
			}
			if c.passed == "" {
				return
			}
			if got := k.message(at + time.Second).Header.Get(subjects.HeaderTimeout); got != c.passed {
				t.Errorf("an instance has %s ms a second later, want %s", got, c.passed)
			}
		})
	}
}

func TestALaterAttemptTakesThePlaceOfTheEarlierOne(t *testing.T) {
	var w waiting
	take := func(id, reply string) {
		t.Helper()
		if !w.take(newKept(0, asked(id, "5000", reply))) {
			t.Fatalf("no room for %s", reply)
		}
	}
	take("s:1", "_INBOX.a.1")
	take("s:2", "_INBOX.a.2")
	take("s:1", "_INBOX.a.3")
	take("s:1", "_INBOX.b.1") // another process that has made up the same id
	take("", "_INBOX.a.4")
	take("", "_INBOX.a.5")
	var got []string
	for _, k := range w.all {
		got = append(got, fmt.Sprint(k.msg.Reply, k.earlier))
	}
	want := []string{"_INBOX.a.3[_INBOX.a.1]", "_INBOX.a.2[]", "_INBOX.b.1[]", "_INBOX.a.4[]", "_INBOX.a.5[]"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v wait, want %v", got, want)
	}
}

func TestWhatWaitsIsBounded(t *testing.T) {
	t.Run("in number", func(t *testing.T) {
		var w waiting
		for n := range maxWaiting {
			if !w.take(newKept(0, asked(fmt.Sprint("s:", n), "5000", "_INBOX.a.1"))) {
				t.Fatalf("no room for request %d", n)
			}
		}
		if w.take(newKept(0, asked("s:x", "5000", "_INBOX.a.1"))) {
			t.Errorf("room for more than %d", maxWaiting)
		}
		if !w.take(newKept(0, asked("s:7", "5000", "_INBOX.a.2"))) {
			t.Error("no room for another attempt of one that waits")
		}
		if late := w.late(5 * time.Second); len(late) != maxWaiting || len(w.all) != 0 || w.bytes != 0 {
			t.Errorf("%d have waited for long enough, %d wait on with %d bytes; want all, and none", len(late), len(w.all), w.bytes)
		}
	})
	t.Run("in bytes", func(t *testing.T) {
		var w waiting
		large := func(id string) *kept {
			m := asked(id, "5000", "_INBOX.a.1")
			m.Data = bytes.Repeat([]byte("x"), 1<<20)
			return newKept(0, m)
		}
		n := 0
		for w.take(large(fmt.Sprint("s:", n))) {
			n++
		}
		if n != maxWaitingBytes>>20-1 {
			t.Errorf("%d of 1 MiB, and their headers, wait", n)
		}
		before := w.bytes
		if !w.take(large("s:1")) || w.bytes != before {
			t.Errorf("%d bytes, want %d, after another attempt of one that waits", w.bytes, before)
		}
		if all := w.empty(); len(all) != n || w.bytes != 0 || len(w.all) != 0 {
			t.Errorf("%d taken out, %d bytes left", len(all), w.bytes)
		}
	})
}
