package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// file is an instance's output as its agent keeps it: kept bytes from offset.
type file struct {
	offset int64
	data   string
}

// outputs serves the output of instances on host h1 in small pieces.
func (c *cluster) outputs(files *value[map[kbroker.InstanceID]file]) {
	c.app(func() kbroker.AppRow { return kbroker.AppRow{App: "hello", Version: 1} }, func() []kbroker.InstanceRow {
		rows := noInstances()
		for i := range files.get() {
			rows = append(rows, kbroker.InstanceRow{App: "hello", Service: "hello", Instance: &i, Host: ptr(kbroker.HostID("h1"))})
		}
		return append(rows, kbroker.InstanceRow{App: "hello", Service: "hello"}) // not placed
	})
	c.serve(subjects.Host("h1", subjects.VerbLogs, kbroker.DefaultTenant), func(m *nats.Msg) any {
		r := parse[kbroker.LogRequest](c.t, m)
		f, ok := files.get()[r.Instance]
		if !ok {
			return kbroker.Errorf(kbroker.NotFound, "no instance %s", r.Instance)
		}
		end := f.offset + int64(len(f.data))
		from := r.Offset
		if from < 0 {
			from = end + from
		}
		from = min(max(from, f.offset), end)
		n := min(end-from, 10_000, int64(r.MaxBytes))
		return kbroker.LogReply{Offset: from, Next: from + n, Data: []byte(f.data[from-f.offset:][:n])}
	})
}

func lines(prefix string, from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintf(&b, "%s %d\n", prefix, i)
	}
	return b.String()
}

// read collects what a query yields, as "instance: line".
func read(t *testing.T, api *Client, q LogQuery) []string {
	t.Helper()
	var got []string
	q.App = "hello"
	if err := api.Logs(t.Context(), q, func(l LogLine) error {
		got = append(got, string(l.Instance)+": "+l.Line)
		return nil
	}); err != nil {
		t.Fatalf("logs: %v", err)
	}
	return got
}

func TestLogsShowTheLastLinesOfEachInstance(t *testing.T) {
	c := newCluster(t)
	c.outputs(&value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{
		"a-1": {0, lines("long", 1, 30_000)}, // more than one tail and many pieces
		"a-2": {0, "one\r\ntwo\nno end"},
		"a-3": {0, ""},
	}})
	got := read(t, c.client(), LogQuery{Tail: 2})
	want := []string{"a-1: long 29999", "a-1: long 30000", "a-2: two", "a-2: no end"}
	if !slices.Equal(got, want) {
		t.Fatalf("logs are %q, want %q", got, want)
	}
	if got := read(t, c.client(), LogQuery{Tail: 20_000, Instance: "a-1"}); len(got) != 20_000 || got[0] != "a-1: long 10001" {
		t.Fatalf("%d lines from %q, want 20000 from long 10001", len(got), got[0])
	}
	if got := read(t, c.client(), LogQuery{Tail: 0}); len(got) != 0 {
		t.Fatalf("with tail 0: %q, want nothing", got)
	}
}

func TestLogsShowAllThatIsKept(t *testing.T) {
	c := newCluster(t)
	c.outputs(&value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{"a-1": {500, lines("line", 1, 40_000)}}})
	got := read(t, c.client(), LogQuery{Tail: -1})
	if len(got) != 40_000 || got[0] != "a-1: line 1" || got[39_999] != "a-1: line 40000" {
		t.Fatalf("%d lines, want 40000 from line 1 to line 40000", len(got))
	}
}

func TestFollowingLogsShowsWhatComesAndWhatIsLost(t *testing.T) {
	c := newCluster(t)
	files := &value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{"a-1": {0, "first\nhal"}}}
	c.outputs(files)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var notices []string
	q := LogQuery{App: "hello", Tail: 10, Follow: true, Notice: func(i kbroker.InstanceID, err error) {
		notices = append(notices, fmt.Sprintf("%s: %v", i, err))
	}}
	var got []string
	err := c.client().Logs(ctx, q, func(l LogLine) error {
		got = append(got, string(l.Instance)+": "+l.Line)
		switch len(got) {
		case 1: // the end of a line that was begun, and a new instance
			files.set(map[kbroker.InstanceID]file{"a-1": {0, "first\nhalf\n"}, "a-2": {0, "new\n"}})
		case 3: // rotation removed 4 bytes that nobody has read
			files.set(map[kbroker.InstanceID]file{"a-1": {15, "last\n"}, "a-2": {0, "new\nend"}})
		case 4:
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Fatalf("logs: %v", err)
	}
	// Whether the unended line has been read before the end is a race.
	if len(got) == 5 && got[4] == "a-2: end" {
		got = got[:4]
	}
	slices.Sort(got[1:3])
	if want := []string{"a-1: first", "a-1: half", "a-2: new", "a-1: last"}; !slices.Equal(got, want) {
		t.Fatalf("logs are %q, want %q", got, want)
	}
	if len(notices) != 1 || !strings.Contains(notices[0], "a-1: 4 bytes") {
		t.Fatalf("notices are %q, want that of 4 lost bytes", notices)
	}
}

func TestLogsOfAHostThatIsNotThere(t *testing.T) {
	c := newCluster(t)
	c.app(func() kbroker.AppRow { return kbroker.AppRow{App: "hello"} }, func() []kbroker.InstanceRow {
		return []kbroker.InstanceRow{{App: "hello", Service: "hello", Instance: ptr(kbroker.InstanceID("a-1")), Host: ptr(kbroker.HostID("h9"))}}
	})
	err := c.client().Logs(t.Context(), LogQuery{App: "hello", Tail: 5}, func(LogLine) error { return nil })
	if !errors.Is(err, kbroker.Unavailable) || !strings.Contains(err.Error(), "h9") {
		t.Fatalf("logs: %v, want code unavailable and the host", err)
	}
	err = c.client().Logs(t.Context(), LogQuery{App: "hello", Instance: "a-2"}, func(LogLine) error { return nil })
	if !errors.Is(err, kbroker.NotFound) {
		t.Fatalf("logs of an instance that is not there: %v, want code not_found", err)
	}
}

func TestALineThatIsTooLongIsCut(t *testing.T) {
	o := &output{}
	o.take([]byte(strings.Repeat("x", maxLineBytes+7) + "\nshort\n"))
	if len(o.lines) != 3 || len(o.lines[0]) != maxLineBytes || len(o.lines[1]) != 7 || o.lines[2] != "short" {
		t.Fatalf("%d lines, want one of %d bytes, one of 7 and short", len(o.lines), maxLineBytes)
	}
}
