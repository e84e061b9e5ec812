package ownership

import (
	"testing"
	"time"
)

// A mark stays for as long as something of its session is known: what is older than that and
// comes late is refused by it.
func TestAMarkStaysWithItsSession(t *testing.T) {
	var r Record
	take := func(session string, sequence uint64, age time.Duration) {
		c := &Call{Session: session, Sequence: sequence}
		r = r.after(c, age, Tuned)
		r.remember(c, nil, nil)
	}
	w := Tuned.Window
	take("s", 1, 0)
	take("s", 2, w+w/2)
	take("other", 1, 2*w+1)
	if v, _ := r.knows(&Call{Session: "s", Sequence: 1}, 2*w+1, Tuned); v != isExpired {
		t.Errorf("the first call of a session that goes on is %d, want %d: expired", v, isExpired)
	}
}

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
