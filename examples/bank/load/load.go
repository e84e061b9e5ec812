package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// opening is what is paid into each account first, so that there is something to take.
	opening = 100_000
	// mostCents bounds a movement.
	mostCents = 100
	// settleWithin is how long after the end the outboxes may take to empty.
	settleWithin = 30 * time.Second
	// settleFor is how long the balances must have been as they may be, and the same.
	settleFor = 2 * time.Second
)

// Report is the line that is printed.
type Report struct {
	OK      int `json:"ok"`      // took effect
	Failed  int `json:"failed"`  // did not, and nobody refused them
	Unknown int `json:"unknown"` // may have
	Refused int `json:"refused"` // by the bank: too little was there
	verdict
	PerSecond float64 `json:"ok_per_s"`
	P50       int64   `json:"p50_us"` // of those that took effect
	P99       int64   `json:"p99_us"`
	Longest   int64   `json:"max_us"` // of all
}

// holds reports whether no invariant is broken, and the bank was there at all.
func (r Report) holds() bool { return r.verdict.holds() && r.PerSecond >= 10 }

// bank moves money between accounts, and shows them.
type bank interface {
	move(m move) error
	balance(account int) (cents int64, err error)
}

// load is what the callers do.
type load struct {
	bank     bank
	journal  *journal
	accounts int
	callers  int
	// transfers is how many of a hundred movements are from one account to another.
	transfers int
	duration  time.Duration
	pause     time.Duration // of a caller, behind each movement
	failed    func(m move, err error)
}

// run sends until the time or ctx is over, and waits for the last answer. The verdict is
// not in the report.
func (l load) run(ctx context.Context) (Report, error) {
	ctx, stop := context.WithTimeout(ctx, l.duration)
	defer stop()
	start := time.Now()
	parts, failures := make([]tally, l.callers), make([]error, l.callers)
	var callers sync.WaitGroup
	for c := range parts {
		callers.Go(func() {
			for a := c; a < l.accounts && ctx.Err() == nil && failures[c] == nil; a += l.callers {
				failures[c] = l.send(&parts[c], move{from: outside, to: a, cents: opening})
			}
			for ctx.Err() == nil && failures[c] == nil {
				failures[c] = l.send(&parts[c], l.any())
				if l.pause > 0 {
					select {
					case <-ctx.Done():
					case <-time.After(l.pause):
					}
				}
			}
		})
	}
	callers.Wait()
	return sum(parts, time.Since(start)), errors.Join(failures...)
}

// any is a movement between, into or out of some accounts.
func (l load) any() move {
	m := move{from: rand.N(l.accounts), to: rand.N(l.accounts), cents: 1 + rand.N(int64(mostCents))}
	switch {
	case rand.N(100) < l.transfers && m.from != m.to:
	case rand.N(2) == 0:
		m.from = outside
	default:
		m.to = outside
	}
	return m
}

// send moves money once. An error is one of the journal.
func (l load) send(t *tally, m move) error {
	id, err := l.journal.begin(m)
	if err != nil {
		return err
	}
	began := time.Now()
	err = l.bank.move(m)
	m.outcome = outcomeOf(err)
	t.add(m.outcome, err, time.Since(began))
	l.journal.end(id, m.outcome)
	if err != nil {
		l.failed(m, err)
	}
	return nil
}

// overdrawn is the bank's refusal of a movement that the account has not the money for.
const overdrawn kbroker.Code = "overdrawn"

// outcomeOf is what an answer says of its movement. A turn that ends with an error changes
// nothing, but an answer that is lost does not take back what was done.
func outcomeOf(err error) outcome {
	if err == nil {
		return ok
	}
	e := kbroker.AsError(err)
	switch {
	case e.Code == overdrawn || e.Executed == kbroker.ExecutedNo:
		return none
	case e.Code == kbroker.AnswerLost && e.Executed == kbroker.ExecutedYes:
		return ok
	}
	return unknown
}

// settle reads the balances until they are as they may be, and stay so for a while, at most
// for settleWithin; and returns the verdict, with what is wrong in words.
func (l load) settle(ctx context.Context, moves []move) (verdict, []string, error) {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	again := time.NewTicker(settleFor)
	defer again.Stop()
	var before, now []int64
	var v verdict
	var wrong []string
	for {
		balances, err := l.balances()
		if err == nil {
			before, now = now, balances
			if v, wrong = judge(moves, now); v.holds() && slices.Equal(before, now) {
				return v, nil, nil
			}
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			if err == nil && v.holds() {
				wrong = append(wrong, "the balances still changed at the end")
				v.Conserved = false
			}
			return v, wrong, err
		}
	}
}

// balances are those of all accounts, or an error: of the first that did not show it.
func (l load) balances() ([]int64, error) {
	all, failures := make([]int64, l.accounts), make([]error, l.callers)
	var callers sync.WaitGroup
	for c := range failures {
		callers.Go(func() {
			for a := c; a < l.accounts && failures[c] == nil; a += l.callers {
				if all[a], failures[c] = l.bank.balance(a); failures[c] != nil {
					failures[c] = fmt.Errorf("balance of account %d: %w", a, failures[c])
				}
			}
		})
	}
	callers.Wait()
	for _, err := range failures {
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// tally is what one caller saw.
type tally struct {
	of      map[outcome]int
	refused int // of those without effect
	took    []time.Duration
	longest time.Duration
}

func (t *tally) add(o outcome, err error, took time.Duration) {
	if t.of == nil {
		t.of = map[outcome]int{}
	}
	if t.of[o]++; o == ok {
		t.took = append(t.took, took)
	}
	if errors.Is(err, overdrawn) {
		t.refused++
	}
	t.longest = max(t.longest, took)
}

func sum(parts []tally, elapsed time.Duration) Report {
	var r Report
	var took []time.Duration
	longest := time.Duration(0)
	for _, t := range parts {
		r.OK, r.Failed, r.Unknown = r.OK+t.of[ok], r.Failed+t.of[none]-t.refused, r.Unknown+t.of[unknown]
		r.Refused += t.refused
		took, longest = append(took, t.took...), max(longest, t.longest)
	}
	slices.Sort(took)
	r.PerSecond = float64(r.OK) / elapsed.Seconds()
	r.P50, r.P99 = percentile(took, 50).Microseconds(), percentile(took, 99).Microseconds()
	r.Longest = longest.Microseconds()
	return r
}

// percentile is the smallest value that at least p percent do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}
