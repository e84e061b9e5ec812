package main

import (
	"math"
	"testing"
	"time"
)

func TestADayRisesUntilTheEveningAndFalls(t *testing.T) {
	for _, c := range []struct {
		name      string
		day, want float64
	}{
		{"it begins in the night", 0, nightly},
		{"and ends there", 1, nightly},
		{"most are there in the evening", evening, 1},
		{"half way up", evening / 2, (1 + nightly) / 2},
		{"half way down", (1 + evening) / 2, (1 + nightly) / 2},
	} {
		if got := curve(c.day); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("%s: %v are there at %v, want %v", c.name, got, c.day, c.want)
		}
	}
	const steps = 1000
	for n := range steps {
		a, b := float64(n)/steps, float64(n+1)/steps
		switch step := curve(b) - curve(a); {
		case math.Abs(step) > 0.005:
			t.Errorf("from %v to %v it changes by %v at once", a, b, step)
		case b <= evening && step < 0 || a >= evening && step > 0:
			t.Errorf("from %v to %v it changes by %v, the wrong way", a, b, step)
		}
	}
}

func TestNeeds(t *testing.T) {
	for players, want := range map[int]int{0: 1, 1: 1, 20: 1, 21: 2, 180: 9, 181: 10} {
		if got := needs(players, 4, 5); got != want {
			t.Errorf("%d players need %d instances of 5 rooms of 4, want %d", players, got, want)
		}
	}
}

func TestAMeterCountsSeconds(t *testing.T) {
	var m meter
	m.take(2*time.Second, 3) // nothing is known before
	m.take(4*time.Second, 3)
	m.take(5*time.Second, 1)
	m.take(10*time.Second, 0)
	if m.sum != 3*3+5 {
		t.Errorf("%v instance-seconds, want 14", m.sum)
	}
}

func TestPercentile(t *testing.T) {
	var took []time.Duration
	if got := percentile(took, 0.99); got != 0 {
		t.Errorf("of none it is %v", got)
	}
	for n := range 200 {
		took = append(took, time.Duration(200-n))
	}
	for part, want := range map[float64]time.Duration{0: 1, 0.5: 100, 0.99: 198, 1: 200} {
		if got := percentile(took, part); got != want {
			t.Errorf("%v of 1 to 200 is %d, want %d", part, got, want)
		}
	}
}
