package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

// logReaders bounds the instances that are read at the same time.
const logReaders = 16

// LogQuery says whose output to read.
type LogQuery struct {
	App      kbroker.AppName
	Service  kbroker.ServiceName // empty: all, the allocator included
	Instance kbroker.InstanceID  // empty: all
	Tail     int                 // so many last lines of each instance; negative: all that is kept
	// Since, if not zero, leaves out what is older, by the clock of its host; up to a
	// second more may be there.
	Since  time.Time
	Follow bool // go on until ctx ends
	// Notice (may be nil) hears what keeps output from being complete: once for a
	// host that does not answer, and again when it does (no instance is named).
	Notice func(kbroker.InstanceID, error)
}

// LogLine is one line of an instance's output, without its line end; or, where
// Dropped is above 0, so many bytes that are not there: they were removed to keep
// the output in bounds.
type LogLine struct {
	Instance kbroker.InstanceID `json:"instance"`
	Host     kbroker.HostID     `json:"host"`
	// Time is when the host's agent has seen the line, within a second; of what
	// was written while it was away, when it was back.
	Time    time.Time `json:"time"`
	Line    string    `json:"line"`
	Dropped int64     `json:"dropped_bytes,omitempty"`
}

// Logs calls emit with the lines of all instances of the query, those of one
// instance in order, those of several by time, until all are read, with Follow
// until ctx ends (then nil). An error of emit ends it. Errors: NotFound when
// there is no such app, service or instance; Unavailable when no host of theirs
// answered.
func (c *Client) Logs(ctx context.Context, q LogQuery, emit func(LogLine) error) error {
	if q.Notice == nil {
		q.Notice = func(kbroker.InstanceID, error) {}
	}
	if _, err := c.App(ctx, q.App); err != nil {
		return err
	}
	f := follower{client: c, query: q, emit: emit, outputs: map[kbroker.InstanceID]*output{}, silent: map[kbroker.HostID]bool{}}
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
	silent  map[kbroker.HostID]bool // hosts that have not answered the last time
}

func (f *follower) follow(ctx context.Context) error {
	listed := time.Now()
	now := make(chan time.Time)
	close(now)
	tick := time.NewTicker(f.client.pace.logEvery)
	defer tick.Stop()
	for {
		if err := f.round(ctx); err != nil && ctx.Err() == nil {
			return err
		}
		pause := tick.C
		if f.unread() {
			pause = now
		}
		select {
		case <-ctx.Done():
			return f.flush()
		case <-pause:
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

// round reads what is new of all instances and emits it by time.
func (f *follower) round(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	slots := make(chan struct{}, logReaders)
	var readers sync.WaitGroup
	for _, o := range f.outputs {
		if len(o.lines) > 0 {
			continue // these are for a later round: others are behind
		}
		o.now = now
		slots <- struct{}{}
		readers.Go(func() {
			defer func() { <-slots }()
			o.err = f.read(ctx, o)
		})
	}
	readers.Wait()
	all := f.sorted()
	for _, line := range merge(all) {
		if err := f.emit(line); err != nil {
			return err
		}
	}
	if ctx.Err() == nil {
		f.notice(all)
	}
	return nil
}

// merge takes the lines, by time, up to which all instances have been read.
func merge(outputs []*output) []LogLine {
	var horizon time.Time
	for _, o := range outputs {
		if n := len(o.lines); n > 0 && o.more && o.err == nil {
			if last := o.lines[n-1].Time; horizon.IsZero() || last.Before(horizon) {
				horizon = last
			}
		}
	}
	var merged []LogLine
	for _, o := range outputs {
		n := len(o.lines)
		if !horizon.IsZero() {
			n, _ = slices.BinarySearchFunc(o.lines, horizon, func(l LogLine, h time.Time) int { return cmp.Or(l.Time.Compare(h), -1) })
		}
		merged = append(merged, o.lines[:n]...)
		o.lines = slices.Clone(o.lines[n:])
	}
	slices.SortStableFunc(merged, func(a, b LogLine) int { return a.Time.Compare(b.Time) })
	return merged
}

// notice says which hosts have fallen silent, or are back, and what else went wrong.
func (f *follower) notice(outputs []*output) {
	silent := map[kbroker.HostID]bool{}
	for _, o := range outputs {
		text := ""
		if errors.Is(o.err, kbroker.Unavailable) {
			silent[o.host] = true
			if !f.silent[o.host] {
				f.silent[o.host] = true
				f.query.Notice("", o.err)
			}
		} else if o.err != nil {
			text = o.err.Error()
		}
		if text != "" && text != o.told {
			f.query.Notice(o.instance, o.err)
		}
		o.told = text
	}
	for host := range f.silent {
		if !silent[host] {
			delete(f.silent, host)
			f.query.Notice("", fmt.Errorf("the agent of host %s answers again", host))
		}
	}
}

func (f *follower) unread() bool {
	for _, o := range f.outputs {
		if len(o.lines) > 0 || o.more && o.err == nil {
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
	all := f.sorted()
	for _, o := range all {
		o.more = false // nothing waits for anybody any more
		o.endLine(o.now)
	}
	for _, line := range merge(all) {
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

// Tail returns the last lines of one instance's output.
func (c *Client) Tail(ctx context.Context, app kbroker.AppName, instance kbroker.InstanceID, lines int) ([]string, error) {
	var all []string
	err := c.Logs(ctx, LogQuery{App: app, Instance: instance, Tail: lines}, func(l LogLine) error {
		if l.Dropped == 0 {
			all = append(all, l.Line)
		}
		return nil
	})
	return all, err
}
