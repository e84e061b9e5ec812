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
	"maps"
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
	"github.com/kbroker/kbroker/internal/unpack"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxIdleArtifacts is how many artifacts that no placement names are kept,
	// the last used ones: a rollback needs no transfer.
	maxIdleArtifacts = 10
	// pieceTimeout is how long one core may take for a piece: before the first
	// one it unpacks the artifact.
	pieceTimeout = 5 * time.Second
	// A piece that was not to be had is asked for again, of whatever core
	// answers, after pieceRetryFirst, doubling to pieceRetryMax.
	pieceRetryFirst = 50 * time.Millisecond
	pieceRetryMax   = 2 * time.Second

	artifactMode = 0o755

	// What belongs to an artifact is named after it: what is unpacked of an
	// archive, what is not whole, and a file whose time is that of the last use.
	treeSuffix = ".tree"
	partSuffix = ".part"
	usedSuffix = ".used"
)

// cache holds artifacts by the digest of their content: programs, and archives with
// what is unpacked of them. What is under its digest is whole, was verified, and is
// never written to again; each start sees to it that it still is what it was
// (checks).
type cache struct {
	dir  string
	conn *nats.Conn
	log  *slog.Logger

	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the work on the digest ends
	// What this agent knows of each digest; who holds the digest may read and
	// write the value.
	checks map[string]*checks
}

// executable is what an instance is started from.
type executable struct {
	path string
	tree string // the directory of the unpacked archive; empty: it is none
}

func newCache(cfg Config) *cache {
	return &cache{
		dir: filepath.Join(cfg.Dir.Path, artifactsDir), conn: cfg.Conn, log: cfg.Log,
		checks: make(map[string]*checks), busy: make(map[string]chan struct{}),
	}
}

// get returns a verified program and fetches and unpacks it where needed; all who
// ask meanwhile share the work. It waits for a core as long as ctx lasts. Errors:
// Invalid - what the cluster has does not have this digest, or is an archive that is
// refused, and nothing is left on disk; NotFound.
func (c *cache) get(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact) (executable, error) {
	if b, err := hex.DecodeString(want.SHA256); err != nil || len(b) != sha256.Size {
		return executable{}, kbroker.Errorf(kbroker.Invalid, "artifact digest %.80q is not SHA-256", want.SHA256)
	}
	for {
		known, wait := c.hold(want.SHA256)
		if wait == nil {
			p, err := c.provide(ctx, tenant, want, known)
			c.release(want.SHA256)
			return p, err
		}
		select {
		case <-ctx.Done():
			return executable{}, ctx.Err()
		case <-wait: // whether it went well is for the next round to see
		}
	}
}

// hold takes a digest, for one who gives it back with release; or returns what is
// closed when the one who has it does.
func (c *cache) hold(digest string) (*checks, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if wait := c.busy[digest]; wait != nil {
		return nil, wait
	}
	c.busy[digest] = make(chan struct{})
	if c.checks[digest] == nil {
		c.checks[digest] = &checks{}
	}
	return c.checks[digest], nil
}

func (c *cache) release(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.busy[digest])
	delete(c.busy, digest)
}

// provide is get for the one caller that holds the digest.
func (c *cache) provide(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, known *checks) (executable, error) {
	p := executable{path: filepath.Join(c.dir, want.SHA256)}
	if want.Command != "" {
		if known.refused != nil {
			return executable{}, known.refused
		}
		p.tree = p.path + treeSuffix
		err := known.tree(ctx, p.tree)
		switch {
		case err == nil:
			command, err := known.unpacked.Command(want.Command)
			if err != nil {
				return executable{}, err
			}
			p.path = filepath.Join(p.tree, filepath.FromSlash(command))
			c.use(want.SHA256)
			return p, nil
		case !errors.Is(err, errDamaged) && !errors.Is(err, errUnknown):
			return executable{}, err
		}
	}
	if err := c.file(ctx, tenant, want, p.path, known); err != nil {
		return executable{}, err
	}
	if want.Command != "" {
		var err error
		if p.path, err = c.unpack(ctx, want, p, known); err != nil {
			return executable{}, err
		}
	}
	c.use(want.SHA256)
	return p, nil
}

// file sees to the file as it was uploaded.
func (c *cache) file(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, path string, known *checks) error {
	err := known.file(ctx, path, want.SHA256)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errDamaged):
		c.log.Warn("an artifact was changed on disk; fetching it again", "object", want.SHA256, "err", err)
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("artifact: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("artifacts: %w", err)
	}
	return c.fetch(ctx, tenant, want, path)
}

// unpack makes sure that the tree of a verified archive is as the archive says, and
// returns the path of the program.
func (c *cache) unpack(ctx context.Context, want kbroker.Artifact, p executable, known *checks) (string, error) {
	f, err := os.Open(filepath.Join(c.dir, want.SHA256))
	if err != nil {
		return "", fmt.Errorf("artifact: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("artifact: %w", err)
	}
	if known.unpacked == nil {
		known.unpacked, err = unpack.Read(ctx, f, info.Size())
		if errors.Is(err, kbroker.Invalid) {
			known.refused = err
			return "", errors.Join(err, os.Remove(f.Name()))
		}
		if err != nil {
			return "", err
		}
	}
	command, err := known.unpacked.Command(want.Command)
	if err != nil {
		return "", err
	}
	path := filepath.Join(p.tree, filepath.FromSlash(command))
	if _, err := os.Lstat(p.tree); err == nil {
		err := known.tree(ctx, p.tree) // an earlier agent's, or a changed one
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, errDamaged) {
			return "", err
		}
		c.log.Warn("an unpacked artifact was changed on disk; unpacking it again", "object", want.SHA256, "err", err)
	}
	part := p.tree + partSuffix
	if err := os.RemoveAll(part); err != nil { // of an agent that was killed
		return "", fmt.Errorf("artifact: %w", err)
	}
	if _, err := unpack.Unpack(ctx, f, info.Size(), part); err != nil {
		return "", err
	}
	if err := exchange(part, p.tree); err != nil {
		return "", errors.Join(fmt.Errorf("artifact: %w", err), os.RemoveAll(part))
	}
	if err := os.RemoveAll(part); err != nil {
		c.log.Warn("a replaced artifact is left on disk", "object", want.SHA256, "err", err)
	}
	known.stamps = nil // which the next start takes
	return path, nil
}

// use notes when an artifact was last used. Not being able to costs at worst that it
// is pruned before another one.
func (c *cache) use(digest string) {
	if err := os.WriteFile(filepath.Join(c.dir, digest+usedSuffix), nil, 0o600); err != nil {
		c.log.Warn("the use of an artifact is not noted", "object", digest, "err", err)
	}
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
	if err := errors.Join(f.Chmod(artifactMode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write artifact: %w", err)
	}
	if err := durable.Rename(part, path); err != nil {
		return fmt.Errorf("artifact: %w", err)
	}
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

// prune removes artifacts that nobody names, but for the last used ones, and what
// interrupted transfers and unpackings left.
func (c *cache) prune(named map[string]bool) error {
	entries, err := os.ReadDir(c.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list artifacts: %w", err)
	}
	type idle struct {
		digest string
		used   time.Time
	}
	found := make(map[string]idle) // whole or not
	var errs []error
	for _, e := range entries {
		digest, kind, _ := strings.Cut(e.Name(), ".")
		if kind = "." + kind; kind == treeSuffix+partSuffix || kind == partSuffix && !named[digest] {
			errs = append(errs, c.remove(digest, kind))
			continue
		}
		if info, err := e.Info(); err == nil && !named[digest] {
			was := found[digest]
			if kind == treeSuffix { // its time is that of the archive's directory
				found[digest] = idle{digest, was.used}
			} else if info.ModTime().After(was.used) {
				found[digest] = idle{digest, info.ModTime()}
			}
		}
	}
	unnamed := slices.SortedFunc(maps.Values(found), func(a, b idle) int {
		return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.digest, b.digest))
	})
	for _, i := range unnamed[min(len(unnamed), maxIdleArtifacts):] {
		errs = append(errs, c.remove(i.digest, "", treeSuffix, usedSuffix))
	}
	return errors.Join(errs...)
}

// remove deletes what belongs to a digest, of these kinds, unless somebody is about
// to use it.
func (c *cache) remove(digest string, kinds ...string) error {
	known, wait := c.hold(digest)
	if wait != nil {
		return nil
	}
	defer c.release(digest)
	if slices.Contains(kinds, "") {
		*known = checks{}
		defer c.forget(digest)
	}
	var errs []error
	for _, kind := range kinds {
		errs = append(errs, os.RemoveAll(filepath.Join(c.dir, digest+kind)))
	}
	return errors.Join(errs...)
}

func (c *cache) forget(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.checks, digest)
}
