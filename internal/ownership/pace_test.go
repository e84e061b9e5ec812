package ownership

import (
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// Where one more comes, and each move is over at once, so many begin in a second, and no more.
func TestMovesBeginAtAPace(t *testing.T) {
	tb := newTable(t)
	tb.lease(Lease{Incarnation: "w-0.a"})
	tb.settle(1)
	tb.lease(Lease{Incarnation: "w-1.a"})
	var again time.Duration
	moves := func() (n int) {
		for {
			b := tb.plan(1)
			n += b.Counts.Offered
			tb.release()
			if again = b.Again; len(b.Writes) == 0 {
				return n
			}
		}
	}
	if n := moves(); n != 32 {
		t.Fatalf("%d moves begin at once, want 32", n)
	}
	began := tb.now
	for owned := 0; owned < kbroker.Shards/2; owned = tb.owned()["w-1.a"] {
		if again <= 0 {
			t.Fatal("nobody plans again when more may begin")
		}
		tb.now += again
		if n := moves(); n < 1 || n > 8 {
			t.Fatalf("%d moves begin when some may", n)
		}
		if tb.now > began+time.Minute {
			t.Fatal("there is no end of moves")
		}
	}
	if took := (tb.now - began).Seconds(); took < (512-32)/100.-0.1 || took > (512-32)/100.+0.2 {
		t.Errorf("512 moves take %.2f s, want about 4.8", took)
	}

	// Who leaves does so at once.
	tb.lease(Lease{Incarnation: "w-1.a", Number: 1, Leaving: true})
	if n := moves(); n != kbroker.Shards/2 {
		t.Errorf("of %d shards of one that leaves %d are moved", kbroker.Shards/2, n)
	}
}
