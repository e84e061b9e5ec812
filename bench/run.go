package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"
)

// Plan is what is measured.
type Plan struct {
	Servers []string // one per host
	Callers []int
	Sizes   []int // of a payload, in bytes
	Rounds  int
	WarmUp  time.Duration
	Length  time.Duration // of a round
}

// validate reports what of the plan cannot be measured.
func (p Plan) validate() error {
	switch {
	case len(p.Servers) == 0:
		return errors.New("no servers")
	case len(p.Callers) == 0 || slices.Min(p.Callers) < 1:
		return fmt.Errorf("callers are %v, want numbers above 0", p.Callers)
	case len(p.Sizes) == 0 || slices.Min(p.Sizes) < 1:
		return fmt.Errorf("sizes are %v, want numbers above 0", p.Sizes)
	case p.Rounds < 1:
		return fmt.Errorf("%d rounds, want 1 or more", p.Rounds)
	case p.WarmUp <= 0 || p.Length <= 0:
		return fmt.Errorf("warm-up of %v and rounds of %v, want both above 0", p.WarmUp, p.Length)
	}
	return nil
}

// responders are the processes of one peer that answer, one per host.
type responders struct {
	peer     Peer
	children []*child
}

// Run measures the plan and returns one comparison per load and other peer.
// All responders run for the whole time; idle ones cost nothing. Progress goes
// to progress.
func Run(ctx context.Context, p Plan, progress io.Writer) (all []Comparison, err error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	var sides []*responders
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.stop())
		}
	}()
	for _, peer := range peers() {
		s := &responders{peer: peer}
		sides = append(sides, s)
		if err := s.start(ctx, p.Servers); err != nil {
			return nil, err
		}
	}
	for _, size := range p.Sizes {
		for _, callers := range p.Callers {
			l := Load{Callers: callers, PayloadBytes: size}
			fmt.Fprintf(progress, "%d callers, %s: %d rounds\n", callers, sizeName(size), p.Rounds)
			measured, err := measureLoad(ctx, p, l, sides)
			if err != nil {
				return nil, fmt.Errorf("%d callers, %s: %w", callers, sizeName(size), err)
			}
			all = append(all, measured...)
		}
	}
	return all, nil
}

// measureLoad runs the rounds of one load: in each round one side right after
// the other, with the callers at another host than in the round before.
func measureLoad(ctx context.Context, p Plan, l Load, sides []*responders) ([]Comparison, error) {
	rounds := make([][]Round, len(sides))
	for i := range p.Rounds {
		for n, s := range sides {
			r, err := s.round(ctx, p, l, fromHost(p.Servers, i))
			if err != nil {
				return nil, err
			}
			rounds[n] = append(rounds[n], r)
		}
	}
	var out []Comparison
	for n, s := range sides[1:] {
		out = append(out, Comparison{
			Peer: s.peer.Name(), Load: l, OwnName: sides[0].peer.Name(), Own: rounds[0], Theirs: rounds[n+1],
		})
	}
	return out, nil
}

// fromHost are the servers as a process on host i lists them: its own first.
func fromHost(servers []string, i int) Env {
	i %= len(servers)
	return Env{Servers: slices.Concat(servers[i:], servers[:i])}
}

func (s *responders) start(ctx context.Context, servers []string) error {
	for i := range servers {
		c, err := startChild(ctx, roleServe, job{Peer: s.peer.Name(), Env: fromHost(servers, i)})
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
		r, err := c.say(wordCPU)
		if err != nil {
			return 0, err
		}
		sum += r.CPU
	}
	return sum, nil
}

// round measures one round with a new process of callers. A failed request
// makes the round worthless: on a healthy cluster there is none.
func (s *responders) round(ctx context.Context, p Plan, l Load, env Env) (Round, error) {
	addresses := make([]string, len(s.children))
	for i, c := range s.children {
		addresses[i] = c.address
	}
	callers, err := startChild(ctx, roleCall, job{
		Peer: s.peer.Name(), Env: env, Responders: addresses,
		Callers: l.Callers, Bytes: l.PayloadBytes, WarmUp: p.WarmUp, Length: p.Length,
	})
	if err != nil {
		return Round{}, err
	}
	r, err := s.measure(callers)
	return r, errors.Join(err, callers.stop())
}

func (s *responders) measure(callers *child) (Round, error) {
	before, err := s.cpu()
	if err != nil {
		return Round{}, err
	}
	answer, err := callers.say(wordMeasure)
	if err != nil {
		return Round{}, err
	}
	after, err := s.cpu()
	if err != nil {
		return Round{}, err
	}
	if answer.Round == nil {
		return Round{}, fmt.Errorf("%s: no round in its answer", callers.name)
	}
	r := *answer.Round
	if r.Failed > 0 || r.Requests == 0 {
		return r, fmt.Errorf("%s: %d requests succeeded, %d failed: %s", s.peer.Name(), r.Requests, r.Failed, r.Error)
	}
	r.CPU += after - before
	return r, nil
}
