package super

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxUploads bounds the uploads that one core takes at once.
	maxUploads = 16
	// maxUploadBytes bounds what they have together, by what each was begun with:
	// the disk that a core spools them to.
	maxUploadBytes = 2 * kbroker.MaxArtifactBytes
	// uploadIdle is how long an upload may be silent before it is dropped.
	uploadIdle = time.Minute
	// maxServed bounds the artifacts that a core keeps unpacked to hand out.
	maxServed = 16
)

// uploads are the artifacts on their way in. Each is spooled to a file, so that
// memory is bounded, and stored when its client commits it. An upload belongs to who
// began it: its session, a secret of 130 bits, is told to nobody else.
type uploads struct {
	dir   string
	store *state.Store
	log   *slog.Logger

	mu       sync.Mutex
	sessions map[string]*upload
}

type upload struct {
	tenant kbroker.TenantID
	sha256 string
	size   int64

	mu       sync.Mutex // one message of a session at a time
	file     *os.File
	received int64
	last     time.Time
	dropped  bool
}

func newUploads(dir string, store *state.Store, log *slog.Logger) *uploads {
	return &uploads{dir: filepath.Join(dir, "uploads"), store: store, log: log, sessions: map[string]*upload{}}
}

// clear removes what an earlier process left half done.
func (u *uploads) clear() error {
	if err := os.RemoveAll(u.dir); err != nil {
		return fmt.Errorf("clear uploads: %w", err)
	}
	return os.MkdirAll(u.dir, 0o700)
}

// begin opens an upload, unless the artifact is there.
func (u *uploads) begin(ctx context.Context, tenant kbroker.TenantID, core kbroker.HostID, body []byte) (any, error) {
	var r kbroker.ArtifactBegin
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	if err := checkDigest(r.SHA256); err != nil {
		return nil, err
	}
	if r.SizeBytes < 1 || r.SizeBytes > kbroker.MaxArtifactBytes {
		return nil, kbroker.Errorf(kbroker.Invalid, "an artifact has 1 to %d bytes, not %d", kbroker.MaxArtifactBytes, r.SizeBytes)
	}
	artifacts, err := u.store.Artifacts(ctx, tenant)
	if err != nil {
		return nil, err
	}
	have, err := artifacts.Has(ctx, r.SHA256)
	if err != nil {
		return nil, err
	}
	if have {
		return kbroker.ArtifactBeginReply{Have: true, Core: core}, nil
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.sessions) >= maxUploads {
		return nil, kbroker.Errorf(kbroker.Overloaded, "core %s takes %d uploads", core, maxUploads)
	}
	open := r.SizeBytes
	for _, up := range u.sessions {
		open += up.size
	}
	if open > maxUploadBytes {
		return nil, kbroker.Errorf(kbroker.Overloaded, "core %s takes uploads of %d bytes at a time", core, int64(maxUploadBytes)).
			WithHint("wait until others have ended")
	}
	session := rand.Text()
	f, err := os.Create(filepath.Join(u.dir, session))
	if err != nil {
		return nil, fmt.Errorf("spool upload: %w", err)
	}
	u.sessions[session] = &upload{tenant: tenant, sha256: r.SHA256, size: r.SizeBytes, file: f, last: time.Now()}
	return kbroker.ArtifactBeginReply{Core: core, Session: session}, nil
}

// message takes a chunk (offset in a header) or the commit of a session. A
// chunk that was received already is acknowledged again.
func (u *uploads) message(ctx context.Context, m *nats.Msg) (any, error) {
	session := m.Subject[strings.LastIndexByte(m.Subject, '.')+1:]
	u.mu.Lock()
	up, ok := u.sessions[session]
	u.mu.Unlock()
	gone := kbroker.Errorf(kbroker.NotFound, "upload %s is not known here", session).WithHint("begin again")
	if !ok {
		return nil, gone
	}
	up.mu.Lock()
	defer up.mu.Unlock()
	if up.dropped { // since it was looked up
		return nil, gone
	}
	up.last = time.Now()
	if m.Header.Get(subjects.HeaderCommit) != "" {
		defer u.drop(session, up)
		return u.commit(ctx, up)
	}
	offset, err := strconv.ParseInt(m.Header.Get(subjects.HeaderOffset), 10, 64)
	if err != nil || offset < 0 || offset > up.size-int64(len(m.Data)) {
		return nil, kbroker.Errorf(kbroker.Invalid, "a chunk of %d bytes at offset %q is outside of %d bytes", len(m.Data), m.Header.Get(subjects.HeaderOffset), up.size)
	}
	if _, err := up.file.WriteAt(m.Data, offset); err != nil {
		return nil, fmt.Errorf("spool upload: %w", err)
	}
	up.received = max(up.received, offset+int64(len(m.Data)))
	return kbroker.ArtifactChunkReply{Received: up.received}, nil
}

func (u *uploads) commit(ctx context.Context, up *upload) (any, error) {
	if up.received != up.size {
		return nil, kbroker.Errorf(kbroker.Invalid, "%d of %d bytes were received", up.received, up.size)
	}
	if _, err := up.file.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("read spooled upload: %w", err)
	}
	artifacts, err := u.store.Artifacts(ctx, up.tenant)
	if err != nil {
		return nil, err
	}
	if err := artifacts.Put(ctx, up.sha256, up.file); err != nil {
		return nil, err
	}
	return struct{}{}, nil
}

// drop ends a session; its file goes. The caller holds up.mu.
func (u *uploads) drop(session string, up *upload) {
	if up.dropped {
		return
	}
	up.dropped = true
	u.mu.Lock()
	delete(u.sessions, session)
	u.mu.Unlock()
	name := up.file.Name()
	if err := errors.Join(up.file.Close(), os.Remove(name)); err != nil {
		u.log.Warn("cannot remove a spooled upload", "err", err)
	}
}

// expire drops silent uploads until ctx ends, then all of them.
func (u *uploads) expire(ctx context.Context) {
	tick := time.NewTicker(uploadIdle / 4)
	defer tick.Stop()
	for {
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		u.mu.Lock()
		open := make(map[string]*upload, len(u.sessions))
		for k, v := range u.sessions {
			open[k] = v
		}
		u.mu.Unlock()
		for session, up := range open {
			up.mu.Lock()
			if ended || time.Since(up.last) > uploadIdle {
				u.drop(session, up)
			}
			up.mu.Unlock()
		}
		if ended {
			return
		}
	}
}

// checkDigest refuses what is no SHA-256.
func checkDigest(digest string) error {
	if raw, err := hex.DecodeString(digest); err != nil || len(raw) != 32 || strings.ToLower(digest) != digest {
		return kbroker.Errorf(kbroker.Invalid, "%.80q is not a SHA-256 in lower-case hex", digest)
	}
	return nil
}

// serving hands out artifacts by pieces, each unpacked once into a file.
type serving struct {
	dir   string
	store *state.Store
	mu    sync.Mutex
	files map[string]*served
}

type served struct {
	unpacking chan struct{} // capacity 1: one unpacks, the others wait
	info      os.FileInfo   // guarded by unpacking: the file as it was written; nil: there is none
	whole     bool          // guarded by serving.mu
	used      time.Time     // guarded by serving.mu
}

func newServing(dir string, store *state.Store) *serving {
	return &serving{dir: filepath.Join(dir, "served"), store: store, files: map[string]*served{}}
}

// clear removes what an earlier process unpacked: nobody knows its use.
func (s *serving) clear() error {
	if err := os.RemoveAll(s.dir); err != nil {
		return fmt.Errorf("clear unpacked artifacts: %w", err)
	}
	return nil
}

// get returns a piece of an artifact as raw bytes; HeaderSize has its length.
func (s *serving) get(ctx context.Context, tenant kbroker.TenantID, body []byte) (any, error) {
	var r kbroker.ArtifactGet
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	if r.Offset < 0 || r.MaxBytes < 1 {
		return nil, kbroker.Errorf(kbroker.Invalid, "cannot read %d bytes at offset %d", r.MaxBytes, r.Offset)
	}
	if err := checkDigest(r.SHA256); err != nil { // it becomes the name of a file
		return nil, err
	}
	f, err := s.open(ctx, tenant, r.SHA256)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("stat artifact: %w", err)
	}
	piece := make([]byte, min(r.MaxBytes, kbroker.ArtifactChunkBytes))
	n, err := f.ReadAt(piece, r.Offset)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read artifact: %w", err)
	}
	return &nats.Msg{
		Data:   piece[:n],
		Header: nats.Header{subjects.HeaderSize: {strconv.FormatInt(info.Size(), 10)}},
	}, nil
}

// open returns the unpacked file; the first to ask unpacks it. One that is not there
// any more as it was written is unpacked again: hosts would refuse it for ever.
func (s *serving) open(ctx context.Context, tenant kbroker.TenantID, sha256 string) (*os.File, error) {
	key := string(tenant) + "-" + sha256
	s.mu.Lock()
	e, ok := s.files[key]
	if !ok {
		s.evict()
		e = &served{unpacking: make(chan struct{}, 1)}
		s.files[key] = e
	}
	e.used = time.Now()
	s.mu.Unlock()

	select {
	case e.unpacking <- struct{}{}:
		defer func() { <-e.unpacking }()
	case <-ctx.Done():
		return nil, kbroker.Errorf(kbroker.DeadlineExceeded, "artifact %s is still being unpacked", sha256)
	}
	path := filepath.Join(s.dir, key)
	if e.info != nil {
		f, err := os.Open(path)
		if err == nil {
			if info, err := f.Stat(); err == nil && os.SameFile(info, e.info) && info.Size() == e.info.Size() && info.ModTime().Equal(e.info.ModTime()) {
				return f, nil
			}
			f.Close()
		}
		e.info = nil
	}
	f, err := s.unpack(ctx, tenant, sha256, path)
	if err == nil {
		if e.info, err = f.Stat(); err != nil {
			f.Close()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.whole = err == nil; err != nil {
		if s.files[key] == e { // what nobody has must not take the place of what there is
			delete(s.files, key)
		}
		return nil, err
	}
	return f, nil
}

func (s *serving) unpack(ctx context.Context, tenant kbroker.TenantID, sha256, path string) (*os.File, error) {
	artifacts, err := s.store.Artifacts(ctx, tenant)
	if err != nil {
		return nil, err
	}
	r, err := artifacts.Get(ctx, sha256)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("unpack artifact: %w", err)
	}
	f, err := os.CreateTemp(s.dir, "unpack-*")
	if err != nil {
		return nil, fmt.Errorf("unpack artifact: %w", err)
	}
	if _, err = io.Copy(f, r); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("unpack artifact: %w", err), f.Close(), os.Remove(f.Name()))
	}
	return f, nil
}

// evict makes room for one more where it can; the caller holds mu. A file that
// is being read stays readable until it is closed, one that is being unpacked
// stays.
func (s *serving) evict() {
	for len(s.files) >= maxServed {
		oldest := ""
		for k, e := range s.files {
			if e.whole && (oldest == "" || e.used.Before(s.files[oldest].used)) {
				oldest = k
			}
		}
		if oldest == "" {
			return
		}
		_ = os.Remove(filepath.Join(s.dir, oldest))
		delete(s.files, oldest)
	}
}
