package super

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/kbroker/kbroker"
)

// differences says in a few words what changed from one spec to another, a line
// for what is stored of its events, one for how its allocator decides, and one for each service that did, sorted by its name.
func differences(before, after kbroker.App) []string {
	out := []string{}
	if was, is := before.Topics.Filled(), after.Topics.Filled(); was != is {
		out = append(out, fmt.Sprintf("topics: events kept for %v, in %s -> %v, in %s", was.Keep, memoryText(was.MaxBytes), is.Keep, memoryText(is.MaxBytes)))
	}
	if words := allocatorWords(before, after); len(words) > 0 {
		out = append(out, "allocator: "+strings.Join(words, "; "))
	}
	for _, d := range serviceDiffs(before, after) {
		switch d.change {
		case kbroker.ServiceNew:
			out = append(out, fmt.Sprintf("%s: new, count %s", d.name, countText(d.after.Count)))
		case kbroker.ServiceRemoved:
			out = append(out, string(d.name)+": removed")
		case kbroker.ServiceChanged:
			out = append(out, string(d.name)+": "+strings.Join(d.words, "; "))
		}
	}
	return out
}

// allocatorWords says what differs between how two specs have their allocator decide.
func allocatorWords(before, after kbroker.App) (words []string) {
	if was, is := policyText(before), policyText(after); was != is {
		words = append(words, fmt.Sprintf("policy %s -> %s", was, is))
	}
	switch {
	case before.Own == nil || after.Own == nil:
	case after.Own.Artifact.SHA256 == unbuilt:
		words = append(words, unbuiltText)
	case before.Own.Artifact.SHA256 != after.Own.Artifact.SHA256:
		words = append(words, "program changed")
	}
	return words
}

// policyText is how a spec's allocator decides.
func policyText(app kbroker.App) string {
	named := cmp.Or(app.Policy, kbroker.PolicySpread)
	if app.Own != nil {
		return fmt.Sprintf("%s (or %s)", kbroker.PolicyOwn, named)
	}
	return named
}

// serviceDiff is one service in two specs.
type serviceDiff struct {
	name          kbroker.ServiceName
	change        kbroker.ServiceChange
	before, after kbroker.Service
	words         []string // what differs
}

// serviceDiffs compares all services of two specs, sorted by name.
func serviceDiffs(before, after kbroker.App) []serviceDiff {
	var out []serviceDiff
	for _, s := range after.Services {
		d := serviceDiff{name: s.Name, change: kbroker.ServiceNew, after: s}
		if was, ok := before.Service(s.Name); ok {
			d.before, d.words, d.change = *was, changedWords(*was, s), kbroker.ServiceUnchanged
			if len(d.words) > 0 {
				d.change = kbroker.ServiceChanged
			}
		}
		out = append(out, d)
	}
	for _, s := range before.Services {
		if _, ok := after.Service(s.Name); !ok {
			out = append(out, serviceDiff{name: s.Name, change: kbroker.ServiceRemoved, before: s})
		}
	}
	slices.SortFunc(out, func(a, b serviceDiff) int { return strings.Compare(string(a.name), string(b.name)) })
	return out
}

// changedWords says what differs between two forms of a service. Where a program
// was found and how it was built are no difference.
func changedWords(a, b kbroker.Service) []string {
	var words []string
	say := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	if a.Count != b.Count {
		say("count %s -> %s", countText(a.Count), countText(b.Count))
	}
	if !reflect.DeepEqual(a.Scale, b.Scale) {
		say("scale %s -> %s", scaleText(a.Scale), scaleText(b.Scale))
	}
	switch {
	case b.Artifact.SHA256 == unbuilt:
		words = append(words, unbuiltText)
	case a.Artifact.SHA256 != b.Artifact.SHA256 || a.Artifact.Builtin != b.Artifact.Builtin || a.Artifact.Arch != b.Artifact.Arch || a.Artifact.Command != b.Artifact.Command:
		say("program changed")
	}
	if !slices.Equal(a.Args, b.Args) {
		say("args changed")
	}
	words = append(words, envWords(a.Env, b.Env)...)
	if a.Resources.CPU != b.Resources.CPU {
		say("cpu %g -> %g", a.Resources.CPU, b.Resources.CPU)
	}
	if a.Resources.MemoryBytes != b.Resources.MemoryBytes {
		say("memory %s -> %s", memoryText(a.Resources.MemoryBytes), memoryText(b.Resources.MemoryBytes))
	}
	if a.Resources.CPULimit != b.Resources.CPULimit {
		say("cpu limit %g -> %g", a.Resources.CPULimit, b.Resources.CPULimit)
	}
	if a.Resources.MemoryLimitBytes != b.Resources.MemoryLimitBytes {
		say("memory limit %s -> %s", memoryText(a.Resources.MemoryLimitBytes), memoryText(b.Resources.MemoryLimitBytes))
	}
	if a.Resources.PIDs != b.Resources.PIDs {
		say("pids %d -> %d", a.Resources.PIDs, b.Resources.PIDs)
	}
	if a.Resources.Files != b.Resources.Files {
		say("fds %d -> %d", a.Resources.Files, b.Resources.Files)
	}
	if a.Sandbox != b.Sandbox {
		say("sandbox %s -> %s", cmp.Or(a.Sandbox, "none"), cmp.Or(b.Sandbox, "none"))
	}
	if a.Spread != b.Spread {
		say("spread %s -> %s", a.Spread, b.Spread)
	}
	if gone, come := without(a.Require, b.Require), without(b.Require, a.Require); len(gone)+len(come) > 0 {
		for _, r := range gone {
			say("no longer requires %s", r)
		}
		for _, r := range come {
			say("requires %s", r)
		}
	}
	for _, kind := range without(a.Objects, b.Objects) {
		say("no longer has objects %s", kind)
	}
	for _, kind := range without(b.Objects, a.Objects) {
		say("has objects %s", kind)
	}
	words = append(words, schemaWords(a, b)...)
	for _, part := range []struct {
		name string
		a, b any
	}{{"ports", a.Ports, b.Ports}, {"health", a.Health, b.Health}, {"update rules", a.Update, b.Update}, {"stop rules", a.Stop, b.Stop}} {
		if !reflect.DeepEqual(part.a, part.b) {
			say("%s changed", part.name)
		}
	}
	if a.Restart != b.Restart {
		say("restarted")
	}
	if len(words) == 0 && !sameApp(kbroker.App{Services: []kbroker.Service{a}}, kbroker.App{Services: []kbroker.Service{b}}) {
		say("other settings changed")
	}
	return words
}

// envWords names the variables that differ, never their values: some are
// secrets.
func envWords(a, b map[string]string) (words []string) {
	names := map[string]bool{}
	for n := range a {
		names[n] = true
	}
	for n := range b {
		names[n] = true
	}
	for _, n := range slices.Sorted(maps.Keys(names)) {
		was, before := a[n]
		is, after := b[n]
		switch {
		case !before:
			words = append(words, "env "+n+" added")
		case !after:
			words = append(words, "env "+n+" removed")
		case was != is:
			words = append(words, "env "+n+" changed")
		}
	}
	return words
}

// without are the strings of a that are not in b.
func without[S ~string](a, b []S) []S {
	return slices.DeleteFunc(slices.Clone(a), func(s S) bool { return slices.Contains(b, s) })
}

func countText(c kbroker.Count) string {
	if c.Min == c.Max {
		return fmt.Sprint(c.Min)
	}
	return fmt.Sprintf("%d-%d", c.Min, c.Max)
}

// scaleText has what is written of a scale, under the keys of the spec.
func scaleText(s *kbroker.Scale) string {
	switch {
	case s == nil:
		return "none"
	case *s == (kbroker.Scale{}):
		return "default"
	}
	var words []string
	for _, t := range []struct {
		key string
		is  float64
	}{{"busy", s.Busy}, {"cpu", s.CPU}, {"requests", s.Requests}, {"mailbox", s.Mailbox}, {"objects", s.Objects}, {"buffer", float64(s.Buffer)}} {
		if t.is != 0 {
			words = append(words, t.key+" "+strconv.FormatFloat(t.is, 'f', -1, 64))
		}
	}
	if s.Down != 0 {
		words = append(words, fmt.Sprintf("down %v", s.Down))
	}
	return strings.Join(words, " ")
}

func memoryText(bytes int64) string {
	if bytes%(1<<20) == 0 {
		return fmt.Sprintf("%dMiB", bytes>>20)
	}
	return fmt.Sprintf("%dB", bytes)
}
