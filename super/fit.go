package super

import (
	"cmp"
	"slices"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// hostFits says of each host whether it would take one more instance of a
// service, in which order, and if not what refuses it. The best come first, and
// at most kbroker.MaxHostFits.
func (d *draft) hostFits(k state.AppKey, s kbroker.Service) []kbroker.HostFit {
	on := d.live(k, func(p kbroker.Placement) bool { return p.Service == s.Name })
	seats := d.seats(s, on)
	same := map[kbroker.HostID]int{}
	for _, p := range on {
		same[p.Host]++
	}
	out := []kbroker.HostFit{}
	fit := func(host kbroker.HostID, free usage, why []string) kbroker.HostFit {
		return kbroker.HostFit{
			Host: host, Fits: len(why) == 0, Same: same[host], Why: append([]string{}, why...),
			Ask: s.Resources, Free: resourcesOf(free),
		}
	}
	slices.SortStableFunc(seats.fit, func(a, b seat) int { // they come by name
		loadA, loadB := a.load(d.reserved[a.host]), b.load(d.reserved[b.host])
		switch {
		case a.before(loadA, b, loadB):
			return -1
		case b.before(loadB, a, loadA):
			return 1
		}
		return 0
	})
	for _, c := range seats.fit {
		f := fit(c.host, seats.free(c), seats.lacks(c))
		if f.Fits {
			f.Rank = len(out) + 1
			out = append(out, f)
		}
	}
	for _, c := range seats.fit {
		if f := fit(c.host, seats.free(c), seats.lacks(c)); !f.Fits {
			out = append(out, f)
		}
	}
	slices.SortFunc(seats.unfit, func(a, b refusal) int { return cmp.Compare(a.host, b.host) })
	for _, r := range seats.unfit {
		c := seat{host: r.host, room: usageOf(d.hosts[r.host].Capacity)}
		out = append(out, fit(r.host, seats.free(c), append(slices.Clone(r.why), seats.lacks(c)...)))
	}
	return out[:min(len(out), kbroker.MaxHostFits)]
}

func resourcesOf(u usage) kbroker.Resources {
	return kbroker.Resources{CPU: float64(max(u.milliCPU, 0)) / 1000, MemoryBytes: max(u.memoryBytes, 0)}
}
