package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
)

// Restart in place.
//
//	signal -> does the program run? is it watched? -> stop as at the end -> execve
//	             | no: go on, say so                                         | failed
//	             v                                                           v
//	          running  <--------------------------------------- run again in this process
//
// The process keeps its pid, its arguments and its environment, and so do its
// children: instances stay children, the next agent adopts them, takes their
// exit codes and reaps them. Whatever replaced the program's file meanwhile is
// what runs then; or what an upgrade names, on trial (trial.go).

// RestartSignal asks a running agent to restart in place. It is the signal of
// "execute the new program" of other daemons, and the Go runtime ignores it
// where nobody asked for it: an agent that does not know it is not ended by it,
// as SIGHUP would, which also comes from closed terminals.
const RestartSignal = syscall.SIGUSR2

const (
	// programWait bounds the question which version a program is.
	programWait = 10 * time.Second
	// programKill is how long it may hold on to its output after it was killed.
	programKill = time.Second
	// maxVersionBytes bounds what a program may print as its version.
	maxVersionBytes = 64 << 10
)

// Serve runs the host as Run does, and restarts it in place at RestartSignal:
// the program on disk, which may be another one by then, is executed in this
// process with the same arguments and environment, or the one that an upgrade names.
// It first has to tell its version, and a guard has to watch it where it is on
// trial; else the host goes on and the log says why. A return is one of Run's.
func Serve(ctx context.Context, cfg Config) error {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	log := cfg.Log.With("component", "node")
	self, err := thisProgram()
	if err != nil {
		return err
	}
	asked := make(chan os.Signal, 1)
	for {
		signal.Notify(asked, RestartSignal)
		next, again, err := serve(ctx, cfg, self, asked, log)
		if !again {
			signal.Stop(asked)
			if ctx.Err() != nil {
				err = errors.Join(err, sayStopped(cfg.Dir))
			}
			return err
		}
		if err != nil {
			log.Warn("the host has not stopped in order; it is restarted all the same", "err", err)
		}
		// A signal that comes between here and the new program's runtime would
		// end it: it is ignored until then.
		signal.Ignore(RestartSignal)
		err = next.execute()
		log.Error("the program cannot be executed; this one goes on", "program", next.path, "err", err)
		if err := next.goesOn(cfg.Dir, fmt.Sprintf("it could not be executed: %v", err)); err != nil {
			log.Warn("the upgrade is not ended in order", "err", err)
		}
	}
}

// serve runs the host until it ends, or was asked to restart and has stopped.
func serve(ctx context.Context, cfg Config, self program, asked <-chan os.Signal, log *slog.Logger) (next restarting, again bool, err error) {
	running, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- Run(running, cfg) }()
	for {
		select {
		case err := <-ended:
			return next, false, err
		case <-asked:
			if next, err = self.next(ctx, cfg.Dir); err != nil {
				log.Error("not restarted", "program", next.path, "err", err)
				continue
			}
			select {
			case err := <-ended: // meanwhile, by itself
				return next, false, errors.Join(err, next.goesOn(cfg.Dir, "the agent has ended"))
			default:
			}
			log.Info("restarting in place", "program", next.path, "version", Version, "to", next.version)
			stop()
			err = <-ended
			return next, ctx.Err() == nil, err
		}
	}
}

// program is what this process was started from.
type program struct {
	path      string
	args, env []string
}

// thisProgram is called at the start: later the path may lead to another file.
func thisProgram() (program, error) {
	path, err := agent.Executable()
	if err != nil {
		return program{}, err
	}
	return program{path: path, args: os.Args, env: os.Environ()}, nil
}

// execute replaces this process; it returns only when that failed. Every file
// of it is closed by the kernel: those that the Go runtime opened are
// close-on-exec, and those that it was given were made so by the agent.
func (p program) execute() error { return syscall.Exec(p.path, p.args, p.env) }

// BuildVersion is what `kbroker version -o json` prints.
type BuildVersion struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// ProgramVersion runs a kbroker program for its version. Refused when it does
// not run here, or is another program.
func ProgramVersion(ctx context.Context, path string) (BuildVersion, error) {
	var v BuildVersion
	parent := ctx
	ctx, cancel := context.WithTimeout(ctx, programWait)
	defer cancel()
	// In this process's group: the agent's janitor takes it for no orphan.
	cmd := exec.CommandContext(ctx, path, "version", "-o", "json")
	cmd.WaitDelay = programKill
	out, complaint := &head{limit: maxVersionBytes}, &head{limit: maxVersionBytes}
	cmd.Stdout, cmd.Stderr = out, complaint
	err := cmd.Run()
	switch _, failed := errors.AsType[*exec.ExitError](err); {
	case out.more:
		return v, kbroker.Errorf(kbroker.Refused, "%s is not kbroker: its answer has more than %d bytes", path, maxVersionBytes)
	case parent.Err() != nil:
		return v, parent.Err()
	case ctx.Err() != nil:
		return v, kbroker.Errorf(kbroker.Refused, "%s does not tell its version within %v", path, programWait)
	case errors.Is(err, syscall.ENOEXEC):
		return v, kbroker.Errorf(kbroker.Refused, "%s is no program for this machine", path)
	case failed:
		return v, kbroker.Errorf(kbroker.Refused, "%s does not tell its version: %v: %s", path, err, firstLine(complaint.data))
	case err != nil:
		return v, kbroker.Errorf(kbroker.Refused, "%s does not run: %v", path, err)
	case len(bytes.TrimSpace(out.data)) == 0:
		return v, kbroker.Errorf(kbroker.Refused, "%s is not kbroker: it does not tell its version", path)
	case json.Unmarshal(out.data, &v) != nil || v.Version == "":
		return v, kbroker.Errorf(kbroker.Refused, "%s is not kbroker: it answers %q", path, firstLine(out.data))
	}
	return v, nil
}

// head keeps the first limit bytes of what is written to it, and takes no more
// after them: who writes to it by a pipe is ended by the next write.
type head struct {
	limit int
	data  []byte
	more  bool
}

func (h *head) Write(b []byte) (int, error) {
	n := min(len(b), h.limit-len(h.data))
	h.data = append(h.data, b[:n]...)
	if n < len(b) {
		h.more = true
		return n, io.ErrShortWrite
	}
	return n, nil
}

func firstLine(b []byte) string {
	line, _, _ := bytes.Cut(bytes.TrimSpace(b), []byte("\n"))
	return string(line[:min(len(line), 200)])
}

// AskRestart sends RestartSignal to the agent that holds dir. NotFound when none
// runs.
func AskRestart(dir string) error {
	h, alive, err := agent.HolderOf(dir)
	if err != nil {
		return err
	}
	if !alive {
		return kbroker.Errorf(kbroker.NotFound, "no agent runs on %s", dir)
	}
	if err := syscall.Kill(h.PID, RestartSignal); err != nil {
		return fmt.Errorf("signal agent %d: %w", h.PID, err)
	}
	return nil
}
