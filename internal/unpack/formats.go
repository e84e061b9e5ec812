package unpack

import (
	stdtar "archive/tar"
	stdzip "archive/zip"
	"bufio"
	stdgzip "compress/gzip"
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/klauspost/compress/zstd"
)

const (
	// specialBits are setuid, setgid and sticky in a tar header.
	specialBits = 0o7000
	// maxWindow bounds the memory of unpacking; zstd -19 has a window of 8 MiB.
	maxWindow = 32 << 20
	// maxDirectoryBytes bounds the directory of a zip file, which is read into
	// memory as a whole: some 300 bytes for each of MaxEntries.
	maxDirectoryBytes = 32 << 20
	readBuffer        = 64 << 10
)

func (w *walker) gzip(r io.Reader) error {
	z, err := stdgzip.NewReader(bufio.NewReaderSize(r, readBuffer))
	if err != nil {
		return damaged(err)
	}
	return w.tar(z)
}

func (w *walker) zstd(r io.Reader) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return damaged(err)
	}
	defer z.Close()
	return w.tar(z)
}

func (w *walker) tar(r io.Reader) error {
	t := stdtar.NewReader(bufio.NewReaderSize(w.meter.read(r), readBuffer))
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil && !errors.Is(err, stdtar.ErrInsecurePath) { // add says what is wrong with the name
			return damaged(err)
		}
		if err := w.next(); err != nil {
			return err
		}
		if err := w.tarEntry(t, h); err != nil {
			return err
		}
	}
}

func (w *walker) tarEntry(r io.Reader, h *stdtar.Header) error {
	if h.Typeflag == stdtar.TypeXGlobalHeader {
		return nil // a comment, such as git archive writes
	}
	if h.Mode&specialBits != 0 {
		return special(h.Name)
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return sparse(h.Name)
		}
	}
	switch h.Typeflag {
	case stdtar.TypeDir:
		return w.dir(h.Name)
	case stdtar.TypeReg:
		if err := w.meter.fits(uint64(h.Size)); err != nil {
			return err
		}
		return w.file(h.Name, h.Mode&0o111 != 0, r)
	case stdtar.TypeSymlink:
		return w.link(h.Name, h.Linkname)
	case stdtar.TypeLink:
		return refuse("%.80q is a hard link to %.80q: refused", h.Name, h.Linkname).WithHint("pack it with `tar --hard-dereference`")
	case stdtar.TypeGNUSparse:
		return sparse(h.Name)
	case stdtar.TypeChar, stdtar.TypeBlock:
		return odd(h.Name, "device")
	case stdtar.TypeFifo:
		return odd(h.Name, "fifo")
	}
	return refuse("%.80q is of the kind %q, which is not known: refused", h.Name, h.Typeflag)
}

func special(name string) error {
	return refuse("%.80q has a setuid, setgid or sticky bit: refused", name).WithHint("`chmod -R ug-s,-t` before it is packed")
}

func sparse(name string) error {
	return refuse("%.80q is a sparse file: refused", name).WithHint("pack it without `tar --sparse`")
}

func odd(name, what string) error {
	return refuse("%.80q is a %s: refused", name, what).WithHint("archives have files, directories and symbolic links that stay inside")
}

func (w *walker) zip(src io.ReaderAt, size int64) error {
	bounded := &firstBytes{src: src, left: maxDirectoryBytes}
	z, err := stdzip.NewReader(bounded, size)
	if err != nil && !errors.Is(err, stdzip.ErrInsecurePath) {
		return damaged(err)
	}
	bounded.off = true
	for _, f := range z.File {
		if err := w.next(); err != nil {
			return err
		}
		if err := w.zipEntry(f); err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) zipEntry(f *stdzip.File) error {
	const encrypted = 1
	mode := f.Mode()
	switch {
	case mode&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0:
		return special(f.Name)
	case f.Flags&encrypted != 0:
		return refuse("%.80q is encrypted: refused", f.Name)
	case strings.ContainsRune(f.Name, '\\'):
		return refuse("%.80q has backslashes: refused", f.Name).WithHint("pack it with a tool that separates directories with /")
	}
	switch mode.Type() {
	case fs.ModeDir:
		return w.dir(f.Name)
	case 0:
		return w.zipContent(f, func(r io.Reader) error { return w.file(f.Name, mode&0o111 != 0, r) })
	case fs.ModeSymlink:
		return w.zipContent(f, func(r io.Reader) error {
			target, err := io.ReadAll(io.LimitReader(r, MaxPathBytes+1))
			if err != nil {
				return damaged(err)
			}
			return w.link(f.Name, string(target))
		})
	case fs.ModeDevice, fs.ModeDevice | fs.ModeCharDevice:
		return odd(f.Name, "device")
	case fs.ModeNamedPipe:
		return odd(f.Name, "fifo")
	case fs.ModeSocket:
		return odd(f.Name, "socket")
	}
	return refuse("%.80q is of the kind %v, which is not known: refused", f.Name, mode.Type())
}

func (w *walker) zipContent(f *stdzip.File, take func(io.Reader) error) error {
	if err := w.meter.fits(f.UncompressedSize64); err != nil {
		return err
	}
	r, err := f.Open()
	if err != nil {
		return damaged(err)
	}
	defer r.Close()
	return take(w.meter.read(r))
}

// firstBytes lets so much be read, until it is off.
type firstBytes struct {
	src  io.ReaderAt
	left int64
	off  bool
}

func (b *firstBytes) ReadAt(p []byte, off int64) (int, error) {
	if !b.off {
		if b.left -= int64(len(p)); b.left < 0 {
			return 0, errEntries
		}
	}
	return b.src.ReadAt(p, off)
}
