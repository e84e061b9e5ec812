package sdk

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// final is the error that ends the call, with what is known of all attempts.
func (c *call) final(e *kbroker.Error, last kbroker.Executed) *kbroker.Error {
	f := *e
	f.Executed = executed(last, c.unanswered())
	c.never = f.Executed == kbroker.ExecutedNo
	return &f
}

func (c *call) ended() error {
	return c.final(kbroker.Errorf(kbroker.Unavailable, "the client was closed during a call of %s %s", c.to, c.method), kbroker.ExecutedNo)
}

// refused is the error of a call that the servers do not let this process make.
func (c *call) refused() error {
	e := kbroker.Errorf(kbroker.Refused, "the credential of this process does not allow calls of %s", c.to).
		WithHint("the spec of a service names those of other apps that it calls, as in calls: [%s]; people need the role deployer", c.to.toCall())
	e.Executed = kbroker.ExecutedNo
	if c.sent > 1 {
		e.Executed = kbroker.ExecutedUnknown // an earlier one was sent by another connection, maybe
	}
	return e
}

// givenUp is the error of a call whose deadline passed or whose caller left.
func (c *call) givenUp(ctx context.Context) error {
	why := ctx.Err()
	if why == nil {
		why = context.DeadlineExceeded
	}
	var e *kbroker.Error
	last := kbroker.ExecutedNo
	switch {
	case c.unanswered() == 1 && c.sent > 1 && c.inARow == c.sent-1 && c.last == nil && !c.lacksMethod():
		e = c.nobody()
		e.Hint += fmt.Sprintf("; the last of %d attempts, made just before the deadline, was not answered", c.sent)
	case c.unanswered() > 0:
		e = kbroker.Errorf(kbroker.Unavailable, "no answer from %s %s to %d sent", c.to, c.method, c.sent)
		e.Hint = "it may have run, or may run yet"
		if c.idempotence() != isIdempotent {
			e.Hint += "; it was not sent again because the method is not declared idempotent"
		}
	case c.last != nil:
		if e = c.last; c.crossed {
			last = kbroker.ExecutedYes // what it called may have been changed
		}
	case c.sent == 0:
		e = kbroker.Errorf(kbroker.Unavailable, "the deadline of %s %s passed before it was sent", c.to, c.method)
	default:
		e = c.nobody()
	}
	return fmt.Errorf("%w: %w", c.final(e, last), why)
}

// lacksMethod reports whether the service is there, and said that it does not
// have the method.
func (c *call) lacksMethod() bool {
	known := c.found.known()
	return len(known) > 0 && !slices.Contains(known, c.method)
}

// nobody is the error for a method that nobody serves.
func (c *call) nobody() *kbroker.Error {
	if c.lacksMethod() {
		return kbroker.Errorf(kbroker.NotFound, "%s has no method %s", c.to, c.method).
			WithHint("its methods: %s", strings.Join(c.found.known(), ", "))
	}
	if c.to.isObject() {
		return kbroker.Errorf(kbroker.Unavailable, "nobody owns %s now", c.to).
			WithHint("`kbroker ps` says whether the instances of app %s run that have objects of kind %s; `kbroker apps` what is deployed", c.to.app, c.to.object.Kind)
	}
	return kbroker.Errorf(kbroker.Unavailable, "nobody serves %s %s", c.to, c.method).
		WithHint("`kbroker ps` says whether it runs; `kbroker apps` what is deployed")
}
