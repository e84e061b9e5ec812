package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/artifact"
	"github.com/kbroker/kbroker/agent/spawn"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/program"
	"github.com/kbroker/kbroker/state"
)

const (
	// startsPerCPU bounds how many processes are between their fork and
	// readiness at a time, so that a herd does not trample the ready ones.
	startsPerCPU = 2
	// startSlotFor is how long a process that does not get ready counts.
	startSlotFor = 2 * time.Second
	// busyRetries and busyPause cover an executable that a child of another
	// fork still has open for writing, until that child executes.
	busyRetries = 50
	busyPause   = 5 * time.Millisecond

	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// launched is the outcome of a launch: a process, or why there is none.
type launched struct {
	process *process
	record  record
	release func() // gives the start slot back; safe to call again
	err     error
}

// launch starts the incarnation that r describes. ctx calls it off, until the
// fork; from then on it goes to its end, so that what runs is on record.
func (a *Agent) launch(ctx context.Context, r record) launched {
	spec := r.Placement.Spec
	p, args := artifact.Executable{Path: a.cfg.Executable}, spec.Args
	if spec.Artifact.Builtin != "" {
		args = append([]string{"builtin", spec.Artifact.Builtin}, args...)
	} else {
		var err error
		if p, err = a.cache.Get(ctx, r.Placement.Tenant, spec.Artifact); err != nil {
			return launched{record: r, err: fmt.Errorf("artifact: %w", err)}
		}
	}
	select {
	case <-ctx.Done():
		return launched{record: r, err: ctx.Err()}
	case a.slots <- struct{}{}:
	}
	release := a.slot()
	started, r, err := a.prepared(ctx, p, args, r)
	if err != nil {
		release()
		_ = os.Remove(credsPath(a.cfg.Dir.home(keyOf(r.Placement)), r.Incarnation)) // it may not be there
		return launched{record: r, err: err}
	}
	return launched{process: started, record: r, release: release}
}

// prepared gives the instance its ports, then forks.
func (a *Agent) prepared(ctx context.Context, what artifact.Executable, args []string, r record) (*process, record, error) {
	ports, err := a.ports.assign(ctx, keyOf(r.Placement), r.Placement.Spec.Ports)
	if err != nil {
		return nil, r, err
	}
	r.Ports = ports
	return a.fork(what, args, r)
}

// slot returns what gives a start slot back: called, or by itself after
// startSlotFor.
func (a *Agent) slot() func() {
	var timer *time.Timer
	once := make(chan struct{}, 1)
	once <- struct{}{}
	release := func() {
		select {
		case <-once:
			<-a.slots
		default:
		}
	}
	timer = time.AfterFunc(startSlotFor, release)
	return func() {
		timer.Stop()
		release()
	}
}

// fork starts the process, and writes what was started before it runs.
func (a *Agent) fork(what artifact.Executable, args []string, r record) (*process, record, error) {
	k := keyOf(r.Placement)
	home := a.cfg.Dir.home(k)
	if err := a.makeHome(home, r.User); err != nil {
		return nil, r, fmt.Errorf("instance directory: %w", err)
	}
	own, err := credential.New()
	if err != nil {
		return nil, r, err
	}
	if err := own.Write(credsPath(home, r.Incarnation)); err != nil {
		return nil, r, err
	}
	if err := a.writeInstanceFile(r, home); err != nil {
		return nil, r, err
	}
	// Signs of life are of this start alone: it may have an SDK that gives none.
	a.heal(a.alivePath(r), 0) // a directory may be large: it is not removed here
	if err := os.Remove(a.alivePath(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, r, fmt.Errorf("instance directory: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(home, outputFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, r, fmt.Errorf("output file: %w", err)
	}
	defer out.Close()
	r.LogStart = a.outputs.Began(k)
	r.BootID, r.StartedAt, r.Exit, r.Message = a.boot, time.Now().UTC(), nil, ""
	if !spawn.Holds() { // it may run before it is on record
		if err := saveRecord(home, r); err != nil {
			return nil, r, fmt.Errorf("record the intent to start: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(home, endedFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, r, fmt.Errorf("instance directory: %w", err)
	}
	if err := errors.Join(a.contain.possible(r.Placement.Spec), a.makeGroup(r)); err != nil {
		return nil, r, err
	}
	cfg := a.bounds(what, args, home, r)
	cfg.Stdout, cfg.Stderr = out, out
	child, err := start(cfg)
	if err != nil {
		return nil, r, fmt.Errorf("start: %w", unstartable(what.Path, err))
	}
	defer child.Release()           // whatever becomes of it here, it is put on record before it runs
	s, err := readStat(child.PID()) // not waited for: it is there, dead or alive
	if err != nil {
		return nil, r, errors.Join(fmt.Errorf("identify the started process: %w", err), abandon(child))
	}
	r.procID = s.procID
	if err := expose(r.PID); err != nil {
		a.log.Warn("a process keeps the agent's protection from the OOM killer", "instance", k.Instance, "pid", r.PID, "err", err)
	}
	p, err := newProcess(r, child.Cmd, cfg.Group, &a.scanner, a.log.With("instance", k.Instance))
	if err != nil {
		return nil, r, errors.Join(fmt.Errorf("watch the started process: %w", err), abandon(child))
	}
	if err := saveRecord(home, r); err != nil {
		p.pidfd.Close()
		return nil, r, errors.Join(fmt.Errorf("record the start: %w", err), abandon(child))
	}
	return p, r, nil
}

// abandon ends a process that has not run yet.
func abandon(child *spawn.Child) error {
	err := child.Cmd.Process.Kill()
	child.Release()
	_ = child.Cmd.Wait() // it says that it was killed
	return err
}

// start starts a process. Its executable may be open for writing for a moment: by a
// child of another fork that has not executed yet.
func start(cfg spawn.Config) (*spawn.Child, error) {
	for try := 0; ; try++ {
		child, err := spawn.Start(cfg)
		if !errors.Is(err, unix.ETXTBSY) || try == busyRetries {
			return child, err
		}
		<-time.After(busyPause)
	}
}

// unstartable says why the kernel did not start a program, where that can be seen.
func unstartable(path string, err error) error {
	f, openErr := os.Open(path)
	if openErr != nil {
		return err
	}
	defer f.Close()
	needs, inspectErr := program.Inspect(f)
	switch {
	case inspectErr != nil && (errors.Is(err, unix.ENOEXEC) || errors.Is(err, unix.ENOENT)):
		return kbroker.Errorf(kbroker.Invalid, "the program cannot be run: %v", inspectErr).
			WithHint("hosts run ELF files for Linux, and scripts that begin with #!")
	case errors.Is(err, unix.ENOEXEC) && needs.Arch != runtime.GOARCH:
		return kbroker.Errorf(kbroker.Invalid, "the program is built for %s, this host is %s", needs.Arch, runtime.GOARCH).
			WithHint("build it for %s, or keep it to other hosts with `require: [\"arch == %s\"]`", runtime.GOARCH, needs.Arch)
	case errors.Is(err, unix.ENOENT) && needs.Interpreter != "":
		return kbroker.Errorf(kbroker.Invalid, "the program needs %s, which this host does not have", needs.Interpreter).
			WithHint("install it, or build a static program (Go: CGO_ENABLED=0)")
	case errors.Is(err, unix.EACCES):
		return kbroker.Errorf(kbroker.Invalid, "the program may not be run: %v", err).
			WithHint("its interpreter is not executable, or the data directory is mounted noexec")
	}
	return err
}

// environment is all that an instance gets: what it declares, and known, who it is. tree
// is what its archive is unpacked to, if it has one.
func environment(home, hostDir, tree string, r record, known map[string]string) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = defaultPath
	}
	env := []string{
		"PATH=" + path,
		"HOME=" + filepath.Join(home, workDir),
		"TMPDIR=" + filepath.Join(home, tempDir),
	}
	if tree != "" { // where Python would write what the next start does not take
		env = append(env, "PYTHONPYCACHEPREFIX="+filepath.Join(home, tempDir, "pycache"))
	}
	declared := r.Placement.Spec.Env
	for _, name := range slices.Sorted(maps.Keys(declared)) {
		env = append(env, name+"="+expand(declared[name], known))
	}
	return append( // of two values of a name the last one holds
		append(env, assignments(known)...),
		envHostDir+"="+hostDir, fmt.Sprintf("%s=%d", envEpoch, r.Placement.Epoch),
	)
}

func (a *Agent) writeInstanceFile(r record, home string) error {
	p := r.Placement
	var limitBytes int64
	if a.groupOf(r) != nil && a.contain.can.Memory {
		limitBytes = p.Spec.Resources.MemoryLimitBytes
	}
	b, err := json.Marshal(kbroker.InstanceFile{
		Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Incarnation: r.Incarnation,
		Host: a.cfg.Host, Version: p.Version, Epoch: p.Epoch, Servers: a.servers(), CA: a.cfg.CA, Credential: credsPath(home, r.Incarnation),
		Objects: p.Spec.Objects, ObjectStreams: p.ObjectStreams, Placed: slices.Sorted(maps.Keys(p.Spec.Placed)), StockRaft: a.cfg.Times == state.Stock,
		MemoryLimitBytes: limitBytes, Crashes: r.Crashes, Schemas: p.Spec.Schemas, WriteSchemas: p.WriteSchemas,
	})
	if err != nil {
		return fmt.Errorf("instance file: %w", err)
	}
	return durable.Create(instancePath(home), b, 0o600)
}
