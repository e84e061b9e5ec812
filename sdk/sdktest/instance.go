package sdktest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/inprocess"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/subjects"
)

// Instance is an instance of a service in the test's process.
type Instance struct {
	c      *Cluster
	name   kbroker.InstanceID
	app    kbroker.AppName
	svc    kbroker.ServiceName
	serve  func(*sdk.App)
	net    *network
	still  gate
	over   chan struct{} // closed when nothing of it runs any more
	cancel context.CancelFunc

	mu          sync.Mutex
	incarnation kbroker.Incarnation
	current     inprocess.App
	killed      bool
}

// Run starts an instance of "app/service", or one more of them, and returns when it is
// ready. serve declares what the program serves, as its main does. The instance ends with
// the test, and is not drained then: see Stop. One that has lost its lease is started again,
// as its agent would.
func (c *Cluster) Run(name string, serve func(*sdk.App)) *Instance {
	c.t.Helper()
	app, service, ok := strings.Cut(name, "/")
	if !ok || kbroker.CheckName("app", app) != nil || kbroker.CheckName("service", service) != nil {
		c.t.Fatalf("sdktest: %q names no service, want app/service", name)
	}
	network, err := newNetwork(c.server.URL)
	if err != nil {
		c.t.Fatalf("sdktest: %v", err)
	}
	c.mu.Lock()
	c.starts++
	i := &Instance{
		c: c, app: kbroker.AppName(app), svc: kbroker.ServiceName(service), serve: serve, net: network, over: make(chan struct{}),
		name: kbroker.InstanceID(fmt.Sprintf("%s-%s-%d", app, service, c.starts)),
	}
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	i.cancel = cancel
	go func() {
		defer close(i.over)
		i.supervise(ctx)
	}()
	c.t.Cleanup(func() {
		i.PowerOff()
		<-i.over
	})
	wait.Until(c.t, patience, func() error {
		if !i.ready() {
			return fmt.Errorf("%s is not ready", i.name)
		}
		return nil
	})
	return i
}

// Name is the instance's name.
func (i *Instance) Name() string { return string(i.name) }

// supervise starts the instance, and again for as long as it ends by itself.
func (i *Instance) supervise(ctx context.Context) {
	for ctx.Err() == nil && !i.isKilled() {
		program, app := made(inprocess.Config{Server: i.net.url(), Log: i.c.log.With("instance", i.name), Hold: i.still.wait})
		i.serve(program)
		i.c.deploy(i.app, i.svc, app.Kinds())
		i.c.mu.Lock()
		own := i.c.start(i.app, i.svc, i.name)
		i.c.mu.Unlock()
		app.Be(own)
		i.mu.Lock()
		i.current, i.incarnation = app, own.Incarnation
		i.mu.Unlock()
		err := app.Run(ctx)
		i.reaped(own.Incarnation)
		if ctx.Err() != nil || i.isKilled() {
			return
		}
		i.c.t.Logf("sdktest: %s ended and starts again: %v", own.Incarnation, err)
	}
}

func (i *Instance) ready() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current != nil && i.current.Ready()
}

func (i *Instance) isKilled() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.killed
}

// reaped says that a start has ended, as its agent does, who has waited for it.
func (i *Instance) reaped(start kbroker.Incarnation) {
	body, err := json.Marshal(kbroker.Reaped{Incarnations: []kbroker.Incarnation{start}})
	if err != nil {
		panic("sdktest: a name does not marshal: " + err.Error())
	}
	_ = i.c.conn.Publish(subjects.Reaped(kbroker.DefaultTenant, i.app), body) // it may be lost: then the lease ends
}

// Kill ends the instance as kill -9 does: from now on nothing of it is sent or heard. Its
// agent notices at once, so that others take over what it owned. Go code of its handlers
// and turns that runs at the moment runs on, and nobody hears of it. It is not started
// again; Run starts another one.
func (i *Instance) Kill() { i.end(true) }

// PowerOff is Kill of the instance together with its host: nobody notices until its lease
// has ended, which is after 6.5 s; see Advance.
func (i *Instance) PowerOff() { i.end(false) }

func (i *Instance) end(noticed bool) {
	i.net.close()
	i.mu.Lock()
	i.killed = true
	app, start := i.current, i.incarnation
	i.mu.Unlock()
	if app != nil {
		app.Cut()
	}
	i.Resume() // it ends, unheard
	i.cancel()
	if noticed {
		i.reaped(start)
	}
}

// Stop ends the instance as a deploy or a drain does: what it owns moves to others, and
// what it works on is answered. It returns when it has ended.
func (i *Instance) Stop() {
	i.cancel()
	<-i.over
}

// Pause has the instance stand still as SIGSTOP does, until Resume: nothing of it is sent
// or heard, and its objects do nothing, also if their lease ends meanwhile. Go code of its
// handlers and turns that runs at the moment runs on, and nobody hears of it.
func (i *Instance) Pause() {
	i.still.shut()
	i.net.hold(true)
}

// Resume ends a Pause. What was on its way arrives.
func (i *Instance) Resume() {
	i.net.hold(false)
	i.still.open()
}

// Partition cuts the instance off from everybody, until Heal: nothing arrives, in both
// directions, and no connection ends by it.
func (i *Instance) Partition() { i.net.hold(true) }

// Heal ends a Partition.
func (i *Instance) Heal() { i.net.hold(false) }

// gate lets everybody pass, or nobody. The zero value is open.
type gate struct {
	mu     sync.Mutex
	closed chan struct{} // while it is shut; closed when it is opened
}

func (g *gate) shut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed == nil {
		g.closed = make(chan struct{})
	}
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

func (g *gate) wait() {
	for {
		g.mu.Lock()
		c := g.closed
		g.mu.Unlock()
		if c == nil {
			return
		}
		<-c
	}
}
