package node

import (
	"cmp"
	"net"
	neturl "net/url"
)

// address is where others reach what listens on this host: what it advertises, now or when
// it began; of a worker that advertises nothing, the address that it reaches a core from.
// Empty: no core is to be reached from any.
func (m *membership) address(advertise string) string {
	if advertise != "" {
		return advertise
	}
	if ip, _, err := net.SplitHostPort(m.Client); err == nil {
		return ip
	}
	found := ""
	for _, server := range m.servers() {
		if u, err := neturl.Parse(server); err == nil {
			found = cmp.Or(found, sourceTo(u.Host))
		}
	}
	return found
}

// sourceTo is the address that this host would send from to another one; nothing is sent.
func sourceTo(addr string) string {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		return ""
	}
	defer conn.Close()
	ip, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		return ""
	}
	return ip
}
