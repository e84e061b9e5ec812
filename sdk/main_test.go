package sdk

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// patience bounds what must happen soon.
const patience = 10 * time.Second

// instance is an instance file for one instance of echo/echo.
func instance(url, name string) kbroker.InstanceFile {
	return kbroker.InstanceFile{
		Tenant: kbroker.DefaultTenant, App: "echo", Service: "echo", Host: "h1", Version: 3, Epoch: 5,
		Instance: kbroker.InstanceID(name), Incarnation: kbroker.Incarnation(name + ".00112233aabbccdd"),
		Servers: []string{url},
	}
}

// as makes New and Dial use a given cluster and, with an instance, be it.
func as(url string, i *kbroker.InstanceFile) Option {
	return func(o *options) {
		o.log = slog.New(slog.DiscardHandler)
		o.find = func(string) (connect.Target, error) {
			return connect.Target{Servers: []string{url}, Tenant: kbroker.DefaultTenant, Source: "test", Instance: i}, nil
		}
	}
}

// newApp is an instance of echo/echo that is not running yet.
func newApp(url, name string, opts ...Option) *App {
	i := instance(url, name)
	return New(append([]Option{as(url, &i)}, opts...)...)
}

// running is an app under test.
type running struct {
	*App
	stop func()
	done chan error // Run's result
}

// start runs the app until the test ends and waits until it is ready.
func start(t *testing.T, a *App) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{App: a, stop: cancel, done: make(chan error, 1)}
	var once sync.WaitGroup
	once.Go(func() { r.done <- a.Run(ctx) })
	t.Cleanup(func() { cancel(); once.Wait() })
	wait.Until(t, patience, func() error {
		if a.phase.Load() != phaseReady {
			return kbroker.Errorf(kbroker.Unavailable, "app is not ready (phase %d)", a.phase.Load())
		}
		return nil
	})
	return r
}

// ended waits for Run's result.
func (r *running) ended(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(patience):
		t.Fatalf("Run did not return within %v", patience)
		return nil
	}
}

// dial returns a caller on a connection of its own.
func dial(t *testing.T, url string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), as(url, nil))
	if err != nil {
		t.Fatalf("dial %s: %v", url, err)
	}
	c.budget = &budget{}
	t.Cleanup(c.Close)
	return c
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// wantError checks code and executed.
func wantError(t *testing.T, err error, code kbroker.Code, ex kbroker.Executed) *Error {
	t.Helper()
	e := kbroker.AsError(err)
	if e == nil {
		t.Fatalf("no error, want %s (executed %s)", code, ex)
	}
	if e.Code != code || e.Executed != ex {
		t.Fatalf("error %q has code %s, executed %s; want %s, %s", err, e.Code, e.Executed, code, ex)
	}
	return e
}

// proxy is a network between clients and a server that a test can cut, and
// behind which the server can be another one.
type proxy struct {
	url    string
	listen net.Listener

	mu     sync.Mutex
	target string
	down   bool
	frozen bool
	conns  map[net.Conn]bool
}

func newProxy(t *testing.T, s *natstest.Server) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	p := &proxy{url: "nats://" + l.Addr().String(), listen: l, conns: map[net.Conn]bool{}}
	p.lead(s)
	var wg sync.WaitGroup
	wg.Go(func() { p.accept(&wg) })
	t.Cleanup(func() { p.cut(); _ = l.Close(); wg.Wait() })
	return p
}

// lead sends new connections to s.
func (p *proxy) lead(s *natstest.Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = s.URL[len("nats://"):]
	p.down = false
}

// cut closes all connections and refuses new ones.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.conns {
		_ = c.Close()
	}
	clear(p.conns)
}

// freeze accepts new connections and does nothing with them.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = true
}

func (p *proxy) accept(wg *sync.WaitGroup) {
	for {
		in, err := p.listen.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		down, target := p.down, p.target
		if p.frozen {
			p.conns[in] = true
			p.mu.Unlock()
			continue
		}
		p.mu.Unlock()
		out, err := net.Dial("tcp", target)
		if down || err != nil {
			_ = in.Close()
			if err == nil {
				_ = out.Close()
			}
			continue
		}
		p.mu.Lock()
		p.conns[in], p.conns[out] = true, true
		p.mu.Unlock()
		wg.Go(func() { pump(in, out) })
		wg.Go(func() { pump(out, in) })
	}
}

func pump(from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				err = werr
			}
		}
		if err != nil {
			_ = from.Close()
			_ = to.Close()
			return
		}
	}
}

// raw subscribes to a method of echo/echo without an SDK: a service that does
// exactly what the test says.
func raw(t *testing.T, s *natstest.Server, method string, answer func(*nats.Msg)) *nats.Conn {
	t.Helper()
	nc := s.Connect(t)
	if _, err := nc.QueueSubscribe(subjects.Method("echo", "echo", method), subjects.QueueService, answer); err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
	return nc
}
