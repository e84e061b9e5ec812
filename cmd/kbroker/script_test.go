package main

import (
	"archive/tar"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	// The test's own binary must never be started as an agent: it would run
	// the tests again, and they it.
	if len(os.Args) > 1 && os.Args[1] == "agent" && !strings.HasSuffix(os.Args[0], "kbroker") {
		os.Exit(exitUsage)
	}
	testscript.Main(m, map[string]func(){"kbroker": main, "monotonic": printMonotonic})
}

// printMonotonic is the program of this name of the service manager in
// systemd_test.go.
func printMonotonic() {
	now, err := monotonic()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(exitFailed)
	}
	fmt.Println(now.Microseconds())
}

// TestScripts runs testdata/script. Commands beside those of testscript:
//
//	kb CODE ARGS...      runs kbroker, which must end with CODE
//	online               lets the commands that follow find a fake core
//	leaderless           takes the leader away from it
//	tamper HOW           does something to its audit trail
//	writes [WHAT...]     what has changed the cluster, nothing more, nothing less
//	elf FILE MACHINE     writes a program for a machine (amd64, arm64, vax)
//	sized FILE BYTES     makes a file of so many zero bytes
//	creds FILE NAME DAYS writes a credential of NAME for so many days, 0: for ever
//	roots FILE           writes the root of a cluster
//	private FILE...      holds that only the owner may read them
//	agent-socket DIR     serves metrics as the agent of a data directory does
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			for _, name := range []string{"KBROKER_DIR", "KBROKER_CONTEXT", "KBROKER_INSTANCE", "NATS_URL", "NATS_CA", "NATS_CREDS", "XDG_CONFIG_HOME"} {
				e.Setenv(name, "")
			}
			e.Values[coreKey{}] = new(*fakeCore)
			e.Setenv("HOME", e.WorkDir+"/home")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"kb":           runKbroker,
			"online":       func(ts *testscript.TestScript, _ bool, _ []string) { online(t, ts) },
			"leaderless":   func(ts *testscript.TestScript, _ bool, _ []string) { coreOf(ts).depose() },
			"tamper":       func(ts *testscript.TestScript, _ bool, args []string) { coreOf(ts).tamper(args[0]) },
			"writes":       checkWrites,
			"elf":          writeELF,
			"sized":        writeSized,
			"pack":         writeArchive,
			"creds":        writeCreds,
			"roots":        writeRoots,
			"private":      checkPrivate,
			"agent-socket": func(ts *testscript.TestScript, _ bool, args []string) { serveMetrics(ts, ts.MkAbs(args[0])) },
		},
	})
}

func runKbroker(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec("kbroker", args[1:]...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("kbroker: %v", err)
	}
	if got != want {
		ts.Fatalf("kbroker %s ended with %d, want %d", strings.Join(args[1:], " "), got, want)
	}
}

// coreKey is where a script's Env keeps its fake core.
type coreKey struct{}

// online starts the script's core; its server ends with the test.
func online(t *testing.T, ts *testscript.TestScript) {
	f := newFakeCore(t)
	*ts.Value(coreKey{}).(**fakeCore) = f
	ts.Setenv("NATS_URL", f.url)
}

func coreOf(ts *testscript.TestScript) *fakeCore {
	f := *ts.Value(coreKey{}).(**fakeCore)
	if f == nil {
		ts.Fatalf("this script is not online")
	}
	return f
}

func (f *fakeCore) depose() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = false
}

func (f *fakeCore) tamper(how string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tampered = how
}

func checkWrites(ts *testscript.TestScript, _ bool, want []string) {
	f := coreOf(ts)
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.writes, want) {
		ts.Fatalf("writes are %q, want %q", f.writes, want)
	}
}

func writeELF(ts *testscript.TestScript, _ bool, args []string) {
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "vax": elf.EM_VAX}[args[1]]
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Ehsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	ts.Check(errors.Join(binary.Write(f, binary.LittleEndian, h), f.Close()))
}

// writeArchive packs scripts of these names into a tar, .gz or not.
func writeArchive(ts *testscript.TestScript, _ bool, args []string) {
	const script = "#!/bin/sh\n"
	f, err := os.Create(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	var to io.WriteCloser = f
	if strings.HasSuffix(args[0], ".gz") {
		to = gzip.NewWriter(f)
	}
	w := tar.NewWriter(to)
	for _, name := range args[1:] {
		ts.Check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(script))}))
		_, err := w.Write([]byte(script))
		ts.Check(err)
	}
	ts.Check(errors.Join(w.Close(), to.Close()))
}

func serveMetrics(ts *testscript.TestScript, dir string) {
	l, err := net.Listen("unix", filepath.Join(dir, "metrics.sock"))
	ts.Check(err)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "# TYPE up gauge\nup 1") })
	srv, ended := &http.Server{Handler: mux}, make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	ts.Defer(func() { _ = srv.Close(); <-ended })
}

func writeSized(ts *testscript.TestScript, _ bool, args []string) {
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), nil, 0o600))
	ts.Check(os.Truncate(ts.MkAbs(args[0]), size))
}
