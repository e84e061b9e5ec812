package sdktest

import (
	"net"
	"sync"
	"time"
)

// dialWithin bounds one connection to the server of the test.
const dialWithin = time.Second

// cable is what connects an instance: it can be held, so that nothing comes through, in
// neither direction, until it is let go; or cut for good.
type cable struct {
	mu    sync.Mutex
	moved *sync.Cond // the state of the cable, or of a line, has changed
	held  bool
	cut   bool
	lines map[*line]bool
}

func newCable() *cable {
	c := &cable{lines: map[*line]bool{}}
	c.moved = sync.NewCond(&c.mu)
	return c
}

// line is a connection over a cable.
type line struct {
	net.Conn
	over   *cable
	unsent []byte // while the cable is held
	closed bool
}

// Dial makes a connection; a cable that is held or cut has none.
func (c *cable) Dial(network, address string) (net.Conn, error) {
	if !c.open() {
		return nil, net.ErrClosed
	}
	conn, err := net.DialTimeout(network, address, dialWithin)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut {
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	l := &line{Conn: conn, over: c}
	c.lines[l] = true
	return l, nil
}

func (c *cable) open() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.held && !c.cut
}

// hold keeps what is sent over the cable, and what has come, until release.
func (c *cable) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = true
}

// release lets go what was kept.
func (c *cable) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = false
	for l := range c.lines {
		if len(l.unsent) > 0 {
			_, _ = l.Conn.Write(l.unsent) // of a connection that is gone its reader hears
			l.unsent = nil
		}
	}
	c.moved.Broadcast()
}

// end cuts the cable: what was not sent is lost.
func (c *cable) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for l := range c.lines {
		_ = l.Conn.Close()
	}
	c.moved.Broadcast()
}

// Read hands over what has come once the cable lets it.
func (l *line) Read(b []byte) (int, error) {
	n, err := l.Conn.Read(b)
	c := l.over
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.held && !c.cut && !l.closed {
		c.moved.Wait()
	}
	if c.cut || l.closed {
		return 0, net.ErrClosed
	}
	return n, err
}

func (l *line) Write(b []byte) (int, error) {
	c := l.over
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cut || l.closed:
		return 0, net.ErrClosed
	case c.held:
		l.unsent = append(l.unsent, b...)
		return len(b), nil
	}
	return l.Conn.Write(b)
}

func (l *line) Close() error {
	c := l.over
	c.mu.Lock()
	defer c.mu.Unlock()
	l.closed = true
	delete(c.lines, l)
	c.moved.Broadcast()
	return l.Conn.Close()
}
