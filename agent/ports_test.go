package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// serve is a program that listens on the port http until it is told to leave.
func serve() {
	l, err := net.Listen("tcp", net.JoinHostPort(os.Getenv("HOST_ADDRESS"), os.Getenv("PORT_HTTP")))
	if err != nil {
		panic(err)
	}
	fmt.Println(strings.Join(os.Args[3:], " "), os.Getenv("URL"), os.Getenv("PORT"))
	for {
		conn, err := l.Accept()
		if err != nil {
			panic(err)
		}
		conn.Close()
	}
}

func TestPortsAreNotThoseOfOutgoingConnections(t *testing.T) {
	for name, c := range map[string]struct {
		first, last int
		want        []portSpan
	}{
		"as Linux has it":                 {32768, 60999, []portSpan{{10000, 32767}, {61000, 65535}}},
		"up to the end":                   {32768, 65535, []portSpan{{10000, 32767}}},
		"from below the first":            {1024, 60999, []portSpan{{61000, 65535}}},
		"none is left: all are as good":   {1024, 65535, []portSpan{{10000, 65535}}},
		"only those that are never given": {1, 100, []portSpan{{10000, 65535}}},
		"not known":                       {65535, 10000, []portSpan{{10000, 65535}}},
	} {
		t.Run(name, func(t *testing.T) {
			got := spansWithout(c.first, c.last)
			if !slices.Equal(got, c.want) {
				t.Errorf("picked from %v, want %v", got, c.want)
			}
		})
	}
	rapid.Check(t, func(t *rapid.T) {
		first, last := rapid.IntRange(1, 65535).Draw(t, "first"), rapid.IntRange(1, 65535).Draw(t, "last")
		from := spansWithout(first, last)
		n := draw(from, rapid.Float64Range(0, 1).Draw(t, "random"))
		if !slices.ContainsFunc(from, func(s portSpan) bool { return s.first <= n && n <= s.last }) {
			t.Fatalf("%d is in none of %v", n, from)
		}
	})
}

// bookOf has few numbers, of which those in busy are somebody else's.
func bookOf(busy map[int]bool) *portBook {
	b := newPortBook()
	b.spans, b.free = []portSpan{{10000, 10019}}, func(n int) bool { return !busy[n] }
	return b
}

func key(i int) kbroker.StatusKey {
	return kbroker.StatusKey{Tenant: kbroker.DefaultTenant, Instance: kbroker.InstanceID(fmt.Sprintf("shop-web-%d", i))}
}

// TestNoTwoInstancesHaveTheSamePort, whatever comes and goes, and each keeps its own.
func TestNoTwoInstancesHaveTheSamePort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := bookOf(map[int]bool{10000: true, 10007: true})
		given := map[kbroker.StatusKey]map[string]int{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			k := key(rapid.IntRange(1, 8).Draw(t, "instance"))
			if rapid.Bool().Draw(t, "leaves") {
				b.release(k)
				delete(given, k)
				continue
			}
			var ports []kbroker.Port
			for _, name := range []string{"admin", "http"}[:rapid.IntRange(0, 2).Draw(t, "ports")] {
				ports = append(ports, kbroker.Port{Name: name})
			}
			now, err := b.assign(context.Background(), k, ports)
			if err != nil || len(now) != len(ports) {
				t.Fatalf("assign %v: %v, %v", ports, now, err)
			}
			for name, n := range now {
				if was := given[k][name]; was != 0 && was != n {
					t.Fatalf("port %s of %s was %d, is %d", name, k.Instance, was, n)
				}
			}
			given[k] = maps.Clone(now)
			owners := map[int]string{10000: "somebody else", 10007: "somebody else"}
			for k, ports := range given {
				for name, n := range ports {
					if other := owners[n]; other != "" {
						t.Fatalf("%d is that of %s and of %s", n, k.Instance, other)
					}
					owners[n] = string(k.Instance) + "/" + name
				}
			}
		}
	})
}

func TestPortsAreAssigned(t *testing.T) {
	http := []kbroker.Port{{Name: "http"}}
	assign := func(t *testing.T, b *portBook, i int, ports []kbroker.Port) int {
		t.Helper()
		got, err := b.assign(t.Context(), key(i), ports)
		if err != nil {
			t.Fatal(err)
		}
		return got["http"]
	}
	t.Run("anew when somebody else listens there", func(t *testing.T) {
		busy := map[int]bool{}
		b := bookOf(busy)
		was := assign(t, b, 1, http)
		busy[was] = true
		if now := assign(t, b, 1, http); now == was || now == 0 {
			t.Errorf("the port was %d, is %d", was, now)
		}
	})
	t.Run("as an earlier agent has", func(t *testing.T) {
		b := bookOf(nil)
		b.hold(key(1), map[string]int{"http": 10003})
		if n := assign(t, b, 1, http); n != 10003 {
			t.Errorf("the port is %d, want 10003", n)
		}
	})
	t.Run("not as an earlier agent has, where another instance has it", func(t *testing.T) {
		b := bookOf(nil)
		b.hold(key(1), map[string]int{"http": 10003})
		b.hold(key(2), map[string]int{"http": 10003})
		if one, two := assign(t, b, 1, http), assign(t, b, 2, http); one != 10003 || two == 10003 {
			t.Errorf("the ports are %d and %d, want 10003 and another one", one, two)
		}
	})
	t.Run("as the spec says, in use or not", func(t *testing.T) {
		b := bookOf(map[int]bool{8080: true})
		if n := assign(t, b, 1, []kbroker.Port{{Name: "http", Number: 8080}}); n != 8080 {
			t.Errorf("the port is %d, want 8080", n)
		}
	})
	t.Run("not what another instance has", func(t *testing.T) {
		b := bookOf(nil)
		n := assign(t, b, 1, http)
		_, err := b.assign(t.Context(), key(2), []kbroker.Port{{Name: "http", Number: n}})
		if !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "shop-web-1") {
			t.Errorf("the error is %v, want one that names shop-web-1", err)
		}
		b.release(key(1))
		if got := assign(t, b, 2, []kbroker.Port{{Name: "http", Number: n}}); got != n {
			t.Errorf("after it has left the port is %d, want %d", got, n)
		}
	})
	t.Run("none where all are taken", func(t *testing.T) {
		busy := map[int]bool{}
		for n := 10000; n < 10020; n++ {
			busy[n] = true
		}
		if _, err := bookOf(busy).assign(t.Context(), key(1), http); !errors.Is(err, kbroker.Overloaded) {
			t.Errorf("the error is %v, want overloaded", err)
		}
	})
}

// TestAPortIsFreeWhereNobodyListens: each attempt has a port of its own, as somebody else
// may listen on the same one by the other protocol, or take it meanwhile.
func TestAPortIsFreeWhereNobodyListens(t *testing.T) {
	for _, network := range []string{"tcp 127.0.0.1:0", "tcp 0.0.0.0:0", "tcp [::]:0", "udp 127.0.0.1:0"} {
		t.Run(network, func(t *testing.T) {
			kind, at, _ := strings.Cut(network, " ")
			listen := func() (net.Addr, io.Closer, error) {
				if kind == "tcp" {
					l, err := net.Listen(kind, at)
					if err != nil {
						return nil, nil, err
					}
					return l.Addr(), l, nil
				}
				l, err := net.ListenPacket(kind, at)
				if err != nil {
					return nil, nil, err
				}
				return l.LocalAddr(), l, nil
			}
			wait.Until(t, 5*time.Second, func() error {
				addr, l, err := listen()
				if err != nil {
					t.Skipf("this machine cannot listen on %s: %v", at, err)
				}
				_, port, _ := net.SplitHostPort(addr.String())
				n, _ := strconv.Atoi(port)
				if isFree(n) {
					t.Errorf("%s listens, and its port is free", addr)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				if !isFree(n) {
					return fmt.Errorf("nobody listens on %d, and it is taken", n)
				}
				return nil
			})
		})
	}
}

func TestOnlyKnownVariablesAreReplaced(t *testing.T) {
	r := record{Incarnation: "shop-web-1.0", Placement: placement("shop-web-1", "run"), Ports: map[string]int{"http": 8080}}
	known := variables("/home", "10.0.0.1", "", r)
	for text, want := range map[string]string{
		"--port=${PORT_HTTP}":                   "--port=8080",
		"${HOST_ADDRESS}:${PORT}":               "10.0.0.1:8080",
		"${KBROKER_APP}/${KBROKER_SERVICE}":     "shop/web",
		"${KBROKER_INSTANCE_NAME}@":             "shop-web-1@",
		"${KBROKER_HOST}${KBROKER_INCARNATION}": "h1shop-web-1.0",
		"${KBROKER_INSTANCE}":                   "/home/run/instance.json",
		"$PORT ${port} ${PORT_X} ${} ${PORT":    "$PORT ${port} ${PORT_X} ${} ${PORT",
		"${KBROKER_ARTIFACT_DIR} ${LOG}":        "${KBROKER_ARTIFACT_DIR} ${LOG}", // of another instance
		"$${PORT}":                              "$8080",
	} {
		if got := expand(text, known); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	r.Ports["admin-api"] = 8081
	known = variables("/home", "10.0.0.1", "/tree", r)
	if got := expand("${PORT_ADMIN_API} ${PORT} ${KBROKER_ARTIFACT_DIR}", known); got != "8081 ${PORT} /tree" {
		t.Errorf("with two ports and an archive: %q", got)
	}
	r.Placement.App = "${PORT_HTTP}"
	if got := expand("${KBROKER_APP}", variables("/home", "", "", r)); got != "${PORT_HTTP}" {
		t.Errorf("what is in a value is replaced: %q", got)
	}
}

func TestAnInstanceKeepsItsPorts(t *testing.T) {
	t.Parallel()
	c, dir := newCore(t), t.TempDir()
	served := func(i kbroker.InstanceID) kbroker.Placement {
		p := placement(i, "serve")
		p.Spec.Ports = []kbroker.Port{{Name: "http"}}
		p.Spec.Args = []string{"--listen", "${HOST_ADDRESS}:${PORT_HTTP}", "${UNKNOWN}"}
		p.Spec.Env = map[string]string{"URL": "http://${HOST_ADDRESS}:${PORT_HTTP}/"}
		p.Template = kbroker.Template(p.Spec)
		return p
	}
	one, two := served("shop-web-1"), served("shop-web-2")
	c.want(one, two)
	a := c.startAgent(dir)
	s := c.awaitState(one.Instance, kbroker.StateReady)
	port := s.Ports["http"]
	if other := c.awaitState(two.Instance, kbroker.StateReady).Ports["http"]; port < firstPort || other < firstPort || port == other {
		t.Fatalf("the ports are %d and %d", port, other)
	}
	said := fmt.Sprintf("--listen 127.0.0.1:%d ${UNKNOWN} http://127.0.0.1:%d/ %d\n", port, port, port)
	wait.Until(t, 10*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(a.home(one.Instance), outputFile))
		if err != nil || !strings.Contains(string(b), said) {
			return fmt.Errorf("output %q has no %q: %v", b, said, err)
		}
		return nil
	})
	answers := func(why string, port int) {
		t.Helper()
		wait.Until(t, 10*time.Second, func() error {
			conn, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(port))
			if err != nil {
				return fmt.Errorf("%s: %w", why, err)
			}
			return conn.Close()
		})
	}
	again := func(why string) {
		t.Helper()
		kill(t, s.PID, unix.SIGKILL)
		was := s.PID
		s = c.await(one.Instance, 10*time.Second, why, func(s kbroker.Status) bool { return s.State == kbroker.StateReady && s.PID != was })
		if s.Ports["http"] != port {
			t.Errorf("%s: the port is %v, was %d", why, s.Ports, port)
		}
		answers(why, port)
	}
	answers("at first", port)
	again("after a crash")

	a.stop()
	c.forgetStatuses()
	a = c.startAgent(dir)
	if now := c.awaitState(one.Instance, kbroker.StateReady); now.PID != s.PID || now.Ports["http"] != port {
		t.Errorf("adopted as %+v, was %+v", now, s)
	}
	again("after a crash under another agent")

	a.stop()
	if err := os.Remove(filepath.Join(a.home(one.Instance), recordFile)); err != nil {
		t.Fatal(err)
	}
	c.forgetStatuses()
	a = c.startAgent(dir)
	if now := c.awaitState(one.Instance, kbroker.StateReady); now.PID != s.PID || now.Ports["http"] != port {
		t.Errorf("adopted without its record as %+v, was %+v", now, s)
	}
	again("after a crash without the record of its start")

	// While no agent runs somebody else takes it.
	a.stop()
	kill(t, s.PID, unix.SIGKILL)
	awaitDead(t, 5*time.Second, s.PID)
	var thief net.Listener
	wait.Until(t, 5*time.Second, func() (err error) {
		thief, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		return err
	})
	defer thief.Close()
	c.forgetStatuses()
	c.startAgent(dir)
	now := c.awaitState(one.Instance, kbroker.StateReady)
	if n := now.Ports["http"]; n == port || n < firstPort {
		t.Errorf("the port is %d, and %d is somebody else's", n, port)
	}
	answers("with another port", now.Ports["http"])

	c.want(tombstone(two))
	c.awaitState(two.Instance, kbroker.StateExited)
}
