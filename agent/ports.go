package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

const (
	// firstPort is the lowest number that is picked: below it are those that people
	// give to what they know.
	firstPort = 10_000
	lastPort  = 65_535
	// ephemeralFile has the numbers that the kernel gives to outgoing connections
	// (ip(7)): one of them could take a number while its instance is down.
	ephemeralFile = "/proc/sys/net/ipv4/ip_local_port_range"
	// portTries bounds how many numbers are looked at for one port.
	portTries = 200
	// portPatience is how long the number that an instance had may be taken still: by
	// what its last start has left, which is being killed.
	portPatience = time.Second
	portPoll     = 10 * time.Millisecond
)

// portSpan is a range of numbers, both ends in it.
type portSpan struct{ first, last int }

// spansWithout are the numbers that are picked from, where those from first to last are
// the kernel's: all others, or all if that leaves none.
func spansWithout(first, last int) []portSpan {
	var out []portSpan
	for _, s := range []portSpan{{firstPort, min(first-1, lastPort)}, {max(last+1, firstPort), lastPort}} {
		if s.first <= s.last {
			out = append(out, s)
		}
	}
	if len(out) == 0 || first > last {
		return []portSpan{{firstPort, lastPort}}
	}
	return out
}

// spans are the numbers that are picked from on this machine.
func spans() []portSpan {
	var first, last int
	b, err := os.ReadFile(ephemeralFile)
	if err == nil {
		_, err = fmt.Sscan(string(b), &first, &last)
	}
	if err != nil {
		return spansWithout(lastPort, firstPort) // not known: none is better than another
	}
	return spansWithout(first, last)
}

// draw is a number of the spans, for a random one from 0 to 1.
func draw(from []portSpan, random float64) int {
	n := 0
	for _, s := range from {
		n += s.last - s.first + 1
	}
	n = int(random * float64(n))
	for _, s := range from {
		if size := s.last - s.first + 1; n >= size {
			n -= size
		} else {
			return s.first + n
		}
	}
	return from[len(from)-1].last
}

// portBook has the numbers that are handed out on this host, of instances that are down
// as well: until nothing is left of an instance they are its own. Safe for concurrent
// use.
type portBook struct {
	spans []portSpan
	// free reports whether nobody listens on a number.
	free func(number int) bool

	mu sync.Mutex
	of map[kbroker.StatusKey]map[string]int
}

func newPortBook() *portBook {
	return &portBook{spans: spans(), free: isFree, of: map[kbroker.StatusKey]map[string]int{}}
}

// hold notes what an instance has been given by an earlier agent. Of what another one has
// by now it gets another number at its next start.
func (b *portBook) hold(k kbroker.StatusKey, ports map[string]int) {
	for name, n := range ports {
		b.take(k, name, n)
	}
}

// release gives back all that an instance has.
func (b *portBook) release(k kbroker.StatusKey) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.of, k)
}

// assign gives an instance a number for each of its ports: the one that the spec names,
// else that which it had, else one that is free. It had another one before if somebody
// else listens there now. Errors: Refused, another instance has a number that the spec
// names; Overloaded, there is none; that of ctx.
func (b *portBook) assign(ctx context.Context, k kbroker.StatusKey, ports []kbroker.Port) (map[string]int, error) {
	var given map[string]int
	for _, p := range ports {
		n := p.Number
		if n == 0 {
			var err error
			if n, err = b.pick(ctx, k, p.Name); err != nil {
				return nil, err
			}
		} else if owner, ok := b.take(k, p.Name, n); !ok {
			return nil, kbroker.Errorf(kbroker.Refused, "port %d (%s) is taken by instance %s on this host", n, p.Name, owner.Instance).
				WithHint("numbers from %d on are also handed out to ports without a number; take a lower one, or leave the number out", firstPort)
		}
		if given == nil {
			given = make(map[string]int, len(ports))
		}
		given[p.Name] = n
	}
	b.keep(k, given)
	return given, nil
}

// pick is assign for one port without a number of its own.
func (b *portBook) pick(ctx context.Context, k kbroker.StatusKey, name string) (int, error) {
	if n := b.had(k, name); n != 0 && b.awaitFree(ctx, n) {
		return n, nil
	}
	for range portTries {
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		n := draw(b.spans, rand.Float64())
		if _, ok := b.take(k, name, n); ok && b.free(n) {
			return n, nil
		}
	}
	return 0, kbroker.Errorf(kbroker.Overloaded, "no free port for %s among %d numbers", name, portTries).
		WithHint("what listens on this host? `ss -ltunp` lists it")
}

// awaitFree waits for a moment until a number is free.
func (b *portBook) awaitFree(ctx context.Context, number int) bool {
	for deadline := time.Now().Add(portPatience); ; pause(ctx, portPoll) {
		if b.free(number) {
			return true
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return false
		}
	}
}

func (b *portBook) had(k kbroker.StatusKey, name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.of[k][name]
}

// take gives a port of an instance a number that nothing else has been given; false: its
// owner has it.
func (b *portBook) take(k kbroker.StatusKey, name string, number int) (owner kbroker.StatusKey, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for other, ports := range b.of {
		for port, n := range ports {
			if n == number && (other != k || port != name) {
				return other, false
			}
		}
	}
	if b.of[k] == nil {
		b.of[k] = map[string]int{}
	}
	b.of[k][name] = number
	return k, true
}

// keep has an instance give back what is not among ports.
func (b *portBook) keep(k kbroker.StatusKey, ports map[string]int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name := range b.of[k] {
		if _, ok := ports[name]; !ok {
			delete(b.of[k], name)
		}
	}
	if len(b.of[k]) == 0 {
		delete(b.of, k)
	}
}

// isFree reports whether nobody listens on a number of this machine, whatever the
// address, by TCP or by UDP.
func isFree(number int) bool {
	at := ":" + strconv.Itoa(number)
	l, err := net.Listen("tcp", at)
	if err != nil {
		return false
	}
	defer l.Close()
	u, err := net.ListenPacket("udp", at)
	if err != nil {
		return false
	}
	defer u.Close()
	return true
}

// portVariable is the name of the variable that has the number of a port.
func portVariable(name string) string {
	return envPort + "_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
}

// portsOf reads the numbers that a process was given out of its environment. A process
// that has written over it, as some do to show a title, says nothing.
func portsOf(pid int) map[string]int {
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return nil
	}
	var ports map[string]int
	for v := range strings.SplitSeq(string(env), "\x00") {
		variable, value, _ := strings.Cut(v, "=")
		name, ok := strings.CutPrefix(variable, envPort+"_")
		number, err := strconv.Atoi(value)
		if !ok || err != nil || number < 1 || number > lastPort {
			continue
		}
		if ports == nil {
			ports = map[string]int{}
		}
		ports[strings.ToLower(strings.ReplaceAll(name, "_", "-"))] = number
	}
	return ports
}
