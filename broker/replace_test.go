package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// fleet is a cluster of children with a client that knows all of them.
type fleet struct {
	t        *testing.T
	cfgs     []Config
	children map[kbroker.HostID]*childHost
	removed  []kbroker.HostID
	nc       *nats.Conn
	beside   []string // streams besides the control stream
}

const messagesBeside = 20

// startFleet founds a cluster and lets the first running hosts join. The hosts after the first running ones have a
// configuration only.
func startFleet(t *testing.T, running int, names ...kbroker.HostID) *fleet {
	t.Helper()
	f := &fleet{t: t, children: map[kbroker.HostID]*childHost{}}
	for i, name := range names {
		f.cfgs = append(f.cfgs, configOf(t, name, i == 0, f.cfgs...))
	}
	f.nc = dialLater(t, f.cfgs...)
	f.start(names[0])
	createControl(t, f.nc)
	for _, name := range names[1:running] {
		f.join(name)
	}
	return f
}

// dialLater is a client that connects when there is somebody.
func dialLater(t *testing.T, cores ...Config) *nats.Conn {
	t.Helper()
	urls := ""
	for _, c := range cores {
		urls += "nats://" + c.ClientAddr + ","
	}
	nc, err := nats.Connect(urls[:len(urls)-1], append(asCore(t), nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1),
		nats.ReconnectWait(20*time.Millisecond), nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2), nats.DontRandomize())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (f *fleet) cfg(name kbroker.HostID) Config {
	return f.cfgs[slices.IndexFunc(f.cfgs, func(c Config) bool { return c.Host == name })]
}

// start starts a child that knows the cores that were not removed.
func (f *fleet) start(name kbroker.HostID) {
	cfg := f.cfg(name)
	cfg.Cores = slices.DeleteFunc(slices.Clone(cfg.Cores), func(c kbroker.CoreAddr) bool { return slices.Contains(f.removed, c.Host) })
	f.children[name] = startChild(f.t, cfg)
	f.tell()
}

// join starts a fresh core and waits until it has been seen as a member.
func (f *fleet) join(name kbroker.HostID) {
	f.t.Helper()
	f.start(name)
	f.awaitFile(name, joinedFile)
}

func (f *fleet) awaitFile(name kbroker.HostID, file string) {
	f.t.Helper()
	wait.Until(f.t, 20*time.Second, func() error {
		_, err := os.Stat(filepath.Join(f.cfg(name).Dir, file))
		return err
	})
}

func (f *fleet) kill(name kbroker.HostID) {
	f.children[name].kill()
	delete(f.children, name)
}

// remove is the operator's removal; every core comes to know of it.
func (f *fleet) remove(name kbroker.HostID) {
	f.removed = append(f.removed, name)
	f.tell()
}

func (f *fleet) tell() {
	b, err := json.Marshal(f.removed)
	if err != nil {
		f.t.Fatal(err)
	}
	for name := range f.children {
		path := removedIn(f.cfg(name))
		if err := errors.Join(os.WriteFile(path+".new", b, 0o600), os.Rename(path+".new", path)); err != nil {
			f.t.Fatal(err)
		}
	}
}

// addStream makes one with that many replicas on the cores with the tags and
// writes to it.
func (f *fleet) addStream(name string, replicas int, tags ...string) {
	f.t.Helper()
	extraStream(f.t, f.nc, server.StreamConfig{
		Name: name, Subjects: []string{name + ".>"}, Storage: server.FileStorage, Replicas: replicas,
		Placement: &server.Placement{Tags: append(tags, subjects.TagCore)},
	})
	for i := range messagesBeside {
		wait.Until(f.t, 10*time.Second, func() error {
			_, err := f.nc.Request(fmt.Sprint(name, ".", i), []byte("x"), time.Second)
			return err
		})
	}
	f.beside = append(f.beside, name)
}

// settled fails unless every stream comes to have three current replicas, on
// cores that were not removed, and the streams beside have all their messages.
func (f *fleet) settled(within time.Duration) {
	f.t.Helper()
	began := time.Now()
	wait.Until(f.t, within, func() error {
		for _, name := range append([]string{subjects.ControlStream}, f.beside...) {
			info, err := streamOf(f.nc, name)
			if err != nil {
				return err
			}
			var s stream
			if err := s.learn(info); err != nil {
				return err
			}
			if s.replicas != replicasWanted || !s.settled() {
				return fmt.Errorf("stream %s: %+v, want three current replicas", name, s)
			}
			for _, p := range s.peers {
				if f.children[kbroker.HostID(p.name)] == nil {
					return fmt.Errorf("stream %s is on %s, which does not run", name, p.name)
				}
			}
			if name != subjects.ControlStream && info.State.Msgs < messagesBeside {
				return fmt.Errorf("stream %s has %d messages, want %d", name, info.State.Msgs, messagesBeside)
			}
		}
		return nil
	})
	f.t.Logf("settled after %v", time.Since(began).Round(10*time.Millisecond))
}

// ended fails unless the process of a removed core comes to end by itself.
func (f *fleet) ended(name kbroker.HostID) {
	f.t.Helper()
	f.awaitFile(name, removedFile)
	c := f.children[name]
	gone := make(chan struct{})
	go func() { defer close(gone); _ = c.cmd.Wait() }()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		_ = c.cmd.Process.Signal(syscall.SIGQUIT) // its log says where it is
		<-gone
		f.t.Errorf("the removed %s goes on", name)
	}
	delete(f.children, name)
}

// streamLeader is the core that leads the control stream.
func (f *fleet) streamLeader() kbroker.HostID {
	f.t.Helper()
	leader := ""
	wait.Until(f.t, 10*time.Second, func() error {
		info, err := streamOf(f.nc, subjects.ControlStream)
		if err == nil && (info.Cluster == nil || info.Cluster.Leader == "") {
			err = errors.New("the control stream has no leader")
		}
		if err == nil {
			leader = info.Cluster.Leader
		}
		return err
	})
	return kbroker.HostID(leader)
}

// A core of three dies and a fresh one takes its place. Streams may be made
// while there are only two.
func TestADeadCoreOfThreeIsReplaced(t *testing.T) {
	t.Parallel()
	f := startFleet(t, 3, "a", "b", "c", "d")
	f.settled(30 * time.Second)
	f.addStream("one", 3)
	f.addStream("two", 3)
	w := startWriter(t, f.nc, nil)
	f.kill("c")
	f.remove("c")
	// With c a member no stream of three could be made; without it none could
	// be placed. For up to two seconds the server still places single replicas
	// on the dead c, where they are never made.
	f.addStream("between", 1, subjects.TagHost("a"))
	f.join("d")
	f.settled(30 * time.Second)
	t.Logf("longest gap %v", w.takeGap())
	w.check(t)
}

// The cluster grows to five; one is lost and replaced, one that lives is
// removed: it ends by itself, whether it leads or not.
func TestFiveCoresLoseOneAndGiveOneAway(t *testing.T) {
	needLong(t)
	t.Parallel()
	f := startFleet(t, 3, "a", "b", "c", "d", "e", "f")
	f.settled(30 * time.Second)
	f.addStream("one", 3)
	w := startWriter(t, f.nc, nil)
	f.join("d")
	f.join("e")
	f.settled(30 * time.Second)
	lost := f.streamLeader()
	t.Logf("five cores; %s, which leads the control stream, is killed", lost)
	f.kill(lost)
	f.remove(lost)
	f.settled(30 * time.Second)
	f.join("f")
	f.settled(30 * time.Second)
	// Five again: each of those that live in turn, until three are left, among
	// them sooner or later the one that leads the meta group.
	for _, name := range slices.Sorted(maps.Keys(f.children))[:2] {
		f.remove(name)
		f.ended(name)
		f.settled(30 * time.Second)
	}
	t.Logf("longest gap %v", w.takeGap())
	w.check(t)
}

// The core that leads the meta group is removed while it lives.
func TestTheLeadingCoreIsRemoved(t *testing.T) {
	t.Parallel()
	var removed [1]kbroker.HostID
	known := make(chan struct{})
	asked := func() []kbroker.HostID {
		select {
		case <-known:
			return removed[:]
		default:
			return nil
		}
	}
	var cfgs []Config
	hosts := map[kbroker.HostID]*host{}
	var nc *nats.Conn
	for i, name := range []kbroker.HostID{"a", "b", "c", "d"} {
		cfg := configOf(t, name, i == 0, cfgs...)
		cfg.Removed = asked
		cfgs = append(cfgs, cfg)
		hosts[name] = start(t, cfg)
		hosts[name].awaitReady(15 * time.Second)
		if i == 0 {
			nc = dialLater(t, cfg)
			createControl(t, nc)
		}
	}
	settled(t, 4, 1, slices.Collect(maps.Values(hosts))...)
	nc = dialLater(t, cfgs...)
	w := startWriter(t, nc, nil)
	wait.Until(t, 10*time.Second, func() error {
		for name, h := range hosts {
			if h.core.JetStreamIsLeader() {
				removed[0] = name
				return nil
			}
		}
		return errors.New("nobody leads the meta group")
	})
	t.Logf("%s leads the meta group and is removed", removed[0])
	close(known)
	gone := hosts[removed[0]]
	select {
	case err := <-gone.done:
		gone.done <- err
		if !errors.Is(err, kbroker.Refused) {
			t.Errorf("Run of the removed core returned %v, want refused", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("the removed %s goes on; it sees %+v", removed[0], gone.Members())
	}
	delete(hosts, removed[0])
	settled(t, 3, 1, slices.Collect(maps.Values(hosts))...)
	t.Logf("longest gap %v", w.takeGap())
	w.check(t)
}

// Growth from one to three, and the moments at which processes may die.
var growth = []struct {
	name string
	run  func(*fleet)
}{
	{"b is started", func(f *fleet) { f.start("b") }},
	{"b has joined", func(f *fleet) { f.awaitFile("b", joinedFile) }},
	{"c is started", func(f *fleet) { f.start("c") }},
	{"c has joined", func(f *fleet) { f.awaitFile("c", joinedFile) }},
	{"the witness has retired", func(f *fleet) { f.awaitFile("a", retiredFile) }},
	{"the control stream is raised", func(f *fleet) {
		wait.Until(f.t, 20*time.Second, func() error {
			info, err := streamOf(f.nc, subjects.ControlStream)
			if err == nil && info.Config.Replicas != replicasWanted {
				err = fmt.Errorf("it has %d replicas", info.Config.Replicas)
			}
			return err
		})
	}},
}

// Some of the cores die together at a step of the growth, or shortly after it,
// and are started again: all is done in the end and nothing acknowledged lost.
func TestKilledAtAStepOfTheGrowth(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for i, step := range growth {
		for _, all := range []bool{false, true} {
			if !*long && (i != 4 || !all) {
				continue // one row is enough for a look
			}
			after := time.Duration(random.IntN(400)) * time.Millisecond
			pick := random.Perm(3)
			t.Run(fmt.Sprintf("%s, all %t", step.name, all), func(t *testing.T) {
				killedAt(t, i, all, pick, after)
			})
		}
	}
}

func killedAt(t *testing.T, at int, all bool, pick []int, after time.Duration) {
	f := startFleet(t, 1, "a", "b", "c")
	w := startWriter(t, f.nc, nil)
	for _, step := range growth[:at+1] {
		step.run(f)
	}
	<-time.After(after)
	names := slices.Sorted(maps.Keys(f.children))
	victims := names
	if !all {
		victims = []kbroker.HostID{names[pick[0]%len(names)]}
	}
	t.Logf("%v after that %v are killed", after, victims)
	for _, name := range victims {
		f.kill(name)
	}
	for _, i := range pick {
		if name := f.cfgs[i].Host; slices.Contains(victims, name) {
			f.start(name)
		}
	}
	for _, step := range growth[at+1:] {
		step.run(f)
	}
	f.settled(40 * time.Second)
	w.check(t)
}
