package super

import (
	"cmp"
	"fmt"

	"github.com/kbroker/kbroker"
)

// statusEvents say what a report means against what was known before, and what
// is demanded of the instance, if anything is. Their
// IDs are made of what was reported, so that the same report sent again, also
// to another core, makes the same events.
func statusEvents(was, now kbroker.Status, demanded kbroker.Placement) (out []kbroker.Event) {
	add := func(kind kbroker.EventKind, exit *kbroker.Exit, id any, text string) {
		out = append(out, kbroker.Event{
			Kind: kind, Tenant: now.Tenant, App: now.App, Service: now.Service, Instance: now.Instance, Host: now.Host,
			By: "agent " + string(now.Host), Message: text, Version: now.Version, Epoch: now.Epoch, Exit: exit,
			ID: fmt.Sprintf("%s %s %s %d %v", kind, now.Host, now.Instance, now.Epoch, id),
		})
	}
	ended := now.Exit != nil && (was.Exit == nil || !was.Exit.At.Equal(now.Exit.At))
	crashed := now.Crashes > was.Crashes && now.Epoch == was.Epoch || ended && now.Crashes > 0
	told := was.Failing && now.Failing && was.Epoch == now.Epoch // that it crashes again and again
	switch {
	case now.State == kbroker.StateExited:
		if ended {
			add(kbroker.EventExited, now.Exit, now.Exit.At.UnixNano(), exitText(*now.Exit))
		} else if now.Exit == nil && was.State != kbroker.StateExited {
			add(kbroker.EventExited, nil, "", "it ended before it had a process")
		}
	case told:
	case now.Failing && crashed:
		id := any(fmt.Sprint(now.Crashes, now.Restarts))
		if now.Exit != nil {
			id = now.Exit.At.UnixNano()
		}
		add(kbroker.EventCrashLoop, now.Exit, id, now.Message)
	case ended && leftByItself(now) && demanded.Stop:
		add(kbroker.EventExited, now.Exit, now.Exit.At.UnixNano(), "it left as it was told to, "+cmp.Or(demanded.StopReason, "stopped by the plan")+": "+exitText(*now.Exit))
	case ended && leftByItself(now):
		add(kbroker.EventExited, now.Exit, now.Exit.At.UnixNano(), "it left by itself: "+exitText(*now.Exit))
	case ended && crashed:
		add(kbroker.EventCrashed, now.Exit, now.Exit.At.UnixNano(), cmp.Or(now.Message, exitText(*now.Exit)))
	case crashed: // it could not be started
		add(kbroker.EventCrashed, nil, fmt.Sprint(now.Crashes, now.Restarts), now.Message)
	}
	if !now.Failing && now.State == kbroker.StateBackoff && now.Crashes > 1 && (was.State != kbroker.StateBackoff || was.Crashes != now.Crashes) {
		add(kbroker.EventBackoff, nil, fmt.Sprint(now.Crashes, now.Restarts), fmt.Sprintf("crashed %d times in a row; its next start waits", now.Crashes))
	}
	switch {
	case now.State != kbroker.StateReady || told:
	case was.Failing && now.Epoch == was.Epoch:
		add(kbroker.EventRecovered, nil, now.Incarnation, "it is well on "+string(now.Host)+", and was in a crash loop")
	case now.Incarnation != was.Incarnation || was.State != kbroker.StateReady:
		text := "ready on " + string(now.Host)
		if now.Restarts > 0 {
			text = fmt.Sprintf("ready again on %s, restart %d", now.Host, now.Restarts)
		}
		add(kbroker.EventReady, nil, now.Incarnation, text)
	}
	return out
}

// leftByItself: a process that has perhaps seen its tombstone before its agent has.
// Where there is none, it is started again, and the next such end is a crash.
func leftByItself(s kbroker.Status) bool {
	return s.Exit.Code != nil && *s.Exit.Code == 0 && s.Crashes <= 1 && s.State == kbroker.StateBackoff
}

// exitText says how a process ended.
func exitText(x kbroker.Exit) string {
	switch {
	case x.OOM:
		return "out of memory, killed by the kernel"
	case x.Signal != "":
		return "ended by " + x.Signal
	case x.Code != nil:
		return fmt.Sprintf("exit code %d", *x.Code)
	}
	return "ended, nobody knows how"
}
