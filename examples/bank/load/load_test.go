package main

import (
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kbroker/kbroker"
)

// ledger is a bank in memory.
type ledger struct {
	mu       sync.Mutex
	balances []int64
	n        int
	// times is how often the nth movement takes effect.
	times func(n int, m move) int
	// unclear are those of which it does not say what became of them.
	unclear func(n int) bool
}

func (l *ledger) move(m move) error {
	time.Sleep(5 * time.Millisecond) // of the bubble
	l.mu.Lock()
	defer l.mu.Unlock()
	l.n++
	if m.from != outside && l.balances[m.from] < m.cents {
		return &kbroker.Error{Code: overdrawn, Executed: kbroker.ExecutedYes}
	}
	for range l.times(l.n, m) {
		if m.from != outside {
			l.balances[m.from] -= m.cents
		}
		if m.to != outside {
			l.balances[m.to] += m.cents
		}
	}
	if l.unclear(l.n) {
		return &kbroker.Error{Code: kbroker.Unavailable, Executed: kbroker.ExecutedUnknown}
	}
	return nil
}

func (l *ledger) balance(account int) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.balances[account], nil
}

// runAgainst loads a bank for some time of a bubble, with a journal in a file.
func runAgainst(t *testing.T, b *ledger) (Report, verdict, []move) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "journal")
	j, err := openJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	b.balances = make([]int64, 20)
	l := load{bank: b, journal: j, accounts: 20, callers: 5, transfers: 40, duration: 400 * time.Millisecond, failed: func(move, error) {}}
	r, err := l.run(t.Context())
	if err := errors.Join(err, j.close()); err != nil {
		t.Fatal(err)
	}
	moves, err := readJournal(path)
	if err != nil {
		t.Fatal(err)
	}
	v, _, err := l.settle(t.Context(), moves)
	if err != nil {
		t.Fatal(err)
	}
	return r, v, moves
}

func TestALoadOfABankThatIsRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		// Of each tenth movement it says nothing; every other one of them has happened.
		b := &ledger{unclear: func(n int) bool { return n%10 == 0 }}
		b.times = func(n int, _ move) int {
			if n%20 == 0 {
				return 0
			}
			return 1
		}
		r, v, moves := runAgainst(t, b)
		if !v.holds() {
			t.Errorf("verdict %+v of a bank that is right", v)
		}
		if n := r.OK + r.Failed + r.Unknown + r.Refused; n != b.n || n != len(moves) || r.OK < 300 || r.Unknown < n/12 {
			t.Errorf("report %+v, the bank had %d movements, the journal has %d", r, b.n, len(moves))
		}
		if r.P50 != 5000 || r.P99 != 5000 || r.PerSecond < 700 || r.PerSecond > 1000 {
			t.Errorf("report %+v, want 5 ms each, of 5 callers", r)
		}
		r.verdict = v
		if !r.holds() {
			t.Errorf("report %+v does not hold", r)
		}
		if r.PerSecond = 9; r.holds() {
			t.Error("a bank that hardly answers is taken for one that does")
		}
	})
}

func TestALoadFindsWhatABankDoesWrong(t *testing.T) {
	deposit := func(m move) bool { return m.from == outside }
	withdrawal := func(m move) bool { return m.to == outside }
	for _, c := range []struct {
		name  string
		times int // that one of them takes effect
		of    func(m move) bool
		want  verdict
	}{
		{"an acknowledged deposit is lost", 0, deposit, verdict{Lost: 1}},
		{"a withdrawal takes effect twice", 2, withdrawal, verdict{Lost: 1}},
		{"a deposit takes effect twice", 2, deposit, verdict{Doubled: 1}},
		{"an acknowledged withdrawal is lost", 0, withdrawal, verdict{Doubled: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				done := false
				b := &ledger{unclear: func(int) bool { return false }}
				b.times = func(n int, m move) int {
					if done || n <= 100 || !c.of(m) {
						return 1
					}
					done = true
					return c.times
				}
				if _, v, _ := runAgainst(t, b); v != c.want {
					t.Errorf("verdict %+v, want %+v", v, c.want)
				}
			})
		})
	}
}
