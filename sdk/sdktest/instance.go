package sdktest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/sdkseam"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/subjects"
)

// pingWithin bounds one question whether an instance is ready.
const pingWithin = 100 * time.Millisecond

// Instance is an instance of a service, for the test's hands.
type Instance struct {
	c       *Cluster
	app     kbroker.AppName
	service kbroker.ServiceName
	name    kbroker.InstanceID
	serve   func(*sdk.App)
	cable   *cable
	due     chan struct{}
	cut     chan struct{}   // closed by a kill
	stopped context.Context // ends when it is to leave
	stop    context.CancelFunc
	gone    chan struct{} // closed when nothing of it runs

	mu      sync.Mutex
	current kbroker.Incarnation
	killed  bool
	away    bool          // cut off
	paused  bool          // its clock stands
	stands  time.Duration // at which time
	ended   []kbroker.Incarnation
}

// Run starts an instance of a service, as in "bank/ledger" or, short for "bank/bank",
// "bank", and returns when it is ready. serve declares what it serves, as main does before
// App.Main; it is called anew for each start. Any number of services and apps can have any
// number of instances; one service of an app has objects.
func (c *Cluster) Run(service string, serve func(*sdk.App)) *Instance {
	c.t.Helper()
	name, of, ok := strings.Cut(service, "/")
	if !ok {
		of = name
	}
	if err := errors.Join(kbroker.CheckName("app", name), kbroker.CheckName("service", of)); err != nil {
		c.t.Fatalf("sdktest: run %q: %v", service, err)
	}
	i := &Instance{
		c: c, app: kbroker.AppName(name), service: kbroker.ServiceName(of), serve: serve, cable: newCable(),
		name: kbroker.InstanceID(fmt.Sprintf("%s-%s-%d", name, of, c.number.Add(1))),
		due:  make(chan struct{}, 1), cut: make(chan struct{}), gone: make(chan struct{}),
	}
	i.stopped, i.stop = context.WithCancel(context.Background())
	made := i.make()
	c.mu.Lock()
	c.instances = append(c.instances, i)
	c.mu.Unlock()
	kinds, schemas := made.Kinds()
	if err := c.deploy(i.app, kbroker.Service{Name: i.service, Count: kbroker.Count{Min: 1, Max: 1}, Objects: kinds, Schemas: schemas}); err != nil {
		c.t.Fatalf("sdktest: run %s: %v", service, err)
	}
	c.running.Go(func() { i.live(made) })
	wait.Until(c.t, patience, i.ready)
	return i
}

// Name is that of the instance, unique in the cluster.
func (i *Instance) Name() kbroker.InstanceID { return i.name }

// Kill ends an instance as kill -9 does: from now on nothing of it is sent or heard. The
// contexts of its handlers end; what they do nevertheless has no effect. Its agent has seen
// it die, so that others take over what it owned at once.
func (c *Cluster) Kill(i *Instance) {
	i.kill()
	i.reap()
}

// Stop has an instance leave in order: it hands over what it owns, and ends its handlers.
func (c *Cluster) Stop(i *Instance) {
	c.t.Helper()
	i.stop()
	select {
	case <-i.gone:
	case <-time.After(patience):
		c.t.Fatalf("sdktest: %s has not left within %v", i.name, patience)
	}
}

// Pause holds an instance as kill -STOP does: its clock stands, and nothing is sent or heard
// until Resume. What is on the way in its process goes on to where it meets one of the two.
func (c *Cluster) Pause(i *Instance) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.paused {
		i.paused, i.stands = true, c.now()
		i.cable.hold()
	}
}

// Resume lets an instance go on; if it was paused for longer than its lease, it finds that
// out, ends, and is started again.
func (c *Cluster) Resume(i *Instance) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.paused = false
	i.stir()
	if !i.away {
		i.cable.release()
	}
}

// Partition cuts an instance off: nothing comes through, its clock goes on.
func (c *Cluster) Partition(i *Instance) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.away = true
	i.cable.hold()
}

// Heal connects it again; what was sent meanwhile comes through now, if the connection has
// outlived it.
func (c *Cluster) Heal(i *Instance) {
	i.mu.Lock()
	i.away = false
	if !i.paused {
		i.cable.release()
	}
	i.mu.Unlock()
	i.reap()
}

// make makes the app of the next start.
func (i *Instance) make() sdkseam.App {
	start := incarnationOf(i.name)
	i.mu.Lock()
	i.current = start
	i.mu.Unlock()
	made := sdkseam.New(sdkseam.Process{
		Identity: kbroker.InstanceFile{
			Tenant: kbroker.DefaultTenant, App: i.app, Service: i.service, Instance: i.name, Incarnation: start,
			Host: host, Version: 1, Epoch: 1, Servers: []string{i.c.url}, ObjectStreams: streams, Placed: i.c.placedOf(i.app),
		},
		Log: i.c.log.With("instance", i.name), Clock: i.now, Due: i.due, Cut: i.cut, Cable: i.cable,
	})
	i.serve(made.SDK.(*sdk.App))
	made.Kinds()
	return made
}

// live runs the instance, start after start, as an agent does.
func (i *Instance) live(made sdkseam.App) {
	defer close(i.gone)
	for {
		err := made.Run(i.stopped)
		i.mu.Lock()
		i.ended = append(i.ended, i.current)
		killed := i.killed
		i.mu.Unlock()
		i.reap()
		switch {
		case killed || i.stopped.Err() != nil:
			return
		case !errors.Is(err, kbroker.Unavailable):
			i.c.t.Errorf("sdktest: %s ended: %v", i.name, err)
			return
		}
		i.c.log.Info("an instance is started again", "instance", i.name, "err", err)
		made = i.make()
	}
}

func (i *Instance) kill() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.killed {
		i.killed = true
		i.ended = append(i.ended, i.current)
		i.cable.end()
		close(i.cut)
		i.stop()
	}
}

// reap says which starts have ended, as an agent does that is not cut off.
func (i *Instance) reap() {
	i.mu.Lock()
	ended := i.ended
	if i.away && !i.killed {
		ended = nil
	} else {
		i.ended = nil
	}
	i.mu.Unlock()
	if len(ended) == 0 {
		return
	}
	body, err := json.Marshal(kbroker.Reaped{Incarnations: ended})
	if err == nil {
		err = i.c.conn.Publish(subjects.Reaped(kbroker.DefaultTenant, i.app), body)
	}
	if err != nil {
		i.c.log.Warn("nobody hears which starts have ended", "instance", i.name, "err", err)
	}
}

// ready reports why the instance cannot answer yet.
func (i *Instance) ready() error {
	m, err := i.c.conn.Request(subjects.Ping(kbroker.DefaultTenant, i.incarnation()), nil, pingWithin)
	if err != nil {
		return fmt.Errorf("%s does not answer: %w", i.name, err)
	}
	var r kbroker.PingReply
	if err := json.Unmarshal(m.Data, &r); err != nil || !r.Ready {
		return fmt.Errorf("%s is not ready (%w)", i.name, err)
	}
	return nil
}

// now is the clock of the instance.
func (i *Instance) now() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.paused {
		return i.stands
	}
	return i.c.now()
}

// stir has it look at the clock.
func (i *Instance) stir() {
	select {
	case i.due <- struct{}{}:
	default:
	}
}

// hears reports whether it can renew a lease.
func (i *Instance) hears() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.killed && !i.away && !i.paused && i.stopped.Err() == nil
}

func (i *Instance) incarnation() kbroker.Incarnation {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current
}

// is reports whether a start is the one that runs.
func (i *Instance) is(start kbroker.Incarnation) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.current == start && !i.killed
}

// incarnationOf names a start of an instance.
func incarnationOf(i kbroker.InstanceID) kbroker.Incarnation {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return kbroker.Incarnation(string(i) + "." + hex.EncodeToString(b[:]))
}
