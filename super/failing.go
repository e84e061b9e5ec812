package super

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// maxFailingText bounds what an alarm repeats of a crash, in bytes: its output is for
// ps and why.
const maxFailingText = 200

// failingAlarms name the instances that are in a crash loop, app by app. Pure.
func failingAlarms(v *state.View) (out []string) {
	type failing struct {
		n     int
		first kbroker.Status // by instance
	}
	of := map[state.AppKey]failing{}
	for k, s := range v.Statuses {
		if p, placed := v.Placements[k]; !s.Failing || !placed || p.Stop || s.Epoch != p.Epoch || absence(v, k.Host) != "" {
			continue
		}
		app := state.AppKey{Tenant: s.Tenant, App: s.App}
		f := of[app]
		if f.n == 0 || compareInstances(s.Instance, f.first.Instance) < 0 {
			f.first = s
		}
		f.n++
		of[app] = f
	}
	for _, k := range slices.SortedFunc(maps.Keys(of), compareApps) {
		f := of[k]
		others := ""
		if f.n > 1 {
			others = fmt.Sprintf(" and %d more", f.n-1)
		}
		out = append(out, fmt.Sprintf("app %s: %s on %s%s in a crash loop: %s", k.App, f.first.Instance, f.first.Host, others, failingText(f.first)))
	}
	return out
}

// failingText is how an instance in a crash loop ended, in a line.
func failingText(s kbroker.Status) string {
	if s.Exit != nil {
		return exitText(*s.Exit)
	}
	line, _, _ := strings.Cut(strings.TrimPrefix(s.Message, kbroker.CrashLoopText), "\n")
	return cmp.Or(line[:min(len(line), maxFailingText)], "it cannot be started")
}
