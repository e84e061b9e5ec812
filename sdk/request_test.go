package sdk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

type testKey struct{}

// TestARequestIsAContextWithADeadline holds a request against what it stands
// for, whichever method is asked first.
func TestARequestIsAContextWithADeadline(t *testing.T) {
	first := map[string]func(context.Context){
		"nothing is asked before": func(context.Context) {},
		"Err is asked before":     func(ctx context.Context) { _ = ctx.Err() },
		"Done is asked before":    func(ctx context.Context) { ctx.Done() },
		"Value is asked before":   func(ctx context.Context) { ctx.Value(testKey{}) },
	}
	type made struct {
		cancelBase, end func()
	}
	then := map[string]func(made){
		"nothing happens":            func(made) {},
		"the deadline passes":        func(made) { time.Sleep(2 * time.Second) },
		"the base is cancelled":      func(m made) { m.cancelBase() },
		"the handler returns":        func(m made) { m.end() },
		"it returns, too late":       func(m made) { time.Sleep(2 * time.Second); m.end() },
		"all of it, cancelled first": func(m made) { m.cancelBase(); time.Sleep(2 * time.Second); m.end() },
	}
	for firstName, ask := range first {
		for thenName, happen := range then {
			t.Run(firstName+", then "+thenName, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					states := map[string]string{}
					for _, lazy := range []bool{false, true} {
						base, cancelBase := context.WithCancel(context.WithValue(context.Background(), testKey{}, "value"))
						defer cancelBase()
						deadline := time.Now().Add(time.Second)
						ctx, end := context.WithDeadline(base, deadline)
						if lazy {
							r := &request{base: base, deadline: deadline}
							ctx, end = r, r.end
						}
						ask(ctx)
						happen(made{cancelBase, end})
						state := stateOf(ctx)
						if again := stateOf(ctx); again != state {
							t.Errorf("lazy %v: %s, then %s", lazy, state, again)
						}
						states[map[bool]string{false: "want", true: "got"}[lazy]] = state
						end()
					}
					if states["got"] != states["want"] {
						t.Errorf("got %s, want %s", states["got"], states["want"])
					}
				})
			})
		}
	}
}

// stateOf is all that a context says, and what a child of it says.
func stateOf(ctx context.Context) string {
	err := ctx.Err()
	child, cancel := context.WithCancel(ctx)
	defer cancel()
	synctest.Wait()
	done := "open"
	select {
	case <-ctx.Done():
		done = "done"
	default:
	}
	value, _ := ctx.Value(testKey{}).(string)
	return errors.Join(errors.New(done+" "+value), err, child.Err(), context.Cause(ctx), context.Cause(child)).Error()
}

func TestTheEndOfARequestEndsWhatWasMadeOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &request{base: context.Background(), client: &Client{}, id: "a:1", deadline: time.Now().Add(time.Hour)}
		child, cancel := context.WithTimeout(context.WithValue(r, testKey{}, 1), time.Hour)
		defer cancel()
		if RequestIDOf(child) != "a:1" || clientOf(requestOf(child)) != r.client {
			t.Errorf("a child knows request %q and client %p, want a:1 and %p", RequestIDOf(child), clientOf(requestOf(child)), r.client)
		}
		told := make(chan struct{})
		context.AfterFunc(child, func() { close(told) })
		r.end()
		<-told // or the bubble is deadlocked
		if !errors.Is(child.Err(), context.Canceled) {
			t.Errorf("the child's error is %v, want canceled", child.Err())
		}
	})
}
