package sdk

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// DefaultTimeout is the deadline of a call whose context has none.
	DefaultTimeout = 5 * time.Second

	// An attempt times out after a third of the deadline, at most after
	// maxAttempt.
	attemptsPerDeadline = 3
	maxAttempt          = 1500 * time.Millisecond
	// The first that is not answered of a call of an object after a tenth, at most after
	// maxSoon.
	attemptsPerSoon = 10
	maxSoon         = 500 * time.Millisecond
	// Pause before an attempt that certainly did not run is sent again.
	backoffMin = 2 * time.Millisecond
	backoffMax = 200 * time.Millisecond
	// maxUnanswered bounds the attempts of one call that wait for an answer.
	maxUnanswered = 8

	// Resends of attempts that may have run: resendShare of the calls of the
	// last budgetWindow, at least resendFloor.
	budgetWindow = 10 * time.Second
	resendShare  = 0.2
	resendFloor  = 100
)

// event is what happens to a call that waits.
type event int

const (
	nobodyThere event = iota // the broker: no responders
	refusedNow               // an instance: overloaded, executed no
	notSent                  // there was no connection
	timedOut                 // the attempt's time is over
	reconnected              // the connection was lost and is back
	learned                  // discovery answered, or did not in its time
	unclear                  // an object's owner: nobody knows whether it ran
)

// repeatable is what is known of a method.
type repeatable int

const (
	notKnown repeatable = iota
	isIdempotent
	notIdempotent
)

// verdict is what to do about an event.
type verdict int

const (
	keepWaiting verdict = iota
	backOff             // send again after a pause
	backOffPaid         // send again after a pause if the budget allows it, else wait
	resendNow           // send again at once
	resendPaid          // send again at once if the budget allows it, else wait
	askFirst            // find out whether the method is idempotent
)

// decide is the retry table. Pure. unanswered counts the attempts that were
// sent and got no answer: any of them may have run, or may run yet.
func decide(e event, m repeatable, unanswered int) verdict {
	switch {
	case e == nobodyThere || e == refusedNow || e == notSent:
		// Certainly did not run. An earlier attempt can be outstanding only
		// where repeating is allowed.
		return backOff
	case e == unclear:
		return backOffPaid
	case unanswered == 0:
		if e == reconnected {
			return resendNow // do not sit out the pause
		}
		return keepWaiting
	case m == notIdempotent || unanswered >= maxUnanswered:
		return keepWaiting
	case m == isIdempotent:
		return resendPaid
	case e == learned:
		return keepWaiting // discovery did not say: ask again next time
	}
	return askFirst
}

// executed is what can be said of a whole call once its last answer said last.
// "no" needs every attempt to have been answered so.
func executed(last kbroker.Executed, unanswered int) kbroker.Executed {
	if last == kbroker.ExecutedYes || (last == kbroker.ExecutedNo && unanswered == 0) {
		return last
	}
	return kbroker.ExecutedUnknown
}

// attemptTime is how long one attempt of a call with that deadline may take.
func attemptTime(deadline time.Duration) time.Duration {
	return min(deadline/attemptsPerDeadline, maxAttempt)
}

// backoff is the pause before the nth resend in a row, from 0: doubled each
// time, and somewhere in the upper half.
func backoff(n int) time.Duration {
	return jitter(min(backoffMin<<min(n, 20), backoffMax))
}

// jitter is somewhere in the upper half of d.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) + 1 }

// budget bounds the resends of attempts that may have run, so that callers of
// a slow service do not finish it off. Safe for concurrent use.
type budget struct {
	mu      sync.Mutex
	buckets [10]struct {
		second         int64
		calls, resends int
	}
}

// processBudget is shared by all clients of the process.
var processBudget = &budget{}

const bucketTime = budgetWindow / 10

// call counts a call.
func (b *budget) call(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buckets[b.at(now)].calls++
}

// take takes one resend, or says that there is none left now.
func (b *budget) take(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := b.at(now)
	newest := b.buckets[i].second
	calls, resends := 0, 0
	for _, k := range b.buckets {
		if newest-k.second < int64(len(b.buckets)) {
			calls += k.calls
			resends += k.resends
		}
	}
	if resends >= max(int(resendShare*float64(calls)), resendFloor) {
		return false
	}
	b.buckets[i].resends++
	return true
}

// at is the index of now's bucket, emptied if it holds an earlier turn.
func (b *budget) at(now time.Time) int {
	second := now.UnixNano() / int64(bucketTime)
	i := int(second % int64(len(b.buckets)))
	if b.buckets[i].second != second {
		b.buckets[i].second, b.buckets[i].calls, b.buckets[i].resends = second, 0, 0
	}
	return i
}
