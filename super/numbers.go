package super

import (
	"fmt"
	"maps"
	"slices"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// numbers are the ports that are taken on hosts: those that specs name, and those that
// agents have handed out. Of one number there may be more than one holder, from before
// somebody looked.
type numbers map[kbroker.HostID]map[int]map[state.PlacementKey]string

// numbersOf are those of a placement, with what its agent has reported of it; a service
// without ports has none.
func numbersOf(p kbroker.Placement, s kbroker.Status) (out []int) {
	if len(p.Spec.Ports) == 0 {
		return nil
	}
	for _, port := range p.Spec.Ports {
		if port.Number != 0 {
			out = append(out, port.Number)
		}
	}
	for _, n := range s.Ports {
		out = append(out, n)
	}
	return out
}

func (n numbers) hold(p kbroker.Placement, s kbroker.Status) {
	for _, number := range numbersOf(p, s) {
		if n[p.Host] == nil {
			n[p.Host] = map[int]map[state.PlacementKey]string{}
		}
		if n[p.Host][number] == nil {
			n[p.Host][number] = map[state.PlacementKey]string{}
		}
		n[p.Host][number][keyOf(p)] = string(p.App) + "/" + string(p.Service)
	}
}

func (n numbers) leave(p kbroker.Placement, s kbroker.Status) {
	for _, number := range numbersOf(p, s) {
		delete(n[p.Host][number], keyOf(p))
	}
}

// clash says which number of a service is taken on a host, and by whom; empty: none.
// What but holds does not count.
func (n numbers) clash(s kbroker.Service, host kbroker.HostID, but *kbroker.Placement) string {
	for _, port := range s.Ports {
		if port.Number == 0 {
			continue
		}
		holders := maps.Clone(n[host][port.Number])
		if but != nil {
			delete(holders, keyOf(*but))
		}
		if len(holders) > 0 {
			return fmt.Sprintf("port %d is taken by %s", port.Number, slices.Min(slices.Collect(maps.Values(holders))))
		}
	}
	return ""
}

// onlyByLeaving reports whether each host that can run the service has one of its numbers
// taken: a new instance comes only after another one has left, however much room there is.
func (s *seats) onlyByLeaving() bool {
	for _, c := range s.fit {
		if s.draft.numbers.clash(s.service, c.host, nil) == "" {
			return false
		}
	}
	return len(s.fit) > 0
}
