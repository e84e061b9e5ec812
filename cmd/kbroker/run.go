package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// Environment of a program that `run` starts.
const (
	envInstanceFile = "KBROKER_INSTANCE"
	envURL          = "NATS_URL"
	envCA           = "NATS_CA"
	envCreds        = "NATS_CREDS"
)

const (
	// runLookup bounds the question whether the app is deployed.
	runLookup = 2 * time.Second
	// hangupGrace is how long a program may go on when its terminal is gone and
	// nobody can interrupt it once more.
	hangupGrace = 5 * time.Second
)

// endedWith is how a program ended that `run` has started: its own exit code is
// that of the command, and it has said itself what there was to say.
type endedWith int

func (e endedWith) Error() string { return fmt.Sprintf("the program ended with %d", int(e)) }

func (c *cli) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run [APP/SERVICE] -- CMD [ARG...]",
		Short: "Run a local program as an instance of a service",
		Long: `Run a local program as an instance of a service, for development: its output is
in this terminal, and it gets its share of the service's requests, beside the
instances that the cluster runs. The app need not be deployed. Without
APP/SERVICE the app.yaml of the working directory says who the program is.

The first interrupt is passed on to the program, so that it finishes what it has
begun; the second one kills it. When the terminal is closed it is asked to end
(SIGTERM) and killed after 5 s, and it never outlives this command, even a killed
one. Its exit code is that of the command.

The program has a credential of its own, in the file that NATS_CREDS names, which is
renewed there as long as it runs. A server cuts off who connected with one that has
ended: the SDK connects again before, others reconnect with what the file has then.`,
		Example: `  kbroker run -- go run .
  kbroker run shop/cart -- ./bin/cart --verbose`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch dash := cmd.ArgsLenAtDash(); {
			case dash < 0:
				return kbroker.Errorf(kbroker.Invalid, "which program? it comes after --").WithHint("usage: %s", cmd.UseLine())
			case dash > 1:
				return kbroker.Errorf(kbroker.Invalid, "%q is not the name of one service", strings.Join(args[:dash], " ")).WithHint("usage: %s", cmd.UseLine())
			case dash == len(args):
				return kbroker.Errorf(kbroker.Invalid, "there is no program after --").WithHint("usage: %s", cmd.UseLine())
			}
			return nil
		},
		ValidArgsFunction: c.completeApps,
		RunE: func(cmd *cobra.Command, args []string) error {
			dash := cmd.ArgsLenAtDash()
			app, service, err := developed(args[:dash])
			if err != nil {
				return err
			}
			return c.run(cmd.Context(), app, service, args[dash:])
		},
	}
	return cmd
}

// developed is the service that a program on this machine is: the one named, or
// the one that the app.yaml of the working directory means.
func developed(names []string) (kbroker.AppName, kbroker.ServiceName, error) {
	if len(names) == 1 {
		app, service, err := serviceName(names[0])
		if service == "" {
			service = kbroker.ServiceName(app)
		}
		return app, service, err
	}
	doc, err := readSpec(specFile)
	if _, missing := os.Stat(specFile); errors.Is(missing, fs.ErrNotExist) {
		return "", "", kbroker.Errorf(kbroker.Invalid, "which service is it? there is no %s here", specFile).
			WithHint("say so: kbroker run APP/SERVICE -- ..., or run it in the folder of the %s", specFile)
	}
	if err != nil {
		return "", "", err
	}
	app := doc.App()
	service, ok := app.DefaultService()
	if !ok {
		return "", "", kbroker.Errorf(kbroker.Invalid, "%s has %d services, and none is called %s", specFile, len(app.Services), app.Name).
			WithHint("say which one this program is: kbroker run %s/SERVICE -- ...", app.Name)
	}
	return app.Name, service.Name, nil
}

// run starts a program as a development instance and waits for its end.
func (c *cli) run(ctx context.Context, app kbroker.AppName, service kbroker.ServiceName, command []string) error {
	path, err := exec.LookPath(command[0])
	if err != nil {
		return kbroker.Errorf(kbroker.Invalid, "there is no program %q: %v", command[0], reason(errors.Unwrap(err))).WithHint("name a file, such as ./bin/%s, or a program in PATH", filepath.Base(command[0]))
	}
	api, target, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer api.Close()
	known := isDeployed(ctx, api, app)
	dir, err := os.MkdirTemp("", "kbroker-run-")
	if err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	defer os.RemoveAll(dir)
	instance := developmentInstance(target, app, service)
	instance.Credential = filepath.Join(dir, "instance.creds")
	own, err := credit(ctx, api, instance)
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "instance.json")
	b, err := json.Marshal(instance)
	if err == nil {
		err = os.WriteFile(file, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", command[0], err)
	}
	c.say("%s runs as %s of %s/%s; to call it: kbroker call %s/%s METHOD ...", command[0], instance.Instance, app, service, app, service)
	if !known {
		c.say("%s is not deployed on this cluster: this is its only instance", app)
	}
	cmd := exec.Command(path, command[1:]...)
	cmd.Args[0] = command[0]
	files, roots := []string{file, instance.Credential}, ""
	if target.CA != "" {
		roots = filepath.Join(dir, "ca.pem")
		if err := os.WriteFile(roots, []byte(target.CA), 0o600); err != nil {
			return fmt.Errorf("run %s: %w", command[0], err)
		}
		files = append(files, roots)
	}
	cmd.Env = runEnviron(os.Environ(), file, instance, roots)
	cmd.Stdout, cmd.Stderr = c.out, c.err
	renewing, end := context.WithCancel(context.WithoutCancel(ctx)) // a program that was asked to end may take its time
	var renewal sync.WaitGroup
	renewal.Go(func() { c.renews(renewing, api, instance, own) })
	defer renewal.Wait()
	defer end()
	return c.attend(ctx, cmd, files)
}

// isDeployed reports whether the cluster knows the app; when nobody answers it
// is taken to.
func isDeployed(ctx context.Context, api *client.Client, app kbroker.AppName) bool {
	ctx, cancel := context.WithTimeout(ctx, runLookup)
	defer cancel()
	_, err := api.App(ctx, app)
	return !errors.Is(err, kbroker.NotFound)
}

// developmentInstance is an instance without a host: no placement ends it.
func developmentInstance(target client.Target, app kbroker.AppName, service kbroker.ServiceName) kbroker.InstanceFile {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	start := hex.EncodeToString(b[:])
	name := fmt.Sprintf("%s-%s-dev%s", app, service, start[:4])
	return kbroker.InstanceFile{
		Tenant: target.Tenant, App: app, Service: service, Servers: target.Servers, CA: target.CA,
		Instance: kbroker.InstanceID(name), Incarnation: kbroker.Incarnation(name + "." + start),
	}
}

// runEnviron is this process's environment, with who the program is for the SDK
// and with the servers, and the file of their roots, for everybody else.
func runEnviron(environ []string, file string, i kbroker.InstanceFile, roots string) []string {
	var kept []string
	for _, e := range environ {
		if name, _, _ := strings.Cut(e, "="); name != envInstanceFile && name != envURL && name != envCA && name != envCreds {
			kept = append(kept, e)
		}
	}
	kept = append(kept, envInstanceFile+"="+file, envURL+"="+strings.Join(i.Servers, ","), envCreds+"="+i.Credential)
	if roots != "" {
		kept = append(kept, envCA+"="+roots)
	}
	return kept
}

// attend starts cmd in a guarded process group, passes signals on, and returns
// when it has ended and nothing of its group is left. The instance's files are the
// caller's to remove, unless this process is killed.
func (c *cli) attend(ctx context.Context, cmd *exec.Cmd, files []string) error {
	guard, err := newGuard(files)
	if err != nil {
		return fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	defer guard.end() // and what the program has left behind
	// A terminal's interrupt reaches this process alone: passed on once, to all
	// of the group, a program sees it once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pgid: guard.group()}
	stdin, err := cmd.StdinPipe() // the terminal itself would stop another group that reads it
	if err != nil {
		return fmt.Errorf("run %s: %w", cmd.Path, err)
	}
	signals, hangup := make(chan os.Signal, 4), make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	if !signal.Ignored(syscall.SIGHUP) { // else it is under nohup
		signal.Notify(hangup, syscall.SIGHUP)
		defer signal.Stop(hangup)
	}
	if err := cmd.Start(); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "cannot start %s: %v", cmd.Path, err)
	}
	go func() { // ends with the input, at the latest with this process: a read of a terminal cannot be called off
		_, _ = io.Copy(stdin, c.in)
		_ = stdin.Close()
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return childExit(c.pass(ctx, guard, ended, signals, hangup))
}

// pass hands signals on to the guarded group until the program has ended, and
// returns how.
func (c *cli) pass(ctx context.Context, guard *guard, ended <-chan error, signals, hangup <-chan os.Signal) error {
	told, asked := false, ctx.Done()
	var patience <-chan time.Time
	tell := func(s syscall.Signal) {
		if told {
			s = syscall.SIGKILL
		}
		told = true
		guard.signal(s)
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-hangup: // the terminal and the shell may both say so: no second interrupt
			if !told {
				tell(syscall.SIGTERM)
			}
			if patience == nil {
				patience = time.After(hangupGrace)
			}
		case <-patience:
			guard.signal(syscall.SIGKILL)
		case s := <-signals:
			asked = nil // the same signal ends ctx, too
			tell(s.(syscall.Signal))
		case <-asked:
			asked = nil
			select {
			case s := <-signals:
				tell(s.(syscall.Signal))
			default:
				tell(syscall.SIGTERM)
			}
		}
	}
}

// childExit is the error of a program's end; nil for 0. By a signal: 128 and its
// number, as shells say it.
func childExit(err error) error {
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return endedWith(128 + int(status.Signal()))
	}
	return endedWith(exit.ExitCode())
}
