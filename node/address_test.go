package node

import (
	"testing"

	"github.com/kbroker/kbroker"
)

func TestAHostHasAnAddress(t *testing.T) {
	core := membership{Client: "10.0.0.1:4222"}
	worker := membership{Role: kbroker.RoleWorker, Cores: []kbroker.CoreAddr{{Client: "no address"}, {Client: "127.0.0.1:4222"}}}
	for name, c := range map[string]struct {
		of        *membership
		advertise string
		want      string
	}{
		"what it advertises":                     {&core, "10.0.0.9", "10.0.0.9"},
		"what a core has advertised":             {&core, "", "10.0.0.1"},
		"what a worker advertises":               {&worker, "10.0.0.9", "10.0.0.9"},
		"from where a worker reaches a core":     {&worker, "", "127.0.0.1"},
		"none where a worker knows no core":      {&membership{Role: kbroker.RoleWorker}, "", ""},
		"IPv6, without the brackets of a socket": {&membership{Client: "[fd00::1]:4222"}, "", "fd00::1"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := c.of.address(c.advertise); got != c.want {
				t.Errorf("the address is %q, want %q", got, c.want)
			}
		})
	}
}
