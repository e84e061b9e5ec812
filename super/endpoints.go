package super

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// endpoints answers where the instances of a service listen, from what this core knows:
// it takes no quorum. That who asks may, the servers have looked at.
func (d *desk) endpoints(_ context.Context, m *nats.Msg) (any, error) {
	tenant, app, service, ok := subjects.ParseEndpoints(m.Subject)
	if !ok {
		return nil, kbroker.Errorf(kbroker.Invalid, "subject %q names no service", m.Subject)
	}
	if err := knownTenant(tenant); err != nil {
		return nil, err
	}
	var r kbroker.EndpointsRequest
	if len(m.Data) > 0 {
		if err := json.Unmarshal(m.Data, &r); err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
		}
	}
	return endpointRows(d.store.Peek(), state.AppKey{Tenant: tenant, App: app}, service, r.Port, d.gone)
}

// endpointRows are the endpoints of a service, those that are ready first; empty port: of
// all its ports. gone says that a host's agent is not there. What is to leave, and what
// was on a host that is lost, is not among them.
func endpointRows(v *state.View, k state.AppKey, service kbroker.ServiceName, port string, gone func(kbroker.HostID) bool) ([]kbroker.Endpoint, error) {
	rows, known, named := []kbroker.Endpoint{}, false, port == ""
	add := func(s kbroker.Service) {
		known = true
		named = named || slices.ContainsFunc(s.Ports, func(p kbroker.Port) bool { return p.Name == port })
	}
	if s, ok := wantedService(v, k, service); ok {
		add(*s)
	}
	for key, p := range v.Placements {
		if p.Tenant != k.Tenant || p.App != k.App || p.Service != service {
			continue
		}
		add(p.Spec)
		s, host := v.Statuses[key], v.Hosts[p.Host]
		if p.Stop || s.Epoch != p.Epoch || host.Address == "" || absence(v, p.Host) != "" {
			continue
		}
		for name, number := range s.Ports {
			if port == "" || port == name {
				rows = append(rows, kbroker.Endpoint{
					Instance: p.Instance, Host: p.Host, Address: host.Address, Port: name, Number: number,
					Ready: s.State == kbroker.StateReady && !gone(p.Host),
				})
			}
		}
	}
	switch {
	case !known:
		return nil, kbroker.Errorf(kbroker.NotFound, "there is no service %s/%s", k.App, service).WithHint("`kbroker apps` lists the apps and their services")
	case !named:
		return nil, kbroker.Errorf(kbroker.NotFound, "service %s/%s has no port %q", k.App, service, port).WithHint("the spec names its ports, as in ports: [http]")
	}
	slices.SortFunc(rows, func(a, b kbroker.Endpoint) int {
		if a.Ready != b.Ready {
			if a.Ready {
				return -1
			}
			return 1
		}
		return cmp.Or(compareInstances(a.Instance, b.Instance), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port))
	})
	return rows[:min(len(rows), kbroker.MaxEndpoints)], nil
}

// wantedService is a service as it is wanted now.
func wantedService(v *state.View, k state.AppKey, service kbroker.ServiceName) (*kbroker.Service, bool) {
	version := v.Versions[k][v.Apps[k].Version]
	return version.App.Service(service)
}
