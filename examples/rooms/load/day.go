package main

import (
	"math"
	"slices"
	"time"
)

const (
	// nightly is the part of the peak that is there when fewest are.
	nightly = 0.1
	// evening is when most are there, as a part of the day, which begins in the night when
	// fewest are: at 5, so it is at 20.
	evening = 15.0 / 24
)

// curve is which part of the peak is there at a part of the day, both from 0 to 1: it rises
// all day until the evening, and falls in the night to where it began, without a corner.
func curve(day float64) float64 {
	half := day / evening
	if day > evening {
		half = (1 - day) / (1 - evening)
	}
	return nightly + (1-nightly)*(1-math.Cos(math.Pi*half))/2
}

// needs is how many instances so many players need, if all rooms are full but one.
func needs(players, seats, slots int) int {
	up := func(n, of int) int { return (n + of - 1) / of }
	return max(1, up(up(players, seats), slots))
}

// meter is how many there were of something, for how long: instances, in seconds.
type meter struct {
	at    time.Duration
	n     int
	known bool
	sum   float64
}

// take notes that there are n since at.
func (m *meter) take(at time.Duration, n int) {
	if m.known {
		m.sum += float64(m.n) * (at - m.at).Seconds()
	}
	m.at, m.n, m.known = at, n, true
}

// percentile is the least of those that a part of all is not above; 0 of none.
func percentile(took []time.Duration, part float64) time.Duration {
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[max(0, int(math.Ceil(part*float64(len(took))))-1)]
}
