package main

import "testing"

func TestTheVerdict(t *testing.T) {
	in := func(to int, cents int64, o outcome) move { return move{outside, to, cents, o} }
	out := func(from int, cents int64, o outcome) move { return move{from, outside, cents, o} }
	over := func(from, to int, cents int64, o outcome) move { return move{from, to, cents, o} }
	right := verdict{Conserved: true}
	for _, c := range []struct {
		name     string
		moves    []move
		balances []int64
		want     verdict
	}{
		{"nothing was done", nil, []int64{0, 0}, right},
		{"all was acknowledged, and is there", []move{in(0, 50, ok), out(0, 20, ok), over(0, 1, 10, ok)}, []int64{20, 10}, right},
		{"what had no effect counts for nothing", []move{in(0, 50, ok), in(0, 9, none), out(0, 9, none), over(0, 1, 9, none)}, []int64{50, 0}, right},

		{"an acknowledged deposit is lost", []move{in(0, 50, ok), in(0, 7, ok)}, []int64{50, 0}, verdict{Lost: 1}},
		{"a deposit took effect twice", []move{in(0, 50, ok)}, []int64{100, 0}, verdict{Doubled: 1}},
		{"an acknowledged withdrawal is lost", []move{in(0, 50, ok), out(0, 20, ok)}, []int64{50, 0}, verdict{Doubled: 1}},
		{"a withdrawal took effect twice", []move{in(0, 50, ok), out(0, 20, ok)}, []int64{10, 0}, verdict{Lost: 1}},
		{"what was refused took effect", []move{in(0, 50, ok), out(0, 20, none)}, []int64{30, 0}, verdict{Lost: 1}},
		{"two wrongs that make a right sum", []move{in(0, 50, ok), in(1, 50, ok)}, []int64{60, 40}, verdict{Lost: 1, Doubled: 1, Conserved: true}},

		{"an unknown debit that happened", []move{in(0, 50, ok), out(0, 20, unknown)}, []int64{30, 0}, right},
		{"an unknown debit that did not", []move{in(0, 50, ok), out(0, 20, unknown)}, []int64{50, 0}, right},
		{"an unknown credit that happened", []move{in(0, 50, ok), in(0, 20, unknown)}, []int64{70, 0}, right},
		{"an unknown credit that did not", []move{in(0, 50, ok), in(0, 20, unknown)}, []int64{50, 0}, right},
		{"an unknown credit that happened twice", []move{in(0, 50, ok), in(0, 20, unknown)}, []int64{90, 0}, verdict{Doubled: 1}},
		{"an unknown debit that happened twice", []move{in(0, 50, ok), out(0, 20, unknown)}, []int64{10, 0}, verdict{Lost: 1}},

		{"a transfer whose other half is lost", []move{in(0, 50, ok), over(0, 1, 20, ok)}, []int64{30, 0}, verdict{Lost: 1}},
		{"a transfer that was credited twice", []move{in(0, 50, ok), over(0, 1, 20, ok)}, []int64{30, 40}, verdict{Doubled: 1}},
		{"an unknown transfer that happened", []move{in(0, 50, ok), over(0, 1, 20, unknown)}, []int64{30, 20}, right},
		{"an unknown transfer that did not", []move{in(0, 50, ok), over(0, 1, 20, unknown)}, []int64{50, 0}, right},
		{"one of which the debit alone happened shows in the sum", []move{in(0, 50, ok), over(0, 1, 20, unknown)}, []int64{30, 0}, verdict{}},
		{"one of which the credit alone happened, too", []move{in(0, 50, ok), over(0, 1, 20, unknown)}, []int64{50, 20}, verdict{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, wrong := judge(c.moves, c.balances)
			if got != c.want || got.holds() != (len(wrong) == 0) {
				t.Errorf("verdict %+v (%q), want %+v", got, wrong, c.want)
			}
		})
	}
}
