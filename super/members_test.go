package super

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// TestChangesOfCoresRestOnALookAtTheBroker: what the broker was a moment ago
// says that all is well, a look says that it is not, or does not end.
func TestChangesOfCoresRestOnALookAtTheBroker(t *testing.T) {
	decide := map[string]func(*term, context.Context, *state.View) (decision, error){
		"remove": func(t *term, ctx context.Context, v *state.View) (decision, error) {
			return t.remove(ctx, v, kbroker.RemoveRequest{Host: "h4"}, time.Time{})
		},
		"maintain": func(t *term, ctx context.Context, v *state.View) (decision, error) {
			return t.maintain(ctx, v, kbroker.MaintainRequest{Host: "h4", Holder: "me"}, time.Time{})
		},
		"join": func(t *term, ctx context.Context, v *state.View) (decision, error) {
			d, err := t.join(ctx, v, kbroker.JoinRequest{Host: "h6", Role: kbroker.RoleCore, Token: tokenIn(v, kbroker.RoleCore, nil)}, time.Time{})
			if reply, _ := d.reply.(kbroker.JoinReply); err == nil && !reply.Admitted {
				err = kbroker.Errorf(kbroker.Refused, "wait: %s", reply.Wait)
			}
			return d, err
		},
	}
	for name, look := range map[string]struct {
		look func(m *Members) error
		why  string // empty: it is allowed
	}{
		"it says that all is well":            {func(*Members) error { return nil }, ""},
		"it says that a core has gone behind": {func(m *Members) error { m.Current["h1"], m.Unsettled = false, "h1 is not current"; return nil }, "h1"},
		"it does not end":                     {func(*Members) error { return context.DeadlineExceeded }, "the broker does not tell"},
	} {
		for verb, decide := range decide {
			t.Run(verb+" when "+name, func(t *testing.T) {
				c, m := maintained(t, 4)
				leader := &term{memory: newMemory(), guesses: newGuesses(0), leader: &leader{Super: &Super{cfg: Config{
					Times: state.Tuned, Clock: func() time.Duration { return c.now },
					Members: func() Members { return *m }, Look: func(context.Context) error { return look.look(m) },
				}}}}
				leader.answers, leader.askedAt = c.hearing().Answers, c.now
				_, err := decide(leader, t.Context(), &c.view)
				switch {
				case look.why == "" && err != nil:
					t.Error(err)
				case look.why != "" && (!errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), look.why)):
					t.Errorf("%v, want it refused with %q", err, look.why)
				}
			})
		}
	}
}
