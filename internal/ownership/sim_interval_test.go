package ownership

import (
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// simInterval is how much later the worlds with intervals store what was answered.
const simInterval = 150 * time.Millisecond

// early is an answer to a call whose effect need not be stored yet.
type early struct {
	id     string
	object kbroker.Object
	at     time.Duration
}

// tookEarly takes an answer in a world in which objects are stored later.
func (w *world) tookEarly(a *attempt) {
	if a.read {
		w.reads++
		return
	}
	w.acked++
	w.early = append(w.early, early{a.id, a.object, w.now})
}

// lost holds, at the end, that what was answered is stored, but for what was answered by
// an owner that ended soon after.
func (w *world) lost() {
	if w.failed != "" || !w.f.interval {
		return
	}
	answered := w.early
	slack := simInterval + 500*time.Millisecond // a turn under way holds it up, and the write
	w.steps(w.now + slack)
	slow := w.f.late || w.f.lost || w.f.outage || w.f.slowNet || w.f.stall || w.f.pause || w.f.solo || w.f.duel || w.f.apart || w.f.frozen
	for _, e := range answered {
		if slices.Contains(w.store.now(e.object), e.id) {
			continue
		}
		bounded := slices.ContainsFunc(w.ends, func(end time.Duration) bool { return end > e.at-300*time.Millisecond && end < e.at+slack })
		switch {
		case len(w.ends) == 0:
			w.fail("P2 %s of %s was answered and is lost, and no owner has ended", e.id, e.object)
		case e.at > w.healed+time.Second:
			w.fail("P2 %s of %s was answered at %v, when all was well, and is lost", e.id, e.object, e.at)
		case !slow && !bounded:
			w.fail("P2 %s of %s was answered at %v and is lost, and no owner has ended within %v", e.id, e.object, e.at, slack)
		}
	}
}

// TestWhatIsStoredLater: worlds in which objects are answered before they are stored. What
// holds of every write does here, too (P0, P1, nothing that is stored is lost), and what
// was answered is lost only with the owner that has answered it, and only the last of it.
func TestWhatIsStoredLater(t *testing.T) {
	acked, ended := 0, 0
	for _, f := range []faults{
		{interval: true},
		{interval: true, moves: true, dup: true},
		{interval: true, moves: true, leaves: true, drift: true},
		{interval: true, crash: true, moves: true, busy: true},
		{interval: true, crash: true, pause: true, late: true, lost: true, often: true, moves: true, drift: true, dup: true},
	} {
		for seed := uint64(1); seed <= 8; seed++ {
			w := newWorld(seed, false, &f)
			if broken := w.run(); broken != "" {
				again := newWorld(seed, true, &f)
				again.run()
				for _, line := range again.last(80) {
					t.Log(line)
				}
				t.Fatalf("seed %d of %+v: %s", seed, f, broken)
			}
			acked, ended = acked+w.acked, ended+len(w.ends)
		}
	}
	if acked < 4_000 || ended < 40 {
		t.Errorf("%d answers, %d owners that ended: there is no life in them", acked, ended)
	}
}
