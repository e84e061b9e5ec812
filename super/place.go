package super

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

// maxRefusals bounds the hosts that a refusal names.
const maxRefusals = 5

// usage is what instances reserve on a host. Whole numbers, so that a sum does
// not depend on its order.
type usage struct{ milliCPU, memoryBytes int64 }

func usageOf(r kbroker.Resources) usage {
	return usage{int64(math.Round(r.CPU * 1000)), r.MemoryBytes}
}

func (u usage) plus(v usage) usage {
	return usage{u.milliCPU + v.milliCPU, u.memoryBytes + v.memoryBytes}
}

func (u usage) minus(v usage) usage {
	return usage{u.milliCPU - v.milliCPU, u.memoryBytes - v.memoryBytes}
}

// seats are the hosts that may take more instances of one service.
type seats struct {
	draft   *draft
	service kbroker.Service
	need    usage
	fit     []seat
	unfit   []refusal // hosts that cannot, whatever room they have
}

// refusal is why a host does not take an instance.
type refusal struct {
	host kbroker.HostID
	why  []string // all of it, the most telling first
}

func (r refusal) String() string { return string(r.host) + ": " + r.why[0] }

type seat struct {
	host kbroker.HostID
	room usage // the whole host
	same int   // instances of this service there; 0 when the service does not spread
}

// seats finds them: on lists the live instances of the service.
func (d *draft) seats(s kbroker.Service, on []kbroker.Placement) *seats {
	same := map[kbroker.HostID]int{}
	if s.Spread != "none" {
		for _, p := range on {
			same[p.Host]++
		}
	}
	out := &seats{draft: d, service: s, need: usageOf(s.Resources)}
	for _, name := range slices.Sorted(maps.Keys(d.hosts)) {
		h := d.hosts[name]
		if !h.Member() {
			continue
		}
		why := ""
		switch {
		case d.blocked[name]:
			why = "has a record that this build cannot read"
		case h.State == kbroker.HostJoining || h.State == kbroker.HostLost:
			why = string(h.State)
		case d.w.Verdict.States[name] == kbroker.HostSuspect:
			why = string(kbroker.HostSuspect)
		case h.Drain != nil:
			why = string(kbroker.HostDraining)
		}
		all := unmet(h, s)
		if why != "" {
			all = append([]string{why}, all...)
		}
		if len(all) > 0 {
			out.unfit = append(out.unfit, refusal{name, all})
			continue
		}
		out.fit = append(out.fit, seat{name, usageOf(h.Capacity), same[name]})
	}
	return out
}

// take returns the host that the next instance goes to, of all but some: the fewest of
// the same service first, then the emptiest by its scarcer resource, then by name.
// Empty: none has room. The caller reserves.
func (s *seats) take(but ...kbroker.HostID) kbroker.HostID {
	best, bestLoad := -1, 0.0
	for i, c := range s.fit {
		used := s.draft.reserved[c.host]
		after := used.plus(s.need)
		if after.milliCPU > c.room.milliCPU || after.memoryBytes > c.room.memoryBytes || s.draft.numbers.clash(s.service, c.host, nil) != "" || slices.Contains(but, c.host) {
			continue
		}
		if load := c.load(used); best < 0 || c.before(load, s.fit[best], bestLoad) {
			best, bestLoad = i, load
		}
	}
	if best < 0 {
		return ""
	}
	s.fit[best].same++
	return s.fit[best].host
}

// before reports whether c, with its load, is to be taken before another.
func (c *seat) before(load float64, other seat, otherLoad float64) bool {
	if c.same != other.same {
		return c.same < other.same
	}
	return load < otherLoad
}

// load is how much of the host's scarcer resource is used.
func (c *seat) load(used usage) float64 {
	return max(share(used.milliCPU, c.room.milliCPU), share(used.memoryBytes, c.room.memoryBytes))
}

// free is what no instance has reserved.
func (s *seats) free(c seat) usage { return c.room.minus(s.draft.reserved[c.host]) }

// lacks says what the host does not have for one more instance.
func (s *seats) lacks(c seat) (why []string) {
	free := s.free(c)
	if clash := s.draft.numbers.clash(s.service, c.host, nil); clash != "" {
		why = append(why, clash)
	}
	if s.need.milliCPU > free.milliCPU {
		why = append(why, fmt.Sprintf("needs %.2f cpu, %.2f are free", float64(s.need.milliCPU)/1000, float64(max(free.milliCPU, 0))/1000))
	}
	if s.need.memoryBytes > free.memoryBytes {
		why = append(why, fmt.Sprintf("needs %d MiB memory, %d MiB are free", s.need.memoryBytes>>20, max(free.memoryBytes, 0)>>20))
	}
	return why
}

// frees reports whether a host that can run the service has room for one more
// when p has left it.
func (s *seats) frees(p kbroker.Placement) bool {
	for _, c := range s.fit {
		if c.host == p.Host {
			after := s.draft.reserved[c.host].minus(usageOf(p.Spec.Resources)).plus(s.need)
			return after.milliCPU <= c.room.milliCPU && after.memoryBytes <= c.room.memoryBytes && s.draft.numbers.clash(s.service, c.host, &p) == ""
		}
	}
	return false
}

// refusals says, host by host, why take found none.
func (s *seats) refusals() string {
	var out []string
	for _, r := range s.unfit {
		out = append(out, r.String())
	}
	for _, c := range s.fit {
		if why := s.lacks(c); len(why) > 0 {
			out = append(out, refusal{c.host, why}.String())
		}
	}
	if n := len(out); n > maxRefusals {
		out = append(out[:maxRefusals], fmt.Sprintf("and %d more hosts", n-maxRefusals))
	}
	if len(out) == 0 {
		return "there is no host"
	}
	return strings.Join(out, "; ")
}

// unfit says why a host can never run s as it is, or "".
func unfit(h kbroker.Host, s kbroker.Service) string {
	if all := unmet(h, s); len(all) > 0 {
		return all[0]
	}
	return ""
}

// unmet are all reasons why a host can never run s as it is.
func unmet(h kbroker.Host, s kbroker.Service) (all []string) {
	if arch := h.Labels["arch"]; s.Artifact.Arch != "" && arch != s.Artifact.Arch {
		all = append(all, fmt.Sprintf("the program is built for %s, the host is %s", s.Artifact.Arch, arch))
	}
	if s.Sandbox != "" && h.Labels[kbroker.FeatureSandbox] != kbroker.FeatureYes {
		all = append(all, "cannot give a sandbox (no "+kbroker.FeatureSandbox+")")
	}
	for _, text := range s.Require {
		c, err := spec.ParseConstraint(text)
		if err != nil {
			all = append(all, err.Error())
		} else if !c.Match(h.Labels) {
			all = append(all, "does not meet "+text)
		}
	}
	return all
}

func share(used, of int64) float64 {
	if of <= 0 {
		return 1
	}
	return float64(used) / float64(of)
}
