// Package program says what a file needs to be run on Linux: the deploying machine
// looks before it uploads, a host when the kernel has refused to start one.
package program

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

const (
	// maxScriptLine is as much of a script's first line as the kernel reads
	// (BINPRM_BUF_SIZE in linux/binfmts.h).
	maxScriptLine = 256
	// maxLoader bounds the name of a loader: PATH_MAX.
	maxLoader = 4096
)

// Needs are what a program needs of its host.
type Needs struct {
	// Arch is the GOARCH of an ELF file; empty for a script.
	Arch string
	// Interpreter is what the kernel starts for it: the loader of an ELF file that
	// is not static, the interpreter of a script. It may be relative, to the
	// working directory of the process.
	Interpreter string
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

// Inspect reads what a program needs. The error says why the kernel of no host
// would start it.
func Inspect(f io.ReaderAt) (Needs, error) {
	head := make([]byte, maxScriptLine)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Needs{}, err
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("#!")):
		return script(head)
	case !bytes.HasPrefix(head, []byte(elf.ELFMAG)):
		return Needs{}, errors.New("it is neither an ELF file nor a script")
	}
	file, err := elf.NewFile(f)
	if err != nil {
		return Needs{}, fmt.Errorf("damaged ELF file: %w", err)
	}
	if file.Type != elf.ET_EXEC && file.Type != elf.ET_DYN {
		return Needs{}, fmt.Errorf("an ELF file, but not an executable one (%v)", file.Type)
	}
	arch, ok := elfArch[file.Machine]
	if file.Machine == elf.EM_PPC64 {
		arch, ok = "ppc64", true
		if file.Data == elf.ELFDATA2LSB {
			arch = "ppc64le"
		}
	}
	if !ok {
		return Needs{}, fmt.Errorf("for a machine that no host has (%v)", file.Machine)
	}
	loader, err := loaderOf(file)
	return Needs{Arch: arch, Interpreter: loader}, err
}

func script(head []byte) (Needs, error) {
	line, _, _ := bytes.Cut(head[2:], []byte("\n"))
	words := strings.Fields(string(line))
	switch {
	case len(words) == 0:
		return Needs{}, errors.New("a script whose first line names no interpreter")
	case bytes.HasSuffix(line, []byte("\r")):
		return Needs{}, errors.New("a script with the line ends of Windows (CR LF)")
	}
	return Needs{Interpreter: words[0]}, nil
}

func loaderOf(file *elf.File) (string, error) {
	for _, p := range file.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		if p.Filesz > maxLoader {
			return "", errors.New("damaged ELF file: the name of its loader is too long")
		}
		name := make([]byte, p.Filesz)
		if _, err := p.ReadAt(name, 0); err != nil {
			return "", fmt.Errorf("damaged ELF file: %w", err)
		}
		return path.Clean(string(bytes.TrimRight(name, "\x00"))), nil
	}
	return "", nil
}
