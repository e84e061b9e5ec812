package client

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// Bounds of what is well on a host.
const (
	// A disk is scarce below a share and a size, and short below both of the
	// second pair or below what an artifact and its unpacking take.
	diskScarceShare, diskScarceBytes = 0.10, 10 << 30
	diskShortShare, diskShortBytes   = 0.02, 2 << 30
	diskNeededBytes                  = 256 << 20
	inodesScarceShare                = 0.05

	// Every acknowledged write waits for a sync on a majority of the cores. A
	// worst one near the broker's election timeout of 1.5 s costs leaders.
	syncSlow    = 20 * time.Millisecond
	syncTooSlow = 100 * time.Millisecond
	syncStalled = 500 * time.Millisecond

	memoryScarceShare = 0.05
	pressureHigh      = 10.0 // percent of the time in which everything waits

	filesScarceShare = 0.8

	// clockApart is what log lines and events of several hosts bear; leases do
	// not use the wall clock.
	clockApart = time.Second

	// An agent that started so often within startsWithin ends again and again.
	startsMany   = 4
	startsWithin = 10 * time.Minute
)

// host is about one host that is heard.
func (d *diagnosis) host(h kbroker.HostRow) {
	if isDown(h) {
		return
	}
	got := d.Checkups[h.Name]
	warn := func(check, command string, on kbroker.HostID, format string, args ...any) {
		d.add(Finding{
			Severity: SeverityWarning, Check: check, Host: h.Name, Command: command, On: on,
			Message: "host " + string(h.Name) + ": " + fmt.Sprintf(format, args...),
		})
	}
	if h.Drain != nil && d.Now.Sub(h.Drain.Since) > longDrain {
		what := fmt.Sprintf("is empty and takes nothing since %v; kbroker remove %s takes it out for good", d.Now.Sub(h.Drain.Since).Round(time.Minute), h.Name)
		if n := h.Instances + h.Leaving; n > 0 {
			what = fmt.Sprintf("drains since %v and still runs %s: kbroker why APP says what waits", d.Now.Sub(h.Drain.Since).Round(time.Minute), Counted(n, "instance"))
		}
		warn("drain", "kbroker undrain "+string(h.Name), "", "%s", what)
	}
	command, on := d.restart(h)
	switch {
	case got.Err != nil:
		d.add(Finding{
			Severity: SeverityError, Check: "agent", Host: h.Name, Command: command, On: on,
			Message: fmt.Sprintf("host %s is heard, but: %v", h.Name, got.Err),
		})
		return
	case got.Stuck:
		d.add(Finding{
			Severity: SeverityError, Check: "agent", Host: h.Name, Command: command, On: on,
			Message: fmt.Sprintf("host %s: the agent's loop is stuck: it starts and stops nothing", h.Name),
		})
	}
	if n := startsSince(got.Starts, got.Now.Add(-startsWithin)); n >= startsMany {
		look, where := "journalctl -u kbroker -n 100", h.Name
		if d.local() {
			look, where = "tail -n 100 "+got.Disk.Path+"/agent.log", ""
		}
		warn("agent", look, where, "the agent started %d times within %v", n, startsWithin)
	}
	d.disk(h, got.Disk)
	d.sync(h, got.Sync, got.Disk.Path)
	if n := len(got.Orphans); n > 0 {
		pids := make([]string, n)
		for i, o := range got.Orphans {
			pids[i] = fmt.Sprint(o.PID)
		}
		warn("orphans", "kill -9 "+strings.Join(pids, " "), d.onHost(h), "%s that no instance answers for; the agent ends them when it sees them, these are still there", Counted(n, "process"))
	}
	m := got.Memory
	switch share := ratio(m.AvailableBytes, m.TotalBytes); {
	case m.Error != "":
		warn("memory", "free -h", d.onHost(h), "memory is not known: %s", m.Error)
	case m.Pressure > pressureHigh:
		warn("memory", "kbroker drain "+string(h.Name), "", "everything waited for memory in %.0f %% of the last 10 s", m.Pressure)
	case share < memoryScarceShare:
		warn("memory", "kbroker drain "+string(h.Name), "", "%.0f %% of the memory is left, %s", 100*share, gib(m.AvailableBytes))
	}
	if f := got.Files; f.Limit > 0 && float64(f.Open) > filesScarceShare*float64(f.Limit) {
		raise, where := "systemctl edit kbroker   # [Service] LimitNOFILE=1024:1048576", h.Name
		if d.local() {
			raise, where = "ulimit -n unlimited; kbroker down; kbroker up", ""
		}
		warn("files", raise, where, "the agent has %d of at most %d files open", f.Open, f.Limit)
	}
}

// onHost is where a command for the machine itself is run.
func (d *diagnosis) onHost(h kbroker.HostRow) kbroker.HostID {
	if d.local() {
		return ""
	}
	return h.Name
}

// disk is about the room for the data directory.
func (d *diagnosis) disk(h kbroker.HostRow, c kbroker.DiskCheckup) {
	f := Finding{
		Severity: SeverityWarning, Check: "disk", Host: h.Name, On: d.onHost(h),
		Command: fmt.Sprintf("du -xh -d 2 %s | sort -h | tail -n 20", c.Path),
	}
	free, inodes := ratio(c.FreeBytes, c.TotalBytes), ratio(c.FreeInodes, c.TotalInodes)
	switch {
	case c.Error != "":
		f.Severity, f.Command = SeverityError, "ls -ld "+c.Path
		f.Message = fmt.Sprintf("host %s: the data directory cannot be looked at: %s", h.Name, c.Error)
	case c.FreeBytes < diskNeededBytes || free < diskShortShare && c.FreeBytes < diskShortBytes:
		f.Severity = SeverityError
		fallthrough
	case free < diskScarceShare && c.FreeBytes < diskScarceBytes:
		f.Message = fmt.Sprintf("host %s: the disk of %s has %.1f %% free, %s; when it is full, the store takes no writes", h.Name, c.Path, 100*free, gib(c.FreeBytes))
	case inodes < inodesScarceShare:
		f.Command = fmt.Sprintf("du -x --inodes -d 2 %s | sort -n | tail -n 20", c.Path)
		f.Message = fmt.Sprintf("host %s: the disk of %s has room for %d more files (%.1f %%)", h.Name, c.Path, c.FreeInodes, 100*inodes)
	default:
		return
	}
	d.add(f)
}

// sync is about how long a write takes to be durable.
func (d *diagnosis) sync(h kbroker.HostRow, c kbroker.SyncCheckup, path string) {
	f := Finding{
		Severity: SeverityWarning, Check: "sync", Host: h.Name,
		Command: fmt.Sprintf("kbroker drain %s && kbroker remove %s   # then join it again with --dir on a faster disk", h.Name, h.Name),
	}
	switch {
	case c.Error != "":
		f.Severity, f.On = SeverityError, d.onHost(h)
		f.Command = "findmnt -T " + path // read-only, gone, or hanging
		f.Message = fmt.Sprintf("host %s: a small file in %s cannot be written and synced: %s", h.Name, path, c.Error)
	case h.Role != kbroker.RoleCore:
		return // stores nothing that others wait for
	case c.Median > syncTooSlow:
		f.Severity = SeverityError
		fallthrough
	case c.Median > syncSlow:
		f.Message = fmt.Sprintf("host %s: a sync takes %v in the median of %d; every change waits for the slower cores", h.Name, c.Median.Round(time.Millisecond), c.Count)
	case c.Worst > syncStalled:
		f.Message = fmt.Sprintf("host %s: the slowest of %d syncs took %v; from 1.5 s on a core loses its leaderships", h.Name, c.Count, c.Worst.Round(time.Millisecond))
	default:
		return
	}
	d.add(f)
}

// clocks compares the wall clocks of the hosts, and of who asks, with what most
// of them say.
func (d *diagnosis) clocks() {
	type clock struct {
		name  string
		host  kbroker.HostID
		ahead time.Duration
	}
	all := []clock{{name: "this machine"}}
	for _, h := range d.Hosts {
		if got, there := d.Checkups[h.Name]; there && got.Err == nil {
			all = append(all, clock{"host " + string(h.Name), h.Name, got.Ahead})
		}
	}
	aheads := make([]time.Duration, len(all))
	for i, c := range all {
		aheads[i] = c.ahead
	}
	slices.Sort(aheads)
	usual := aheads[(len(aheads)-1)/2]
	const mend = "timedatectl set-ntp true   # or chronyc makestep"
	if len(all) == 2 && aheads[1]-aheads[0] > clockApart { // nobody is most
		d.add(Finding{
			Severity: SeverityWarning, Check: "clock", Host: all[1].host, Command: mend, On: all[1].host,
			Message: fmt.Sprintf("the clocks of %s and of %s are %v apart: times of events and logs mislead", all[1].name, all[0].name, (aheads[1] - aheads[0]).Round(100*time.Millisecond)),
		})
		return
	}
	for _, c := range all {
		off, way := c.ahead-usual, "ahead of"
		if off < 0 {
			off, way = -off, "behind"
		}
		if off > clockApart {
			d.add(Finding{
				Severity: SeverityWarning, Check: "clock", Host: c.host, Command: mend, On: c.host,
				Message: fmt.Sprintf("the clock of %s is %v %s the others: times of events and logs mislead", c.name, off.Round(100*time.Millisecond), way),
			})
		}
	}
}

// versions compares the programs.
func (d *diagnosis) versions() {
	hosts := map[string][]string{}
	for _, h := range d.Hosts {
		version := h.Version
		if got := d.Checkups[h.Name]; got.Version != "" {
			version = got.Version
		}
		if version != "" && !isDown(h) {
			hosts[version] = append(hosts[version], string(h.Name))
		}
	}
	all := slices.Sorted(maps.Keys(hosts))
	if len(all) > 1 {
		var parts []string
		for _, v := range all {
			parts = append(parts, fmt.Sprintf("%s on %s", v, strings.Join(hosts[v], ", ")))
		}
		f := Finding{
			Severity: SeverityWarning, Check: "version",
			Command: "kbroker agent upgrade --binary FILE   # on each host in turn that has the older one",
			Message: "agents run different versions: " + strings.Join(parts, "; "),
		}
		d.add(f)
	}
	if len(all) > 0 && d.Version != "" && !slices.Contains(all, d.Version) {
		d.add(Finding{
			Severity: SeverityWarning, Check: "version", Command: "kbroker version",
			Message: fmt.Sprintf("this command is version %s, the agents run %s: take a command of their version, or upgrade them", d.Version, strings.Join(all, " and ")),
		})
	}
}

// apps is about what applications lack.
func (d *diagnosis) apps() {
	for _, a := range d.Apps {
		name := string(a.App)
		failing := !a.Stopped && d.failing(a.App)
		switch {
		case a.Stopped:
		case a.Rollout == kbroker.RolloutFailed:
			d.add(Finding{
				Severity: SeverityError, Check: "rollout", App: a.App, Command: "kbroker rollback " + name,
				Message: fmt.Sprintf("app %s: version %d failed: %s; %d of %d instances ready", name, a.Version, a.Reason, a.Ready, a.Wanted),
			})
		case len(a.Unplaced) > 0:
			u := a.Unplaced[0]
			d.add(Finding{
				Severity: SeverityError, Check: "placement", App: a.App, Command: "kbroker why " + name,
				Message: fmt.Sprintf("app %s: %s of service %s find no host: %s", name, Counted(u.Count, "instance"), u.Service, u.Reason),
			})
		case a.Ready < a.Wanted && a.Rollout == kbroker.RolloutDone && !failing:
			d.add(Finding{
				Severity: SeverityWarning, Check: "instances", App: a.App, Command: "kbroker logs " + name,
				Message: fmt.Sprintf("app %s: %d of %d instances ready%s", name, a.Ready, a.Wanted, d.sick(a.App)),
			})
		}
	}
}

// failing is about instances of an app that are in a crash loop; it reports whether
// there are any.
func (d *diagnosis) failing(app kbroker.AppName) bool {
	var names []string
	why := ""
	for _, r := range d.Instances {
		if r.App != app || r.Instance == nil || !r.Failing || r.State == kbroker.StateDraining {
			continue
		}
		on := ""
		if r.Host != nil {
			on = " on " + string(*r.Host)
		}
		if names = append(names, string(*r.Instance)+on); why == "" {
			why, _, _ = strings.Cut(strings.TrimPrefix(r.Message, kbroker.CrashLoopText), "\n")
		}
	}
	if len(names) == 0 {
		return false
	}
	d.add(Finding{
		Severity: SeverityError, Check: "crashes", App: app, Command: "kbroker why " + string(app),
		Message: fmt.Sprintf("app %s: %s in a crash loop, %s; the first: %s", app, Counted(len(names), "instance"), some(names), why),
	})
	return true
}

// sick names an instance that is not ready, and why.
func (d *diagnosis) sick(app kbroker.AppName) string {
	for _, r := range d.Instances {
		if r.App == app && r.Instance != nil && r.State != kbroker.StateReady && r.State != kbroker.StateDraining {
			said := fmt.Sprintf("; %s is %s", *r.Instance, r.State)
			if r.Message != "" {
				said += ": " + r.Message
			}
			return said
		}
	}
	return ""
}

func startsSince(starts []time.Time, since time.Time) (n int) {
	for _, t := range starts {
		if t.After(since) {
			n++
		}
	}
	return n
}

// ratio is part of whole; 1 where there is no whole.
func ratio(part, whole int64) float64 {
	if whole <= 0 {
		return 1
	}
	return float64(part) / float64(whole)
}

func gib(n int64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }
