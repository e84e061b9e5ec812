package allocator

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// answerWithin is how long an own policy may take: it is asked before each batch of
	// shards, too.
	answerWithin = time.Second
	// wellFor is how long nothing may have been refused before a policy is said to decide
	// again. Each decision that is in order counts at once.
	wellFor = 10 * time.Second
	// stayFor is how long the shards stay where an own policy has put them when it is refused:
	// what passes is no reason to move any.
	stayFor = 15 * time.Second
	// A start of a program that has crashed crashesMost times in a row does not ask its policy
	// for quietFor: others than the allocator may be in order by then, and its agent takes it
	// for well.
	crashesMost = 3
	quietFor    = 2 * time.Minute
	// sayEvery is the least time between two kinds of refusals that are told.
	sayEvery = 5 * time.Second
	// maxRefused bounds what is said of a refusal, maxStack what is logged of a panic.
	maxRefused, maxStack = 400, 4 << 10
)

// Kinds of what an own policy is refused for: each is logged when it is another one.
const (
	kindPanic    = "panic"
	kindStall    = "stall"
	kindNonsense = "nonsense"
	kindCrash    = "crash"
)

// guard asks an app's own policy, and has the built-in one decide in its place where that
// panics, takes too long or answers what cannot be.
//
//	view ---> own policy ---> check ---> decision
//	             |  panics, stalls ^--- nonsense: refused
//	             v                          v
//	          refused ---------> built-in policy, as a whole
//
// One call is under way at a time: one that hangs cannot be ended, and no other is begun
// beside it. Safe for concurrent use.
type guard struct {
	policy Policy
	within time.Duration
	clock  func() time.Duration
	log    *slog.Logger
	one    chan struct{} // taken by the call that is under way

	mu      sync.Mutex
	quiet   time.Duration // until when the policy is not asked; 0: it is
	crashes int
	stalls  bool        // the call that is under way has not answered in time
	app     kbroker.App // the policy's own copy, of version
	version int
	refusal refusal
}

// refusal is why a policy is refused. The zero value: it is not.
type refusal struct {
	kind, text string
	first      time.Duration // when it was refused first,
	bad        time.Duration // first since it has answered well,
	last       time.Duration // last,
	told       time.Duration // and when its kind was another one
}

func newGuard(cfg Config) *guard {
	g := &guard{policy: cfg.Policy, within: answerWithin, clock: cfg.Clock, log: cfg.Log, one: make(chan struct{}, 1)}
	if n := cfg.Instance.Crashes; n >= crashesMost {
		g.crashes, g.quiet = n, cfg.Clock()+quietFor
	}
	return g
}

// refused is an error with its kind.
type refused struct {
	error
	kind, stack string
}

// decide is what the policy wants, or in its place the built-in one of that name.
func (g *guard) decide(v View, name string) Decision {
	d, err := g.ask(v)
	if err == nil {
		if e := check(v, d); e != nil {
			err = &refused{error: e, kind: kindNonsense}
		}
	}
	if lasts := g.note(err, cmp.Or(name, kbroker.PolicySpread)); err != nil {
		return instead(v, name, lasts)
	}
	return obeys(v, d)
}

// instead is what the built-in policy of that name decides in place of an own one. Unless that
// lasts, it moves no shards from owners that are there.
func instead(v View, name string, lasts bool) Decision {
	if lasts {
		return builtin(name)(v)
	}
	v.Settling = true
	d := builtin(name)(v)
	if len(v.Shards) > 0 {
		d.Shards = balanced(v)
	}
	return d
}

// obeys is an own policy's decision with the shards where operators want them: they need not
// ask a program.
func obeys(v View, d Decision) Decision {
	for n := range d.Shards {
		if to := v.Shards[n].Wished; to != "" && slices.Contains(v.Owners, to) {
			d.Shards[n] = to
		}
	}
	return d
}

// ask asks the policy once. The answer is the caller's.
func (g *guard) ask(v View) (Decision, *refused) {
	late := time.NewTimer(g.within)
	defer late.Stop()
	if err := g.waits(); err != nil {
		return Decision{}, err
	}
	select {
	case g.one <- struct{}{}:
	case <-late.C:
		return Decision{}, cmp.Or(g.waits(), &refused{error: fmt.Errorf("it has not answered within %v", g.within), kind: kindStall})
	}
	late.Reset(g.within) // it is not to blame for who was first
	g.mu.Lock()
	own := g.lend(v)
	g.mu.Unlock()
	type answer struct {
		Decision
		err *refused
	}
	answered := make(chan answer, 1)
	go func() { // ends with the policy, which nobody can end: it is not waited for
		a := answer{err: &refused{error: errors.New("it has ended its goroutine"), kind: kindPanic}}
		defer func() {
			if p := recover(); p != nil {
				a = answer{err: panicked(p)}
			}
			answered <- a
			g.mu.Lock()
			g.stalls = false
			g.mu.Unlock()
			<-g.one
		}()
		d := g.policy(own).clone()
		a = answer{Decision: d}
	}()
	select {
	case a := <-answered:
		return a.Decision, a.err
	case <-late.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-answered: // it has just ended
	default:
		g.stalls = true
	}
	return Decision{}, &refused{error: fmt.Errorf("it has not answered within %v", g.within), kind: kindStall}
}

// waits says why the policy is not asked now; nil: it may be.
func (g *guard) waits() *refused {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch now := g.clock(); {
	case g.quiet > now:
		return &refused{error: fmt.Errorf("its program has crashed %d times in a row, and is not asked for %v", g.crashes, quietFor), kind: kindCrash}
	case g.stalls:
		return &refused{error: fmt.Errorf("it has not answered within %v", g.within), kind: kindStall}
	}
	return nil
}

// lend is the view as the policy may have it: what it changes is its own. The caller holds mu.
func (g *guard) lend(v View) View {
	if g.version != v.Version || g.app.Name != v.App.Name {
		b, err := json.Marshal(v.App)
		if err == nil {
			g.app = kbroker.App{}
			err = json.Unmarshal(b, &g.app)
		}
		if err != nil { // it came as JSON
			g.log.Warn("a spec cannot be copied for a policy", "err", err)
			g.app = v.App
		}
		g.version = v.Version
	}
	v.App = g.app
	v.Instances, v.Owners, v.Shards, v.Wanted = slices.Clone(v.Instances), slices.Clone(v.Owners), slices.Clone(v.Shards), maps.Clone(v.Wanted)
	v.Rooms, v.Waiting = slices.Clone(v.Rooms), slices.Clone(v.Waiting)
	return v
}

// note takes how a call went, logs what is new of it, and reports whether the policy has been
// refused for long enough that what it has placed does not matter any more.
func (g *guard) note(err *refused, name string) (lasts bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, r := g.clock(), &g.refusal
	if err == nil {
		r.bad = 0
		if r.kind != "" && now-r.last >= wellFor {
			g.log.Info("the app's own policy decides again", "refused_for", (r.last - r.first).Round(time.Millisecond))
			*r = refusal{}
		}
		return false
	}
	if r.last = now; r.bad == 0 {
		r.bad = now
	}
	if r.kind == "" {
		r.first = now
	}
	if r.kind == "" || r.kind != err.kind && now-r.told >= sayEvery {
		r.kind, r.text, r.told = err.kind, oneLine(err.Error()), now
		args := []any{"kind", err.kind, "err", r.text, "instead", name}
		if err.stack != "" {
			args = append(args, "stack", err.stack)
		}
		g.log.Warn("the app's own policy is refused", args...)
	}
	return now-r.bad >= stayFor
}

// why says why the policy is refused; empty: it is not, or there is none.
func (g *guard) why() string {
	if g == nil {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.refusal.text
}

// panicked says how a policy has panicked, and where.
func panicked(p any) *refused {
	stack := debug.Stack()
	text := fmt.Sprintf("it panicked: %v", p)
	if at := panickedAt(); at != "" {
		text += " (" + at + ")"
	}
	return &refused{error: errors.New(text), kind: kindPanic, stack: string(stack[:min(len(stack), maxStack)])}
}

// panickedAt is where the panic that is recovered from was raised: the first line that is no
// part of Go's runtime below it.
func panickedAt() string {
	pc := make([]uintptr, 64)
	frames := runtime.CallersFrames(pc[:runtime.Callers(1, pc)])
	for raised := false; ; {
		f, more := frames.Next()
		switch {
		case f.Function == "runtime.gopanic":
			raised = true
		case raised && !strings.HasPrefix(f.Function, "runtime."):
			return fmt.Sprintf("%s:%d", filepath.Join(filepath.Base(filepath.Dir(f.File)), filepath.Base(f.File)), f.Line)
		}
		if !more {
			return ""
		}
	}
}

// oneLine is a text as one line that is not too long.
func oneLine(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "?")
	if len(s) > maxRefused {
		s = strings.ToValidUTF8(s[:maxRefused], "") + "..."
	}
	return s
}
