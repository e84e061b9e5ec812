// Package artifact is a host's cache of programs, and of archives with what is
// unpacked of them, by the digest of their content.
//
//	<sha256>         a program or an archive as it was uploaded
//	<sha256>.tree    what is unpacked of an archive
//	<sha256>.part    of a transfer that is not at its end; the next goes on from there
//	<sha256>.used    its time is that of the last use
//
// Invariants:
//
//   - what is under its digest is whole, was verified, and is never written to again;
//   - each start sees to it that it still is what it was: all of it is looked at, and
//     what has changed on disk, or is not known to this agent, is read again (checks);
//     what is damaged is fetched or unpacked anew;
//   - a tree is replaced at once: who runs from it finds one or the other;
//   - who asks for a digest while another works on it shares the work, and what is in
//     use is not pruned.
package artifact

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
	"strings"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/unpack"
)

const (
	// maxIdleArtifacts is how many artifacts that no placement names are kept,
	// the last used ones: a rollback needs no transfer.
	maxIdleArtifacts = 10
	// A piece that was not to be had is asked for again, of whatever core
	// answers, after pieceRetryFirst, doubling to pieceRetryMax.
	pieceRetryFirst = 50 * time.Millisecond
	pieceRetryMax   = 2 * time.Second

	fileMode = 0o755

	// What belongs to an artifact is named after it: what is unpacked of an
	// archive, what is not whole, and a file whose time is that of the last use.
	treeSuffix = ".tree"
	partSuffix = ".part"
	usedSuffix = ".used"
)

// Config of a Cache. Dir and Fetch are required.
type Config struct {
	// Dir need not be there. Nobody else may write to it.
	Dir string
	// Fetch asks any core for a piece, and learns the length of the whole. It bounds
	// how long it waits. NotFound and Invalid are final; whatever else is asked
	// again.
	Fetch func(ctx context.Context, get kbroker.ArtifactGet) (piece []byte, wholeBytes int64, err error)
	Log   *slog.Logger // nil: nothing is logged
}

// Cache holds artifacts by the digest of their content. Safe for concurrent use.
type Cache struct {
	cfg Config

	mu   sync.Mutex
	busy map[string]chan struct{} // closed when the work on the digest ends
	// What this agent knows of each digest; who holds the digest may read and
	// write the value.
	checks map[string]*checks
}

// Executable is what an instance is started from.
type Executable struct {
	Path string
	Tree string // the directory of the unpacked archive; empty: it is none
}

// New makes a cache of what is in cfg.Dir, whoever fetched it.
func New(cfg Config) *Cache {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Cache{cfg: cfg, checks: make(map[string]*checks), busy: make(map[string]chan struct{})}
}

// Place is where the program of an artifact is, there or not, unverified: Get gives one to
// start.
func (c *Cache) Place(a kbroker.Artifact) Executable {
	if tree := c.Tree(a); tree != "" {
		return Executable{Path: filepath.Join(tree, filepath.FromSlash(a.Command)), Tree: tree}
	}
	return Executable{Path: filepath.Join(c.cfg.Dir, a.SHA256)}
}

// Tree is where an archive is unpacked to, there or not; empty for what is none.
func (c *Cache) Tree(a kbroker.Artifact) string {
	if a.Command == "" {
		return ""
	}
	return filepath.Join(c.cfg.Dir, a.SHA256) + treeSuffix
}

// Get returns a verified program and fetches and unpacks it where needed; all who
// ask meanwhile share the work. It waits for a core as long as ctx lasts. Errors:
// Invalid - what the cluster has does not have this digest, or is an archive that is
// refused, and nothing is left on disk; NotFound.
func (c *Cache) Get(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact) (Executable, error) {
	if b, err := hex.DecodeString(want.SHA256); err != nil || len(b) != sha256.Size {
		return Executable{}, kbroker.Errorf(kbroker.Invalid, "artifact digest %.80q is not SHA-256", want.SHA256)
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
			return Executable{}, ctx.Err()
		case <-wait: // whether it went well is for the next round to see
		}
	}
}

// hold takes a digest, for one who gives it back with release; or returns what is
// closed when the one who has it does.
func (c *Cache) hold(digest string) (*checks, <-chan struct{}) {
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

func (c *Cache) release(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.busy[digest])
	delete(c.busy, digest)
}

// provide is Get for the one caller that holds the digest.
func (c *Cache) provide(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, known *checks) (Executable, error) {
	p := Executable{Path: filepath.Join(c.cfg.Dir, want.SHA256)}
	if want.Command != "" {
		if known.refused != nil {
			return Executable{}, known.refused
		}
		p.Tree = c.Tree(want)
		err := known.tree(ctx, p.Tree)
		switch {
		case err == nil:
			command, err := known.unpacked.Command(want.Command)
			if err != nil {
				return Executable{}, err
			}
			p.Path = filepath.Join(p.Tree, filepath.FromSlash(command))
			c.use(want.SHA256)
			return p, nil
		case !errors.Is(err, errDamaged) && !errors.Is(err, errUnknown):
			return Executable{}, err
		}
	}
	if err := c.file(ctx, tenant, want, p.Path, known); err != nil {
		return Executable{}, err
	}
	if want.Command != "" {
		var err error
		if p.Path, err = c.unpack(ctx, want, p, known); err != nil {
			return Executable{}, err
		}
	}
	c.use(want.SHA256)
	return p, nil
}

// file sees to the file as it was uploaded.
func (c *Cache) file(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, path string, known *checks) error {
	err := known.file(ctx, path, want.SHA256)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errDamaged):
		c.cfg.Log.Warn("an artifact was changed on disk; fetching it again", "object", want.SHA256, "err", err)
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("artifact: %w", err)
		}
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	if err := os.MkdirAll(c.cfg.Dir, 0o700); err != nil {
		return fmt.Errorf("artifacts: %w", err)
	}
	return c.fetch(ctx, tenant, want, path)
}

// unpack makes sure that the tree of a verified archive is as the archive says, and
// returns the path of the program.
func (c *Cache) unpack(ctx context.Context, want kbroker.Artifact, p Executable, known *checks) (string, error) {
	f, err := os.Open(filepath.Join(c.cfg.Dir, want.SHA256))
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
	path := filepath.Join(p.Tree, filepath.FromSlash(command))
	if _, err := os.Lstat(p.Tree); err == nil {
		err := known.tree(ctx, p.Tree) // an earlier agent's, or a changed one
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, errDamaged) {
			return "", err
		}
		c.cfg.Log.Warn("an unpacked artifact was changed on disk; unpacking it again", "object", want.SHA256, "err", err)
	}
	part := p.Tree + partSuffix
	if err := os.RemoveAll(part); err != nil { // of an agent that was killed
		return "", fmt.Errorf("artifact: %w", err)
	}
	if _, err := unpack.Unpack(ctx, f, info.Size(), part); err != nil {
		return "", err
	}
	if err := exchange(part, p.Tree); err != nil {
		return "", errors.Join(fmt.Errorf("artifact: %w", err), os.RemoveAll(part))
	}
	if err := os.RemoveAll(part); err != nil {
		c.cfg.Log.Warn("a replaced artifact is left on disk", "object", want.SHA256, "err", err)
	}
	known.stamps = nil // which the next start takes
	return path, nil
}

// use notes when an artifact was last used. Not being able to costs at worst that it
// is pruned before another one.
func (c *Cache) use(digest string) {
	if err := os.WriteFile(filepath.Join(c.cfg.Dir, digest+usedSuffix), nil, 0o600); err != nil {
		c.cfg.Log.Warn("the use of an artifact is not noted", "object", digest, "err", err)
	}
}

// fetch transfers the artifact into a part file, from where an earlier transfer
// stopped, and gives it its name once its digest is right.
func (c *Cache) fetch(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, path string) error {
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
			c.cfg.Log.Debug("no piece of an artifact; asking again", "object", want.SHA256, "err", err)
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
	if err := errors.Join(f.Chmod(fileMode), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write artifact: %w", err)
	}
	if err := durable.Rename(part, path); err != nil {
		return fmt.Errorf("artifact: %w", err)
	}
	return nil
}

// piece fetches the bytes at offset, and learns the whole length.
func (c *Cache) piece(ctx context.Context, tenant kbroker.TenantID, want kbroker.Artifact, offset int64) ([]byte, int64, error) {
	data, total, err := c.cfg.Fetch(ctx, kbroker.ArtifactGet{Tenant: tenant, SHA256: want.SHA256, Offset: offset, MaxBytes: kbroker.ArtifactChunkBytes})
	if err != nil {
		return nil, 0, err
	}
	switch {
	case total > kbroker.MaxArtifactBytes:
		return nil, 0, kbroker.Errorf(kbroker.Invalid, "artifact %s has %d bytes, at most %d are taken", want.SHA256, total, int64(kbroker.MaxArtifactBytes))
	case want.SizeBytes > 0 && total != want.SizeBytes:
		return nil, 0, kbroker.Errorf(kbroker.Invalid, "artifact %s has %d bytes, its spec says %d", want.SHA256, total, want.SizeBytes)
	case offset > total || offset+int64(len(data)) > total:
		return nil, 0, kbroker.Errorf(kbroker.Invalid, "artifact %s has %d bytes, got more", want.SHA256, total)
	case len(data) == 0 && offset < total:
		return nil, 0, kbroker.Errorf(kbroker.Unavailable, "an empty piece of an artifact at %d of %d bytes", offset, total)
	}
	return data, total, nil
}

// Prune removes artifacts that nobody names, but for the last used ones, and what
// interrupted transfers and unpackings left.
func (c *Cache) Prune(named map[string]bool) error {
	entries, err := os.ReadDir(c.cfg.Dir)
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
func (c *Cache) remove(digest string, kinds ...string) error {
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
		errs = append(errs, os.RemoveAll(filepath.Join(c.cfg.Dir, digest+kind)))
	}
	return errors.Join(errs...)
}

func (c *Cache) forget(digest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.checks, digest)
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
