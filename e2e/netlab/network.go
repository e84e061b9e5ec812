//go:build linux

package netlab

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

const (
	bridge = "br0"
	// rules are those of the switch: pairs of ports (from, to) that are cut, and
	// what is lost.
	rules = `table bridge netlab {
	set cut {
		type ifname . ifname
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		meta iifname . meta oifname @cut drop
		jump loss
	}
	chain loss {
	}
}
`
)

// switchNS is the namespace of the bridge.
func (l *Lab) switchNS() string { return l.name + "-sw" }

func (l *Lab) buildSwitch() {
	l.t.Helper()
	l.must(run("", "ip", "netns", "add", l.switchNS()))
	l.ip(l.switchNS(), "link add "+bridge+" type bridge stp_state 0 forward_delay 0 mcast_snooping 0", "link set "+bridge+" up")
	l.nft(rules)
}

// ip runs commands of ip(8) in a namespace.
func (l *Lab) ip(netns string, commands ...string) {
	l.t.Helper()
	l.must(run(strings.Join(commands, "\n")+"\n", "ip", "-n", netns, "-batch", "-"))
}

// nft runs a script of nft(8) in the switch, all of it or nothing.
func (l *Lab) nft(script string) {
	l.t.Helper()
	l.must(run(script, "nsenter", "--net="+filepath.Join(netnsDir, l.switchNS()), "nft", "-f", "-"))
}

// plugIn makes a namespace and connects it. The hardware address is that of its
// number, so that one that comes back is the same for its neighbours.
func (l *Lab) plugIn(n *Namespace) {
	l.t.Helper()
	l.must(run("", "ip", "netns", "add", n.netns))
	l.ip(l.switchNS(),
		fmt.Sprintf("link add %s type veth peer name eth0 address 02:00:00:00:00:%02x netns %s", n.port, n.number, n.netns),
		fmt.Sprintf("link set %s master %s up", n.port, bridge))
	l.ip(n.netns, "link set lo up", "addr add "+n.IP.String()+"/24 dev eth0", "link set eth0 gso_max_segs 1 up")
}

// plugOut removes the namespace, its cable and its sockets.
func (l *Lab) plugOut(n *Namespace) {
	l.t.Helper()
	l.ip(l.switchNS(), "link del "+n.port)
	l.must(run("", "ip", "netns", "del", n.netns))
}

// attach puts ports on the bridge, detach takes them off; the carrier stays.
func (l *Lab) attach(ports ...string) {
	l.t.Helper()
	l.setPorts(ports, " master "+bridge)
}

func (l *Lab) detach(ports ...string) {
	l.t.Helper()
	l.setPorts(ports, " nomaster")
}

func (l *Lab) setPorts(ports []string, to string) {
	l.t.Helper()
	var commands []string
	for _, p := range ports {
		commands = append(commands, "link set "+p+to)
	}
	l.ip(l.switchNS(), commands...)
}

// CutPair drops what two hosts send to each other, until Heal.
func (l *Lab) CutPair(a, b *Host) {
	l.t.Helper()
	l.nft(cut(a, b) + cut(b, a))
	l.log("cut between %s and %s", a.Name, b.Name)
}

// CutOneWay drops what one host sends to another, until Heal.
func (l *Lab) CutOneWay(from, to *Host) {
	l.t.Helper()
	l.nft(cut(from, to))
	l.log("cut from %s to %s", from.Name, to.Name)
}

func cut(from, to *Host) string {
	return fmt.Sprintf("add element bridge netlab cut { %q . %q }\n", from.port, to.port)
}

// Loss drops that percentage of all frames; 0 ends it.
func (l *Lab) Loss(percent float64) {
	l.t.Helper()
	l.lose("", percent)
	l.log("%g %% of all frames are lost", percent)
}

// Loss drops that percentage of the frames from and to the host; 0 ends it.
func (h *Host) Loss(percent float64) {
	h.lab.t.Helper()
	h.lab.lose(h.port, percent)
	h.lab.log("%g %% of the frames of %s are lost", percent, h.Name)
}

func (l *Lab) lose(port string, percent float64) {
	l.t.Helper()
	if percent < 0 || percent > 100 {
		l.t.Fatalf("netlab: a loss of %g %%", percent)
	}
	l.lost[port] = percent
	l.nft(lossRules(l.lost))
}

// lossRules is the script that makes these losses the only ones.
func lossRules(lost map[string]float64) string {
	var b strings.Builder
	b.WriteString("flush chain bridge netlab loss\n")
	for _, port := range slices.Sorted(maps.Keys(lost)) {
		drop := fmt.Sprintf("numgen random mod 10000 < %d drop\n", int(lost[port]*100))
		switch {
		case lost[port] == 0:
		case port == "":
			b.WriteString("add rule bridge netlab loss " + drop)
		default:
			fmt.Fprintf(&b, "add rule bridge netlab loss iifname %q %s", port, drop)
			fmt.Fprintf(&b, "add rule bridge netlab loss oifname %q %s", port, drop)
		}
	}
	return b.String()
}

// Cut takes the host off the network, until Heal.
func (h *Host) Cut() {
	h.lab.t.Helper()
	h.lab.detach(h.port)
	h.lab.log("%s is cut off", h.Name)
}

// Heal ends Cut of the host.
func (h *Host) Heal() {
	h.lab.t.Helper()
	h.lab.attach(h.port)
	h.lab.log("%s is back on the network", h.Name)
}

// Heal ends every cut and every loss.
func (l *Lab) Heal() {
	l.t.Helper()
	l.lost = map[string]float64{}
	l.nft("flush set bridge netlab cut\n" + lossRules(l.lost))
	var ports []string
	for _, h := range l.hosts {
		if h.on {
			ports = append(ports, h.port)
		}
	}
	l.attach(ports...)
	l.log("the network is healed")
}
