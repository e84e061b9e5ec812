package sdk

import (
	"strconv"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// maxChain bounds the objects whose turns wait for one another.
const maxChain = 32

// chain are the objects whose turns wait for a call, outermost first, as in
// subjects.HeaderChain.
type chain string

const chainSeparator = ","

// inChain is an object as it is in a chain.
func inChain(app kbroker.AppName, o kbroker.Object) string {
	return string(app) + "/" + string(o.Kind) + ":" + subjects.EscapeID(o.ID)
}

// with is the chain with one more object.
func (c chain) with(app kbroker.AppName, o kbroker.Object) chain {
	if c == "" {
		return chain(inChain(app, o))
	}
	return c + chain(chainSeparator+inChain(app, o))
}

// refuse is why an object that is called must not run the call, or nil: its turn waits for
// the call already.
func (c chain) refuse(app kbroker.AppName, o kbroker.Object) *kbroker.Error {
	if c == "" {
		return nil
	}
	self, all := inChain(app, o), strings.Split(string(c), chainSeparator)
	for _, waits := range all {
		if waits == self {
			return notRun(kbroker.Errorf(kbroker.Deadlock, "%s calls itself, and waits for the answer: %s -> %s", o, strings.Join(all, " -> "), self).
				WithHint("objects that call each other in a circle wait for ever; answer the caller instead of calling it back"))
		}
	}
	if len(all) >= maxChain {
		return notRun(kbroker.Errorf(kbroker.Deadlock, "%d objects wait for one another, at most %d may: %s ... %s", len(all), maxChain, all[0], self))
	}
	return nil
}

// has reports whether an object, as inChain writes it, is in the chain.
func (c chain) has(object string) bool {
	for waits := range strings.SplitSeq(string(c), chainSeparator) {
		if waits == object {
			return true
		}
	}
	return false
}

// root is the call that a chain has begun with: the same for all that is called on its
// way, and for all its attempts once it has crossed another.
type root struct {
	begun int64 // microseconds of Unix, by the clock of who made it, or heard it first
	id    string
}

// younger reports whether r gives way to another: an order of all roots, the same for
// whoever compares. Clocks that differ make it unfair, not wrong.
func (r root) younger(than root) bool {
	if r.begun != than.begun {
		return r.begun > than.begun
	}
	return r.id > than.id
}

// String is as in subjects.HeaderRoot.
func (r root) String() string { return strconv.FormatInt(r.begun, 10) + "-" + r.id }

// parseRoot reads what String made.
func parseRoot(s string) (root, bool) {
	if s == "" {
		return root{}, false
	}
	begun, id, _ := strings.Cut(s, "-")
	at, err := strconv.ParseInt(begun, 10, 64)
	if err != nil || at < 0 {
		return root{}, false
	}
	if _, _, ok := splitID(id); !ok {
		return root{}, false
	}
	return root{at, id}, true
}
