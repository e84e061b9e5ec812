// Package unpack turns an archive that nobody vouches for into a directory.
//
//	tar, gzip or zstd of a tar, zip --walk--> Tree, and the same on disk
//
// What an archive is, is seen by its content, never by a name. All that is in it is
// checked before it is written, and either all of it is there in the end, or nothing:
//
//   - nothing is written outside of the directory: names are relative and have no
//     "..", what is above a file is a directory of the archive, and symbolic links
//     are made last, so that nothing is written through one;
//   - there are only directories, files and symbolic links that stay inside, each
//     name once; no hard links, devices, fifos, sockets, sparse files, and no setuid,
//     setgid or sticky bits. Owners, times, access lists and attributes are ignored;
//   - an archive of any size is unpacked within the bounds below.
//
// Files are 0444, or 0555 where the archive has an executable bit, directories 0755.
package unpack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"

	"github.com/kbroker/kbroker"
)

// Bounds of what an archive unpacks to. An archive that goes beyond one is refused.
const (
	// MaxBytes bounds all files together, and with them a host's disk: twice what
	// an artifact may have.
	MaxBytes = 2 * kbroker.MaxArtifactBytes
	// MaxRatio bounds how many times as large as the archive its content may be.
	// Programs and their data compress to a half or a tenth; zeros to a
	// thousandth, which is what bombs are made of. Below freeBytes it is not
	// looked at: small files of one letter are no bomb.
	MaxRatio  = 100
	freeBytes = 16 << 20
	// MaxEntries bounds files, links and directories, and with them inodes and
	// memory. A large node_modules has some 50,000.
	MaxEntries = 100_000
	// MaxPathBytes leaves room in the 4096 bytes of PATH_MAX for the directory that
	// the archive is unpacked in. MaxNameBytes is NAME_MAX.
	MaxPathBytes = 1024
	MaxNameBytes = 255
	// MaxDepth bounds directories in directories: more are not made by hand, and
	// cost whoever removes them.
	MaxDepth = 64
)

// Kind is what an Item is.
type Kind int

// The kinds.
const (
	Dir Kind = iota + 1
	File
	Link // symbolic
)

// Item is one thing of a Tree.
type Item struct {
	Kind       Kind
	Executable bool              // File
	SHA256     [sha256.Size]byte // File
	SizeBytes  int64             // File
	Target     string            // Link: relative
}

// Mode are the permissions that the item has on disk; those of a link mean nothing.
func (i Item) Mode() os.FileMode {
	switch {
	case i.Kind == Dir:
		return 0o755
	case i.Executable:
		return 0o555
	}
	return 0o444
}

// Tree is what an archive unpacks to, by path: relative, clean, with slashes. The
// directory itself is not in it.
type Tree map[string]Item

// Unpack makes the directory dir, which must not be there, of the archive in src of
// size bytes. Nothing is left of it after an error, except when that cannot be
// removed. It syncs nothing. Errors: Invalid - the archive is damaged, or refused;
// that of ctx.
func Unpack(ctx context.Context, src io.ReaderAt, size int64, dir string) (Tree, error) {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	tree, err := into(ctx, src, size, dir)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return tree, nil
}

func into(ctx context.Context, src io.ReaderAt, size int64, dir string) (Tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	defer root.Close()
	if err := root.Chmod(".", 0o755); err != nil { // whatever the umask
		return nil, fmt.Errorf("unpack: %w", err)
	}
	return walk(ctx, src, size, root)
}

// Read returns what Unpack would, and writes nothing.
func Read(ctx context.Context, src io.ReaderAt, size int64) (Tree, error) {
	return walk(ctx, src, size, nil)
}

func walk(ctx context.Context, src io.ReaderAt, size int64, root *os.Root) (Tree, error) {
	in := &source{ctx: ctx, src: src}
	w := &walker{tree: Tree{}, root: root, meter: newMeter(size)}
	var err error
	switch format(in) {
	case formatTar:
		err = w.tar(io.NewSectionReader(in, 0, size))
	case formatGzip:
		err = w.gzip(io.NewSectionReader(in, 0, size))
	case formatZstd:
		err = w.zstd(io.NewSectionReader(in, 0, size))
	case formatZip:
		err = w.zip(in, size)
	case formatNone:
		err = refuse("this is no archive").WithHint("archives are .tar, .tar.gz, .tar.zst and .zip; their content counts, not their name")
	}
	if err == nil {
		err = w.links()
	}
	switch {
	case in.err != nil: // rather than what was made of the missing bytes
		return nil, in.err
	case err != nil:
		return nil, err
	}
	return w.tree, nil
}

func refuse(format string, args ...any) *kbroker.Error {
	return kbroker.Errorf(kbroker.Invalid, format, args...)
}

// damaged is what a decoder says of an archive, unless a bound was the reason.
func damaged(err error) error {
	switch {
	case errors.Is(err, kbroker.Invalid):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		return refuse("unpacking needs a window of more than %d MiB: refused", maxWindow>>20).WithHint("compress with zstd -19 or less, without --long and --ultra")
	}
	return refuse("the archive is damaged: %v", err)
}

// source remembers why it could not be read: that is no fault of the archive.
type source struct {
	ctx context.Context // of the one walk that it lives in
	src io.ReaderAt
	err error
}

func (s *source) ReadAt(p []byte, off int64) (int, error) {
	if err := s.ctx.Err(); err != nil {
		s.err = err
		return 0, err
	}
	n, err := s.src.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = fmt.Errorf("read archive: %w", err)
	}
	return n, err
}

type archiveFormat int

const (
	formatNone archiveFormat = iota
	formatTar
	formatGzip
	formatZstd
	formatZip
)

// format looks at the first bytes.
func format(src io.ReaderAt) archiveFormat {
	head := make([]byte, 512)
	n, _ := src.ReadAt(head, 0) // the error is seen again, or there is less
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return formatGzip
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return formatZstd
	case bytes.HasPrefix(head, []byte("PK\x03\x04")), bytes.HasPrefix(head, []byte("PK\x05\x06")):
		return formatZip
	case len(head) == 512 && bytes.HasPrefix(head[257:], []byte("ustar")):
		return formatTar
	}
	return formatNone
}

// IsArchive tells by its first bytes whether Unpack would try a file.
func IsArchive(src io.ReaderAt) bool { return format(src) != formatNone }

// meter counts unpacked bytes.
type meter struct {
	left    int64
	tooMuch *kbroker.Error
}

func newMeter(size int64) *meter {
	if byRatio := max(freeBytes, size*MaxRatio); byRatio < MaxBytes {
		return &meter{byRatio, refuse("the archive unpacks to more than %d bytes, %d times its size: refused as a bomb", byRatio, byRatio/max(1, size)).
			WithHint("leave out files that are mostly zeros, or do not compress it")}
	}
	return &meter{MaxBytes, refuse("the archive unpacks to more than %d bytes", int64(MaxBytes))}
}

// fits refuses what says itself that it is too much, before it is read.
func (m *meter) fits(size uint64) error {
	if size > uint64(m.left) {
		return m.tooMuch
	}
	return nil
}

func (m *meter) read(r io.Reader) io.Reader { return &metered{m, r} }

type metered struct {
	*meter
	r io.Reader
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.r.Read(p[:min(int64(len(p)), m.left+1)])
	if m.left -= int64(n); m.left < 0 {
		return 0, m.tooMuch
	}
	return n, err
}

// walker takes what is in an archive, one after the other.
type walker struct {
	tree  Tree
	root  *os.Root // nil: nothing is written
	meter *meter
	seen  int // headers of the archive: some make nothing
}

// next counts a header.
func (w *walker) next() error {
	if w.seen++; w.seen > MaxEntries {
		return errEntries
	}
	return nil
}

var errEntries = refuse("the archive has more than %d files and directories", MaxEntries)

// add puts an item into the tree, with the directories above it. A directory may
// come again.
func (w *walker) add(name string, item Item) (string, error) {
	clean, err := cleanName(name)
	if err != nil {
		return "", err
	}
	if clean == "." {
		if item.Kind != Dir {
			return "", refuse("%q is the archive's own directory: refused", name)
		}
		return clean, nil
	}
	if before, ok := w.tree[clean]; ok {
		if before.Kind == Dir && item.Kind == Dir {
			return clean, nil
		}
		return "", refuse("%q is in the archive twice: refused", clean)
	}
	if above := path.Dir(clean); above != "." {
		switch parent, ok := w.tree[above]; {
		case !ok:
			if err := w.dir(above); err != nil {
				return "", err
			}
		case parent.Kind != Dir:
			return "", refuse("%q is below %q, which is no directory: refused", clean, above)
		}
	}
	if len(w.tree) == MaxEntries {
		return "", errEntries
	}
	w.tree[clean] = item
	return clean, nil
}

func (w *walker) dir(name string) error {
	before := len(w.tree)
	clean, err := w.add(name, Item{Kind: Dir})
	if err != nil || len(w.tree) == before || w.root == nil {
		return err
	}
	if err := errors.Join(w.root.Mkdir(clean, 0o755), w.root.Chmod(clean, 0o755)); err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

func (w *walker) file(name string, executable bool, r io.Reader) error {
	item := Item{Kind: File, Executable: executable}
	clean, err := w.add(name, item)
	if err != nil {
		return err
	}
	h := sha256.New()
	if w.root == nil {
		item.SizeBytes, err = io.Copy(h, r)
	} else {
		item.SizeBytes, err = w.write(clean, item.Mode(), h, r)
	}
	if err != nil {
		if write, ok := errors.AsType[*outputError](err); ok {
			return fmt.Errorf("unpack: %w", write.err)
		}
		return damaged(err)
	}
	copy(item.SHA256[:], h.Sum(nil))
	w.tree[clean] = item
	return nil
}

func (w *walker) write(clean string, mode os.FileMode, h io.Writer, r io.Reader) (int64, error) {
	f, err := w.root.OpenFile(clean, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, &outputError{err}
	}
	n, err := io.Copy(io.MultiWriter(h, &output{f}), r)
	if done := errors.Join(f.Chmod(mode), f.Close()); done != nil && err == nil {
		err = &outputError{done}
	}
	return n, err
}

// output tells errors of the disk from those of the archive.
type output struct{ f *os.File }

type outputError struct{ err error }

func (e *outputError) Error() string { return e.err.Error() }

func (o *output) Write(p []byte) (int, error) {
	n, err := o.f.Write(p)
	if err != nil {
		return n, &outputError{err}
	}
	return n, nil
}

func (w *walker) link(name, target string) error {
	switch {
	case target == "" || len(target) > MaxPathBytes || strings.ContainsRune(target, 0) || !utf8.ValidString(target):
		return refuse("the symbolic link %q to %.80q is not possible", name, target)
	case path.IsAbs(target):
		return refuse("the symbolic link %q leads to %q, out of the archive: refused", name, target).
			WithHint("links are relative; `tar --dereference` puts what they lead to into the archive (`python3 -m venv --copies`)")
	}
	_, err := w.add(name, Item{Kind: Link, Target: target})
	return err
}

func cleanName(name string) (string, error) {
	switch {
	case name == "" || strings.ContainsRune(name, 0) || !utf8.ValidString(name):
		return "", refuse("the archive has a file with the name %.80q: refused", name)
	case path.IsAbs(name):
		return "", refuse("the archive has a file with the absolute path %.80q: refused", name)
	case len(name) > MaxPathBytes:
		return "", refuse("the archive has a path of %d bytes, %.80q..., at most %d are taken", len(name), name, MaxPathBytes)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", refuse("the archive has a file that leads out of it, %.80q: refused", name)
		}
		if len(part) > MaxNameBytes {
			return "", refuse("the archive has a name of %d bytes, %.80q..., at most %d are possible", len(part), part, MaxNameBytes)
		}
	}
	clean := path.Clean(name)
	if depth := strings.Count(clean, "/") + 1; depth > MaxDepth {
		return "", refuse("the archive has a path of %d directories, %.80q..., at most %d are taken", depth, name, MaxDepth)
	}
	return clean, nil
}
