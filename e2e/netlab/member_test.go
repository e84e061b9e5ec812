//go:build linux

package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// memberEnv makes this test binary a member of a lab: it listens at the address
// in it, echoes over TCP, counts UDP datagrams, and does what it reads from
// standard input, a line of answer for each line.
const memberEnv = "KBROKER_TEST_NETLAB_MEMBER"

func TestMain(m *testing.M) {
	if addr := os.Getenv(memberEnv); addr != "" {
		if err := serveMember(addr); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const (
	// silence is how long a member waits for an answer before it says timeout.
	silence = 700 * time.Millisecond
	// memberPort is where members listen.
	memberPort = 7000
)

func serveMember(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); _, _ = io.Copy(c, c) }()
		}
	}()
	datagrams, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	var received atomic.Int64
	go func() {
		buf := make([]byte, 2048)
		for {
			if _, _, err := datagrams.ReadFrom(buf); err != nil {
				return
			}
			received.Add(1)
		}
	}()
	fmt.Println("ready")
	conns := map[string]net.Conn{}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		f := strings.Fields(in.Text())
		switch f[0] {
		case "dial": // ADDR: the only connection to it
			c, err := net.DialTimeout("tcp", f[1], silence)
			conns[f[1]] = c
			fmt.Println(kind(err))
		case "echo": // ADDR BYTES, over that connection
			n, _ := strconv.Atoi(f[2])
			fmt.Println(kind(echo(conns[f[1]], n)))
		case "flood": // ADDR N
			n, _ := strconv.Atoi(f[2])
			fmt.Println(kind(flood(f[1], n)))
		case "count": // datagrams since the last count
			fmt.Println(received.Swap(0))
		}
	}
	return nil
}

func echo(c net.Conn, size int) error {
	if err := c.SetDeadline(time.Now().Add(silence + time.Duration(size)*time.Microsecond)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, size))
		sent <- err
	}()
	_, err := io.ReadFull(c, make([]byte, size))
	return errors.Join(err, <-sent)
}

// flood sends datagrams, ten in a millisecond.
func flood(addr string, n int) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	for i := range n {
		if _, err := c.Write(make([]byte, 100)); err != nil {
			return err
		}
		if i%10 == 9 {
			<-time.After(time.Millisecond)
		}
	}
	return nil
}

// kind is what kind of end a network operation had.
func kind(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrUnexpectedEOF):
		return "eof"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() { // of a dial
		return "timeout"
	}
	return err.Error()
}

// member is one from the test's side.
type member struct {
	t    *testing.T
	addr string
	in   io.Writer
	out  *bufio.Scanner
}

// join starts a member in a namespace; it is killed with it.
func join(t *testing.T, n *Namespace) *member {
	t.Helper()
	m := &member{t: t, addr: net.JoinHostPort(n.IP.String(), strconv.Itoa(memberPort))}
	cmd := n.Command(context.Background(), os.Args[0])
	cmd.Env = append(os.Environ(), memberEnv+"="+m.addr)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	m.in, m.out = in, bufio.NewScanner(out)
	if got := m.answer(); got != "ready" {
		t.Fatalf("the member on %s said %q, want ready", n.Name, got)
	}
	return m
}

func (m *member) answer() string {
	m.t.Helper()
	if !m.out.Scan() {
		m.t.Fatalf("the member at %s has ended: %v", m.addr, m.out.Err())
	}
	return m.out.Text()
}

func (m *member) ask(words ...string) string {
	m.t.Helper()
	if _, err := fmt.Fprintln(m.in, strings.Join(words, " ")); err != nil {
		m.t.Fatalf("ask the member at %s: %v", m.addr, err)
	}
	return m.answer()
}

// want asks and holds that this is the answer.
func (m *member) want(want string, words ...string) {
	m.t.Helper()
	if got := m.ask(words...); got != want {
		m.t.Errorf("%s: %s: %q, want %q", m.addr, strings.Join(words, " "), got, want)
	}
}

// arrived sends n datagrams to another member and returns how many it got.
func (m *member) arrived(to *member, n int) int {
	m.t.Helper()
	to.ask("count")
	m.want("ok", "flood", to.addr, strconv.Itoa(n))
	got := 0
	settled := errors.New("more came")
	if err := within(5*time.Second, func() error {
		more, err := strconv.Atoi(to.ask("count"))
		got += more
		if more > 0 || err != nil {
			return settled
		}
		return nil
	}); err != nil {
		m.t.Fatal(err)
	}
	return got
}
