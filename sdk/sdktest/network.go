package sdktest

import (
	"fmt"
	"net"
	"net/url"
	"sync"
)

// network is between an instance and the broker: a proxy that can stop forwarding, or end.
type network struct {
	to     string
	listen net.Listener
	held   gate

	mu     sync.Mutex
	conns  []net.Conn
	closed bool
	work   sync.WaitGroup
}

func newNetwork(server string) (*network, error) {
	u, err := url.Parse(server)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for an instance: %w", err)
	}
	n := &network{to: u.Host, listen: l}
	n.work.Go(n.accept)
	return n, nil
}

func (n *network) url() string { return "nats://" + n.listen.Addr().String() }

func (n *network) accept() {
	for {
		in, err := n.listen.Accept()
		if err != nil {
			return // closed
		}
		out, err := net.Dial("tcp", n.to)
		if err != nil || !n.keep(in, out) {
			in.Close()
			if out != nil {
				out.Close()
			}
			continue
		}
		n.work.Go(func() { n.forward(in, out) })
		n.work.Go(func() { n.forward(out, in) })
	}
}

// keep notes a connection's two ends, if it may still begin.
func (n *network) keep(in, out net.Conn) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return false
	}
	n.conns = append(n.conns, in, out)
	return true
}

func (n *network) forward(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		k, err := from.Read(buf)
		n.held.wait()
		if k > 0 {
			if _, e := to.Write(buf[:k]); e != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// hold has nothing be forwarded, or all of it again.
func (n *network) hold(on bool) {
	if on {
		n.held.shut()
	} else {
		n.held.open()
	}
}

// close ends all connections, with what is on its way, and takes no more.
func (n *network) close() {
	n.mu.Lock()
	n.closed = true
	conns := n.conns
	n.conns = nil
	n.mu.Unlock()
	n.listen.Close()
	for _, c := range conns {
		c.Close()
	}
	n.held.open()
	n.work.Wait()
}
