// Package child is what a process of the bench does that is not its runner: it answers,
// it calls, or it makes connections, as one of the peers, and measures what that takes.
//
// It needs of kbroker what applications use and nothing else: ../earlier makes of it a
// program with the SDK of an earlier commit.
//
// A child reads a Job, then words, one per line, and answers each with a Report. It
// ends when its standard input does: children never outlive the runner, however that
// ends.
package child

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"
)

// The roles, the only argument of a child. That of connecting is no field of the Job: an
// earlier child would not know it, and measure something else.
const (
	Serve   = "serve"   // answer requests
	Call    = "call"    // call over one connection
	Connect = "connect" // connect, call once and close, again and again
)

// The words.
const (
	WordMeasure = "measure" // to those who call and connect: measure one round
	WordCPU     = "cpu"     // to those who serve: how much cpu time until now
)

// Job is the first line that a child reads.
type Job struct {
	Peer       string        `json:"peer"`
	Env        Env           `json:"env"`
	Responders []string      `json:"responders,omitempty"`
	Callers    int           `json:"callers,omitempty"`
	Bytes      int           `json:"bytes,omitempty"`
	WarmUp     time.Duration `json:"warm_up,omitempty"`
	Length     time.Duration `json:"length,omitempty"`
	// Most ends the warm-up and the round after so many; 0: only their time does.
	Most int `json:"most,omitempty"`
}

// Report is what a child answers: first, once, that it is ready.
type Report struct {
	Address string        `json:"address,omitempty"` // of a responder that is ready
	CPU     time.Duration `json:"cpu,omitempty"`
	Round   *Round        `json:"round,omitempty"`
	Failure string        `json:"failure,omitempty"` // the child ends
}

// Is reports whether args, without the program's name, are a child's.
func Is(args []string) bool {
	return len(args) == 1 && (args[0] == Serve || args[0] == Call || args[0] == Connect)
}

// Main is main of a child that can be any of the peers; it returns the exit code.
func Main(role string, peers ...Peer) int {
	words := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	err := func() error {
		var j Job
		if !words.Scan() {
			return errors.Join(errors.New("no job on the standard input"), words.Err())
		}
		if err := json.Unmarshal(words.Bytes(), &j); err != nil {
			return fmt.Errorf("decode job: %w", err)
		}
		p, ok := named(peers, j.Peer)
		switch {
		case !ok:
			return fmt.Errorf("no peer %q", j.Peer)
		case role == Serve:
			return serve(p, j, words, out)
		case role == Connect:
			return connect(p, j, words, out)
		default:
			return call(p, j, words, out)
		}
	}()
	if err != nil {
		_ = out.Encode(Report{Failure: err.Error()}) // the runner may be gone
		return 1
	}
	return 0
}

func named(peers []Peer, name string) (Peer, bool) {
	for _, p := range peers {
		if p.Name() == name {
			return p, true
		}
	}
	return nil, false
}

// serve answers requests until the words end.
func serve(p Peer, j Job, words *bufio.Scanner, out *json.Encoder) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready := make(chan string, 1)
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, j.Env, func(address string) { ready <- address }) }()
	select {
	case err := <-ended:
		return fmt.Errorf("ended before it was ready: %w", err)
	case address := <-ready:
		if err := out.Encode(Report{Address: address}); err != nil {
			return err
		}
	}
	for words.Scan() {
		used, err := cpuTime()
		if err != nil {
			return err
		}
		if err := out.Encode(Report{CPU: used}); err != nil {
			return err
		}
	}
	cancel()
	return errors.Join(words.Err(), <-ended)
}

// call connects, and measures requests.
func call(p Peer, j Job, words *bufio.Scanner, out *json.Encoder) error {
	c, err := p.Dial(context.Background(), j.Env, j.Responders)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer c.Close()
	return rounds(c.Call, j, words, out)
}

// connect measures connections: made, used for one request and closed.
func connect(p Peer, j Job, words *bufio.Scanner, out *json.Encoder) error {
	return rounds(func(ctx context.Context, payload []byte) ([]byte, error) {
		c, err := p.Dial(ctx, j.Env, j.Responders)
		if err != nil {
			return nil, fmt.Errorf("dial: %w", err)
		}
		defer c.Close()
		return c.Call(ctx, payload)
	}, j, words, out)
}

// rounds warms up, and measures a round of what once does for each word.
func rounds(once func(context.Context, []byte) ([]byte, error), j Job, words *bufio.Scanner, out *json.Encoder) error {
	ctx := context.Background()
	warm, err := measure(ctx, once, j, j.WarmUp)
	if err != nil {
		return err
	}
	if warm.Requests == 0 {
		return fmt.Errorf("no request succeeded while warming up, %d failed: %s", warm.Failed, warm.Error)
	}
	if err := out.Encode(Report{}); err != nil {
		return err
	}
	for words.Scan() {
		r, err := measure(ctx, once, j, j.Length)
		if err != nil {
			return err
		}
		if err := out.Encode(Report{Round: &r}); err != nil {
			return err
		}
	}
	return words.Err()
}
