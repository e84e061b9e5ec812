// Package sdktest is a cluster inside a test: instances of an application's services run
// in the test's process, on an embedded broker, and their objects are owned, stored, moved
// and taken over by the production code.
//
//	func TestDeposit(t *testing.T) {
//		c := sdktest.New(t)
//		c.Run("bank/ledger", serve) // serve(app *sdk.App) declares what main serves, too
//		_, err := sdk.Call[account](t.Context(), c.Object("bank/account:alice"), "deposit", amount{5})
//		...
//	}
//
// What differs from a cluster: there is one server, with one copy of what is stored, without
// TLS and without credentials; the instances share the process, so that what one of them
// does outside of its objects and handlers the others see; and the clock by which leases
// and idle times are measured can be advanced.
//
//	test --Client--> broker <--proxy-- instance, instance, ...
//	                   ^--- super (the core's part), allocator
package sdktest

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/allocator"
	"github.com/kbroker/kbroker/internal/boottime"
	"github.com/kbroker/kbroker/internal/inprocess"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/spec"
	"github.com/kbroker/kbroker/subjects"
	"github.com/kbroker/kbroker/super"
)

const (
	host = "test"
	// patience bounds what must happen soon.
	patience = 20 * time.Second
	// streams are those that the objects of an app are stored in.
	streams = 1
	// step is how far the clock goes at once, pause how long all get to see it: leases are
	// renewed every second, and looked at every 50 ms.
	step  = 500 * time.Millisecond
	pause = 60 * time.Millisecond
)

// Cluster is a cluster for one test. Its methods may be called by several goroutines.
type Cluster struct {
	t      testing.TB
	server *natstest.Server
	conn   *nats.Conn
	client *sdk.Client
	log    *slog.Logger

	mu         sync.Mutex
	apps       map[kbroker.AppName]*kbroker.App
	allocators map[kbroker.AppName]bool
	starts     int // of instances and allocators
}

// New starts a cluster that ends with the test; the test fails if it does not come up.
func New(t testing.TB) *Cluster {
	t.Helper()
	c := &Cluster{t: t, apps: map[kbroker.AppName]*kbroker.App{}, allocators: map[kbroker.AppName]bool{}}
	c.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
	c.server = natstest.Start(t)
	c.conn = c.server.Connect(t)
	c.startCore()
	client, err := sdk.Dial(t.Context(), sdk.At(c.server.URL), sdk.Logger(c.log))
	if err != nil {
		t.Fatalf("sdktest: connect: %v", err)
	}
	t.Cleanup(client.Close)
	c.client = client
	return c
}

// Client makes calls to everything in the cluster.
func (c *Cluster) Client() *sdk.Client { return c.client }

// Object is an object to call, by "app/kind:id".
func (c *Cluster) Object(name string) sdk.Target { return c.client.Object(name) }

// Service is a service to call, by "app/service".
func (c *Cluster) Service(name string) sdk.Target { return c.client.Service(name) }

// Advance has the clock go ahead by which leases, idle times, and what is known of calls
// are measured: that of the whole process, all clusters in it. Everybody has time to renew
// their leases meanwhile; who stands still, or is cut off, loses them. It takes about a
// tenth of the time that passes.
func (c *Cluster) Advance(d time.Duration) {
	for d > 0 {
		by := min(d, step)
		boottime.Advance(by)
		d -= by
		time.Sleep(pause)
	}
}

// startCore starts what cores do for instances and allocators.
func (c *Cluster) startCore() {
	c.t.Helper()
	s, err := super.New(super.Config{
		Host: host, Process: "1", ClusterID: "kb-sdktest", Found: true, Dir: c.t.TempDir(), Conn: c.server.Connect(c.t), Log: c.quiet(),
		Members: func() super.Members {
			return super.Members{Known: true, Current: map[kbroker.HostID]bool{host: true}, Replicas: 1, Writable: true}
		},
	})
	if err != nil {
		c.t.Fatalf("sdktest: the core: %v", err)
	}
	c.goes("the core", s.Run)
}

// quiet is the log of what is not the application's.
func (c *Cluster) quiet() *slog.Logger {
	return slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})).With("component", "sdktest")
}

// goes runs something until the test ends.
func (c *Cluster) goes(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx); err != nil && ctx.Err() == nil {
			c.t.Errorf("sdktest: %s ended: %v", name, err)
		}
	}()
	c.t.Cleanup(func() {
		cancel()
		<-ended
	})
}

// deploy makes the app known with a service and its kinds, as a deploy of its spec does.
func (c *Cluster) deploy(app kbroker.AppName, service kbroker.ServiceName, kinds []kbroker.KindName) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.apps[app]
	if known == nil {
		known = &kbroker.App{Name: app}
		c.apps[app] = known
	}
	for _, s := range known.Services {
		if s.Name == service {
			return
		}
	}
	added, err := serviceOf(service, kinds)
	if err != nil {
		c.t.Errorf("sdktest: the spec of %s/%s: %v", app, service, err)
		return
	}
	known.Services = append(known.Services, added)
	if len(kinds) > 0 {
		known.ObjectStreams = streams
	}
	wait.Until(c.t, patience, func() error {
		return c.ask(subjects.Super(subjects.VerbDeploy, kbroker.DefaultTenant, subjects.NoKey), kbroker.DeployRequest{App: *known})
	})
	if len(kinds) > 0 && !c.allocators[app] {
		c.allocators[app] = true
		c.startAllocator(app)
	}
}

// serviceOf is a service as its spec would say it.
func serviceOf(name kbroker.ServiceName, kinds []kbroker.KindName) (kbroker.Service, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "name: test\nservices:\n  %s:\n    run: program\n", name)
	for i, k := range kinds {
		if i == 0 {
			b.WriteString("    objects:\n")
		}
		fmt.Fprintf(&b, "    - %s\n", k)
	}
	app, err := spec.Parse([]byte(b.String()), "app.yaml")
	if err != nil {
		return kbroker.Service{}, err
	}
	s := app.Services[0]
	s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} // nobody starts it
	return s, nil
}

func (c *Cluster) ask(subject string, in any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	reply, err := c.conn.Request(subject, body, 2*time.Second)
	if err != nil {
		return err
	}
	if reply.Header.Get(subjects.HeaderCode) == "" {
		return nil
	}
	e := &kbroker.Error{}
	if err := json.Unmarshal(reply.Data, e); err != nil {
		return err
	}
	return e
}

// startAllocator starts the app's allocator. Under mu.
func (c *Cluster) startAllocator(app kbroker.AppName) {
	own := c.start(app, kbroker.AllocatorService, kbroker.InstanceID(string(app)+"-"+string(kbroker.AllocatorService)+"-1"))
	a, err := allocator.New(allocator.Config{Instance: own, Conn: c.server.Connect(c.t), Log: c.quiet()})
	if err != nil {
		c.t.Fatalf("sdktest: the allocator of app %s: %v", app, err)
	}
	c.goes(fmt.Sprintf("the allocator of app %s", app), a.Run)
}

// start is a new start of an instance. Under mu.
func (c *Cluster) start(app kbroker.AppName, service kbroker.ServiceName, instance kbroker.InstanceID) kbroker.InstanceFile {
	c.starts++
	own := kbroker.InstanceFile{
		Tenant: kbroker.DefaultTenant, App: app, Service: service, Host: host, Version: 1, Epoch: 1,
		Instance: instance, Incarnation: kbroker.Incarnation(fmt.Sprintf("%s.%016x", instance, c.starts)), Servers: []string{c.server.URL},
	}
	if known := c.apps[app]; known != nil {
		for _, s := range known.Services {
			if s.Name == service {
				own.Objects = s.Objects
			}
		}
		own.ObjectStreams = known.ObjectStreams
	}
	return own
}

// made is what inprocess.New returns, in its types.
func made(config inprocess.Config) (*sdk.App, inprocess.App) {
	program, app := inprocess.New(config)
	return program.(*sdk.App), app
}
