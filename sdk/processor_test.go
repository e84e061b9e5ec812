package sdk

import (
	"testing"
	"time"
)

func TestCoresOfAMeter(t *testing.T) {
	var m meter
	now := time.Now()
	for _, c := range []struct {
		after, used time.Duration
		want        float64
	}{
		{0, 7 * time.Second, 0}, // what was used before says nothing
		{500 * time.Millisecond, 8 * time.Second, 2},
		{2 * time.Second, 8500 * time.Millisecond, 0.25},
		{0, 8500 * time.Millisecond, 0},
		{time.Second, 0, 0}, // it is not known
	} {
		now = now.Add(c.after)
		if got := m.cores(now, c.used); got != c.want {
			t.Errorf("after %v, with %v used, %v cores; want %v", c.after, c.used, got, c.want)
		}
	}
	if processTime() <= 0 {
		t.Error("this process has used no processor")
	}
}
