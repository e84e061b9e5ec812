package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// psWide is psTable with what each instance uses.
func (c *cli) psWide(w io.Writer, rows []kbroker.InstanceRow, now time.Time) {
	t := table{header: []string{
		"INSTANCE", "HOST", "STATE", "PID", "RESTARTS", "VERSION", "UP", "CPU", "MEM", "FDS", "PIDS", "REQ/S", "HEALTH", "PORTS", "NOT ENFORCED", "MESSAGE",
	}, states: 3}
	for _, r := range rows {
		f := figuresOf(r)
		t.add(shownName(r), orDash(r.Host), string(r.State), orDash(r.PID), fmt.Sprint(r.Restarts), fmt.Sprint(r.Version), since(r.StartedAt, now),
			coresText(f.CPUCores), memoryText(f), orDash(f.OpenFiles), orDash(f.PIDs), rateText(f.RequestsPerS),
			healthText(f), portsText(r.Ports), strings.Join(r.Unenforced, ", "), message(r))
	}
	t.write(c, w)
}

// figuresOf are those of a row; nothing is known where there are none.
func figuresOf(r kbroker.InstanceRow) kbroker.InstanceFigures {
	if r.Figures == nil {
		return kbroker.InstanceFigures{}
	}
	return *r.Figures
}

func hostFigures(r kbroker.HostRow) kbroker.HostFigures {
	if r.Figures == nil {
		return kbroker.HostFigures{}
	}
	return *r.Figures
}

func coresText(v *float64) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", *v)
}

// rateText is short: what comes more often than ten times a second needs no fraction.
func rateText(v *float64) string {
	switch {
	case v == nil:
		return "-"
	case *v > 0 && *v < 10:
		return fmt.Sprintf("%.1f", *v)
	}
	return fmt.Sprintf("%.0f", *v)
}

func bytesOrDash(n *int64) string {
	if n == nil {
		return "-"
	}
	return bytesText(*n)
}

// memoryText is what is used, and what may be.
func memoryText(f kbroker.InstanceFigures) string {
	if f.MemoryLimitBytes == nil {
		return bytesOrDash(f.MemoryBytes)
	}
	return bytesOrDash(f.MemoryBytes) + "/" + bytesText(*f.MemoryLimitBytes)
}

// healthText says for how long an instance has been ready, or how many checks in a row
// were not well, and why.
func healthText(f kbroker.InstanceFigures) string {
	failing := ""
	if f.ChecksFailing != nil && *f.ChecksFailing > 0 {
		failing = fmt.Sprintf("%d failing (%s)", *f.ChecksFailing, f.CheckFailing)
	}
	switch {
	case f.ReadyForS == nil && failing == "":
		return "-"
	case f.ReadyForS == nil:
		return failing
	}
	// A span, in the words of how long ago something was.
	now := time.Unix(1<<32, 0)
	at := now.Add(-time.Duration(*f.ReadyForS * float64(time.Second)))
	return strings.TrimSuffix("ready "+since(&at, now)+", "+failing, ", ")
}

func portsText(ports map[string]int) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(ports)) {
		all = append(all, fmt.Sprintf("%s=%d", name, ports[name]))
	}
	return strings.Join(all, " ")
}

// unenforcedText says which limits and isolation of its spec an instance does not have.
func unenforcedText(r kbroker.InstanceRow) string {
	if len(r.Unenforced) == 0 || r.PID == nil {
		return ""
	}
	return "not enforced: " + strings.Join(r.Unenforced, ", ")
}
