package sdk

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
)

// maxReminders bounds the reminders that one turn sets and cancels.
const maxReminders = 64

// CatchUp is what becomes of the times at which a reminder was due while nobody could run it.
type CatchUp string

// Ways to catch up.
const (
	CatchUpOne  CatchUp = "one"  // one call for all of them; the default
	CatchUpNone CatchUp = "none" // none of those that are more than a minute ago
	CatchUpAll  CatchUp = "all"  // one call for each, in order
)

// missedAfter is when a reminder that CatchUpNone is for was missed.
const missedAfter = time.Minute

// Reminder is a call that an object makes to itself at a time.
type Reminder struct {
	Method string // a Method of the object's kind
	In     any    // its argument
	// At is when it is due; zero: After from now.
	At    time.Time
	After time.Duration
	// Every, if not 0, is how much later it is due again, and again; at least a second.
	Every   time.Duration
	CatchUp CatchUp
}

// SetReminder has the object whose turn a context belongs to be reminded: the method is called
// in a turn of its own when it is due, by the wall clock of the host that owns the object then.
// A reminder has a name, any of 1 to 200 bytes of UTF-8; one that is set again takes the place
// of the one of that name. It is stored with what the turn does, and if that is taken back
// there was none.
//
// Reminders are durable: they survive moves, failures and restarts, and need nobody to call
// the object. The method runs at least once, and takes effect once for each time; one that
// returns an error, or panics, is called again, after a second at first and a minute at last,
// until it does not. A reminder is over when its method has run, if it has no Every; that of an
// object that is deleted is over.
//
// The error has code Invalid. Outside of a turn of a Method it panics: that is a mistake in
// the program.
func SetReminder(ctx context.Context, name string, r Reminder) error {
	t := turnThatStores(ctx, "SetReminder")
	data, err := encode(r.In)
	if err != nil {
		return invalidReminder(name, "its argument: %v", err)
	}
	d := due{Method: r.Method, Every: r.Every, CatchUp: string(cmp.Or(r.CatchUp, CatchUpOne)), Data: data}
	at := r.At
	if at.IsZero() {
		at = time.Now().Add(max(r.After, 0))
	}
	d.Due, d.Of = at.UnixMilli(), t.heard.id
	kind := t.keeper.kinds[t.object.Kind]
	switch m := kind.methods[r.Method]; {
	case kind.durable.Volatile:
		return invalidReminder(name, "objects of kind %s are never stored", kind.name)
	case m == nil || m.readOnly:
		return invalidReminder(name, "objects of kind %s have no Method %.80q", kind.name, r.Method)
	case r.Every != 0 && r.Every < time.Second:
		return invalidReminder(name, "every %v, want a second or more", r.Every)
	case !slices.Contains([]CatchUp{"", CatchUpOne, CatchUpNone, CatchUpAll}, r.CatchUp):
		return invalidReminder(name, "catch up %q, want one, none or all", r.CatchUp)
	case len(data) > maxTellBytes:
		return invalidReminder(name, "an argument of %d bytes, at most %d are allowed", len(data), maxTellBytes)
	}
	return t.remind(name, &d)
}

// CancelReminder ends a reminder of the object whose turn a context belongs to, if there is
// one of that name: when the turn has ended without an error, and is stored. Otherwise it is as
// SetReminder.
func CancelReminder(ctx context.Context, name string) error {
	return turnThatStores(ctx, "CancelReminder").remind(name, nil)
}

func turnThatStores(ctx context.Context, what string) *turn {
	t := turnOf(ctx)
	if t == nil || t.readOnly {
		panic("sdk: " + what + " outside of a turn of a Method")
	}
	return t
}

func invalidReminder(name, format string, args ...any) error {
	return kbroker.Errorf(kbroker.Invalid, "reminder %.80q: %s", name, fmt.Sprintf(format, args...))
}

// remind notes what the turn wants of a reminder; nil: that it ends.
func (t *turn) remind(name string, d *due) error {
	if name == "" || len(name) > kbroker.MaxObjectIDBytes || !utf8.ValidString(name) {
		return invalidReminder(name, "want a name of 1 to %d bytes of UTF-8", kbroker.MaxObjectIDBytes)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if d != nil {
		t.toldBytes += len(d.Data)
	}
	if _, again := t.reminders[name]; !again && len(t.reminders) >= maxReminders || t.toldBytes > maxTellBytes {
		return invalidReminder(name, "a turn sets more than %d of them, or %d bytes", maxReminders, maxTellBytes)
	}
	if t.reminders == nil {
		t.reminders = map[string]*due{}
	}
	t.reminders[name] = d
	return nil
}

// due is a reminder as it is stored.
type due ownership.Reminder

func (d *due) encode() []byte { return ownership.Reminder(*d).Encode() }

func decodeDue(b []byte) (*due, error) {
	r, err := ownership.DecodeReminder(b)
	d := due(r)
	return &d, err
}

// next is the reminder after a time at which it was due, or nil if it is over. Pure.
func (d *due) next(now time.Time) *due {
	if d.Every == 0 {
		return nil
	}
	n := *d
	every := max(d.Every.Milliseconds(), 1)
	if n.Due += every; d.CatchUp != string(CatchUpAll) {
		if late := now.UnixMilli() - n.Due; late >= 0 {
			n.Due += (late/every + 1) * every
		}
	}
	return &n
}

// missed reports whether it is not run for the time at which it was due. Pure.
func (d *due) missed(now time.Time) bool {
	return d.CatchUp == string(CatchUpNone) && now.Sub(time.UnixMilli(d.Due)) > missedAfter
}
