package allocator

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestFewerInstancesAreWantedOnlyAfterAWhile(t *testing.T) {
	const s = time.Second
	var st steady
	for _, c := range []struct {
		at      time.Duration
		n, want int
	}{
		{0, 4, 4},
		{1 * s, 9, 9},
		{2 * s, 3, 9},
		{5 * s, 5, 9},
		{10*s + 999*time.Millisecond, 3, 9},
		{11 * s, 3, 5}, // 9 were needed 10 s ago
		{12 * s, 4, 5},
		{15 * s, 3, 4},
		{22 * s, 3, 3},
		{23 * s, 8, 8},
	} {
		if got := st.take(c.at, c.n, 10*s); got != c.want {
			t.Errorf("at %v %d are needed: %d are to be there, want %d", c.at, c.n, got, c.want)
		}
	}
}

// It is the highest need of the time, and nothing else.
func TestSteadyIsTheHighestNeed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const down = 10 * time.Second
		var st steady
		var all []needed
		now := time.Duration(0)
		for range rapid.IntRange(1, 60).Draw(t, "looks") {
			now += time.Duration(rapid.IntRange(1, 4000).Draw(t, "pause")) * time.Millisecond
			n := rapid.IntRange(0, 20).Draw(t, "need")
			all = append(all, needed{now, n})
			want := n
			for _, a := range all {
				if now-a.at < down {
					want = max(want, a.n)
				}
			}
			if got := st.take(now, n, down); got != want {
				t.Fatalf("after %v: %d, want %d", all, got, want)
			}
		}
	})
}
