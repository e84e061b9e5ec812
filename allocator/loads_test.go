package allocator

import (
	"testing"

	"github.com/kbroker/kbroker"
)

// TestWhoTakesOverCountsRefusalsWhenTheyLast: what came at once, and was refused, is not what comes.
func TestWhoTakesOverCountsRefusalsWhenTheyLast(t *testing.T) {
	var l loads
	var got Load
	for n := range 9 {
		at := float64(n) * kbroker.LoadEvery.Seconds()
		got = l.heard(0, kbroker.InstanceLoad{Incarnation: webA, AtS: at, Busy: 1, Requests: uint64(1000 * n), Refused: uint64(600 * n)})
		want := 0.0
		if at >= refusedOver.Seconds() {
			want = 600 / kbroker.LoadEvery.Seconds()
		}
		if got.Refused != want {
			t.Errorf("after %v s %v in a second are refused, want %v", at, got.Refused, want)
		}
	}
	if got.Requests != 1000/kbroker.LoadEvery.Seconds() {
		t.Errorf("of 1000 each time %v came in a second", got.Requests)
	}
}
