package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

const (
	// maxBuildOutput bounds what is shown of a build that failed: its end.
	maxBuildOutput = 16 << 10
	// buildGrace is how long a build may take to leave when it is interrupted.
	buildGrace = 5 * time.Second
)

// build runs the service's build line in the folder of its spec.
func build(ctx context.Context, folder string, s kbroker.Service) error {
	cmd := exec.CommandContext(ctx, "sh", "-c", s.Build)
	cmd.Dir = folder
	// What the build starts must end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = buildGrace
	out := lastBytes{limit: maxBuildOutput}
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctxError(ctx, "the build of service "+string(s.Name))
		}
		return kbroker.Errorf(kbroker.Failed, "build of service %s: %v\n%s", s.Name, err, bytes.TrimRight(out.kept, "\n")).
			WithHint("it was: %s (in %s)", s.Build, folder)
	}
	return nil
}

// ctxError says that what was under way did not end in time.
func ctxError(ctx context.Context, what string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return kbroker.Errorf(kbroker.DeadlineExceeded, "the deadline passed during %s", what)
	}
	return ctx.Err()
}

// lastBytes keeps the end of what is written to it.
type lastBytes struct {
	limit int
	kept  []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.kept = append(l.kept, p...)
	if extra := len(l.kept) - l.limit; extra > 0 {
		l.kept = append(l.kept[:0], l.kept[extra:]...)
	}
	return len(p), nil
}

// measure fills in what a service's artifact is: digest, size, architecture.
// The error is a finding at the line of the spec that names the file.
func measure(doc *spec.Document, folder string, s *kbroker.Service) error {
	at := "services." + string(s.Name) + ".run"
	if s.Run == "" {
		at = "services." + string(s.Name) + ".artifact"
	}
	path := s.Artifact.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(folder, path)
	}
	f, err := os.Open(path)
	if err != nil {
		e := doc.At(at, "cannot read the program of service %s: %s: %v", s.Name, path, reason(err))
		switch {
		case !errors.Is(err, fs.ErrNotExist):
			return e
		case s.Build == "":
			return e.WithHint("build it first, or add a `build` line; paths are relative to the folder of the spec")
		}
		return e.WithHint("`build` has run and did not make it; paths are relative to the folder of the spec")
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return inputError(path, err)
	case !info.Mode().IsRegular():
		return doc.At(at, "%s is not a file", path).WithHint("`run` names a program")
	case info.Size() == 0:
		return doc.At(at, "%s is empty", path)
	}
	if s.Artifact.Arch, err = architecture(f); err != nil {
		return doc.At(at, "%s is not a program: %v", path, err).
			WithHint("hosts run ELF files for Linux, and scripts that begin with #!; cross-compile Go with GOOS=linux")
	}
	h := sha256.New()
	size, err := io.Copy(h, io.NewSectionReader(f, 0, info.Size()))
	if err != nil {
		return inputError(path, err)
	}
	digest := hex.EncodeToString(h.Sum(nil))
	if want := s.Artifact.SHA256; want != "" && want != digest {
		return doc.At("services."+string(s.Name)+".artifact.sha256", "%s has another digest", path).
			WithHint("its sha256 is %s", digest)
	}
	s.Artifact.SHA256, s.Artifact.SizeBytes = digest, size
	return nil
}

// elfArch maps the machine of an ELF file to GOARCH.
var elfArch = map[elf.Machine]string{
	elf.EM_386:       "386",
	elf.EM_X86_64:    "amd64",
	elf.EM_ARM:       "arm",
	elf.EM_AARCH64:   "arm64",
	elf.EM_LOONGARCH: "loong64",
	elf.EM_RISCV:     "riscv64",
	elf.EM_S390:      "s390x",
}

// architecture is the GOARCH that a program needs; empty for a script.
func architecture(f io.ReaderAt) (string, error) {
	var magic [4]byte
	n, err := f.ReadAt(magic[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	switch {
	case bytes.HasPrefix(magic[:n], []byte("#!")):
		return "", nil
	case !bytes.Equal(magic[:n], []byte(elf.ELFMAG)):
		return "", errors.New("it is neither an ELF file nor a script")
	}
	file, err := elf.NewFile(f)
	if err != nil {
		return "", fmt.Errorf("damaged ELF file: %w", err)
	}
	if file.Type != elf.ET_EXEC && file.Type != elf.ET_DYN {
		return "", fmt.Errorf("an ELF file, but not an executable one (%v)", file.Type)
	}
	if file.Machine == elf.EM_PPC64 {
		if file.Data == elf.ELFDATA2LSB {
			return "ppc64le", nil
		}
		return "ppc64", nil
	}
	arch, ok := elfArch[file.Machine]
	if !ok {
		return "", fmt.Errorf("for a machine that no host has (%v)", file.Machine)
	}
	return arch, nil
}
