package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sort"
	"strings"
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
	// tailStartBytes and tailMaxBytes bound what is read to find the last
	// lines of an instance.
	tailStartBytes = 64 << 10
	tailMaxBytes   = 8 << 20
	// maxLineBytes bounds a line; a longer one is cut into several.
	maxLineBytes = 64 << 10
	// floodKept is how short a time the kept output may span before the last
	// lines are preceded by how much was dropped.
	floodKept = time.Minute
)

// output is how far one instance has been read.
type output struct {
	instance kbroker.InstanceID
	host     kbroker.HostID
	started  bool
	next     int64
	partial  []byte    // the beginning of a line whose end was not there yet
	end      int64     // where reading stops; 0: never
	more     bool      // the last read left something
	now      time.Time // of the round: that of what no mark dates
	at       time.Time // of the last line
	err      error     // of the last read
	told     string    // the error that was noticed last
	lines    []LogLine
}

// read reads what an instance wrote since the last time, at first its last
// lines.
func (f *follower) read(ctx context.Context, o *output) error {
	if !o.started {
		if done, err := f.start(ctx, o); done || err != nil {
			return err
		}
	}
	for range piecesPerRound {
		r, err := f.piece(ctx, o, o.next)
		if err != nil {
			return err
		}
		o.drop(r, r.Offset-o.next)
		o.take(r)
		if o.more = len(r.Data) > 0 && (o.end == 0 || o.next < o.end); !o.more {
			return nil
		}
	}
	return nil
}

// start finds where to begin; done when that was all for this round.
func (f *follower) start(ctx context.Context, o *output) (done bool, err error) {
	if f.query.Tail >= 0 {
		err := f.tail(ctx, o)
		o.lines = slices.DeleteFunc(o.lines, func(l LogLine) bool { return l.Time.Before(f.query.Since) })
		return true, err
	}
	if !f.query.Follow {
		// Who writes faster than this reads must not keep it for ever.
		last, err := f.piece(ctx, o, -1)
		if err != nil {
			return false, err
		}
		o.end = last.Next
	}
	if !f.query.Since.IsZero() {
		r, err := f.ask(ctx, o, kbroker.LogRequest{Since: &f.query.Since})
		if err != nil {
			return false, err
		}
		o.drop(r, r.DroppedBytes)
		o.take(r)
	}
	o.started = true
	return o.end > 0 && o.next >= o.end, nil
}

// tail reads back from the end until it has enough lines.
func (f *follower) tail(ctx context.Context, o *output) error {
	for back := int64(tailStartBytes); ; back *= 4 {
		first, err := f.piece(ctx, o, -back)
		if err != nil {
			return err
		}
		all, last := first, first
		for len(last.Data) > 0 && int64(len(all.Data)) < back {
			if last, err = f.piece(ctx, o, all.Next); err != nil {
				return err
			}
			if last.Offset > all.Next { // cut meanwhile: what is before it is not the end any more
				first, all = last, kbroker.LogReply{Offset: last.Offset, Oldest: last.Oldest}
			}
			all.Data, all.Next, all.Marks = append(all.Data, last.Data...), last.Next, append(all.Marks, last.Marks...)
		}
		// The newline that ends the last line begins none.
		lines := bytes.Count(bytes.TrimSuffix(all.Data, []byte("\n")), []byte("\n"))
		whole := first.Offset == first.Oldest || int64(len(all.Data)) < back
		if lines < f.query.Tail && !whole && back < tailMaxBytes {
			continue
		}
		if !whole {
			var cut []byte
			cut, all.Data, _ = bytes.Cut(all.Data, []byte("\n"))
			all.Offset += int64(len(cut)) + 1
		}
		return f.keepTail(ctx, o, all, whole && lines < f.query.Tail)
	}
}

// keepTail takes the last lines of what was read; complete: they are all there are.
func (f *follower) keepTail(ctx context.Context, o *output, all kbroker.LogReply, complete bool) error {
	dropped := int64(0)
	if all.Oldest > 0 && f.query.Tail > 0 && !complete {
		oldest, err := f.ask(ctx, o, kbroker.LogRequest{MaxBytes: 1})
		if err != nil {
			return err
		}
		if len(oldest.Marks) == 0 || time.Since(oldest.Marks[0].At) < floodKept {
			dropped = oldest.Oldest
		}
	} else if complete {
		dropped = all.Oldest
	}
	o.started = true
	o.take(all)
	keep := f.query.Tail
	if len(o.partial) > 0 {
		keep-- // for the line that has not ended
	}
	o.lines = o.lines[max(0, len(o.lines)-max(0, keep)):]
	if f.query.Tail == 0 {
		o.partial = nil
	}
	if dropped > 0 {
		gap := LogLine{Instance: o.instance, Host: o.host, Time: o.at, Dropped: dropped}
		if len(o.lines) > 0 {
			gap.Time = o.lines[0].Time
		}
		o.lines = slices.Insert(o.lines, 0, gap)
	}
	return nil
}

// drop notes that so many bytes are missing before a piece. What was begun of a
// line will not be ended.
func (o *output) drop(r kbroker.LogReply, bytes int64) {
	if bytes <= 0 {
		return
	}
	at := o.time(r.Marks, r.Offset)
	o.endLine(at)
	o.lines = append(o.lines, LogLine{Instance: o.instance, Host: o.host, Time: at, Dropped: bytes})
}

// endLine ends the line that was begun, if there is one.
func (o *output) endLine(at time.Time) {
	if len(o.partial) > 0 {
		o.add(o.partial, at)
		o.partial = nil
	}
}

func (o *output) add(line []byte, at time.Time) {
	o.lines = append(o.lines, LogLine{Instance: o.instance, Host: o.host, Time: at, Line: text(line)})
}

// time dates the byte at an offset. No line is older than the one before.
func (o *output) time(marks []kbroker.LogMark, offset int64) time.Time {
	at := o.now
	if i := sort.Search(len(marks), func(i int) bool { return marks[i].Offset > offset }); i < len(marks) {
		at = marks[i].At
	}
	if at.After(o.at) {
		o.at = at
	}
	return o.at
}

// take cuts a piece into lines.
func (o *output) take(r kbroker.LogReply) {
	data, offset := r.Data, r.Offset
	o.next = r.Next
	for len(data) > 0 {
		line, rest, ended := bytes.Cut(data, []byte("\n"))
		o.partial, data = append(o.partial, line...), rest
		at := o.time(r.Marks, offset+int64(len(line))-1)
		offset += int64(len(line)) + 1
		for len(o.partial) > maxLineBytes {
			o.add(o.partial[:maxLineBytes], at)
			o.partial = slices.Clone(o.partial[maxLineBytes:])
		}
		if ended {
			o.add(o.partial, at)
			o.partial = nil
		}
	}
}

func text(line []byte) string {
	return strings.ToValidUTF8(strings.TrimSuffix(string(line), "\r"), "�")
}

// piece asks the instance's host for output from offset on.
func (f *follower) piece(ctx context.Context, o *output, offset int64) (kbroker.LogReply, error) {
	return f.ask(ctx, o, kbroker.LogRequest{Offset: offset})
}

func (f *follower) ask(ctx context.Context, o *output, ask kbroker.LogRequest) (kbroker.LogReply, error) {
	var r kbroker.LogReply
	ask.Instance = o.instance
	if ask.MaxBytes == 0 {
		ask.MaxBytes = logPieceBytes
	}
	body, err := json.Marshal(ask)
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
