package client

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// Severity says how urgent a finding is.
type Severity string

const (
	// SeverityError: a part of what the cluster promises does not hold now.
	SeverityError Severity = "error"
	// SeverityWarning: it holds, with less in reserve.
	SeverityWarning Severity = "warning"
)

// Finding is one thing that is wrong.
type Finding struct {
	Severity Severity        `json:"severity"`
	Check    string          `json:"check"` // what was looked at: "disk", "clock" and so on
	Host     kbroker.HostID  `json:"host,omitempty"`
	App      kbroker.AppName `json:"app,omitempty"`
	Message  string          `json:"message"`
	// Command mends it, as a line for a shell on the host On; empty: on any
	// machine that reaches the cluster.
	Command string         `json:"command"`
	On      kbroker.HostID `json:"on,omitempty"`
}

const (
	// longDrain is how long a host may drain before it looks forgotten.
	longDrain = time.Hour
	// longSilence is above the time after which a silent host is lost.
	longSilence = 20 * time.Second
	// maxNamed is how many streams a finding names.
	maxNamed = 4
	// again is the command where time mends.
	again = "kbroker doctor"
)

// Diagnose says what is wrong, errors first. Pure: the same facts, the same
// findings. Never nil.
func Diagnose(f Facts) []Finding {
	d := &diagnosis{Facts: f, found: []Finding{}}
	d.control()
	d.cores()
	d.broker()
	d.workers()
	for _, h := range f.Hosts {
		d.host(h)
	}
	d.clocks()
	d.versions()
	d.apps()
	slices.SortStableFunc(d.found, func(a, b Finding) int {
		return cmp.Compare(a.Severity, b.Severity) // "error" < "warning"
	})
	return d.found
}

type diagnosis struct {
	Facts
	found []Finding
}

func (d *diagnosis) add(f Finding) { d.found = append(d.found, f) }

// isDown reports whether a host's agent is not heard.
func isDown(h kbroker.HostRow) bool {
	return h.State == kbroker.HostLost || h.State == kbroker.HostSuspect
}

// members are the cores, and those of them that are down.
func (d *diagnosis) members() (cores, down []kbroker.HostRow) {
	for _, h := range d.Hosts {
		if h.Role != kbroker.RoleCore {
			continue
		}
		cores = append(cores, h)
		if isDown(h) {
			down = append(down, h)
		}
	}
	return cores, down
}

// control is about whether changes are possible.
func (d *diagnosis) control() {
	cores, down := d.members()
	switch {
	case d.Status.Leader == nil && len(down) > 0:
		d.leaderless(cores, down)
	case d.Status.Leader == nil:
		d.add(Finding{
			Severity: SeverityError, Check: "leader", Command: again,
			Message: "no super leads, though all cores are heard: changes wait, what runs goes on; an election takes a few seconds: look again",
		})
	case !d.Status.Writable:
		f := Finding{
			Severity: SeverityError, Check: "write",
			Message: "the control store takes no writes: changes wait, what runs goes on",
		}
		f.Command, f.On = d.restart(d.row(*d.Status.Leader))
		d.add(f)
	}
}

// leaderless is about a cluster of which cores are missing.
func (d *diagnosis) leaderless(cores, down []kbroker.HostRow) {
	f := Finding{Severity: SeverityError, Check: "leader"}
	f.Command, f.On = d.start(down[0])
	if len(cores) == 2 && len(down) == 1 {
		// The first of two has a majority of its own (the witness): it is the
		// one that is missing.
		f.Message = fmt.Sprintf("no super leads: changes wait, what runs goes on; core %s, the first of two, is down", down[0].Name)
		if !d.local() {
			f.Message += "; if its disk is lost, run on the other one: systemctl stop kbroker && kbroker agent rescue && systemctl start kbroker"
		}
	} else {
		f.Message = fmt.Sprintf("no super leads: changes wait, what runs goes on; %d of %s up, and it takes %d",
			len(cores)-len(down), Counted(len(cores), "core"), len(cores)/2+1)
	}
	d.add(f)
}

// cores is about how many there are and whether they are there.
func (d *diagnosis) cores() {
	cores, down := d.members()
	n, join := len(cores), d.join()
	switch {
	case len(down) > 0: // none can join
	case n == 1 && len(d.Hosts) > 1:
		d.add(Finding{
			Severity: SeverityWarning, Check: "cores", Command: join,
			Message: "there is one core: with its disk the whole cluster is lost; have three",
		})
	case n == 2:
		d.add(Finding{
			Severity: SeverityWarning, Check: "cores", Command: join,
			Message: "there are two cores: the second has a copy of everything, but without the first nothing can be changed; have three",
		})
	case n > 2 && n%2 == 0:
		d.add(Finding{
			Severity: SeverityWarning, Check: "cores", Command: join,
			Message: fmt.Sprintf("there are %d cores, which bear the loss of no more than %d do; have %d", n, n-1, n+1),
		})
	}
	for _, h := range cores {
		switch {
		case isDown(h):
			d.missing(h)
		case h.State == kbroker.HostJoining:
			d.add(Finding{
				Severity: SeverityWarning, Check: "core", Host: h.Name, Command: again,
				Message: fmt.Sprintf("core %s is joining; that takes seconds: look again", h.Name),
			})
		}
	}
}

func (d *diagnosis) workers() {
	for _, h := range d.Hosts {
		if h.Role != kbroker.RoleCore && isDown(h) {
			d.missing(h)
		}
	}
}

// missing is about a host that is not heard.
func (d *diagnosis) missing(h kbroker.HostRow) {
	f := Finding{Severity: SeverityError, Check: "host", Host: h.Name}
	f.Command, f.On = d.start(h)
	silence := "was not heard"
	if h.HeardAgo != nil {
		silence = fmt.Sprintf("was last heard %.0f s ago", *h.HeardAgo)
	}
	f.Message = fmt.Sprintf("%s %s is %s, it %s", h.Role, h.Name, h.State, silence)
	switch {
	case h.Maintenance != nil && h.State == kbroker.HostSuspect:
		f.Severity, f.Command, f.On = SeverityWarning, again, ""
		f.Message += "; it is in maintenance: look again"
	case d.Status.Leader == nil:
	case h.State == kbroker.HostLost:
		f.Message += fmt.Sprintf("; if it is gone for good: kbroker remove %s", h.Name)
	case h.HeardAgo != nil && *h.HeardAgo > longSilence.Seconds():
		if h.Instances > 0 {
			f.Message += fmt.Sprintf("; what it ran, %s, is not replaced: too many hosts are missing at once", Counted(h.Instances, "instance"))
		}
		f.Message += fmt.Sprintf("; if it is gone for good: kbroker remove %s", h.Name)
	}
	unmanaged := 0
	for _, r := range d.Instances {
		if r.State == kbroker.StateUnmanaged && r.Host != nil && *r.Host == h.Name {
			unmanaged++
		}
	}
	if unmanaged > 0 {
		f.Message += fmt.Sprintf("; %s there may run on without an agent", Counted(unmanaged, "instance"))
	}
	d.add(f)
}

// broker is about streams and their copies, as the core sees them that is most
// likely to know.
func (d *diagnosis) broker() {
	cores, down := d.members()
	look, from := d.look()
	if look == nil {
		if len(down) < len(cores) {
			f := Finding{Severity: SeverityError, Check: "streams", Message: "no core tells how its streams are"}
			for _, h := range cores {
				if !isDown(h) {
					f.Command, f.On = d.restart(h)
					break
				}
			}
			d.add(f)
		}
		return
	}
	if !look.Leader {
		if d.Status.Leader != nil || len(down) == 0 {
			d.add(Finding{
				Severity: SeverityError, Check: "streams", Command: again,
				Message: fmt.Sprintf("core %s sees no leader of the broker: no stream can be made or moved; an election takes a few seconds: look again", from),
			})
		}
		return // what it says of streams is old
	}
	said := d.streams(look, down)
	for _, h := range cores {
		if current, known := look.Current[h.Name]; known && !current && !isDown(h) {
			said = true
			f := Finding{
				Severity: SeverityWarning, Check: "core", Host: h.Name,
				Message: fmt.Sprintf("core %s is behind the others; it catches up by itself, if not: restart its agent", h.Name),
			}
			f.Command, f.On = d.restart(h)
			d.add(f)
		}
	}
	if !look.Settled && !said && len(down) == 0 {
		d.add(Finding{
			Severity: SeverityWarning, Check: "streams", Command: again,
			Message: fmt.Sprintf("the streams are not settled: %s; until then no core may go down; look again", look.Unsettled),
		})
	}
}

// streams is about single ones; it reports whether it found anything.
func (d *diagnosis) streams(look *kbroker.CoreCheckup, down []kbroker.HostRow) bool {
	var headless, thin, behind []string
	severity := SeverityWarning
	for _, s := range look.Streams {
		switch {
		case s.Leader == "":
			headless = append(headless, s.Name)
		case s.Current < s.Replicas:
			behind := ""
			if s.Lag > 0 {
				behind = fmt.Sprintf(" (%s behind)", Counted(int(s.Lag), "entry"))
			}
			thin = append(thin, fmt.Sprintf("%s has %d of %d%s", s.Name, s.Current, s.Replicas, behind))
			if s.Current <= s.Replicas/2 {
				severity = SeverityError
			}
		}
		if s.Mirror != "" && s.MirrorLag > 0 {
			behind = append(behind, fmt.Sprintf("%s lacks %s on %s", s.Name, Counted(int(s.MirrorLag), "message"), s.Mirror))
		}
	}
	mend := func(f Finding) {
		f.Command = again
		if len(down) > 0 {
			f.Command, f.On = d.start(down[0])
		}
		d.add(f)
	}
	if len(headless) > 0 {
		mend(Finding{
			Severity: SeverityError, Check: "streams",
			Message: "nothing can be written to streams without a leader: " + some(headless),
		})
	}
	if len(thin) > 0 {
		mend(Finding{Severity: severity, Check: "streams", Message: "streams have fewer current replicas than they want: " + some(thin)})
	}
	cores, _ := d.members()
	stale := len(cores) == 2 && !look.Mirrored && len(down) == 0
	if stale {
		why := "a stream has no copy yet"
		if len(behind) > 0 {
			why = some(behind)
		}
		mend(Finding{
			Severity: SeverityWarning, Check: "mirrors",
			Message: fmt.Sprintf("the second core does not have a copy of everything: %s; with the first the difference is lost", why),
		})
	}
	return len(headless)+len(thin) > 0 || stale
}

// look is the freshest look at the broker, and whose: one with a leader before
// one without, a fresh one before an old one, that of super's core before others.
func (d *diagnosis) look() (*kbroker.CoreCheckup, kbroker.HostID) {
	var best *kbroker.CoreCheckup
	var from kbroker.HostID
	rank := func(c *kbroker.CoreCheckup, h kbroker.HostRow) int {
		n := 0
		for i, yes := range []bool{h.Super, c.Fresh, c.Leader} {
			if yes {
				n |= 1 << i
			}
		}
		return n
	}
	most := -1
	for _, h := range d.Hosts {
		c := d.Checkups[h.Name].Core
		if c == nil {
			continue
		}
		if r := rank(c, h); r > most {
			best, from, most = c, h.Name, r
		}
	}
	return best, from
}

func (d *diagnosis) row(host kbroker.HostID) kbroker.HostRow {
	for _, h := range d.Hosts {
		if h.Name == host {
			return h
		}
	}
	return kbroker.HostRow{Name: host}
}

// join is the command that adds a core.
func (d *diagnosis) join() string {
	if d.local() {
		return fmt.Sprintf("kbroker up --hosts %d", len(d.Hosts)+1)
	}
	for _, h := range d.Hosts {
		if h.Role == kbroker.RoleCore && !isDown(h) {
			return fmt.Sprintf("kbroker agent install --join %s --token-file FILE --advertise IP   # on the new host, FILE from: kbroker token create --role core", h.Client)
		}
	}
	return "kbroker hosts"
}

// local reports whether the hosts are agents of `kbroker up` rather than machines
// with units of their own: a core has a loopback address.
func (d *diagnosis) local() bool {
	return slices.ContainsFunc(d.Hosts, func(h kbroker.HostRow) bool {
		addr, err := netip.ParseAddrPort(h.Client)
		return err == nil && addr.Addr().IsLoopback()
	})
}

// start is the command that brings a dead agent back, and where it is run.
func (d *diagnosis) start(h kbroker.HostRow) (command string, on kbroker.HostID) {
	if d.local() {
		return "kbroker up", ""
	}
	return "systemctl start kbroker", h.Name
}

// restart is the command that starts a sick agent anew; applications run on.
func (d *diagnosis) restart(h kbroker.HostRow) (command string, on kbroker.HostID) {
	pid := d.Checkups[h.Name].PID
	if pid == 0 && h.PID != nil {
		pid = *h.PID
	}
	switch {
	case !d.local():
		return "systemctl restart kbroker", h.Name
	case pid == 0:
		return "kbroker up", ""
	}
	return fmt.Sprintf("kill -9 %d; kbroker up", pid), ""
}

// some lists the first of many.
func some(all []string) string {
	if more := len(all) - maxNamed; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(all[:maxNamed], ", "), more)
	}
	return strings.Join(all, ", ")
}

// Counted is a number of things in words: "1 host", "2 entries".
func Counted(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if stem, ok := strings.CutSuffix(thing, "y"); ok {
		return fmt.Sprintf("%d %sies", n, stem)
	}
	if strings.HasSuffix(thing, "s") {
		thing += "e"
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
