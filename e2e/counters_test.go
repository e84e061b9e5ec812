package e2e

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/sdk"
)

const (
	// counterGroups of counterCallers each call one counter at a time.
	counterGroups, counterCallers = 20, 3
	// counterPause is the pause of a caller between two calls, where nothing else is said.
	counterPause = 50 * time.Millisecond
	// maxHistory and maxOpen bound the calls of one counter, and those of them of which
	// nobody knows what became: what is checked grows with each. The group goes on with
	// another counter.
	maxHistory, maxOpen = 300, 3
	// checkWithin bounds the check of one counter.
	checkWithin = 20 * time.Second
	// lateCall is what counts as late.
	lateCall = 100 * time.Millisecond
)

// addition is the input of an operation that counts, of one that only looks it is false;
// its output is the count, or notKnown.
type addition bool

const notKnown = -1

// counterModel is what a counter does. An addition of which it is not known whether it was
// made, and when, never returned: it can be put anywhere behind its call, also behind all
// others, where it is as if it had not been made.
var counterModel = porcupine.Model{
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		n, got := state.(int), output.(int)
		if input.(addition) {
			n++
		}
		return got == n || got == notKnown, n
	},
	DescribeOperation: func(input, output any) string {
		if input.(addition) {
			return fmt.Sprintf("add -> %v", output)
		}
		return fmt.Sprintf("get -> %v", output)
	},
}

// counting is what callers of counters say.
type counting struct {
	Calls    int           `json:"calls"`
	Failed   int           `json:"failed"`  // did not run
	Unknown  int           `json:"unknown"` // may have
	Counters int           `json:"counters"`
	Broken   []string      `json:"broken"`  // whose history is not linearizable
	Skipped  int           `json:"skipped"` // whose was not checked in time
	Late     []slowCall    `json:"late"`    // calls that were late, or failed
	Begun    map[int64]int `json:"begun"`   // calls by the second in which they were begun
	Pause    time.Duration `json:"pause"`   // of a caller between two calls
}

// slowCall is one of a caller that was late, or failed.
type slowCall struct {
	Caller int `json:"caller"`
	probe
}

// counted is the history of one counter. Guarded by its callers' mutex.
type counted struct {
	name    string
	ops     []porcupine.Operation
	open    int
	callers int // that have a call under way
	full    bool
}

// callers call counters until they are told to end.
type callers struct {
	call   func(name string, add addition) (int, error)
	prefix string
	start  time.Time

	mu sync.Mutex // guards what follows
	counting
	groups []*counted
	next   int
	checks sync.WaitGroup
}

func newCallers(pause time.Duration, call func(name string, add addition) (int, error)) *callers {
	c := &callers{
		call: call, prefix: strconv.FormatUint(rand.Uint64(), 36), start: time.Now(), groups: make([]*counted, counterGroups),
		counting: counting{Pause: pause, Begun: map[int64]int{}},
	}
	for g := range c.groups {
		c.groups[g] = c.fresh()
	}
	return c
}

// fresh is a counter that nobody has called. Under mu.
func (c *callers) fresh() *counted {
	c.next++
	return &counted{name: c.prefix + "-" + strconv.Itoa(c.next)}
}

// run calls until done is closed, and returns when every history is checked.
func (c *callers) run(done <-chan struct{}) counting {
	var all sync.WaitGroup
	for g := range c.groups {
		for n := range counterCallers {
			all.Go(func() {
				pause := time.NewTicker(c.Pause)
				defer pause.Stop()
				for {
					c.once(g, g*counterCallers+n)
					select {
					case <-done:
						return
					case <-pause.C:
					}
				}
			})
		}
	}
	all.Wait()
	for _, k := range c.groups {
		c.check(k)
	}
	c.checks.Wait()
	return c.counting
}

// once makes one call of a group's counter.
func (c *callers) once(g, caller int) {
	k := c.enter(g)
	add := addition(rand.N(2) == 0)
	called := time.Now()
	n, err := c.call(k.name, add)
	returned := time.Now()
	op := porcupine.Operation{ClientId: caller, Input: add, Call: int64(called.Sub(c.start)), Output: n, Return: int64(returned.Sub(c.start))}
	ran := err == nil
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Calls++
	c.Begun[called.Unix()]++
	switch executed := kbroker.AsError(err); {
	case ran:
	case executed.Executed == kbroker.ExecutedNo:
		c.Failed++
	default:
		c.Unknown++
		if ran = bool(add); ran { // one that only looks, and has seen nothing, says nothing
			op.Output, op.Return = notKnown, math.MaxInt64
			k.open++
		}
	}
	if took := returned.Sub(called); err != nil || took > lateCall {
		late := slowCall{caller, probe{Sent: called, Took: took}}
		if err != nil {
			late.Err = err.Error()
		}
		c.Late = append(c.Late, late)
	}
	if ran {
		k.ops = append(k.ops, op)
	}
	c.leave(g, k)
}

func (c *callers) enter(g int) *counted {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.groups[g]
	k.callers++
	return k
}

// leave ends a call; a counter that has had enough of them is checked behind the last.
// Under mu.
func (c *callers) leave(g int, k *counted) {
	k.callers--
	if !k.full && (len(k.ops) >= maxHistory || k.open >= maxOpen) {
		k.full, c.groups[g] = true, c.fresh()
	}
	if k.full && k.callers == 0 {
		c.checks.Go(func() { c.check(k) })
	}
}

// check checks the history of a counter that nobody calls any more.
func (c *callers) check(k *counted) {
	result := porcupine.CheckOperationsTimeout(counterModel, k.ops, checkWithin)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Counters++
	switch result {
	case porcupine.Ok:
	case porcupine.Unknown:
		c.Skipped++
	case porcupine.Illegal:
		text := ""
		for _, op := range k.ops {
			text += fmt.Sprintf("%12d %12d caller %d %s\n", op.Call/1000, op.Return/1000, op.ClientId, counterModel.DescribeOperation(op.Input, op.Output))
		}
		c.Broken = append(c.Broken, fmt.Sprintf("counter %s, %d calls (us from %s):\n%s", k.name, len(k.ops), c.start.Format(time.RFC3339Nano), text))
	}
}

// countUntilTold calls the counters of a cluster.
func countUntilTold(args []string) (counting, error) {
	pause := counterPause
	if len(args) > 0 {
		var err error
		if pause, err = time.ParseDuration(args[0]); err != nil {
			return counting{}, err
		}
	}
	api, err := sdk.Dial(context.Background(), sdk.At(""))
	if err != nil {
		return counting{}, err
	}
	defer api.Close()
	c := newCallers(pause, func(name string, add addition) (int, error) {
		method := "get"
		if add {
			method = "add"
		}
		out, err := sdk.Call[struct {
			Count int `json:"count"`
		}](context.Background(), api.Object("counter/counter:"+name), method, struct{}{})
		return out.Count, err
	})
	done := make(chan struct{})
	go func() { told(); close(done) }()
	return c.run(done), nil
}

// TestTheCheckOfCounters: it takes what counters may do, and finds what they may not.
func TestTheCheckOfCounters(t *testing.T) {
	add := func(call, back int64, n int) porcupine.Operation {
		return porcupine.Operation{Input: addition(true), Call: call, Return: back, Output: n}
	}
	get := func(call, back int64, n int) porcupine.Operation {
		return porcupine.Operation{Input: addition(false), Call: call, Return: back, Output: n}
	}
	lost := func(call int64) porcupine.Operation { return add(call, math.MaxInt64, notKnown) }
	for name, c := range map[string]struct {
		ops  []porcupine.Operation
		want porcupine.CheckResult
	}{
		"one after the other":                           {[]porcupine.Operation{add(0, 1, 1), get(2, 3, 1), add(4, 5, 2)}, porcupine.Ok},
		"beside each other, in either order":            {[]porcupine.Operation{add(0, 5, 2), add(1, 4, 1), get(2, 6, 1)}, porcupine.Ok},
		"an addition that is lost":                      {[]porcupine.Operation{add(0, 1, 1), get(2, 3, 0)}, porcupine.Illegal},
		"one that was made twice":                       {[]porcupine.Operation{add(0, 1, 1), add(2, 3, 3)}, porcupine.Illegal},
		"a stale look":                                  {[]porcupine.Operation{add(0, 1, 1), get(2, 3, 1), add(4, 5, 2), get(6, 7, 1)}, porcupine.Illegal},
		"two that were told the same":                   {[]porcupine.Operation{add(0, 5, 1), add(1, 4, 1)}, porcupine.Illegal},
		"one that is not known, and was made late":      {[]porcupine.Operation{lost(0), get(1, 2, 0), add(3, 4, 2)}, porcupine.Ok},
		"one that is not known, and was not made":       {[]porcupine.Operation{lost(0), get(1, 2, 0), add(3, 4, 1)}, porcupine.Ok},
		"one that is not known, and was made twice":     {[]porcupine.Operation{lost(0), get(1, 2, 2)}, porcupine.Illegal},
		"one that was made before it was called":        {[]porcupine.Operation{get(0, 1, 1), lost(2)}, porcupine.Illegal},
		"one that is not known, seen and taken back":    {[]porcupine.Operation{lost(0), get(1, 2, 1), get(3, 4, 0)}, porcupine.Illegal},
		"a look beside an addition may see it or not":   {[]porcupine.Operation{add(0, 9, 1), get(1, 2, 0), get(3, 4, 1)}, porcupine.Ok},
		"looks beside it may not see it and then not":   {[]porcupine.Operation{add(0, 9, 1), get(1, 2, 1), get(3, 4, 0)}, porcupine.Illegal},
		"an answer that was seen before its own moment": {[]porcupine.Operation{add(0, 1, 1), add(5, 6, 2), get(2, 3, 2)}, porcupine.Illegal},
	} {
		if got := porcupine.CheckOperationsTimeout(counterModel, c.ops, checkWithin); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

// TestCallersOfCountersFindAStaleRead: of counters in memory, of which one shows what was
// true a moment ago.
func TestCallersOfCountersFindAStaleRead(t *testing.T) {
	for _, stale := range []bool{false, true} {
		var mu sync.Mutex
		counts, gets := map[string]int{}, 0
		c := newCallers(time.Millisecond, func(name string, add addition) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			if add {
				counts[name]++
			} else if gets++; stale && gets >= 20 && counts[name] >= counterCallers {
				stale = false
				return counts[name] - counterCallers, nil // older than what is under way
			}
			return counts[name], nil
		})
		broken := stale
		done := make(chan struct{})
		time.AfterFunc(500*time.Millisecond, func() { close(done) })
		got := c.run(done)
		if (len(got.Broken) == 1) != broken || got.Skipped > 0 || got.Calls < 100 || got.Counters < counterGroups {
			t.Errorf("with a stale read %t: %s", broken, show(got))
		}
	}
}
