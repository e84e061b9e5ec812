package program_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/kbroker/kbroker/internal/program"
)

// elfFile is the beginning of a 64-bit little-endian ELF file; with a loader it has
// one program header that names it.
func elfFile(kind, machine uint16, loader string) []byte {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(h[16:], kind)
	binary.LittleEndian.PutUint16(h[18:], machine)
	h[20] = 1
	binary.LittleEndian.PutUint16(h[52:], 64)
	if loader == "" {
		return h
	}
	binary.LittleEndian.PutUint64(h[32:], 64) // where the program headers are
	binary.LittleEndian.PutUint16(h[54:], 56)
	binary.LittleEndian.PutUint16(h[56:], 1)
	p := make([]byte, 56)
	binary.LittleEndian.PutUint32(p, 3) // PT_INTERP
	binary.LittleEndian.PutUint64(p[8:], 64+56)
	binary.LittleEndian.PutUint64(p[32:], uint64(len(loader)+1))
	return append(append(h, p...), loader+"\x00"...)
}

func TestInspect(t *testing.T) {
	for name, c := range map[string]struct {
		file []byte
		want program.Needs
		err  string
	}{
		"a static program":                  {elfFile(2, 183, ""), program.Needs{Arch: "arm64"}, ""},
		"a program with a loader":           {elfFile(3, 62, "/lib/ld-musl-x86_64.so.1"), program.Needs{Arch: "amd64", Interpreter: "/lib/ld-musl-x86_64.so.1"}, ""},
		"a script":                          {[]byte("#!/bin/sh\nexit\n"), program.Needs{Interpreter: "/bin/sh"}, ""},
		"a script with an argument":         {[]byte("#! /usr/bin/env python3\n"), program.Needs{Interpreter: "/usr/bin/env"}, ""},
		"a script without an interpreter":   {[]byte("#!\necho\n"), program.Needs{}, "names no interpreter"},
		"a script of Windows":               {[]byte("#!/bin/sh\r\necho\r\n"), program.Needs{}, "Windows"},
		"text":                              {[]byte("echo hello\n"), program.Needs{}, "neither an ELF file nor a script"},
		"nothing":                           {nil, program.Needs{}, "neither"},
		"an object file":                    {elfFile(1, 62, ""), program.Needs{}, "not an executable one"},
		"a machine that no host has":        {elfFile(2, 75, ""), program.Needs{}, "no host has"},
		"an ELF file that ends":             {elfFile(2, 62, "")[:30], program.Needs{}, "damaged"},
		"an ELF file that ends in a loader": {elfFile(2, 62, "/lib/ld.so")[:125], program.Needs{}, "damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := program.Inspect(bytes.NewReader(c.file))
			if c.err == "" && (err != nil || got != c.want) {
				t.Errorf("needs %+v, %v; want %+v", got, err, c.want)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want one with %q", err, c.err)
			}
		})
	}
}

func TestInspectKnowsThisMachine(t *testing.T) {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	if got, err := program.Inspect(f); err != nil || got.Arch != runtime.GOARCH {
		t.Errorf("this test needs %+v, %v; want %s", got, err, runtime.GOARCH)
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(elfFile(2, 62, "/lib/ld.so"))
	f.Add([]byte("#!/bin/sh\n"))
	f.Fuzz(func(t *testing.T, file []byte) {
		needs, err := program.Inspect(bytes.NewReader(file))
		if err == nil && needs == (program.Needs{}) {
			t.Error("a program that needs nothing")
		}
	})
}
