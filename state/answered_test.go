package state

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestAQuestionThatNobodyAnswersIsAskedAgain(t *testing.T) {
	other := errors.New("other")
	for name, c := range map[string]struct {
		nobody  error
		after   int // answers at which it changes
		then    error
		within  time.Duration // of the caller
		want    error
		atLeast int
		took    time.Duration // at most
	}{
		"until somebody is there":              {nobody: nats.ErrNoResponders, after: 3, within: time.Minute, atLeast: 4, took: 20 * time.Millisecond},
		"as the jetstream package says it":     {nobody: jetstream.ErrJetStreamNotEnabled, after: 3, within: time.Minute, atLeast: 4, took: 20 * time.Millisecond},
		"until there is another error":         {nobody: nats.ErrNoResponders, after: 1, then: other, within: time.Minute, want: other, atLeast: 2, took: 10 * time.Millisecond},
		"not for ever":                         {nobody: nats.ErrNoResponders, after: 1 << 30, within: time.Minute, want: nats.ErrNoResponders, atLeast: 10, took: unansweredFor + unansweredPause},
		"not longer than who asks has time":    {nobody: nats.ErrNoResponders, after: 1 << 30, within: 12 * time.Millisecond, want: nats.ErrNoResponders, atLeast: 2, took: 12 * time.Millisecond},
		"not at all, when it is another error": {nobody: other, after: 1 << 30, within: time.Minute, want: other, atLeast: 1, took: 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.within)
				defer cancel()
				began, asked := time.Now(), 0
				_, err := answered(ctx, func() (int, error) {
					if asked++; asked <= c.after {
						return 0, c.nobody
					}
					return 1, c.then
				})
				if !errors.Is(err, c.want) || asked < c.atLeast || time.Since(began) > c.took {
					t.Errorf("asked %d times in %v: %v; want %v, %d times at least, within %v", asked, time.Since(began), err, c.want, c.atLeast, c.took)
				}
			})
		})
	}
}
