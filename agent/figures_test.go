package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// opened are files that stay open: what nobody refers to is closed with the next garbage
// collection.
var opened []*os.File

// busy is an instance with ten files of /dev/null, and a child that holds memory and
// works; its SDK says that it is asked a hundred times a second.
func busy() {
	if os.Getenv("BUSY") != "" {
		held := make([]byte, 64<<20)
		for i := 0; ; i = (i + 4096) % len(held) {
			held[i]++
		}
	}
	for range 10 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			panic(err)
		}
		opened = append(opened, f)
	}
	child := exec.Command(os.Args[0], "builtin", "busy")
	child.Env = append(os.Environ(), "BUSY=1")
	if err := child.Start(); err != nil {
		panic(err)
	}
	var f kbroker.InstanceFile
	b, err := os.ReadFile(os.Getenv(envInstance))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		panic(err)
	}
	conn, err := nats.Connect(f.Servers[0])
	if err != nil {
		panic(err)
	}
	began := time.Now()
	_, err = conn.Subscribe(subjects.Ping(f.Tenant, f.Incarnation), func(m *nats.Msg) {
		n := uint64(time.Since(began) / (10 * time.Millisecond))
		body, _ := json.Marshal(kbroker.PingReply{Incarnation: f.Incarnation, Ready: true, Requests: &n, Errors: new(n / 10), Objects: &busyObjects})
		_ = m.Respond(body)
	})
	if err != nil {
		panic(err)
	}
	note(fmt.Sprint(child.Process.Pid))
}

// busyObjects are what it says of objects.
var busyObjects = kbroker.ObjectFigures{
	Turns: 1, Reads: 2, Refused: 3, Activations: 4, Commits: 5, CommitsRefused: 6, ShardsTaken: 7, ShardsReleased: 8, TakingS: 0.5, ReleasingS: 0.25,
	Shards: 9, Active: 10, Outbox: 11,
}

// listener has the figures that agents have published last.
type listener struct {
	mu   sync.Mutex
	last kbroker.Figures
	n    int
}

func (c *core) listen() *listener {
	l := &listener{}
	c.subscribe(subjects.AllFigures, func(m *nats.Msg) {
		var f kbroker.Figures
		if err := json.Unmarshal(m.Data, &f); err != nil {
			panic(err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.last, l.n = f, l.n+1
	})
	return l
}

func (l *listener) get() (kbroker.Figures, int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last, l.n
}

// of are the figures of an instance.
func (l *listener) of(id kbroker.InstanceID) (kbroker.InstanceMeasure, error) {
	f, _ := l.get()
	for _, i := range f.Instances {
		if i.Instance == id {
			return i, nil
		}
	}
	return kbroker.InstanceMeasure{}, fmt.Errorf("no figures of %s in %+v", id, f)
}

func TestFiguresSayWhatAnInstanceUses(t *testing.T) {
	c := newCore(t)
	l := c.listen()
	a := c.startAgent(t.TempDir())
	p := placement("shop-web-1", "busy")
	p.Spec.Health = kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: 500 * time.Millisecond}}
	p.Spec.Resources = kbroker.Resources{MemoryLimitBytes: 512 << 20}
	c.want(p)
	status := c.awaitState(p.Instance, kbroker.StateReady)
	a.noted(p.Instance)
	wait.Until(t, 15*time.Second, func() error {
		i, err := l.of(p.Instance)
		switch {
		case err != nil:
			return err
		case i.Incarnation != status.Incarnation || i.CPUCores == nil || *i.CPUCores < 0.1 || *i.CPUCores > 2.2:
			return fmt.Errorf("its child works all the time: %s", text(i))
		case i.MemoryBytes == nil || *i.MemoryBytes < 64<<20 || *i.MemoryBytes > 200<<20:
			return fmt.Errorf("its child holds 64 MiB: %s", text(i))
		case i.OpenFiles == nil || *i.OpenFiles < 13 || i.OpenFilesAll == nil || *i.OpenFilesAll < *i.OpenFiles+3:
			return fmt.Errorf("it has ten files open, its child the usual: %s", text(i))
		case i.PIDs == nil || *i.PIDs < 4:
			return fmt.Errorf("two programs in Go have more threads: %s", text(i))
		case i.RequestsPerS == nil || *i.RequestsPerS < 70 || *i.RequestsPerS > 130 || *i.ErrorsPerS < 5 || *i.ErrorsPerS > 15:
			return fmt.Errorf("it is asked 100 times a second, and says no to 10: %s", text(i))
		case i.ReadyForS == nil || i.ChecksFailing == nil || *i.ChecksFailing != 0:
			return fmt.Errorf("it is ready: %s", text(i))
		case (i.MemoryLimitBytes != nil) != a.contain.can.Memory || i.MemoryLimitBytes != nil && *i.MemoryLimitBytes != 512<<20:
			return fmt.Errorf("this host holds it to its limit (%t): %s", a.contain.can.Memory, text(i))
		}
		return nil
	})
	values := metricsOf(t, a.Agent)
	for name, want := range map[string]float64{
		"object_turns_total": 1, "object_reads_total": 2, "object_refused_total": 3, "object_activations_total": 4, "object_commits_total": 5,
		"object_commits_refused_total": 6, "object_shards_taken_total": 7, "object_shards_released_total": 8, "object_shards_taking_seconds_total": 0.5,
		"object_shards_releasing_seconds_total": 0.25, "object_shards": 9, "objects_active": 10, "object_outbox_messages": 11,
	} {
		if got, there := values["kbroker_agent_instance_"+name+" shop-web-1"]; !there || got != want {
			t.Errorf("%s is %v (there: %t), want %v", name, got, there, want)
		}
	}
	if problems, err := testutil.CollectAndLint(a.Collector()); err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}
	f, n := l.get()
	m := f.Machine
	if f.Host != testHost || m.CPUCores == nil || *m.CPUCores < 0.1 || m.MemoryBytes == nil || *m.MemoryBytes < 64<<20 || m.MemoryFreeBytes == nil || m.Load == nil ||
		m.AgentCPUCores == nil || m.AgentBytes == nil || *m.AgentBytes < 1<<20 {
		t.Errorf("of the host: %s", text(f.Machine))
	}

	// What has ended is not measured any more, and without a connection nothing is kept
	// for later.
	c.want(tombstone(p))
	c.awaitState(p.Instance, kbroker.StateExited)
	wait.Until(t, 10*time.Second, func() error {
		if f, now := l.get(); len(f.Instances) > 0 || now == n {
			return fmt.Errorf("figures of %d instances", len(f.Instances))
		}
		return nil
	})
}

func text(v any) string {
	b, err := json.Marshal(v)
	return fmt.Sprint(string(b), err)
}

// An instance without a control group of its own is measured by its processes.
func TestUsageWithoutAControlGroup(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", "sleep 60 & sleep 60 & wait")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() { _ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL); <-ended })
	s, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 5*time.Second, func() error {
		var m measurer
		w := watched{id: s.procID}
		members := m.members(w)
		if u := m.usage(w); len(members) != 3 || u.pids == nil || *u.pids != 3 || u.memoryBytes == nil || *u.memoryBytes < 100<<10 || u.cpu == nil {
			return fmt.Errorf("usage of %v is %+v, want that of three processes", members, u)
		}
		return nil
	})
	s.Start++
	var m measurer
	if u := m.usage(watched{id: s.procID}); u.cpu != nil || u.memoryBytes != nil || u.pids != nil {
		t.Errorf("another process of the same pid: %+v", u)
	}
}

func TestFamilyIsWhoDescendsOrIsInTheGroup(t *testing.T) {
	all := map[int]spent{}
	add := func(pid, parent, group int) {
		all[pid] = spent{procStat: procStat{procID: procID{PID: pid, Start: 7}, Parent: parent, Group: group}}
	}
	add(1, 0, 1)
	add(10, 1, 10)  // the instance
	add(11, 10, 10) // its child
	add(12, 11, 12) // a grandchild in a group of its own
	add(13, 1, 10)  // an orphan in its group
	add(20, 1, 20)  // somebody else
	add(21, 20, 20)
	got := family(all, procID{10, 7})
	slices.Sort(got)
	if want := []int{10, 11, 12, 13}; !slices.Equal(got, want) {
		t.Errorf("family %v, want %v", got, want)
	}
	if got := family(all, procID{10, 8}); got != nil {
		t.Errorf("the family of one that is gone: %v", got)
	}
}

// What follows of two samples, and of what an SDK has said.
func TestRatesFollowFromTwoSamples(t *testing.T) {
	second := time.Second
	at := func(when time.Duration, inc kbroker.Incarnation, cpu time.Duration) sample {
		return sample{watched: watched{incarnation: inc}, usage: usage{cpu: &cpu}, at: when}
	}
	for name, c := range map[string]struct {
		before, now sample
		want        *float64
	}{
		"one core for two seconds":       {at(10*second, "i.1", 5*second), at(12*second, "i.1", 7*second), new(1.0)},
		"a quarter of a core":            {at(10*second, "i.1", 5*second), at(12*second, "i.1", 5500*time.Millisecond), new(0.25)},
		"nothing":                        {at(10*second, "i.1", 5*second), at(12*second, "i.1", 5*second), new(0.0)},
		"the first sample":               {sample{}, at(12*second, "i.1", 7*second), nil},
		"another start":                  {at(10*second, "i.1", 5*second), at(12*second, "i.2", 7*second), nil},
		"a counter that has begun anew":  {at(10*second, "i.1", 5*second), at(12*second, "i.1", 4*second), nil},
		"not counted here":               {at(10*second, "i.1", 5*second), sample{watched: watched{incarnation: "i.1"}, at: 12 * second}, nil},
		"a clock that has not gone on":   {at(12*second, "i.1", 5*second), at(12*second, "i.1", 7*second), nil},
		"fractions that say nothing end": {at(10*second, "i.1", 0), at(13*second, "i.1", second), new(0.3333)},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.now.figures(c.before).CPUCores
			if text(got) != text(c.want) {
				t.Errorf("%s cores, want %s", text(got), text(c.want))
			}
		})
	}
}

func TestARateOfRequestsIsThatOfTheLastSeconds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Uint64Range(0, 100_000).Draw(t, "rate")
		pauses := rapid.SliceOfN(rapid.IntRange(50, 9000), 2, 40).Draw(t, "pauses, in ms")
		var s sample
		now := time.Hour
		for _, ms := range pauses {
			now += time.Duration(ms) * time.Millisecond
			s.count(tally{at: now, requests: rate * uint64(now/time.Millisecond) / 1000})
		}
		s.at = now
		f := s.figures(sample{})
		if window := s.last.at - s.from.at; window > 9*time.Second+kbroker.FiguresEvery || window <= 0 {
			t.Fatalf("the rate is that of %v", window)
		}
		if f.RequestsPerS == nil || *f.RequestsPerS < float64(rate)*0.99-25 || *f.RequestsPerS > float64(rate)*1.01+25 {
			t.Fatalf("%s requests per second, want %d", text(f.RequestsPerS), rate)
		}
		s.at += kbroker.FiguresFor
		if f := s.figures(sample{}); f.RequestsPerS != nil || f.Requests != nil {
			t.Fatal("an SDK that is silent for long still has a rate")
		}
	})
}

func TestFiguresNameTheWorstCheck(t *testing.T) {
	for name, c := range map[string]struct {
		ready, live failing
		want        *int
		why         string
	}{
		"no checks":                  {failing{}, failing{}, nil, ""},
		"both well":                  {failing{true, 0, "http"}, failing{true, 0, "tcp"}, new(0), ""},
		"not ready":                  {failing{true, 3, "http: 503"}, failing{true, 0, "tcp"}, new(3), "http: 503"},
		"about to be killed":         {failing{true, 1, "http: 503"}, failing{true, 2, "tcp: no answer"}, new(2), "tcp: no answer"},
		"alive, with a check of its": {failing{}, failing{true, 0, "tcp"}, new(0), ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := sample{told: told{ready: c.ready, live: c.live}}.figures(sample{})
			if text(f.ChecksFailing) != text(c.want) || f.CheckFailing != c.why {
				t.Errorf("%s failing, %q; want %s, %q", text(f.ChecksFailing), f.CheckFailing, text(c.want), c.why)
			}
		})
	}
}

func TestOpenFilesAreCounted(t *testing.T) {
	n, ok := openFilesOf(os.Getpid())
	if !ok || n < 3 {
		t.Fatalf("%d open files, %t", n, ok)
	}
	var held []*os.File
	for range 100 {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, f)
	}
	now, _ := openFilesOf(os.Getpid())
	var errs error
	for _, f := range held {
		errs = errors.Join(errs, f.Close())
	}
	if now < n+90 || now > n+110 || errs != nil {
		t.Errorf("%d open files with a hundred more than %d, %v", now, n, errs)
	}
}
