package agent

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// maxDials and insidesPerCPU bound the checks that are under way at a time on a
	// host: of http and tcp, which hold a file each, and of exec.
	maxDials      = 256
	insidesPerCPU = 4
	// maxCheckBody is how much of an answer over HTTP is read at most, that an
	// ordinary one can leave its sender.
	maxCheckBody = 4 << 10
	// maxCheckHead bounds what is read of one at all.
	maxCheckHead = 64 << 10

	localhost = "127.0.0.1"
)

// gates bound the checks of all instances together.
type gates struct{ dial, inside chan struct{} }

func newGates() gates {
	return gates{dial: make(chan struct{}, maxDials), inside: make(chan struct{}, insidesPerCPU*runtime.NumCPU())}
}

// enter waits for a place among those who check this way; nil if ctx ended first.
func (g gates) enter(ctx context.Context, way string) (leave func()) {
	gate := g.dial
	switch way {
	case kbroker.HealthSDK: // a message costs next to nothing
		return func() {}
	case kbroker.HealthExec:
		gate = g.inside
	}
	select {
	case gate <- struct{}{}:
		return func() { <-gate }
	case <-ctx.Done():
		return nil
	}
}

// look checks a process once.
func (a *Agent) look(ctx context.Context, r record, c kbroker.Check) look {
	leave := a.gates.enter(ctx, c.Ready)
	if leave == nil {
		return look{at: state.Boottime()}
	}
	defer leave()
	began := state.Boottime()
	bounded, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	said, why := a.check(bounded, r, c)
	paused := said == unanswered && state.Boottime()-began > c.Timeout+lateAfter
	if paused || ctx.Err() != nil {
		said = untold
	}
	return look{said: said, why: why, at: state.Boottime()}
}

func (a *Agent) check(ctx context.Context, r record, c kbroker.Check) (outcome, string) {
	switch c.Ready {
	case kbroker.HealthSDK:
		return a.checkSDK(ctx, r)
	case kbroker.HealthExec:
		return judge(ctx, a.runInside(ctx, r, c.Command))
	}
	port := portOf(r, c.Port)
	if port == 0 {
		return no, fmt.Sprintf("the port %q has no number", c.Port)
	}
	address := net.JoinHostPort(localhost, strconv.Itoa(port))
	if c.Ready == kbroker.HealthHTTP {
		return judge(ctx, checkHTTP(ctx, address, c.Path))
	}
	return judge(ctx, checkTCP(ctx, address))
}

// portOf is the number of a port of a process, 0 if it has none. Without a name: of
// its only one.
func portOf(r record, name string) int {
	for _, p := range r.Placement.Spec.Ports {
		if name != "" && p.Name != name {
			continue
		}
		if n := r.Ports[p.Name]; n != 0 {
			return n
		}
		return p.Number
	}
	return 0
}

// saysNo is the error of a check that was answered, and not well.
type saysNo struct{ why string }

func (e saysNo) Error() string { return e.why }

// judge is what the end of a check means.
func judge(ctx context.Context, err error) (outcome, string) {
	var says saysNo
	switch {
	case err == nil:
		return yes, ""
	case errors.As(err, &says):
		return no, says.why
	case short(err):
		return untold, err.Error()
	case ctx.Err() != nil:
		return unanswered, "no answer in time"
	}
	return unanswered, err.Error()
}

// short is true for an error that says what this host has no more of, and nothing of
// whom it was to look at.
func short(err error) bool {
	for _, of := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.EAGAIN, unix.EADDRNOTAVAIL} {
		if errors.Is(err, of) {
			return true
		}
	}
	return false
}

// checkSDK asks over the bus.
func (a *Agent) checkSDK(ctx context.Context, r record) (outcome, string) {
	reply, err := a.pinger.ask(ctx, r.Placement.Tenant, r.Incarnation)
	if err == nil {
		a.sampler.answered(r, reply, state.Boottime())
	}
	switch {
	case errors.Is(err, errNotTold):
		return untold, err.Error()
	case err == nil && !reply.Allocator && ownPolicy(r.Placement):
		return no, "it is no allocator: the program of an app's own policy calls allocator.Run"
	case err == nil && reply.Ready:
		return yes, ""
	case err == nil:
		return no, "its SDK says that it is not ready"
	}
	if _, err := os.Lstat(a.alivePath(r)); err == nil {
		return unheard, "its SDK runs and is not heard"
	}
	return unanswered, "no SDK in it answers"
}

// ownPolicy reports whether a placement is of an allocator with the program of an app's own
// policy; the built-in one may be of an earlier build, and says nothing.
func ownPolicy(p kbroker.Placement) bool {
	return p.Service == kbroker.AllocatorService && p.Spec.Artifact.Builtin != kbroker.BuiltinAllocator
}

func checkTCP(ctx context.Context, address string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	// Nothing was written: a close that fails is one of the other side.
	_ = conn.Close()
	return nil
}

func dial(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// checkHTTP asks on a connection of its own. The client of net/http costs four times
// as much: it has two goroutines for each connection that is not kept.
func checkHTTP(ctx context.Context, address, path string) error {
	conn, err := dial(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	_, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: kbroker-check\r\nAccept: */*\r\nConnection: close\r\n\r\n", cmp.Or(path, "/"), address)
	if err != nil {
		return err
	}
	reply, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxCheckHead)), nil)
	if err != nil {
		return fmt.Errorf("no answer of HTTP: %w", err)
	}
	// What is more, or does not come, is of no interest: it has answered.
	_, _ = io.CopyN(io.Discard, reply.Body, maxCheckBody)
	if reply.StatusCode < 200 || reply.StatusCode > 399 {
		return saysNo{"answered with " + reply.Status}
	}
	return nil
}
