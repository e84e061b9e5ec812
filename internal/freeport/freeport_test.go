package freeport

import (
	"net"
	"strconv"
	"testing"
)

// No connection that goes out is given a port that was picked.
func TestPortsAreBelowThoseOfConnections(t *testing.T) {
	var before []int
	for range 20 {
		ports, err := Pick("127.0.0.1", 3, func(p int) bool { return len(before) > 0 && p == before[0] })
		if err != nil || len(ports) != 3 {
			t.Fatal(ports, err)
		}
		for i, p := range ports {
			if p < lowest || p >= highest || len(before) > 0 && p == before[0] {
				t.Errorf("picked %d", p)
			}
			for _, q := range ports[:i] {
				if p == q {
					t.Errorf("picked %d twice", p)
				}
			}
			l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(p))
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
		before = ports
	}
}

// The kernel picks where none of the ports tried will do; an address that is not
// of this host is an error.
func TestTheKernelPicksAtLast(t *testing.T) {
	ports, err := Pick("127.0.0.1", 1, func(p int) bool { return p >= lowest && p < highest })
	if err != nil || len(ports) != 1 || ports[0] < highest {
		t.Error(ports, err)
	}
	if ports, err := Pick("192.0.2.1", 1, nil); err == nil {
		t.Error("of another host's address", ports)
	}
}
