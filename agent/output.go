package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxOutputBytes of an instance's output are kept; a file is cut when it
	// has a quarter more, in a flood sooner, so that on disk it is below 64 MiB
	// while its process writes 1 GB a second. See limits.
	maxOutputBytes = 16 << 20
	// surveyEvery is how often the output files are listed, and the times of
	// those that grow noted.
	surveyEvery = time.Second
	// maxLogReplyBytes bounds one answer: base64 in JSON stays below the
	// broker's payload limit.
	maxLogReplyBytes = 512 << 10
	// maxLogRequests may wait; the broker drops further ones, and who asked
	// asks again.
	maxLogRequests = 64
	// maxTailBytes of output go into the status of a crashed instance.
	maxTailBytes = 4 << 10
)

// outputs keeps the output files of all instances in bounds and serves them.
// The processes write to them directly, so that no agent's death blocks one.
//
//	survey  each second: lists the files, notes their times, folds (slow things)
//	looker  within milliseconds of a write: cuts what grows (nothing that waits)
//	serve   reads, for who asks
type outputs struct {
	dir  *Dir
	host kbroker.HostID
	conn *nats.Conn
	log  *slog.Logger
	// bound is maxOutputBytes, or less in tests.
	bound int64
	// begun says that there is a new file: capacity 1.
	begun chan struct{}

	mu    sync.Mutex
	files map[kbroker.StatusKey]*output
}

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

func newOutputs(cfg Config, bound int64) *outputs {
	return &outputs{
		dir: cfg.Dir, host: cfg.Host, conn: cfg.Conn, log: cfg.Log, bound: bound,
		begun: make(chan struct{}, 1), files: map[kbroker.StatusKey]*output{},
	}
}

// run works until ctx ends.
func (o *outputs) run(ctx context.Context) error {
	asked := make(chan *nats.Msg, maxLogRequests)
	sub, err := o.conn.ChanSubscribe(subjects.Host(o.host, subjects.VerbLogs, "*"), asked)
	if err != nil {
		return fmt.Errorf("subscribe to log requests: %w", err)
	}
	defer sub.Unsubscribe()
	alerts, err := newAlerts()
	if err != nil {
		return err
	}
	defer alerts.close()
	looker := newLooker(limitsOf(o.bound), alerts, o.log)
	var parts sync.WaitGroup
	defer parts.Wait()
	parts.Go(func() { looker.run(ctx) })
	o.survey(looker.add, time.Now()) // what a crash has left is settled before anybody reads
	parts.Go(func() { o.serve(ctx, asked) })
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

// began says that an instance has an output file that may be new, and returns
// where it ends.
func (o *outputs) began(k kbroker.StatusKey) int64 {
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

func (o *outputs) serve(ctx context.Context, asked <-chan *nats.Msg) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-asked:
			reply, err := o.answer(m)
			if err := respond(m, reply, err); err != nil {
				o.log.Debug("log request not answered", "err", err)
			}
		}
	}
}

func (o *outputs) answer(m *nats.Msg) (kbroker.LogReply, error) {
	var r kbroker.LogRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return kbroker.LogReply{}, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	tenant, _ := subjects.TenantOf(m.Subject) // the server lets nobody ask for another
	k := kbroker.StatusKey{Tenant: tenant, Instance: r.Instance}
	if err := validKey(k); err != nil {
		return kbroker.LogReply{}, err
	}
	limit := r.MaxBytes
	if limit < 1 || limit > maxLogReplyBytes {
		limit = maxLogReplyBytes
	}
	var reply kbroker.LogReply
	var err error
	if r.Since != nil {
		reply, err = o.readSince(k, *r.Since, limit)
	} else {
		reply, err = o.read(k, r.Offset, limit)
	}
	if errors.Is(err, os.ErrNotExist) {
		return reply, kbroker.Errorf(kbroker.NotFound, "host %s has no output of instance %s", o.host, r.Instance).
			WithHint("output of ended instances is kept for %v", keepEnded)
	}
	if err != nil {
		return reply, err
	}
	return o.date(k, reply)
}

// hold keeps the file of k from being moved, until release.
func (o *outputs) hold(k kbroker.StatusKey) (path string, release func()) {
	o.mu.Lock()
	f := o.files[k]
	o.mu.Unlock()
	if f == nil { // of a moment ago: nobody moves it before it is known
		return o.path(k), func() {}
	}
	f.place.RLock()
	return f.path, f.place.RUnlock
}

func (o *outputs) path(k kbroker.StatusKey) string { return filepath.Join(o.dir.home(k), outputFile) }

func (o *outputs) read(k kbroker.StatusKey, offset int64, limit int) (kbroker.LogReply, error) {
	path, release := o.hold(k)
	defer release()
	return readOutput(path, offset, limit)
}

// readSince reads from the last moment before since of which the place is known.
func (o *outputs) readSince(k kbroker.StatusKey, since time.Time, limit int) (kbroker.LogReply, error) {
	offset, err := offsetAt(o.path(k), since)
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
func (o *outputs) date(k kbroker.StatusKey, r kbroker.LogReply) (kbroker.LogReply, error) {
	marks, err := marksOf(o.path(k), r.Offset, r.Next, maxReplyMarks+1)
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

// tail is the end of what a process wrote that found the end of all output at
// start.
func (o *outputs) tail(k kbroker.StatusKey, start int64) string {
	r, err := o.read(k, -maxTailBytes, maxTailBytes)
	if err != nil {
		return ""
	}
	data := r.Data[min(max(0, start-r.Offset), int64(len(r.Data))):]
	return strings.TrimSpace(strings.ToValidUTF8(string(data), "?"))
}

// written is how much every instance has written, and how much of it is not kept.
func (o *outputs) written() map[kbroker.StatusKey]span {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := make(map[kbroker.StatusKey]span, len(o.files))
	for k, f := range o.files {
		all[k] = f.measured()
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
