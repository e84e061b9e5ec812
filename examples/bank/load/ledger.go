package main

import "fmt"

// outcome is what a caller learned of what it sent.
type outcome string

const (
	// unknown: it may have taken effect, or may yet; of what has no outcome, too.
	unknown outcome = "unknown"
	// ok: it has taken effect.
	ok outcome = "ok"
	// none: it has had no effect and will have none.
	none outcome = "none"
)

// move is one movement of money: out of an account, into one, or both. Accounts are
// numbered; outside is where deposits come from and withdrawals go to.
type move struct {
	from, to int
	cents    int64
	outcome  outcome
}

const outside = -1

// verdict is how far the accounts are from what was journalled.
type verdict struct {
	Lost      int  `json:"lost"`      // accounts that have less than they can have
	Doubled   int  `json:"doubled"`   // accounts that have more
	Conserved bool `json:"conserved"` // the sum is one that deposits and withdrawals can have made
}

func (v verdict) holds() bool { return v.Lost == 0 && v.Doubled == 0 && v.Conserved }

// span is what a balance can be.
type span struct{ least, most int64 }

func (s span) has(cents int64) bool { return s.least <= cents && cents <= s.most }

// debit and credit take a movement of known or unknown outcome into the span.
func (s *span) debit(cents int64, o outcome) {
	switch o {
	case ok:
		s.least, s.most = s.least-cents, s.most-cents
	case unknown:
		s.least -= cents
	case none:
	}
}

func (s *span) credit(cents int64, o outcome) {
	switch o {
	case ok:
		s.least, s.most = s.least+cents, s.most+cents
	case unknown:
		s.most += cents
	case none:
	}
}

// judge compares the balances, of accounts that were empty at the start, with what was
// done to them. Pure.
//
// Each is between what is acknowledged less all unknown debits, and that with all unknown
// credits. Transfers change no sum, whether they are known or not: so money that was taken
// in one place and given in none shows in the sum, even if the account's span hides it.
func judge(moves []move, balances []int64) (verdict, []string) {
	spans, all := make([]span, len(balances)), span{}
	for _, m := range moves {
		if m.from != outside {
			spans[m.from].debit(m.cents, m.outcome)
		}
		if m.to != outside {
			spans[m.to].credit(m.cents, m.outcome)
		}
		switch {
		case m.from == outside:
			all.credit(m.cents, m.outcome)
		case m.to == outside:
			all.debit(m.cents, m.outcome)
		}
	}
	var v verdict
	var wrong []string
	sum := int64(0)
	for i, cents := range balances {
		sum += cents
		switch s := spans[i]; {
		case cents < s.least:
			v.Lost++
			wrong = append(wrong, fmt.Sprintf("account %d has %d cents, at least %d are acknowledged", i, cents, s.least))
		case cents > s.most:
			v.Doubled++
			wrong = append(wrong, fmt.Sprintf("account %d has %d cents, at most %d were paid in", i, cents, s.most))
		}
	}
	if v.Conserved = all.has(sum); !v.Conserved {
		wrong = append(wrong, fmt.Sprintf("all accounts have %d cents, want %d to %d", sum, all.least, all.most))
	}
	return v, wrong
}
