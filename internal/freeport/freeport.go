// Package freeport finds TCP ports for servers whose addresses others are told
// before they listen.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// The ports that are tried: not those of common services, and below the range
// that Linux takes ports of outgoing connections from (32768 on, as
// net.ipv4.ip_local_port_range says), so that a port is still free when its
// server listens, and after each restart of it.
const (
	lowest  = 12000
	highest = 32000
	tries   = 100
)

// Pick returns n different ports of ip that nobody listens on now and that taken
// does not name; nil names none. They are not held: another process may be given
// the same. When those below the range of outgoing connections are all in use,
// the kernel picks.
func Pick(ip string, n int, taken func(port int) bool) ([]int, error) {
	var held []net.Listener // until the last is picked, so that no two are the same
	defer func() {
		for _, l := range held {
			_ = l.Close() // nothing was sent or received
		}
	}()
	ports := make([]int, 0, n)
	for try := 0; len(ports) < n; try++ {
		ask := 0
		if try < tries {
			ask = lowest + rand.IntN(highest-lowest)
		}
		l, err := net.Listen("tcp", net.JoinHostPort(ip, strconv.Itoa(ask)))
		switch {
		case err == nil:
			held = append(held, l)
			if port := l.Addr().(*net.TCPAddr).Port; taken == nil || !taken(port) {
				ports = append(ports, port)
			}
		case ask == 0:
			return nil, fmt.Errorf("pick a port: %w", err)
		}
	}
	return ports, nil
}
