package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/bench/child"
)

// whatMillion is -objects of its own: many objects are stored, some of them are activated,
// and what that takes is printed.
//
//	store all --> activate some --> ask for them, as operators do
//	          --> kill an instance --> kill a core and start it again
const whatMillion = "million"

const (
	// millionLimit is the memory that an instance is told to live with.
	millionLimit = "64MiB"
	// fillers store objects at once, wakers activate them.
	fillers = 256
	wakers  = 16
	// millionBound is how long a phase may take.
	millionBound = time.Hour
	// faultAfter is when something is killed below the calls, which go on for faultLength.
	faultAfter  = 2 * time.Second
	faultLength = 30 * time.Second
	// envObjects and envActive tell the children how many objects there are, and how many of
	// them are activated.
	envObjects = "BENCH_OBJECTS"
	envActive  = "BENCH_ACTIVE"
)

// million is one run.
type million struct {
	*cluster
	objects, active int
	progress        io.Writer
	seen            []sample
	done            []phase
}

// phase is what was measured while something was done.
type phase struct {
	name  string
	round child.Round
}

// measureMillion does it on a cluster of its own.
func (s settings) measureMillion(ctx context.Context, out, progress io.Writer) (err error) {
	fmt.Fprintln(progress, "starting three hosts")
	c, err := startCluster(ctx, s.bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.deployObjects(ctx, "GOMEMLIMIT: "+millionLimit); err != nil {
		return err
	}
	m := &million{cluster: c, objects: s.count, active: min(s.activate, s.count), progress: progress}
	for _, step := range []func(context.Context) error{m.fill, m.wake, m.ask, m.loseInstance, m.loseCore} {
		if err := step(ctx); err != nil {
			return errors.Join(err, m.print(out))
		}
	}
	return m.print(out)
}

// fill stores the objects.
func (m *million) fill(ctx context.Context) error {
	if err := m.look(ctx, "empty"); err != nil {
		return err
	}
	if err := m.calls(ctx, "store", manyPeer{manyFill}, child.Job{Callers: fillers, Most: m.objects, Length: millionBound}, nil); err != nil {
		return err
	}
	return m.look(ctx, "stored")
}

// wake activates some, from everywhere in the streams: nearly all have been put away.
func (m *million) wake(ctx context.Context) error {
	if err := m.calls(ctx, "activate", manyPeer{manyWake}, child.Job{Callers: wakers, Most: m.active, Length: millionBound}, nil); err != nil {
		return err
	}
	return m.look(ctx, "activated")
}

// ask does what operators do.
func (m *million) ask(ctx context.Context) error {
	for _, args := range [][]string{
		{"objects", "bench"},
		{"objects", "ls", "bench", "item", "--limit", "1000"},
		{"objects", "ls", "bench", "item", "--limit", "10", "--prefix", "77"},
		{"objects", "show", "bench/item:1"},
	} {
		begin := time.Now()
		_, err := m.run(ctx, args...)
		r := child.Round{Elapsed: time.Since(begin), Requests: 1}
		if err != nil {
			r.Failed, r.Error = 1, err.Error()
		}
		m.note("kbroker "+strings.Join(args, " "), r)
	}
	return m.look(ctx, "asked")
}

// loseInstance kills an instance, and has its objects called.
func (m *million) loseInstance(ctx context.Context) error {
	rows, err := m.instances(ctx)
	if err != nil {
		return err
	}
	for _, r := range rows {
		if r.Service == keeperService && r.PID != nil {
			return m.fault(ctx, "instance killed", func() error { return syscall.Kill(*r.PID, syscall.SIGKILL) })
		}
	}
	return errors.New("no instance owns objects")
}

// loseCore kills a core, and starts it again.
func (m *million) loseCore(ctx context.Context) error {
	hosts, err := m.hosts(ctx)
	if err != nil {
		return err
	}
	last := hosts[len(hosts)-1]
	return m.fault(ctx, "core killed", func() error {
		if err := syscall.Kill(*last.PID, syscall.SIGKILL); err != nil {
			return err
		}
		begin := time.Now()
		_, err := m.up(ctx)
		m.note("kbroker up after that", child.Round{Elapsed: time.Since(begin), Requests: 1})
		return err
	})
}

// fault has objects called that were activated, and does something meanwhile.
func (m *million) fault(ctx context.Context, name string, do func() error) error {
	err := m.calls(ctx, name, manyPeer{manyKnown}, child.Job{Callers: wakers, Length: faultLength}, func() error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(faultAfter):
			return do()
		}
	})
	return errors.Join(err, m.look(ctx, name))
}

// calls has a child call objects, and does something beside it.
func (m *million) calls(ctx context.Context, name string, p child.Peer, j child.Job, beside func() error) error {
	fmt.Fprintln(m.progress, name)
	side := Side{Name: own.Name(), Peer: p.Name(), Cluster: m.Cluster, Served: true}
	side.Environ = append(slices.Clone(side.Environ), envObjects+"="+strconv.Itoa(m.objects), envActive+"="+strconv.Itoa(m.active))
	j.Env, j.Bytes, j.WarmUp = fromHost(m.Servers, 0), plainBytes, time.Millisecond
	callers, err := startChild(ctx, side, child.Call, j)
	if err != nil {
		return err
	}
	did := make(chan error, 1)
	go func() {
		if beside == nil {
			did <- nil
			return
		}
		did <- beside()
	}()
	answer, err := callers.say(child.WordMeasure)
	err = errors.Join(err, <-did, callers.stop())
	if err != nil || answer.Round == nil {
		return errors.Join(err, fmt.Errorf("%s: not measured", name))
	}
	m.note(name, *answer.Round)
	if answer.Round.Requests == 0 {
		return fmt.Errorf("%s: nothing succeeded: %s", name, answer.Round.Error)
	}
	return nil
}

func (m *million) note(name string, r child.Round) {
	fmt.Fprintf(m.progress, "%s: %.1f s, %d done, %d failed %s\n", name, r.Elapsed.Seconds(), r.Requests, r.Failed, r.Error)
	m.done = append(m.done, phase{name, r})
}

func (m *million) hosts(ctx context.Context) (rows []kbroker.HostRow, err error) {
	return rows, m.rows(ctx, &rows, "hosts")
}

func (m *million) instances(ctx context.Context) (rows []kbroker.InstanceRow, err error) {
	return rows, m.rows(ctx, &rows, "ps")
}

func (m *million) rows(ctx context.Context, into any, what string) error {
	out, err := m.run(ctx, what, "-o", "json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("decode %s: %w", what, err)
	}
	return nil
}
