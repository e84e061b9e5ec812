package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"
)

// A child is this program again, as a responder or as a process of callers. It
// reads a job, then words, one per line, and answers each with a report. It
// ends when its standard input does: children never outlive the runner,
// however that ends.
const (
	roleServe = "serve"
	roleCall  = "call"

	wordMeasure = "measure" // to callers: measure one round
	wordCPU     = "cpu"     // to responders: how much cpu time until now

	// childGrace is how long a child may take to end once its input is closed.
	childGrace = 10 * time.Second
)

// job is the first line that a child reads.
type job struct {
	Peer       string        `json:"peer"`
	Env        Env           `json:"env"`
	Responders []string      `json:"responders,omitempty"`
	Callers    int           `json:"callers,omitempty"`
	Bytes      int           `json:"bytes,omitempty"`
	WarmUp     time.Duration `json:"warm_up,omitempty"`
	Length     time.Duration `json:"length,omitempty"`
}

// report is what a child answers: first, once, that it is ready.
type report struct {
	Address string        `json:"address,omitempty"` // of a responder that is ready
	CPU     time.Duration `json:"cpu,omitempty"`
	Round   *Round        `json:"round,omitempty"`
	Failure string        `json:"failure,omitempty"` // the child ends
}

// isChild reports whether args, without the program's name, are a child's.
func isChild(args []string) bool {
	return len(args) == 1 && (args[0] == roleServe || args[0] == roleCall)
}

// childMain is main of a child; it returns the exit code.
func childMain(role string) int {
	words := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	err := func() error {
		var j job
		if !words.Scan() {
			return errors.Join(errors.New("no job on the standard input"), words.Err())
		}
		if err := json.Unmarshal(words.Bytes(), &j); err != nil {
			return fmt.Errorf("decode job: %w", err)
		}
		p, ok := peerNamed(j.Peer)
		if !ok {
			return fmt.Errorf("no peer %q", j.Peer)
		}
		if role == roleServe {
			return serve(p, j, words, out)
		}
		return call(p, j, words, out)
	}()
	if err != nil {
		_ = out.Encode(report{Failure: err.Error()}) // the runner may be gone
		return 1
	}
	return 0
}

// serve answers requests until the words end.
func serve(p Peer, j job, words *bufio.Scanner, out *json.Encoder) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready := make(chan string, 1)
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, j.Env, func(address string) { ready <- address }) }()
	select {
	case err := <-ended:
		return fmt.Errorf("ended before it was ready: %w", err)
	case address := <-ready:
		if err := out.Encode(report{Address: address}); err != nil {
			return err
		}
	}
	for words.Scan() {
		used, err := cpuTime()
		if err != nil {
			return err
		}
		if err := out.Encode(report{CPU: used}); err != nil {
			return err
		}
	}
	cancel()
	return errors.Join(words.Err(), <-ended)
}

// call connects, warms up, and measures a round for each word.
func call(p Peer, j job, words *bufio.Scanner, out *json.Encoder) error {
	ctx := context.Background()
	c, err := p.Dial(ctx, j.Env, j.Responders)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer c.Close()
	warm, err := measure(ctx, c, j.Callers, j.Bytes, j.WarmUp)
	if err != nil {
		return err
	}
	if warm.Requests == 0 {
		return fmt.Errorf("no request succeeded while warming up, %d failed: %s", warm.Failed, warm.Error)
	}
	if err := out.Encode(report{}); err != nil {
		return err
	}
	for words.Scan() {
		r, err := measure(ctx, c, j.Callers, j.Bytes, j.Length)
		if err != nil {
			return err
		}
		if err := out.Encode(report{Round: &r}); err != nil {
			return err
		}
	}
	return words.Err()
}

// child is a running one, seen by the runner. Not safe for concurrent use.
type child struct {
	name    string
	cmd     *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
	address string // of a responder
	killed  atomic.Bool
}

// startChild returns once the child is ready. It ends with ctx.
func startChild(ctx context.Context, role string, j job) (*child, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own program: %w", err)
	}
	c := &child{name: role + " " + j.Peer, cmd: exec.CommandContext(ctx, exe, role)}
	c.cmd.Stderr = os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is the runner's
	c.cmd.WaitDelay = childGrace
	c.cmd.Cancel = c.kill
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = json.NewDecoder(stdout)
	if err := c.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	first, err := c.exchange(j)
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	c.address = first.Address
	return c, nil
}

// say sends a word and returns the child's answer.
func (c *child) say(word string) (report, error) { return c.exchange(word) }

// exchange sends one line and reads one report.
func (c *child) exchange(line any) (report, error) {
	b, err := json.Marshal(line)
	if err != nil {
		return report{}, err
	}
	var r report
	if _, err := c.in.Write(append(b, '\n')); err != nil {
		return r, fmt.Errorf("%s: write: %w", c.name, err)
	}
	if err := c.out.Decode(&r); err != nil {
		return r, fmt.Errorf("%s: read: %w", c.name, err)
	}
	if r.Failure != "" {
		return r, fmt.Errorf("%s: %s", c.name, r.Failure)
	}
	return r, nil
}

func (c *child) kill() error {
	c.killed.Store(true)
	return c.cmd.Process.Kill()
}

// stop ends the child and waits for it; a second call does nothing.
func (c *child) stop() error {
	if c.cmd.ProcessState != nil {
		return nil
	}
	_ = c.in.Close() // the child may have ended already
	kill := time.AfterFunc(childGrace, func() { _ = c.kill() })
	defer kill.Stop()
	if err := c.cmd.Wait(); err != nil && !c.killed.Load() {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return nil
}
