package state

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"regexp"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of artifacts.
const (
	artifactChunk    = 512 << 10       // of compressed bytes, below the payload limit of 1 MiB
	artifactPatience = 5 * time.Second // for one chunk, retries included
	artifactAttempt  = time.Second
	zstdWindow       = 1 << 20 // bounds the memory of both sides
)

// Artifacts is the tenant's store of executables by digest. Safe for concurrent
// use.
//
// It is a stream of its own and not a JetStream object store: reading one of
// those goes through an ordered consumer, which can hang for a long time after
// the host that carries it died; and storing an object again deletes the chunks
// that somebody may be reading. Here an upload has chunks of its own, each
// under its own subject and so safe to send twice, and the artifact's record is
// written last, by compare-and-set: the first whole upload wins and is never
// changed. Chunks are read one by one from any replica, or from the leader if
// that one does not have them.
type Artifacts struct {
	conn   *nats.Conn
	js     jetstream.JetStream
	tenant kbroker.TenantID
	stream jetstream.Stream
	log    *slog.Logger
}

// artifactRecord says that an artifact is whole.
type artifactRecord struct {
	SHA256      string `json:"sha256"`
	Upload      string `json:"upload"`
	Chunks      int    `json:"chunks"`
	SizeBytes   int64  `json:"size_bytes"` // uncompressed
	StoredBytes int64  `json:"stored_bytes"`
}

// Artifacts opens (and where needed creates) a tenant's artifacts.
func (s *Store) Artifacts(ctx context.Context, tenant kbroker.TenantID) (*Artifacts, error) {
	replicas, placement, err := s.like(ctx)
	if err != nil {
		return nil, err
	}
	cfg := recordStream(subjects.Artifacts(tenant), subjects.ArtifactAll(tenant), "", replicas, placement)
	cfg.AllowRollup, cfg.AllowAtomicPublish, cfg.AllowMsgTTL = false, false, false
	if _, err := create(ctx, s.js, cfg); err != nil {
		return nil, err
	}
	attempt, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	stream, err := streamOf(attempt, s.js, cfg.Name)
	if err != nil {
		return nil, unavailable(err, "open the artifacts of tenant %s", tenant)
	}
	return &Artifacts{conn: s.cfg.Conn, js: s.js, tenant: tenant, stream: stream, log: s.cfg.Log}, nil
}

var digestForm = regexp.MustCompile(`^[0-9a-f]{64}$`)

func checkDigest(digest string) error {
	if !digestForm.MatchString(digest) {
		return kbroker.Errorf(kbroker.Invalid, "artifact digest %.70q is not valid", digest).WithHint("64 lower-case hex digits of a SHA-256")
	}
	return nil
}

// Put stores what r yields, compressed, if its SHA-256 is digest; otherwise
// nothing becomes visible and the error is Invalid. An artifact that is there
// already is left as it is, without reading r. Errors of r come back wrapped.
func (a *Artifacts) Put(ctx context.Context, digest string, r io.Reader) (err error) {
	if err := checkDigest(digest); err != nil {
		return err
	}
	if have, err := a.Has(ctx, digest); err != nil || have {
		return err
	}
	record := artifactRecord{SHA256: digest, Upload: nuid.Next()}
	kept := false
	defer func() {
		if !kept {
			a.discard(context.WithoutCancel(ctx), record.Upload)
		}
	}()
	sum := sha256.New()
	if err := a.upload(ctx, &record, io.TeeReader(r, sum)); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != digest {
		return kbroker.Errorf(kbroker.Invalid, "the artifact's digest is %s, expected %s", got, digest).
			WithHint("the file changed or was damaged on its way; send it again")
	}
	kept, err = a.publishRecord(ctx, record)
	return err
}

// upload compresses r into chunks.
func (a *Artifacts) upload(ctx context.Context, record *artifactRecord, r io.Reader) error {
	chunks := &chunkWriter{ctx: ctx, artifacts: a, record: record}
	z, err := zstd.NewWriter(chunks, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(zstdWindow), zstd.WithEncoderLevel(zstd.SpeedDefault))
	if err != nil {
		return fmt.Errorf("compress artifact %s: %w", record.SHA256, err)
	}
	n, err := io.Copy(z, r)
	record.SizeBytes = n
	if closeErr := z.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = chunks.flush()
	}
	if err != nil {
		return fmt.Errorf("store artifact %s: %w", record.SHA256, err)
	}
	return nil
}

// chunkWriter publishes what is written to it in chunks.
type chunkWriter struct {
	ctx       context.Context // of the one Put that it lives in
	artifacts *Artifacts
	record    *artifactRecord
	buf       bytes.Buffer
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := min(artifactChunk-w.buf.Len(), len(p))
		w.buf.Write(p[:room])
		p = p[room:]
		if w.buf.Len() == artifactChunk {
			if err := w.flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (w *chunkWriter) flush() error {
	if w.buf.Len() == 0 {
		return nil
	}
	a, record := w.artifacts, w.record
	subject := subjects.ArtifactChunk(a.tenant, record.Upload, record.Chunks)
	if err := a.publish(w.ctx, func() *nats.Msg { return newMsg(subject, w.buf.Bytes()) }); err != nil {
		return err
	}
	record.Chunks++
	record.StoredBytes += int64(w.buf.Len())
	w.buf.Reset()
	return nil
}

// publish writes one message, again and again until it is acknowledged or
// artifactPatience is over. A second copy replaces the first.
func (a *Artifacts) publish(ctx context.Context, msg func() *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, artifactPatience)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, artifactAttempt)
		_, err := a.js.PublishMsg(attempt, msg())
		done()
		if err == nil {
			return nil
		}
		if code(err) == codeWrongSequence {
			return err
		}
		if sleep(ctx, createPause); ctx.Err() != nil {
			return unavailable(err, "the artifact store takes no writes")
		}
	}
}

// publishRecord makes the upload the artifact, unless another one already is.
// kept: the upload's chunks are, or may be, in use.
func (a *Artifacts) publishRecord(ctx context.Context, record artifactRecord) (kept bool, err error) {
	subject := subjects.ArtifactMeta(a.tenant, record.SHA256)
	err = a.publish(ctx, func() *nats.Msg {
		m := newRecord(subject, record)
		expect(m, 0)
		return m
	})
	if err == nil {
		return true, nil
	}
	if code(err) != codeWrongSequence {
		return true, err // it may have been applied
	}
	stored, err := a.lookup(ctx, record.SHA256)
	if err != nil {
		return true, err
	}
	return stored.Upload == record.Upload, nil
}

// discard removes the chunks of an upload that became nothing. What cannot be
// removed stays as garbage that nothing refers to.
func (a *Artifacts) discard(ctx context.Context, upload string) {
	ctx, cancel := context.WithTimeout(ctx, artifactPatience)
	defer cancel()
	purge := func() (struct{}, error) {
		return struct{}{}, a.stream.Purge(ctx, jetstream.WithPurgeSubject(subjects.ArtifactChunks(a.tenant, upload)))
	}
	if _, err := answered(ctx, purge); err != nil {
		a.log.Warn("chunks of an abandoned upload are left", "object", upload, "err", err)
	}
}

// Has reports whether the artifact is there, whole.
func (a *Artifacts) Has(ctx context.Context, digest string) (bool, error) {
	if err := checkDigest(digest); err != nil {
		return false, err
	}
	_, err := a.lookup(ctx, digest)
	if errors.Is(err, kbroker.NotFound) {
		return false, nil
	}
	return err == nil, err
}

// lookup reads the record of an artifact. NotFound.
func (a *Artifacts) lookup(ctx context.Context, digest string) (artifactRecord, error) {
	data, err := a.read(ctx, subjects.ArtifactMeta(a.tenant, digest))
	if err != nil {
		return artifactRecord{}, err
	}
	if data == nil {
		return artifactRecord{}, kbroker.Errorf(kbroker.NotFound, "no artifact %s", digest)
	}
	var r artifactRecord
	if err := json.Unmarshal(data, &r); err != nil || r.SHA256 != digest {
		return r, fmt.Errorf("the record of artifact %s is not readable: %w", digest, err)
	}
	return r, nil
}

// read returns the message of a subject, nil if there is none. Any replica may
// answer, but only the leader may say no.
func (a *Artifacts) read(ctx context.Context, subject string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, artifactPatience)
	defer cancel()
	for {
		attempt, done := context.WithTimeout(ctx, artifactAttempt)
		m, err := a.stream.GetLastMsgForSubject(attempt, subject)
		done()
		if err == nil {
			return m.Data, nil
		}
		last, err := readLast(ctx, a.conn, subjects.Artifacts(a.tenant), subject)
		switch {
		case err == nil && last == nil:
			return nil, nil
		case err == nil:
			return last.data, nil
		}
		if sleep(ctx, createPause); ctx.Err() != nil {
			return nil, unavailable(err, "the artifact store does not answer")
		}
	}
}

// Get returns the uncompressed artifact; the caller closes it, and reads to its
// end to know that it is whole: a damaged one ends with an error instead of
// io.EOF. ctx bounds the reading, too. NotFound.
func (a *Artifacts) Get(ctx context.Context, digest string) (io.ReadCloser, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	record, err := a.lookup(ctx, digest)
	if err != nil {
		return nil, err
	}
	chunks := &chunkReader{ctx: ctx, artifacts: a, record: record}
	z, err := zstd.NewReader(chunks, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(zstdWindow))
	if err != nil {
		return nil, fmt.Errorf("read artifact %s: %w", digest, err)
	}
	return &artifactReader{z: z, sum: sha256.New(), digest: digest}, nil
}

// chunkReader reads the chunks of an artifact one after the other.
type chunkReader struct {
	ctx       context.Context // of the one Get that it lives in
	artifacts *Artifacts
	record    artifactRecord
	next      int
	left      []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if len(r.left) == 0 {
		if r.next == r.record.Chunks {
			return 0, io.EOF
		}
		data, err := r.artifacts.read(r.ctx, subjects.ArtifactChunk(r.artifacts.tenant, r.record.Upload, r.next))
		if err != nil {
			return 0, err
		}
		if len(data) == 0 {
			return 0, fmt.Errorf("artifact %s: chunk %d of %d is missing", r.record.SHA256, r.next, r.record.Chunks)
		}
		r.left = data
		r.next++
	}
	n := copy(p, r.left)
	r.left = r.left[n:]
	return n, nil
}

// artifactReader checks the digest at the end.
type artifactReader struct {
	z      *zstd.Decoder
	sum    hash.Hash
	digest string
}

func (r *artifactReader) Read(p []byte) (int, error) {
	n, err := r.z.Read(p)
	r.sum.Write(p[:n])
	if err == io.EOF {
		if got := hex.EncodeToString(r.sum.Sum(nil)); got != r.digest {
			return n, fmt.Errorf("artifact %s is damaged: its digest is %s", r.digest, got)
		}
	}
	return n, err
}

func (r *artifactReader) Close() error {
	r.z.Close()
	return nil
}
