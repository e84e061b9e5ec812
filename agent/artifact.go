package agent

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxIdleArtifacts is how many executables that no placement names are
	// kept, the last used ones: a rollback needs no transfer.
	maxIdleArtifacts = 10
	// pieceTimeout is how long one core may take for a piece: before the first
	// one it unpacks the artifact.
	pieceTimeout = 5 * time.Second
	// A piece that was not to be had is asked for again, of whatever core
	// answers, after pieceRetryFirst, doubling to pieceRetryMax.
	pieceRetryFirst = 50 * time.Millisecond
	pieceRetryMax   = 2 * time.Second

	partSuffix = ".part"
)

// cache holds executables by the digest of their content. A file under its
// digest is whole, was verified, and is never written to again.
type cache struct {
	dir  string
	conn *nats.Conn
	log  *slog.Logger

	mu       sync.Mutex
	verified map[string]bool          // by this agent
	busy     map[string]chan struct{} // closed when the fetch under way ends
}

func newCache(cfg Config) *cache {
	return &cache{
		dir: filepath.Join(cfg.Dir.Path, artifactsDir), conn: cfg.Conn, log: cfg.Log,
		verified: make(map[string]bool), busy: make(map[string]chan struct{}),
	}
}

// get returns the path of a verified executable and fetches it where needed;
// all who ask meanwhile share one fetch. It waits for a core as long as ctx
// lasts. Errors: Invalid - what the cluster has does not have this digest, and
// nothing is left on disk; NotFound.
func (c *cache) get(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact) (string, error) {
	if b, err := hex.DecodeString(want.SHA256); err != nil || len(b) != sha256.Size {
		return "", kbroker.Errorf(kbroker.Invalid, "artifact digest %.80q is not SHA-256", want.SHA256)
	}
	for {
		c.mu.Lock()
		wait := c.busy[want.SHA256]
		mine := make(chan struct{})
		if wait == nil {
			c.busy[want.SHA256] = mine
		}
		c.mu.Unlock()
		if wait == nil {
			path, err := c.provide(ctx, tenant, want)
			c.mu.Lock()
			delete(c.busy, want.SHA256)
			c.mu.Unlock()
			close(mine)
			return path, err
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-wait: // whether it went well is for the next round to see
		}
	}
}

// provide is get for the one caller that holds the digest.
func (c *cache) provide(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact) (string, error) {
	path := filepath.Join(c.dir, want.SHA256)
	err := c.verify(path, want.SHA256)
	if errors.Is(err, errDamaged) {
		c.log.Warn("a cached artifact is damaged; fetching it again", "object", want.SHA256)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err != nil {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return "", fmt.Errorf("artifacts: %w", err)
		}
		if err := c.fetch(ctx, tenant, want, path); err != nil {
			return "", err
		}
	}
	now := time.Now()
	if err := os.Chtimes(path, now, now); err != nil { // when it was last used
		return "", fmt.Errorf("artifact: %w", err)
	}
	return path, nil
}

// verify checks a cached file once per agent. A damaged one is removed.
func (c *cache) verify(path, want string) error {
	c.mu.Lock()
	verified := c.verified[want]
	c.mu.Unlock()
	if verified {
		_, err := os.Stat(path)
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read artifact: %w", err)
	}
	if hex.EncodeToString(h.Sum(nil)) != want {
		return errors.Join(errDamaged, os.Remove(path))
	}
	c.mu.Lock()
	c.verified[want] = true
	c.mu.Unlock()
	return nil
}

// fetch transfers the artifact into a part file, from where an earlier transfer
// stopped, and gives it its name once its digest is right.
func (c *cache) fetch(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, path string) error {
	part := path + partSuffix
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE, 0o700)
	if err != nil {
		return fmt.Errorf("artifact: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	offset, err := io.Copy(h, f)
	if err != nil {
		return fmt.Errorf("read part of artifact: %w", err)
	}
	retry := pieceRetryFirst
	for {
		piece, total, err := c.piece(ctx, tenant, want, offset)
		if err != nil && ctx.Err() != nil {
			return ctx.Err() // what is there will be gone on from
		}
		if errors.Is(err, kbroker.NotFound) || errors.Is(err, kbroker.Invalid) {
			return errors.Join(err, os.Remove(part))
		}
		if err != nil {
			c.log.Debug("no piece of an artifact; asking again", "object", want.SHA256, "err", err)
			pause(ctx, retry)
			retry = min(2*retry, pieceRetryMax)
			continue
		}
		retry = pieceRetryFirst
		if _, err := f.Write(piece); err != nil {
			return errors.Join(fmt.Errorf("write artifact: %w", err), os.Remove(part))
		}
		h.Write(piece)
		if offset += int64(len(piece)); offset < total {
			continue
		}
		if got := hex.EncodeToString(h.Sum(nil)); got != want.SHA256 {
			err := kbroker.Errorf(kbroker.Invalid, "artifact %s has the digest %s: refused", want.SHA256, got)
			return errors.Join(err, os.Remove(part))
		}
		break
	}
	if err := errors.Join(f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write artifact: %w", err)
	}
	if err := durable.Rename(part, path); err != nil {
		return fmt.Errorf("artifact: %w", err)
	}
	c.mu.Lock()
	c.verified[want.SHA256] = true
	c.mu.Unlock()
	return nil
}

// piece asks any core for the bytes at offset, and learns the whole length.
func (c *cache) piece(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, offset int64) ([]byte, int64, error) {
	reply, err := ask(ctx, c.conn, subjects.Core(subjects.VerbArtifactGet, tenant),
		kbroker.ArtifactGet{Tenant: tenant, SHA256: want.SHA256, Offset: offset, MaxBytes: kbroker.ArtifactChunkBytes}, pieceTimeout)
	if err != nil {
		return nil, 0, err
	}
	total, err := strconv.ParseInt(reply.Header.Get(subjects.HeaderSize), 10, 64)
	switch {
	case err != nil:
		return nil, 0, fmt.Errorf("piece of an artifact without its length: %w", err)
	case total > kbroker.MaxArtifactBytes:
		return nil, 0, kbroker.Errorf(kbroker.Invalid, "artifact %s has %d bytes, at most %d are taken", want.SHA256, total, int64(kbroker.MaxArtifactBytes))
	case want.SizeBytes > 0 && total != want.SizeBytes:
		return nil, 0, kbroker.Errorf(kbroker.Invalid, "artifact %s has %d bytes, its spec says %d", want.SHA256, total, want.SizeBytes)
	case offset > total || offset+int64(len(reply.Data)) > total:
		return nil, 0, kbroker.Errorf(kbroker.Invalid, "artifact %s has %d bytes, got more", want.SHA256, total)
	case len(reply.Data) == 0 && offset < total:
		return nil, 0, kbroker.Errorf(kbroker.Unavailable, "an empty piece of an artifact at %d of %d bytes", offset, total)
	}
	return reply.Data, total, nil
}

// prune removes executables that nobody names, but for the last used ones, and
// what interrupted transfers left of them.
func (c *cache) prune(named map[string]bool) error {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list artifacts: %w", err)
	}
	type idle struct {
		name string
		used time.Time
	}
	var whole []idle
	var errs []error
	for _, e := range entries {
		digest, isPart := strings.CutSuffix(e.Name(), partSuffix)
		info, err := e.Info()
		if err != nil || named[digest] {
			continue
		}
		if isPart {
			errs = append(errs, c.remove(digest, e.Name()))
			continue
		}
		whole = append(whole, idle{digest, info.ModTime()})
	}
	slices.SortFunc(whole, func(a, b idle) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.name, b.name)) })
	for _, w := range whole[min(len(whole), maxIdleArtifacts):] {
		errs = append(errs, c.remove(w.name, w.name))
	}
	return errors.Join(errs...)
}

// remove deletes a file of the cache unless somebody is about to use it.
func (c *cache) remove(digest, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.busy[digest] != nil {
		return nil
	}
	delete(c.verified, digest)
	return os.Remove(filepath.Join(c.dir, name))
}
