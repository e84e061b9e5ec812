package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// file is an instance's output as its agent keeps it: kept bytes from offset.
type file struct {
	offset int64
	data   string
	marks  []kbroker.LogMark
}

// outputs serves the output of instances on host h1 in small pieces.
func (c *cluster) outputs(files *value[map[kbroker.InstanceID]file]) *nats.Subscription {
	c.app(func() kbroker.AppRow { return kbroker.AppRow{App: "hello", Version: 1} }, func() []kbroker.InstanceRow {
		rows := noInstances()
		for i := range files.get() {
			rows = append(rows, kbroker.InstanceRow{App: "hello", Service: "hello", Instance: &i, Host: ptr(kbroker.HostID("h1"))})
		}
		return append(rows, kbroker.InstanceRow{App: "hello", Service: "hello"}) // not placed
	})
	return c.serveOutputs(files)
}

func (c *cluster) serveOutputs(files *value[map[kbroker.InstanceID]file]) *nats.Subscription {
	return c.serve(subjects.Host("h1", subjects.VerbLogs, kbroker.DefaultTenant), func(m *nats.Msg) any {
		r := parse[kbroker.LogRequest](c.t, m)
		f, ok := files.get()[r.Instance]
		if !ok {
			return kbroker.Errorf(kbroker.NotFound, "no instance %s", r.Instance)
		}
		end := f.offset + int64(len(f.data))
		asked := r.Offset
		if r.Since != nil {
			asked = 0
			for _, m := range f.marks {
				if !m.At.After(*r.Since) {
					asked = m.Offset
				}
			}
		}
		if asked < 0 {
			asked = max(0, end+asked)
		}
		from := min(max(asked, f.offset), end)
		n := min(end-from, 10_000, int64(r.MaxBytes))
		return kbroker.LogReply{
			Offset: from, Next: from + n, Data: []byte(f.data[from-f.offset:][:n]),
			DroppedBytes: max(0, from-asked), Oldest: f.offset, Marks: f.marks,
		}
	})
}

func lines(prefix string, from, to int) string {
	var b strings.Builder
	for i := from; i <= to; i++ {
		fmt.Fprintf(&b, "%s %d\n", prefix, i)
	}
	return b.String()
}

func shown(l LogLine) string {
	if l.Dropped > 0 {
		return fmt.Sprintf("%s: -- %d --", l.Instance, l.Dropped)
	}
	return string(l.Instance) + ": " + l.Line
}

// read collects what a query yields, as "instance: line".
func read(t *testing.T, api *Client, q LogQuery) []string {
	t.Helper()
	var got []string
	q.App = "hello"
	if err := api.Logs(t.Context(), q, func(l LogLine) error {
		got = append(got, shown(l))
		return nil
	}); err != nil {
		t.Fatalf("logs: %v", err)
	}
	return got
}

func TestLogsShowTheLastLinesOfEachInstance(t *testing.T) {
	c := newCluster(t)
	c.outputs(&value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{
		"a-1": {offset: 0, data: lines("long", 1, 30_000)}, // more than one tail and many pieces
		"a-2": {offset: 0, data: "one\r\ntwo\nno end"},
		"a-3": {offset: 0, data: ""},
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
	c.outputs(&value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{"a-1": {offset: 500, data: lines("line", 1, 40_000)}}})
	got := read(t, c.client(), LogQuery{Tail: -1})
	if len(got) != 40_001 || got[0] != "a-1: -- 500 --" || got[1] != "a-1: line 1" || got[40_000] != "a-1: line 40000" {
		t.Fatalf("%d lines, want 500 dropped bytes and 40000 from line 1 to line 40000", len(got))
	}
}

func TestFollowingLogsShowsWhatComesAndWhatIsLost(t *testing.T) {
	c := newCluster(t)
	files := &value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{"a-1": {offset: 0, data: "first\nhal"}}}
	c.outputs(files)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	q := LogQuery{App: "hello", Tail: 10, Follow: true, Notice: func(i kbroker.InstanceID, err error) {
		if !errors.Is(err, kbroker.NotFound) { // a new instance is listed before it has output
			t.Errorf("notice of %q: %v", i, err)
		}
	}}
	var got []string
	err := c.client().Logs(ctx, q, func(l LogLine) error {
		got = append(got, shown(l))
		switch len(got) {
		case 1: // the end of a line that was begun, and a new instance
			files.set(map[kbroker.InstanceID]file{"a-1": {offset: 0, data: "first\nhalf\n"}, "a-2": {offset: 0, data: "new\n"}})
		case 3: // 4 bytes that nobody has read are gone
			files.set(map[kbroker.InstanceID]file{"a-1": {offset: 15, data: "last\n"}, "a-2": {offset: 0, data: "new\nend"}})
		case 5:
			cancel()
		}
		return nil
	})
	if err != nil {
		t.Fatalf("logs: %v", err)
	}
	// Whether the unended line has been read before the end is a race.
	if len(got) == 6 && got[5] == "a-2: end" {
		got = got[:5]
	}
	slices.Sort(got[1:3])
	if want := []string{"a-1: first", "a-1: half", "a-2: new", "a-1: -- 4 --", "a-1: last"}; !slices.Equal(got, want) {
		t.Fatalf("logs are %q, want %q", got, want)
	}
}

func TestLogsOfSeveralInstancesAreMergedByTime(t *testing.T) {
	noon := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	at := func(second int, offset int64) kbroker.LogMark {
		return kbroker.LogMark{At: noon.Add(time.Duration(second) * time.Second), Offset: offset}
	}
	c := newCluster(t)
	c.outputs(&value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{
		"a-1": {data: "1\n3\n5\n", marks: []kbroker.LogMark{at(1, 2), at(3, 4), at(5, 6)}},
		"a-2": {offset: 2, data: "4\n6\nnow\n", marks: []kbroker.LogMark{at(2, 2), at(4, 4), at(6, 6)}},
	}})
	for name, tc := range map[string]struct {
		query LogQuery
		want  []string
	}{
		"the last lines": {LogQuery{Tail: 2}, []string{"a-1: 3", "a-1: 5", "a-2: 6", "a-2: now"}},
		"more than are kept": {
			LogQuery{Tail: 5},
			[]string{"a-1: 1", "a-1: 3", "a-2: -- 2 --", "a-2: 4", "a-1: 5", "a-2: 6", "a-2: now"},
		},
		"all that is kept": {
			LogQuery{Tail: -1},
			[]string{"a-1: 1", "a-1: 3", "a-2: -- 2 --", "a-2: 4", "a-1: 5", "a-2: 6", "a-2: now"},
		},
		"since a time":                    {LogQuery{Tail: -1, Since: noon.Add(4 * time.Second)}, []string{"a-1: 5", "a-2: 6", "a-2: now"}},
		"since the gap":                   {LogQuery{Tail: -1, Since: noon.Add(time.Second)}, []string{"a-1: 3", "a-2: -- 2 --", "a-2: 4", "a-1: 5", "a-2: 6", "a-2: now"}},
		"since just now":                  {LogQuery{Tail: -1, Since: noon.Add(time.Hour)}, []string{"a-2: now"}},
		"the last lines since a time":     {LogQuery{Tail: 1, Since: noon.Add(4 * time.Second)}, []string{"a-1: 5", "a-2: now"}},
		"more lines than there are since": {LogQuery{Tail: 9, Since: noon.Add(5 * time.Second)}, []string{"a-1: 5", "a-2: 6", "a-2: now"}},
		"of one instance":                 {LogQuery{Tail: -1, Instance: "a-1"}, []string{"a-1: 1", "a-1: 3", "a-1: 5"}},
	} {
		if got := read(t, c.client(), tc.query); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

// TestMergingWaitsForWhoIsBehind: what is later than what is known of an instance
// that is not at its end is kept for a later round.
func TestMergingWaitsForWhoIsBehind(t *testing.T) {
	line := func(i kbroker.InstanceID, second int64) LogLine {
		return LogLine{Instance: i, Time: time.Unix(second, 0), Line: fmt.Sprint(second)}
	}
	behind := &output{more: true, lines: []LogLine{line("a-1", 1), line("a-1", 5)}}
	ahead := &output{lines: []LogLine{line("a-2", 2), line("a-2", 5), line("a-2", 6)}}
	show := func(lines []LogLine) (all []string) {
		for _, l := range lines {
			all = append(all, string(l.Instance)+"@"+l.Line)
		}
		return all
	}
	outputs := []*output{behind, ahead}
	if got := show(merge(outputs)); !slices.Equal(got, []string{"a-1@1", "a-2@2", "a-1@5", "a-2@5"}) {
		t.Errorf("merged %q", got)
	}
	behind.lines, behind.more = []LogLine{line("a-1", 7)}, false
	if got := show(merge(outputs)); !slices.Equal(got, []string{"a-2@6", "a-1@7"}) {
		t.Errorf("merged %q at the end", got)
	}
}

// TestAHostThatIsAwayIsNamedOnce however many instances it has, and they join again
// when it is back.
func TestAHostThatIsAwayIsNamedOnce(t *testing.T) {
	c := newCluster(t)
	files := &value[map[kbroker.InstanceID]file]{v: map[kbroker.InstanceID]file{"a-1": {data: "one\n"}, "a-2": {data: "two\n"}}}
	away := c.outputs(files)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var notices, got []string
	q := LogQuery{App: "hello", Tail: 10, Follow: true, Notice: func(i kbroker.InstanceID, err error) {
		notices = append(notices, fmt.Sprintf("%s: %v", i, err))
		if len(notices) == 1 {
			files.set(map[kbroker.InstanceID]file{"a-1": {data: "one\n1\n"}, "a-2": {data: "two\n2\n"}})
			c.serveOutputs(files)
		}
	}}
	err := c.client().Logs(ctx, q, func(l LogLine) error {
		switch got = append(got, shown(l)); len(got) {
		case 2:
			return away.Unsubscribe()
		case 4:
			defer cancel()
		}
		return nil
	})
	if err != nil {
		t.Fatalf("logs: %v", err)
	}
	slices.Sort(got)
	if want := []string{"a-1: 1", "a-1: one", "a-2: 2", "a-2: two"}; !slices.Equal(got, want) {
		t.Errorf("logs are %q, want %q", got, want)
	}
	if len(notices) < 1 || !strings.Contains(notices[0], "host h1 does not answer") || len(notices) > 2 || len(notices) == 2 && !strings.Contains(notices[1], "answers again") {
		t.Errorf("notices are %q", notices)
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
	o.take(kbroker.LogReply{Data: []byte(strings.Repeat("x", maxLineBytes+7) + "\nshort\n")})
	if len(o.lines) != 3 || len(o.lines[0].Line) != maxLineBytes || len(o.lines[1].Line) != 7 || o.lines[2].Line != "short" {
		t.Fatalf("%d lines, want one of %d bytes, one of 7 and short", len(o.lines), maxLineBytes)
	}
}
