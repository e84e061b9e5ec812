package sdk

import (
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
