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
	Sides  []Side // our own first
	Loads  []Load
	Rounds int
	WarmUp time.Duration
	Length time.Duration // of a round
}

// What is done under a load: the first word of its key.
const (
	whatRequest = "request" // requests over one connection
	whatConnect = "connect" // connections, with one request each
)

const (
	// connectMost is how many connections the warm-up and the round may each make,
	// connectEvery the time from one such round to the next: a closed connection keeps
	// its port for a minute, and there are 28,000 of them (Linux, ip_local_port_range).
	// 30 rounds of twice as many need less.
	connectMost  = 400
	connectEvery = 2 * time.Second
)

// validate reports what of the plan cannot be measured.
func (p Plan) validate() error {
	switch {
	case len(p.Sides) < 1:
		return errors.New("nobody to measure")
	case slices.ContainsFunc(p.Sides, func(s Side) bool { return len(s.Servers) == 0 }):
		return errors.New("a side without servers")
	case len(p.Loads) == 0:
		return errors.New("nothing to measure")
	case p.Rounds < 1:
		return fmt.Errorf("%d rounds, want 1 or more", p.Rounds)
	case p.WarmUp <= 0 || p.Length <= 0:
		return fmt.Errorf("warm-up of %v and rounds of %v, want both above 0", p.WarmUp, p.Length)
	}
	for _, l := range p.Loads {
		if l.Callers < 1 || l.PayloadBytes < 1 {
			return fmt.Errorf("%s, want numbers above 0", l)
		}
	}
	return nil
}

// Run measures the plan and returns one result per load. All responders run for the
// whole time; idle ones cost nothing. Progress goes to progress.
func Run(ctx context.Context, p Plan, progress io.Writer) (all []Result, err error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	var sides []*responders
	defer func() {
		for _, s := range sides {
			err = errors.Join(err, s.stop())
		}
	}()
	for _, side := range p.Sides {
		s := &responders{side: side}
		sides = append(sides, s)
		if err := s.start(ctx); err != nil {
			return nil, err
		}
	}
	for _, l := range p.Loads {
		fmt.Fprintf(progress, "%s: %d rounds\n", l, p.Rounds)
		r, err := measureLoad(ctx, p, l, sides)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// measureLoad runs the rounds of one load: in each round one side right after
// the other, with the callers at another host than in the round before.
func measureLoad(ctx context.Context, p Plan, l Load, sides []*responders) (Result, error) {
	r := Result{Load: l}
	for _, s := range sides {
		r.Sides = append(r.Sides, Measured{Name: s.side.Name})
	}
	for i := range p.Rounds {
		for n, s := range sides {
			next := time.After(connectEvery)
			round, err := s.round(ctx, p, l, i)
			if err != nil {
				return Result{}, err
			}
			r.Sides[n].Rounds = append(r.Sides[n].Rounds, round)
			if l.What != whatConnect {
				continue
			}
			select { // the bound on ports
			case <-next:
			case <-ctx.Done():
				return Result{}, ctx.Err()
			}
		}
	}
	return r, nil
}
