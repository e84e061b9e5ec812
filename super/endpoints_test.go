package super

import (
	"errors"
	"fmt"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestEndpointsSayWhereInstancesListen(t *testing.T) {
	c := newCluster(t, 3)
	for i, name := range []kbroker.HostID{"h1", "h2", "h3"} {
		h := c.view.Hosts[name]
		h.Address = fmt.Sprintf("10.0.0.%d", i+1)
		c.view.Hosts[name] = h
	}
	s := service(3)
	s.Ports = []kbroker.Port{{Name: "admin"}, {Name: "http"}}
	c.deploy(s)
	c.settle()
	report := func() {
		for k, s := range c.view.Statuses {
			if s.Service == "web" {
				s.Ports = map[string]int{"admin": 20001, "http": 20000}
				c.view.Statuses[k] = s
			}
		}
	}
	report()
	nobody := func(kbroker.HostID) bool { return false }
	lines := func(rows []kbroker.Endpoint) (out []string) {
		for _, e := range rows {
			out = append(out, fmt.Sprintf("%s %s %s %t", e.Host, e.Port, e.Addr(), e.Ready))
		}
		return out
	}
	get := func(port string, gone func(kbroker.HostID) bool) []string {
		t.Helper()
		rows, err := endpointRows(&c.view, webKey, "web", port, gone)
		if err != nil {
			t.Fatal(err)
		}
		return lines(rows)
	}
	wantLines(t, get("http", nobody), "h1 http 10.0.0.1:20000 true", "h2 http 10.0.0.2:20000 true", "h3 http 10.0.0.3:20000 true")
	if n := len(get("", nobody)); n != 6 {
		t.Errorf("%d endpoints of all ports, want 6", n)
	}
	wantLines(t, get("http", func(h kbroker.HostID) bool { return h == "h1" }),
		"h2 http 10.0.0.2:20000 true", "h3 http 10.0.0.3:20000 true", "h1 http 10.0.0.1:20000 false")

	for k, p := range c.view.Placements {
		if p.Service == "web" && p.Host == "h2" { // it is to leave
			p.Stop = true
			c.view.Placements[k] = p
		}
	}
	h := c.view.Hosts["h3"]
	h.State = kbroker.HostLost
	c.view.Hosts["h3"] = h
	wantLines(t, get("http", nobody), "h1 http 10.0.0.1:20000 true")

	for _, missing := range []struct {
		service kbroker.ServiceName
		port    string
	}{{"mail", ""}, {"web", "https"}} {
		if rows, err := endpointRows(&c.view, webKey, missing.service, missing.port, nobody); !errors.Is(err, kbroker.NotFound) {
			t.Errorf("of %s %q: %v, %v; want not found", missing.service, missing.port, rows, err)
		}
	}
}
