package unpack

import (
	stdtar "archive/tar"
	stdzip "archive/zip"
	"bytes"
	stdgzip "compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/kbroker/kbroker"
)

// tarOf writes headers, with their content in Linkname of files.
func tarOf(t testing.TB, headers ...stdtar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stdtar.NewWriter(&b)
	for _, h := range headers {
		content := ""
		if h.Typeflag == stdtar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, content string, mode int64) stdtar.Header {
	return stdtar.Header{Typeflag: stdtar.TypeReg, Name: name, Linkname: content, Mode: mode}
}

func link(name, target string) stdtar.Header {
	return stdtar.Header{Typeflag: stdtar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}
}

func kind(flag byte, name string) stdtar.Header {
	if flag == stdtar.TypeXGlobalHeader {
		return stdtar.Header{Typeflag: flag, PAXRecords: map[string]string{"comment": name}}
	}
	return stdtar.Header{Typeflag: flag, Name: name, Mode: 0o644}
}

type zipped struct {
	name, content string
	mode          fs.FileMode
}

func zipOf(t testing.TB, files ...zipped) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stdzip.NewWriter(&b)
	for _, f := range files {
		h := &stdzip.FileHeader{Name: f.name, Method: stdzip.Deflate}
		h.SetMode(f.mode)
		to, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(to, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stdgzip.NewWriter(&b)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstdOf(t testing.TB, raw []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(raw, nil)
}

// wideZstd is what zstd --long makes.
func wideZstd(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b, zstd.WithWindowSize(64<<20))
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(raw)
	if err := errors.Join(err, w.Flush(), w.Close()); err != nil { // unflushed it would be one frame of its size
		t.Fatal(err)
	}
	return b.Bytes()
}

// unpacked unpacks into a new directory of its own, and holds that nothing is
// beside it, and nothing at all after an error.
func unpacked(t *testing.T, archive []byte) (Tree, string, error) {
	t.Helper()
	above := t.TempDir()
	dir := filepath.Join(above, "in", "tree")
	if err := os.Mkdir(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := Unpack(t.Context(), bytes.NewReader(archive), int64(len(archive)), dir)
	var want []string
	if err == nil {
		want = []string{"tree"}
	}
	for at, want := range map[string][]string{above: {"in"}, filepath.Dir(dir): want} {
		entries, listErr := os.ReadDir(at)
		if listErr != nil {
			t.Fatal(listErr)
		}
		var got []string
		for _, e := range entries {
			got = append(got, e.Name())
		}
		if !slices.Equal(got, want) {
			t.Errorf("after %v there is %q, want %q", err, got, want)
		}
	}
	read, readErr := Read(t.Context(), bytes.NewReader(archive), int64(len(archive)))
	if fmt.Sprint(readErr) != fmt.Sprint(err) || !maps.Equal(read, tree) {
		t.Errorf("Read says %v, %v, Unpack %v, %v", read, readErr, tree, err)
	}
	return tree, dir, err
}

func TestArchivesOfEachFormAreUnpacked(t *testing.T) {
	plain := tarOf(t,
		kind(stdtar.TypeXGlobalHeader, "a commit"),
		stdtar.Header{Typeflag: stdtar.TypeDir, Name: "./", Mode: 0o700},
		stdtar.Header{Typeflag: stdtar.TypeDir, Name: "./empty/", Mode: 0},
		file("./app/bin/web", "#!/bin/sh\n", 0o711), // the directories above it are not in the archive
		file("app/data.txt", "data", 0o666),
		stdtar.Header{Typeflag: stdtar.TypeDir, Name: "app/", Mode: 0o755}, // it is there already
		link("app/start", "bin/../bin/web"),
		link("current", "app"),
		link("nowhere", "app/not/there"),
	)
	zip := zipOf(t,
		zipped{"empty/", "", fs.ModeDir | 0o755}, zipped{"app/bin/web", "#!/bin/sh\n", 0o711}, zipped{"app/data.txt", "data", 0o666},
		zipped{"app/start", "bin/../bin/web", fs.ModeSymlink | 0o777}, zipped{"current", "app", fs.ModeSymlink | 0o777}, zipped{"nowhere", "app/not/there", fs.ModeSymlink | 0o777},
	)
	for name, archive := range map[string][]byte{"tar": plain, "gzip": gzipOf(t, plain), "zstd": zstdOf(t, plain), "zip": zip} {
		t.Run(name, func(t *testing.T) {
			if !IsArchive(bytes.NewReader(archive)) {
				t.Error("it is no archive")
			}
			tree, dir, err := unpacked(t, archive)
			if err != nil {
				t.Fatal(err)
			}
			web := Item{Kind: File, Executable: true, SHA256: sha256.Sum256([]byte("#!/bin/sh\n")), SizeBytes: 10}
			want := Tree{
				"empty": {Kind: Dir}, "app": {Kind: Dir}, "app/bin": {Kind: Dir}, "app/bin/web": web,
				"app/data.txt": {Kind: File, SHA256: sha256.Sum256([]byte("data")), SizeBytes: 4},
				"app/start":    {Kind: Link, Target: "bin/../bin/web"}, "current": {Kind: Link, Target: "app"}, "nowhere": {Kind: Link, Target: "app/not/there"},
			}
			if !maps.Equal(tree, want) {
				t.Errorf("tree %v, want %v", tree, want)
			}
			for p, item := range tree {
				info, err := os.Lstat(filepath.Join(dir, p))
				if err != nil || item.Kind != Link && info.Mode().Perm() != item.Mode() {
					t.Errorf("%s: %v, %v; want mode %v", p, info, err, item.Mode())
				}
			}
			if b, err := os.ReadFile(filepath.Join(dir, "current/start")); err != nil || string(b) != "#!/bin/sh\n" {
				t.Errorf("through the links there is %q, %v", b, err)
			}
			if got, err := tree.Command("current/start"); err != nil || got != "app/bin/web" {
				t.Errorf("the command is %q, %v", got, err)
			}
		})
	}
}

func TestAttacksAreRefused(t *testing.T) {
	deep := strings.Repeat("d/", MaxDepth)
	zeros := strings.Repeat("\x00", freeBytes+1)
	for name, c := range map[string]struct {
		archive []byte
		want    string
	}{
		"nothing":                        {nil, "no archive"},
		"text":                           {[]byte("hello"), "no archive"},
		"an absolute path":               {tarOf(t, file("/etc/passwd", "x", 0o644)), "absolute path"},
		"a path that leads out":          {tarOf(t, file("../x", "x", 0o644)), "leads out"},
		"a path that leads out later":    {tarOf(t, file("a/../../x", "x", 0o644)), "leads out"},
		"a path with .. that stays":      {tarOf(t, file("a/../x", "x", 0o644)), "leads out"},
		"a directory that leads out":     {tarOf(t, kind(stdtar.TypeDir, "../")), "leads out"},
		"a file that is the directory":   {tarOf(t, link("./.", "x")), "own directory"},
		"a link to an absolute path":     {tarOf(t, link("l", "/etc")), "out of the archive"},
		"a link that leads out":          {tarOf(t, link("a/l", "../../x")), "out of the archive"},
		"a link that leads out by links": {tarOf(t, kind(stdtar.TypeDir, "d1/d2"), link("d1/d2/l", ".."), link("y", "d1/d2/l/../../secret")), "out of the archive"},
		"a link to itself":               {tarOf(t, link("l", "l")), "more than 10 links"},
		"a link to nothing":              {tarOf(t, link("l", "")), "not possible"},
		"a file below a link":            {tarOf(t, kind(stdtar.TypeDir, "d"), link("l", "d"), file("l/f", "x", 0o644)), "no directory"},
		"a file below a file":            {tarOf(t, file("f", "x", 0o644), file("f/g", "x", 0o644)), "no directory"},
		"a file over a link":             {tarOf(t, link("l", "x"), file("l", "x", 0o644)), "twice"},
		"a link over a directory":        {tarOf(t, file("d/f", "x", 0o644), link("d", "e")), "twice"},
		"a directory over a link":        {tarOf(t, link("d", "e"), kind(stdtar.TypeDir, "d/")), "twice"},
		"a file over a directory":        {tarOf(t, kind(stdtar.TypeDir, "d/"), file("d", "x", 0o644)), "twice"},
		"a file twice":                   {tarOf(t, file("f", "x", 0o644), file("./f", "y", 0o644)), "twice"},
		"a hard link":                    {tarOf(t, file("f", "x", 0o644), stdtar.Header{Typeflag: stdtar.TypeLink, Name: "h", Linkname: "f"}), "hard link"},
		"a hard link that leads out":     {tarOf(t, stdtar.Header{Typeflag: stdtar.TypeLink, Name: "h", Linkname: "/etc/shadow"}), "hard link"},
		"a character device":             {tarOf(t, kind(stdtar.TypeChar, "null")), "device"},
		"a block device":                 {tarOf(t, kind(stdtar.TypeBlock, "sda")), "device"},
		"a fifo":                         {tarOf(t, kind(stdtar.TypeFifo, "p")), "fifo"},
		"a kind that nobody knows":       {tarOf(t, kind('Z', "z")), "not known"},
		"a setuid program":               {tarOf(t, file("su", "x", 0o4755)), "setuid"},
		"a setgid directory":             {tarOf(t, stdtar.Header{Typeflag: stdtar.TypeDir, Name: "d", Mode: 0o2755}), "setuid"},
		"a sticky directory":             {tarOf(t, stdtar.Header{Typeflag: stdtar.TypeDir, Name: "d", Mode: 0o1777}), "setuid"},
		"a sparse file":                  {sparseTar(t), "sparse"},
		"a sparse file of GNU":           {gnuSparseTar(t), "sparse"},
		"a name without end":             {tarOf(t, file(strings.Repeat("n", MaxNameBytes+1), "x", 0o644)), "a name of 256 bytes"},
		"a path without end":             {tarOf(t, file(strings.Repeat("some/", 250)+"f", "x", 0o644)), "a path of 1251 bytes"},
		"directories without end":        {tarOf(t, file(deep+"f", "x", 0o644)), "65 directories"},
		"a name that is no text":         {tarOf(t, stdtar.Header{Typeflag: stdtar.TypeReg, Name: "caf\xe9", Format: stdtar.FormatGNU}), "refused"},
		"a bomb of gzip":                 {gzipOf(t, tarOf(t, file("z", zeros, 0o644))), "bomb"},
		"a bomb of zstd":                 {zstdOf(t, tarOf(t, file("z", zeros, 0o644))), "bomb"},
		"a bomb of headers":              {gzipOf(t, []byte(strings.Repeat(string(tarOf(t, kind(stdtar.TypeXGlobalHeader, "a commit"))[:1024]), freeBytes/1024+1))), "bomb"},
		"a window of 64 MiB":             {wideZstd(t, tarOf(t, file("f", "x", 0o644))), "a window of more than 32 MiB"},
		"a tar that ends":                {tarOf(t, file("f", strings.Repeat("x", 2000), 0o644))[:1500], "damaged"},
		"a gzip that ends":               {gzipOf(t, tarOf(t, file("f", "x", 0o644)))[:40], "damaged"},
		"a gzip of something else":       {gzipOf(t, bytes.Repeat([]byte("x"), 5000)), "damaged"},
		"a zstd of something else":       {zstdOf(t, bytes.Repeat([]byte("x"), 5000)), "damaged"},

		"zip: an absolute path":        {zipOf(t, zipped{"/etc/passwd", "x", 0o644}), "absolute path"},
		"zip: a path that leads out":   {zipOf(t, zipped{"../x", "x", 0o644}), "leads out"},
		"zip: backslashes":             {zipOf(t, zipped{`..\x`, "x", 0o644}), "backslashes"},
		"zip: a zero byte":             {zipOf(t, zipped{"a\x00b", "x", 0o644}), "refused"},
		"zip: no name":                 {zipOf(t, zipped{"", "x", 0o644}), "refused"},
		"zip: a file twice":            {zipOf(t, zipped{"f", "x", 0o644}, zipped{"f", "y", 0o644}), "twice"},
		"zip: a link that leads out":   {zipOf(t, zipped{"l", "../x", fs.ModeSymlink | 0o777}), "out of the archive"},
		"zip: a link without end":      {zipOf(t, zipped{"l", strings.Repeat("x", 5000), fs.ModeSymlink | 0o777}), "not possible"},
		"zip: a link and a directory":  {zipOf(t, zipped{"l/", "", fs.ModeSymlink | 0o777}), "refused"},
		"zip: a device":                {zipOf(t, zipped{"d", "", fs.ModeDevice | 0o644}), "device"},
		"zip: a character device":      {zipOf(t, zipped{"d", "", fs.ModeDevice | fs.ModeCharDevice | 0o644}), "device"},
		"zip: a fifo":                  {zipOf(t, zipped{"p", "", fs.ModeNamedPipe | 0o644}), "fifo"},
		"zip: a socket":                {zipOf(t, zipped{"s", "", fs.ModeSocket | 0o644}), "socket"},
		"zip: a setuid program":        {zipOf(t, zipped{"su", "x", fs.ModeSetuid | 0o755}), "setuid"},
		"zip: a bomb":                  {zipOf(t, zipped{"z", zeros, 0o644}), "bomb"},
		"zip: a bomb of many":          {zipOf(t, zipped{"y", zeros[:freeBytes/2+1], 0o644}, zipped{"z", zeros[:freeBytes/2+1], 0o644}), "bomb"},
		"zip: a bomb that says little": {lyingZip(t, zeros), "damaged"},
		"zip: other content":           {bytes.Replace(zipStored(t, "content"), []byte("content"), []byte("attack!"), 1), "damaged"},
		"zip: without its end":         {zipOf(t, zipped{"f", "x", 0o644})[:40], "damaged"},
		"zip: encrypted":               {encryptedZip(t), "encrypted"},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := unpacked(t, c.archive)
			if !errors.Is(err, kbroker.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want an invalid one with %q", err, c.want)
			}
		})
	}
}

// sparseTar has a file of a terabyte that takes nothing, as tar --sparse writes it.
func sparseTar(t *testing.T) []byte {
	h := file("f", "0\n"+strings.Repeat("\x00", 510), 0o644) // a map of no parts
	h.PAXRecords = map[string]string{"XXX.sparse.major": "1", "XXX.sparse.minor": "0", "XXX.sparse.realsize": "1099511627776"}
	raw := tarOf(t, h)
	return bytes.ReplaceAll(raw, []byte("XXX.sparse"), []byte("GNU.sparse"))
}

// gnuSparseTar is the old form: a kind of its own.
func gnuSparseTar(t *testing.T) []byte {
	h := file("f", "", 0o644)
	h.Format = stdtar.FormatGNU
	raw := tarOf(t, h)
	raw[156] = stdtar.TypeGNUSparse
	copy(raw[483:], fmt.Sprintf("%011o\x00", 1<<30)) // the real size; no part of it is there
	sum := 8 * int(' ')
	for i, b := range raw[:512] {
		if i < 148 || i >= 156 {
			sum += int(b)
		}
	}
	copy(raw[148:], fmt.Sprintf("%06o\x00 ", sum))
	return raw
}

// lyingZip says that its file has one byte.
func lyingZip(t *testing.T, content string) []byte {
	raw := zipOf(t, zipped{"z", content, 0o644})
	directory := bytes.LastIndex(raw, []byte("PK\x01\x02"))
	binary.LittleEndian.PutUint32(raw[directory+24:], 1)
	return raw
}

func encryptedZip(t *testing.T) []byte {
	raw := zipOf(t, zipped{"z", "x", 0o644})
	raw[bytes.LastIndex(raw, []byte("PK\x01\x02"))+8] |= 1
	return raw
}

func zipStored(t *testing.T, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := stdzip.NewWriter(&b)
	to, err := w.CreateRaw(&stdzip.FileHeader{
		Name: "f", Method: stdzip.Store, CRC32: crc32.ChecksumIEEE([]byte(content)),
		CompressedSize64: uint64(len(content)), UncompressedSize64: uint64(len(content)),
	})
	if err == nil {
		_, err = io.WriteString(to, content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestADirectoryOfAZipIsNotReadWithoutEnd(t *testing.T) {
	record := make([]byte, 46+1) // one file of the directory
	copy(record, "PK\x01\x02")
	record[28], record[46] = 1, 'f'
	raw := append([]byte("PK\x03\x04"), bytes.Repeat(record, maxDirectoryBytes/len(record)+5000)...)
	end := make([]byte, 22)
	copy(end, "PK\x05\x06")
	binary.LittleEndian.PutUint32(end[12:], uint32(len(raw)-4))
	binary.LittleEndian.PutUint32(end[16:], 4)
	raw = append(raw, end...)
	if _, err := Read(t.Context(), bytes.NewReader(raw), int64(len(raw))); err == nil || !strings.Contains(err.Error(), "more than 100000 files") {
		t.Errorf("error %v", err)
	}
}

func TestFilesAndHeadersAreCounted(t *testing.T) {
	for name, h := range map[string]stdtar.Header{"a comment": kind(stdtar.TypeXGlobalHeader, "c"), "the same directory": kind(stdtar.TypeDir, "d/")} {
		archive := tarOf(t, slices.Repeat([]stdtar.Header{h}, MaxEntries+1)...)
		if _, err := Read(t.Context(), bytes.NewReader(archive), int64(len(archive))); err == nil || !strings.Contains(err.Error(), "more than 100000 files") {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestImplicitDirectoriesCount(t *testing.T) {
	var headers []stdtar.Header
	const depth = 60
	for i := range MaxEntries/depth + 1 {
		headers = append(headers, file(fmt.Sprint(i)+"/"+strings.Repeat("d/", depth-2)+"f", "", 0o644))
	}
	archive := tarOf(t, headers...)
	if _, err := Read(t.Context(), bytes.NewReader(archive), int64(len(archive))); err == nil || !strings.Contains(err.Error(), "more than 100000 files") {
		t.Errorf("error %v", err)
	}
}

func TestWhatCannotBeReadIsNotTheArchivesFault(t *testing.T) {
	archive := gzipOf(t, tarOf(t, file("f", strings.Repeat("content ", 1000), 0o644)))
	broken := errors.New("broken disk")
	dir := filepath.Join(t.TempDir(), "tree")
	if _, err := Unpack(t.Context(), brokenAt{bytes.NewReader(archive), 20, broken}, int64(len(archive)), dir); !errors.Is(err, broken) || errors.Is(err, kbroker.Invalid) {
		t.Errorf("error %v, want that of the disk", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, bytes.NewReader(archive), int64(len(archive)), dir); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that of ctx", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something is left: %v", err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Unpack(t.Context(), bytes.NewReader(archive), int64(len(archive)), dir); !errors.Is(err, fs.ErrExist) {
		t.Errorf("error %v, want that it is there", err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Errorf("a directory of somebody else was removed: %v", err)
	}
}

type brokenAt struct {
	io.ReaderAt
	at  int64
	err error
}

func (b brokenAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.ReaderAt.ReadAt(p, off)
	if off+int64(n) > b.at {
		return int(max(0, b.at-off)), b.err
	}
	return n, err
}

func TestCommand(t *testing.T) {
	tree := Tree{"web-1.0": {Kind: Dir}, "web-1.0/web": {Kind: File, Executable: true}, "data": {Kind: File}, "l": {Kind: Link, Target: "web-1.0"}}
	for name, c := range map[string]struct{ command, want, err, hint string }{
		"a program":             {"web-1.0/web", "web-1.0/web", "", ""},
		"a program over a link": {"l/web", "web-1.0/web", "", ""},
		"somewhere else":        {"web", "", `no file "web"`, `"web-1.0/web"`},
		"somewhere else below":  {"bin/web", "", `no file "bin/web"`, `"web-1.0/web"`},
		"nowhere":               {"absent", "", `no file "absent"`, "tar -tf"},
		"a directory":           {"l", "", "is a directory", ""},
		"the archive itself":    {".", "", "is a directory", ""},
		"data":                  {"data", "", "not executable", "chmod +x"},
		"a file below data":     {"data/x", "", "no file", ""},
		"out of it":             {"../x", "", "leads out", ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := tree.Command(c.command)
			if got != c.want || (err == nil) != (c.err == "") {
				t.Fatalf("command %q, %v; want %q, %q", got, err, c.want, c.err)
			}
			if err == nil {
				return
			}
			if e := kbroker.AsError(err); e.Code != kbroker.Invalid || !strings.Contains(e.Message, c.err) || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("error %+v, want %q with the hint %q", e, c.err, c.hint)
			}
		})
	}
}

// Whatever the bytes, all that is written is inside, plain, and what Read says.
func FuzzUnpack(f *testing.F) {
	plain := tarOf(f, file("bin/web", "#!/bin/sh\n", 0o755), link("l", "bin"), file("a/../../x", "x", 0o644))
	f.Add(plain)
	f.Add(gzipOf(f, plain))
	f.Add(zstdOf(f, plain))
	f.Add(zipOf(f, zipped{"bin/web", "x", 0o755}, zipped{"l", "bin", fs.ModeSymlink | 0o777}, zipped{"../x", "x", 0o644}))
	f.Add(tarOf(f, link("y", "d/l/../../s"), kind(stdtar.TypeDir, "d"), link("d/l", "..")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		tree, dir, err := unpacked(t, archive)
		if err != nil {
			return
		}
		root, err := filepath.EvalSymlinks(dir)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err != nil || p == root {
				return err
			}
			found++
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			item, ok := tree[filepath.ToSlash(rel)]
			if !ok || item.Kind != Link && info.Mode().Perm() != item.Mode() || info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
				t.Errorf("%q is on disk with %v, in the tree it is %+v", rel, info.Mode(), item)
			}
			if to, err := filepath.EvalSymlinks(p); err == nil && to != root && !strings.HasPrefix(to, root+"/") {
				t.Errorf("%q leads to %q", rel, to)
			}
			return nil
		})
		if err != nil || found != len(tree) {
			t.Errorf("%d things are on disk, %d in the tree, %v", found, len(tree), err)
		}
	})
}
