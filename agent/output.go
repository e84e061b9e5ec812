package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxOutputBytes is how large an instance's output file may be when it is
	// looked at, every outputCheck; it is then emptied, and its last
	// maxOutputBytes are kept in one older file.
	maxOutputBytes = 16 << 20
	outputCheck    = time.Second
	// maxLogReplyBytes bounds one answer: base64 in JSON stays below the
	// broker's payload limit.
	maxLogReplyBytes = 512 << 10
	// maxLogRequests may wait; the broker drops further ones, and who asked
	// asks again.
	maxLogRequests = 64
	// maxTailBytes of output go into the status of a crashed instance.
	maxTailBytes = 4 << 10

	olderSuffix  = ".1"
	ledgerSuffix = ".json"
)

// ledger is beside an output file and says which of the bytes ever written are
// kept: those from Base-Older to Base in the older file, those from Base on in
// the file itself.
type ledger struct {
	Base  int64 `json:"base"`
	Older int64 `json:"older"`
	// Emptying is the size that the file had when its emptying was begun; 0
	// when none is under way.
	Emptying int64 `json:"emptying,omitempty"`
}

// outputs keeps the output files of all instances in bounds and serves them.
// The processes write to them directly, so that no agent's death blocks one.
type outputs struct {
	dir  *Dir
	host kbroker.HostID
	conn *nats.Conn
	log  *slog.Logger
	// bound is maxOutputBytes, or less in tests.
	bound int64
}

// run works until ctx ends. It is the only one that empties or reads files
// while it runs.
func (o *outputs) run(ctx context.Context) error {
	asked := make(chan *nats.Msg, maxLogRequests)
	sub, err := o.conn.ChanSubscribe(subjects.Host(o.host, subjects.VerbLogs, "*"), asked)
	if err != nil {
		return fmt.Errorf("subscribe to log requests: %w", err)
	}
	defer sub.Unsubscribe()
	tick := time.NewTicker(outputCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-asked:
			reply, err := o.answer(m)
			if err := respond(m, reply, err); err != nil {
				o.log.Debug("log request not answered", "err", err)
			}
		case <-tick.C:
			if err := o.bind(); err != nil {
				o.log.Warn("an output file stays too large; the next second retries", "err", err)
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
	reply, err := readOutput(filepath.Join(o.dir.home(k), outputFile), r.Offset, limit)
	if errors.Is(err, os.ErrNotExist) {
		return reply, kbroker.Errorf(kbroker.NotFound, "host %s has no output of instance %s", o.host, r.Instance).
			WithHint("output of ended instances is kept for %v", keepEnded)
	}
	return reply, err
}

// bind looks at every output file.
func (o *outputs) bind() error {
	keys, err := o.dir.homes()
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range keys {
		path := filepath.Join(o.dir.home(k), outputFile)
		if info, err := os.Stat(path); err == nil && info.Size() > o.bound {
			errs = append(errs, rotate(path, o.bound))
		}
	}
	return errors.Join(errs...)
}

// readOutput reads at most limit bytes of what was ever written to path, from
// offset on; see kbroker.LogRequest. os.ErrNotExist when there is no such file.
func readOutput(path string, offset int64, limit int) (kbroker.LogReply, error) {
	f, err := os.Open(path)
	if err != nil {
		return kbroker.LogReply{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return kbroker.LogReply{}, fmt.Errorf("output: %w", err)
	}
	l, err := loadLedger(path)
	if err != nil {
		return kbroker.LogReply{}, err
	}
	end := l.Base + info.Size()
	if offset < 0 {
		offset += end
	}
	offset = min(offset, end)
	from, at := f, offset-l.Base
	if at < 0 && l.Older > 0 {
		older, err := os.Open(path + olderSuffix)
		if err != nil {
			return kbroker.LogReply{}, fmt.Errorf("older output: %v", err)
		}
		defer older.Close()
		offset = max(offset, l.Base-l.Older)
		from, at = older, offset-(l.Base-l.Older)
	} else if at < 0 {
		offset, at = l.Base, 0
	}
	data := make([]byte, limit)
	n, err := from.ReadAt(data, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return kbroker.LogReply{}, fmt.Errorf("read output: %w", err)
	}
	return kbroker.LogReply{Offset: offset, Next: offset + int64(n), Data: data[:n]}, nil
}

// rotate keeps the last bytes of path in the older file and empties path, which
// its writer has open for appending. Bytes written between the last look and
// the emptying are lost, and not counted.
//
// Order against a crash: the older file, the ledger with Emptying, the
// emptying, the ledger without it. A ledger with Emptying whose file is still
// that large was not followed by the emptying: loadLedger takes it back.
func rotate(path string, keep int64) error {
	l, err := loadLedger(path)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("rotate output: %w", err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("rotate output: %w", err)
	}
	start := max(0, size-keep)
	older, err := os.OpenFile(path+olderSuffix+partSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("rotate output: %w", err)
	}
	defer older.Close()
	// The writer goes on meanwhile; what it adds is copied too, up to a bound
	// that a flood cannot move.
	copied, err := io.Copy(older, io.NewSectionReader(f, start, 2*keep))
	if err := errors.Join(err, older.Close()); err != nil {
		return fmt.Errorf("rotate output: %w", err)
	}
	if err := os.Rename(path+olderSuffix+partSuffix, path+olderSuffix); err != nil {
		return fmt.Errorf("rotate output: %w", err)
	}
	size = start + copied
	l = ledger{Base: l.Base + size, Older: copied, Emptying: size}
	if err := saveLedger(path, l); err != nil {
		return err
	}
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("empty output: %w", err)
	}
	l.Emptying = 0
	return saveLedger(path, l)
}

func loadLedger(path string) (ledger, error) {
	var l ledger
	b, err := os.ReadFile(path + ledgerSuffix)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("output ledger: %w", err)
	}
	if err := json.Unmarshal(b, &l); err != nil {
		// Offsets begin again with what is there; no output is lost.
		return ledger{}, nil
	}
	if l.Emptying > 0 {
		info, err := os.Stat(path)
		if err != nil {
			return l, fmt.Errorf("output: %w", err)
		}
		if info.Size() >= l.Emptying {
			l.Base, l.Older = l.Base-l.Emptying, 0
		}
		l.Emptying = 0
	}
	return l, nil
}

func saveLedger(path string, l ledger) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("output ledger: %w", err)
	}
	return durable.Replace(path+ledgerSuffix, b, 0o600)
}

// tail is the end of what a process wrote that found the file at size start.
func tail(path string, start int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	if start > info.Size() { // emptied since
		start = 0
	}
	data := make([]byte, maxTailBytes)
	n, err := f.ReadAt(data, max(start, info.Size()-maxTailBytes))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	return strings.TrimSpace(strings.ToValidUTF8(string(data[:n]), "?"))
}
