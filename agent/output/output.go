// Package output keeps the output files of a host's instances in bounds, knows
// where in them each moment was, and reads them.
//
// The processes write to the files directly, so that no agent's death blocks one;
// nothing here is between a process and its file:
//
//	survey  each second: lists the files, notes their times, folds (slow things)
//	looker  within milliseconds of a write: cuts what grows (nothing that waits)
//	Read    for who asks
//
// Every byte that was ever written has a number. Beside a file are what is not in
// it itself, the number of its first byte (ledger), and its times:
//
//	output.log         what is kept; its front may be a hole
//	output.log.json    the ledger; none: the first byte is number 0
//	output.log.times   once a second, while it grows, where it ended
//
// Invariants:
//
//   - no number is given twice, and what is read and what is said to be dropped is
//     what was written, wherever the agent is killed meanwhile (but see empty);
//   - a file is cut only while its ledger says what is in it: what a crash has cut
//     off is settled before anything else;
//   - what is kept is at least a quarter of MaxBytes, in a flood, and MaxBytes
//     otherwise; what is on disk is below 64 MiB while its process writes 1 GB a
//     second.
package output

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// MaxBytes of an instance's output are kept; a file is cut when it has a
	// quarter more, in a flood sooner, so that on disk it is below 64 MiB while
	// its process writes 1 GB a second. See limits.
	MaxBytes = 16 << 20
	// MaxTailBytes is the most that Tail returns.
	MaxTailBytes = 4 << 10
	// surveyEvery is how often the output files are listed, and the times of
	// those that grow noted.
	surveyEvery = time.Second
	// maxReadBytes bounds one answer: base64 in JSON stays below the broker's
	// payload limit.
	maxReadBytes = 512 << 10
)

// Config of Files. Instances and Path are required; both are called concurrently.
type Config struct {
	// Instances lists those that may have output; a file of any other is let go of.
	Instances func() ([]kbroker.StatusKey, error)
	// Path is that of an instance's output file, whether it has one or not.
	Path func(kbroker.StatusKey) string
	Log  *slog.Logger // nil: nothing is logged
}

// Files are the output files of all instances of a host. Safe for concurrent use.
type Files struct {
	cfg Config
	log *slog.Logger
	// bound is MaxBytes, or less in tests.
	bound int64
	// begun says that there is a new file: capacity 1.
	begun   chan struct{}
	settled chan struct{} // closed by Run

	mu    sync.Mutex
	files map[kbroker.StatusKey]*output
}

// Total is what an instance has written, and how much of it is not kept.
type Total struct{ WrittenBytes, DroppedBytes int64 }

// output is the output file of one instance.
type output struct {
	key  kbroker.StatusKey
	path string

	// place is held by who reads the file or punches it, and held alone by who
	// moves what is in it: there is I/O under it, and only who can wait waits
	// for it.
	place sync.RWMutex
	moves int // how often it was moved; under place
	// unsettled: its ledger may not say what is in the file, which is not cut
	// before it does.
	unsettled atomic.Bool
	lost      atomic.Bool // the looker does not look at it any more

	// The fields below belong to the survey.
	inode    uint64
	size     int64 // at the last survey; -1 before the first
	moved    int   // moves at the last survey
	unfolded bool  // its file system does not fold

	mu    sync.Mutex
	spans span // at the last survey
}

// New prepares Files; nothing is cut before Run.
func New(cfg Config) *Files {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Files{
		cfg: cfg, log: cfg.Log, bound: MaxBytes, begun: make(chan struct{}, 1), settled: make(chan struct{}),
		files: map[kbroker.StatusKey]*output{},
	}
}

// Settled is closed when what a crash has left of the files that are there is
// mended: nobody should Read before.
func (o *Files) Settled() <-chan struct{} { return o.settled }

// Run keeps the files in bounds until ctx ends, then returns nil. It may be called
// once. An error: this host cannot watch files.
func (o *Files) Run(ctx context.Context) error {
	alerts, err := newAlerts()
	if err != nil {
		return err
	}
	defer alerts.close()
	looker := newLooker(limitsOf(o.bound), alerts, o.log)
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { looker.run(ctx) })
	o.survey(looker.add, time.Now())
	close(o.settled)
	tick := time.NewTicker(surveyEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.begun:
		case <-tick.C:
		}
		o.survey(looker.add, time.Now())
	}
}

// Began says that an instance has an output file that may be new, and returns
// where it ends: what Tail wants to know later.
func (o *Files) Began(k kbroker.StatusKey) int64 {
	select {
	case o.begun <- struct{}{}:
	default:
	}
	r, err := o.read(k, -1, 1)
	if err != nil {
		return 0 // the tail may show more than the process wrote
	}
	return r.Next
}

// Read answers a request for the output of k (its Instance is not looked at), with
// the times of what it returns. Errors: os.ErrNotExist - there is no such output;
// Unavailable - it is cut faster than it can be read.
func (o *Files) Read(k kbroker.StatusKey, r kbroker.LogRequest) (kbroker.LogReply, error) {
	limit := r.MaxBytes
	if limit < 1 || limit > maxReadBytes {
		limit = maxReadBytes
	}
	var reply kbroker.LogReply
	var err error
	if r.Since != nil {
		reply, err = o.readSince(k, *r.Since, limit)
	} else {
		reply, err = o.read(k, r.Offset, limit)
	}
	if err != nil {
		return reply, err
	}
	return o.date(k, reply)
}

// hold keeps the file of k from being moved, until release.
func (o *Files) hold(k kbroker.StatusKey) (path string, release func()) {
	o.mu.Lock()
	f := o.files[k]
	o.mu.Unlock()
	if f == nil { // of a moment ago: nobody moves it before it is known
		return o.cfg.Path(k), func() {}
	}
	f.place.RLock()
	return f.path, f.place.RUnlock
}

func (o *Files) read(k kbroker.StatusKey, offset int64, limit int) (kbroker.LogReply, error) {
	path, release := o.hold(k)
	defer release()
	return readOutput(path, offset, limit)
}

// readSince reads from the last moment before since of which the place is known.
func (o *Files) readSince(k kbroker.StatusKey, since time.Time, limit int) (kbroker.LogReply, error) {
	offset, err := offsetAt(o.cfg.Path(k), since)
	if err != nil || offset == 0 {
		r, readErr := o.read(k, 0, limit)
		return r, errors.Join(err, readErr)
	}
	r, err := o.read(k, offset-1, limit) // with the byte before, which tells where a line begins
	if err != nil || r.Offset >= offset || len(r.Data) == 0 {
		r.DroppedBytes = max(0, r.Offset-offset)
		return r, err
	}
	if line := strings.IndexByte(string(r.Data), '\n'); line >= 0 {
		r.Offset, r.Data = r.Offset+int64(line)+1, r.Data[line+1:]
	}
	return r, nil
}

// date adds the times of what was read.
func (o *Files) date(k kbroker.StatusKey, r kbroker.LogReply) (kbroker.LogReply, error) {
	marks, err := marksOf(o.cfg.Path(k), r.Offset, r.Next, maxReplyMarks+1)
	if err != nil {
		return r, err
	}
	if len(marks) > maxReplyMarks { // the rest is for the next request
		marks = marks[:maxReplyMarks]
		r.Next = min(r.Next, marks[maxReplyMarks-1].Offset)
		r.Data = r.Data[:r.Next-r.Offset]
	}
	r.Marks = marks
	return r, nil
}

// Tail is the end of what a process wrote that found the end of all output at
// start, as text, at most MaxTailBytes; empty when it cannot be read.
func (o *Files) Tail(k kbroker.StatusKey, start int64) string {
	r, err := o.read(k, -MaxTailBytes, MaxTailBytes)
	if err != nil {
		return ""
	}
	data := r.Data[min(max(0, start-r.Offset), int64(len(r.Data))):]
	return strings.TrimSpace(strings.ToValidUTF8(string(data), "?"))
}

// Totals are those of all instances with output, of a second ago at most. It reads
// no file.
func (o *Files) Totals() map[kbroker.StatusKey]Total {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[kbroker.StatusKey]Total, len(o.files))
	for k, f := range o.files {
		s := f.measured()
		all[k] = Total{WrittenBytes: s.end, DroppedBytes: s.first}
	}
	return all
}

func (f *output) measured() span {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.spans
}

func (f *output) setMeasured(s span) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.spans = s
}
