package ownership

import (
	"testing"
	"time"
)

// However late a message of an outbox comes, it has one outcome: it is refused as too old to
// tell only if it is older than a mark that was forgotten.
func TestAMessageIsKnownUntilItsMarkIsForgotten(t *testing.T) {
	at := func(session string, sequence uint64, age time.Duration) *Call {
		return &Call{Session: OutboxSession + session, Sequence: sequence, Age: age}
	}
	var r Record
	take := func(c *Call, age time.Duration, refused []byte) {
		r = r.after(c, age, Tuned)
		r.remember(c, nil, refused)
	}
	wants := func(c *Call, age time.Duration, want verdict, refused string) {
		t.Helper()
		if v, e := r.knows(c, age, Tuned); v != want || string(e.Refused) != refused {
			t.Errorf("%s:%d of age %v is %d (%q), want %d (%q)", c.Session, c.Sequence, c.Age, v, e.Refused, want, refused)
		}
	}
	wants(at("a", 3, 48*time.Hour), 0, isNew, "") // nothing was forgotten: the app was stopped for days
	take(at("a", 3, 0), time.Second, nil)
	take(at("a", 5, 0), 2*time.Second, []byte("no"))
	wants(at("a", 5, time.Hour), time.Hour, isKnown, "no")
	wants(at("a", 3, time.Hour), time.Hour, isKnown, "")
	wants(at("a", 6, 0), time.Hour, isNew, "")
	late := 3 * time.Hour
	take(at("b", 1, 0), late, nil) // the mark of a is forgotten
	wants(at("a", 5, late), late, isExpired, "")
	wants(at("c", 1, late+time.Hour), late, isExpired, "")
	wants(at("c", 1, time.Hour), late, isNew, "")
	wants(at("b", 1, time.Hour), late+time.Hour, isKnown, "")
}
