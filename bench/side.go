package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker/bench/child"
)

// Side is one of those that are compared: a peer, in processes of a program, on a
// cluster.
type Side struct {
	Name    string // in the keys of the result
	Peer    string // that its children are
	Program string // of its children; empty: this one
	Served  bool   // by others: it has no responders of its own
	Cluster
}

// Cluster is what the children of a side connect to.
type Cluster struct {
	Servers []string // nats:// URL of each host
	Environ []string // NATS_CA and NATS_CREDS, as far as the cluster has any
}

// own is what is measured: its figures are divided by those of the others.
var own child.Peer = child.KBroker{}

// others are what it is measured against. Another peer is one more type here.
var others = []child.Peer{natsgoPeer{}}

// peers are all of them, our own first.
func peers() []child.Peer { return append([]child.Peer{own}, others...) }

// everybody is what a child may be asked to be.
func everybody() []child.Peer {
	return append(peers(), objectPeer{whatUpdate}, objectPeer{whatRead}, objectPeer{whatCold}, idlePeer{}, statelessPeer{},
		manyPeer{manyFill}, manyPeer{manyWake}, manyPeer{manyKnown},
		kvPeer{}, postgresPeer{}, redisPeer{})
}

// sidesOn are all peers, as children of this program, on one cluster.
func sidesOn(c Cluster) []Side {
	var sides []Side
	for _, p := range peers() {
		sides = append(sides, Side{Name: p.Name(), Peer: p.Name(), Cluster: c})
	}
	return sides
}

// sideBefore is our own of an earlier commit.
func sideBefore(program string, c Cluster) Side {
	return Side{Name: nameBefore, Peer: own.Name(), Program: program, Cluster: c}
}

const nameBefore = "before"

// environ is the environment of the side's children: they know no cluster but theirs.
func (s Side) environ(runner []string) []string {
	rest := slices.DeleteFunc(slices.Clone(runner), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return name == envCA || name == envCreds
	})
	return append(rest, s.Environ...)
}

// fromHost are the servers as a process on host i lists them: its own first.
func fromHost(servers []string, i int) child.Env {
	i %= len(servers)
	return child.Env{Servers: slices.Concat(servers[i:], servers[:i])}
}

// responders are the processes of one side that answer, one per host.
type responders struct {
	side     Side
	children []*process
}

func (s *responders) start(ctx context.Context) error {
	if s.side.Served {
		return nil
	}
	for i := range s.side.Servers {
		c, err := startChild(ctx, s.side, child.Serve, child.Job{Env: fromHost(s.side.Servers, i)})
		if err != nil {
			return err
		}
		s.children = append(s.children, c)
	}
	return nil
}

func (s *responders) stop() error {
	var all error
	for _, c := range s.children {
		all = errors.Join(all, c.stop())
	}
	return all
}

// cpu is the cpu time that all responders have used until now.
func (s *responders) cpu() (time.Duration, error) {
	var sum time.Duration
	for _, c := range s.children {
		r, err := c.say(child.WordCPU)
		if err != nil {
			return 0, err
		}
		sum += r.CPU
	}
	return sum, nil
}

// round measures one round with a new process at host i. A failed request makes the
// round worthless: on a healthy cluster there is none.
func (s *responders) round(ctx context.Context, p Plan, l Load, i int) (child.Round, error) {
	j := child.Job{
		Env: fromHost(s.side.Servers, i), Responders: make([]string, len(s.children)),
		Callers: l.Callers, Bytes: l.PayloadBytes, WarmUp: p.WarmUp, Length: p.Length,
	}
	for n, c := range s.children {
		j.Responders[n] = c.address
	}
	role := child.Call
	if l.What == whatConnect {
		role, j.Most = child.Connect, connectMost
	}
	callers, err := startChild(ctx, s.side, role, j)
	if err != nil {
		return child.Round{}, err
	}
	r, err := s.measure(callers)
	return r, errors.Join(err, callers.stop())
}

func (s *responders) measure(callers *process) (child.Round, error) {
	before, err := s.cpu()
	if err != nil {
		return child.Round{}, err
	}
	answer, err := callers.say(child.WordMeasure)
	if err != nil {
		return child.Round{}, err
	}
	after, err := s.cpu()
	if err != nil {
		return child.Round{}, err
	}
	if answer.Round == nil {
		return child.Round{}, fmt.Errorf("%s: no round in its answer", callers.name)
	}
	r := *answer.Round
	if r.Failed > 0 || r.Requests == 0 {
		return r, fmt.Errorf("%s: %d requests succeeded, %d failed: %s", s.side.Name, r.Requests, r.Failed, r.Error)
	}
	r.CPU += after - before
	return r, nil
}
