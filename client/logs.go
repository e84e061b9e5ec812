package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// logPieceBytes is the most that is asked of an agent at once.
	logPieceBytes = 256 << 10
	// piecesPerRound bounds what is read of one instance before the others
	// have their turn.
	piecesPerRound = 16
	// logReaders bounds the instances that are read at the same time.
	logReaders = 16
	// tailStartBytes and tailMaxBytes bound what is read to find the last
	// lines of an instance.
	tailStartBytes = 64 << 10
	tailMaxBytes   = 8 << 20
	// maxLineBytes bounds a line; a longer one is cut into several.
	maxLineBytes = 64 << 10
)

// LogQuery says whose output to read.
type LogQuery struct {
	App      kbroker.AppName
	Service  kbroker.ServiceName // empty: all, the allocator included
	Instance kbroker.InstanceID  // empty: all
	Tail     int                 // so many last lines of each instance; negative: all that is kept
	Follow   bool                // go on until ctx ends
	// Notice (may be nil) hears what keeps output from being complete: a host
	// that does not answer, bytes that rotation removed before they were read.
	Notice func(kbroker.InstanceID, error)
}

// LogLine is one line of an instance's output, without its line end.
type LogLine struct {
	Instance kbroker.InstanceID `json:"instance"`
	Host     kbroker.HostID     `json:"host"`
	Line     string             `json:"line"`
}

// Logs calls emit with the lines of all instances of the query, those of one
// instance in order, until all are read, with Follow until ctx ends (then nil).
// An error of emit ends it. Errors: NotFound when there is no such app,
// service or instance; Unavailable when no host of theirs answered.
func (c *Client) Logs(ctx context.Context, q LogQuery, emit func(LogLine) error) error {
	if q.Notice == nil {
		q.Notice = func(kbroker.InstanceID, error) {}
	}
	if _, err := c.App(ctx, q.App); err != nil {
		return err
	}
	f := follower{client: c, query: q, emit: emit, outputs: map[kbroker.InstanceID]*output{}}
	if err := f.list(ctx); err != nil {
		return err
	}
	if len(f.outputs) == 0 && (q.Instance != "" || q.Service != "") && !q.Follow {
		return kbroker.Errorf(kbroker.NotFound, "%s has no instance with output of that name", q.App).
			WithHint("`kbroker ps --all %s` lists them", q.App)
	}
	if q.Follow {
		return f.follow(ctx)
	}
	for more := true; more; more = f.unread() {
		if err := f.round(ctx); err != nil {
			return err
		}
	}
	return f.end()
}

// follower reads the output of several instances in rounds.
type follower struct {
	client  *Client
	query   LogQuery
	emit    func(LogLine) error
	outputs map[kbroker.InstanceID]*output
}

// output is how far one instance has been read.
type output struct {
	instance kbroker.InstanceID
	host     kbroker.HostID
	started  bool
	next     int64
	partial  []byte // the beginning of a line whose end was not there yet
	end      int64  // where reading stops; 0: never
	more     bool   // the last read left something
	lost     int64  // bytes that rotation removed before they were read
	err      error  // of the last read
	told     string // the error that was noticed last
	lines    []string
}

func (f *follower) follow(ctx context.Context) error {
	listed := time.Now()
	tick := time.NewTicker(f.client.pace.logEvery)
	defer tick.Stop()
	for {
		if err := f.round(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-ctx.Done():
			return f.flush()
		case <-tick.C:
		}
		if time.Since(listed) >= f.client.pace.listEvery {
			listed = time.Now()
			// What is known goes on being read while no core answers.
			if err := f.list(ctx); err != nil && ctx.Err() == nil && !errors.Is(err, kbroker.Unavailable) {
				return err
			}
		}
	}
}

// list adds the instances that match and are not known yet.
func (f *follower) list(ctx context.Context) error {
	rows, err := f.client.Instances(ctx, f.query.App, true)
	if err != nil {
		return err
	}
	for _, r := range rows {
		switch {
		case r.Instance == nil || r.Host == nil,
			f.query.Service != "" && r.Service != f.query.Service,
			f.query.Instance != "" && *r.Instance != f.query.Instance,
			f.outputs[*r.Instance] != nil:
			continue
		}
		f.outputs[*r.Instance] = &output{instance: *r.Instance, host: *r.Host}
	}
	return nil
}

// round reads what is new of all instances and emits it, in the order of
// their names.
func (f *follower) round(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	slots := make(chan struct{}, logReaders)
	var readers sync.WaitGroup
	for _, o := range f.outputs {
		slots <- struct{}{}
		readers.Go(func() {
			defer func() { <-slots }()
			o.err = f.read(ctx, o)
		})
	}
	readers.Wait()
	for _, o := range f.sorted() {
		for _, line := range o.lines {
			if err := f.emit(LogLine{Instance: o.instance, Host: o.host, Line: line}); err != nil {
				return err
			}
		}
		o.lines = nil
		f.notice(ctx, o)
	}
	return nil
}

func (f *follower) notice(ctx context.Context, o *output) {
	if o.lost > 0 {
		f.query.Notice(o.instance, kbroker.Errorf(kbroker.Failed, "%d bytes were removed by rotation before they were read", o.lost))
		o.lost = 0
	}
	text := ""
	if o.err != nil && ctx.Err() == nil {
		text = o.err.Error()
	}
	if text != "" && text != o.told {
		f.query.Notice(o.instance, o.err)
	}
	o.told = text
}

func (f *follower) unread() bool {
	for _, o := range f.outputs {
		if o.more && o.err == nil {
			return true
		}
	}
	return false
}

// end emits what has no line end and says whether anything was read at all.
func (f *follower) end() error {
	if err := f.flush(); err != nil {
		return err
	}
	var failed error
	for _, o := range f.outputs {
		if o.err == nil {
			return nil
		}
		failed = o.err
	}
	return failed
}

func (f *follower) flush() error {
	for _, o := range f.sorted() {
		if len(o.partial) == 0 {
			continue
		}
		line := LogLine{Instance: o.instance, Host: o.host, Line: text(o.partial)}
		o.partial = nil
		if err := f.emit(line); err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) sorted() []*output {
	all := make([]*output, 0, len(f.outputs))
	for _, o := range f.outputs {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *output) int { return strings.Compare(string(a.instance), string(b.instance)) })
	return all
}

// read reads what an instance wrote since the last time, at first its last
// lines.
func (f *follower) read(ctx context.Context, o *output) error {
	if !o.started && f.query.Tail >= 0 {
		return f.tail(ctx, o)
	}
	if !o.started && !f.query.Follow {
		// Who writes faster than this reads must not keep it for ever.
		last, err := f.piece(ctx, o, -1)
		if err != nil {
			return err
		}
		o.end = last.Next
	}
	o.started = true
	for range piecesPerRound {
		r, err := f.piece(ctx, o, o.next)
		if err != nil {
			return err
		}
		if o.next > 0 {
			o.lost += max(0, r.Offset-o.next)
		}
		o.next = r.Next
		o.take(r.Data)
		if o.more = len(r.Data) > 0 && (o.end == 0 || o.next < o.end); !o.more {
			return nil
		}
	}
	return nil
}

// tail reads back from the end until it has enough lines.
func (f *follower) tail(ctx context.Context, o *output) error {
	for back := int64(tailStartBytes); ; back *= 4 {
		first, err := f.piece(ctx, o, -back)
		if err != nil {
			return err
		}
		data, next, last := first.Data, first.Next, first
		for len(last.Data) > 0 && int64(len(data)) < back {
			if last, err = f.piece(ctx, o, next); err != nil {
				return err
			}
			data, next = append(data, last.Data...), last.Next
		}
		// The newline that ends the last line begins none.
		lines := bytes.Count(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
		whole := first.Offset == 0 || int64(len(data)) < back
		if lines < f.query.Tail && !whole && back < tailMaxBytes {
			continue
		}
		if !whole {
			_, data, _ = bytes.Cut(data, []byte("\n"))
		}
		o.started, o.next = true, next
		o.take(data)
		keep := f.query.Tail
		if len(o.partial) > 0 {
			keep-- // for the line that has not ended
		}
		o.lines = o.lines[max(0, len(o.lines)-max(0, keep)):]
		if f.query.Tail == 0 {
			o.partial = nil
		}
		return nil
	}
}

// take cuts data into lines.
func (o *output) take(data []byte) {
	for len(data) > 0 {
		line, rest, ended := bytes.Cut(data, []byte("\n"))
		o.partial, data = append(o.partial, line...), rest
		for len(o.partial) > maxLineBytes {
			o.lines = append(o.lines, text(o.partial[:maxLineBytes]))
			o.partial = slices.Clone(o.partial[maxLineBytes:])
		}
		if ended {
			o.lines = append(o.lines, text(o.partial))
			o.partial = nil
		}
	}
}

func text(line []byte) string {
	return strings.ToValidUTF8(strings.TrimSuffix(string(line), "\r"), "�")
}

// piece asks the instance's host for output from offset on.
func (f *follower) piece(ctx context.Context, o *output, offset int64) (kbroker.LogReply, error) {
	var r kbroker.LogReply
	body, err := json.Marshal(kbroker.LogRequest{Instance: o.instance, Offset: offset, MaxBytes: logPieceBytes})
	if err != nil {
		return r, err
	}
	ctx, cancel := context.WithTimeout(ctx, f.client.pace.logWait)
	defer cancel()
	msg, err := f.client.request(ctx, &nats.Msg{Subject: subjects.Host(o.host, subjects.VerbLogs, f.client.tenant), Data: body})
	if errors.Is(err, kbroker.Refused) {
		return r, err
	}
	if err != nil {
		return r, kbroker.Errorf(kbroker.Unavailable, "the agent of host %s does not answer", o.host)
	}
	return r, decode(msg, &r)
}

// Tail returns the last lines of one instance's output.
func (c *Client) Tail(ctx context.Context, app kbroker.AppName, instance kbroker.InstanceID, lines int) ([]string, error) {
	var all []string
	err := c.Logs(ctx, LogQuery{App: app, Instance: instance, Tail: lines}, func(l LogLine) error {
		all = append(all, l.Line)
		return nil
	})
	return all, err
}
