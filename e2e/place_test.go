package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/sdk"
)

// placedReport is what a job has seen that allocates placed objects, calls them until it is
// told to end, and releases them.
type placedReport struct {
	Allocated time.Duration            `json:"allocated"` // all of them, by so many callers
	P99       time.Duration            `json:"p99"`       // of one
	Called    time.Duration            `json:"called"`    // all of them once
	On        map[string]int           `json:"on"`        // by instance
	Calls     int                      `json:"calls"`
	Failed    int                      `json:"failed"`
	Errs      []string                 `json:"errs"`
	Visits    int                      `json:"visits"` // that were lost, or there twice
	Silent    map[string]time.Duration `json:"silent"` // the longest pause of a second or more, by object
	Released  time.Duration            `json:"released"`
	Lost      int                      `json:"lost"`     // objects of the instance that has died
	LostP99   time.Duration            `json:"lost_p99"` // from then on until one of them answers
	LostMost  time.Duration            `json:"lost_most"`
	Missing   string                   `json:"missing"` // the error of a call of one that is released
}

// placeUntilTold does so: kind, number, callers. With a fourth argument it has an instance die in
// place of that, and calls the objects that were on it.
func placeUntilTold(args []string) (placedReport, error) {
	out := placedReport{On: map[string]int{}, Silent: map[string]time.Duration{}}
	api, err := sdk.Dial(context.Background(), sdk.At(""))
	if err != nil {
		return out, err
	}
	defer api.Close()
	number, err := strconv.Atoi(args[1])
	if err != nil {
		return out, err
	}
	callers, err := strconv.Atoi(args[2])
	if err != nil {
		return out, err
	}
	name := func(n int) string { return fmt.Sprintf("rooms/%s:%d", args[0], n) }
	var mu sync.Mutex
	failed := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if out.Failed++; len(out.Errs) < 5 {
			out.Errs = append(out.Errs, err.Error())
		}
	}
	each := func(do func(ctx context.Context, n int) error) time.Duration {
		began := time.Now()
		var next atomic.Int64
		var all sync.WaitGroup
		for range callers {
			all.Go(func() {
				for n := int(next.Add(1)) - 1; n < number; n = int(next.Add(1)) - 1 {
					ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
					if err := do(ctx, n); err != nil {
						failed(err)
					}
					cancel()
				}
			})
		}
		all.Wait()
		return time.Since(began)
	}
	took, on := make([]time.Duration, number), make([]kbroker.InstanceID, number)
	out.Allocated = each(func(ctx context.Context, n int) error {
		began := time.Now()
		a, err := api.Allocate(ctx, name(n))
		took[n] = time.Since(began)
		mu.Lock()
		defer mu.Unlock()
		out.On[string(a.Instance)]++
		on[n] = a.Instance
		return err
	})
	slices.Sort(took)
	out.P99 = took[len(took)*99/100]
	type visit struct {
		Visits int `json:"visits"`
	}
	entered := make([]atomic.Int64, number)
	enter := func(ctx context.Context, n int) error {
		_, err := sdk.Call[visit](ctx, api.Object(name(n)), "enter", struct{}{})
		if err == nil {
			entered[n].Add(1)
		}
		return err
	}
	out.Called = each(enter)
	out.Calls = number
	if len(args) > 3 {
		for n := range on {
			if on[n] == on[0] {
				out.Lost++
			}
		}
		// Nobody answers: whoever sends it again finds the next instance, and kills that.
		ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
		_, _ = sdk.Call[visit](ctx, api.Object(name(0)), "die", struct{}{}, sdk.Timeout(100*time.Millisecond))
		cancel()
		began, back := time.Now().Add(-100*time.Millisecond), make([]time.Duration, 0, out.Lost)
		each(func(ctx context.Context, n int) error {
			if on[n] != on[0] {
				return nil
			}
			err := errors.New("it was not called")
			for err != nil && ctx.Err() == nil { // what the instance has heard before it died is not answered
				try, cancel := context.WithTimeout(ctx, time.Second)
				err = enter(try, n)
				cancel()
			}
			mu.Lock()
			defer mu.Unlock()
			back = append(back, time.Since(began))
			return err
		})
		slices.Sort(back)
		out.LostP99, out.LostMost = back[len(back)*99/100], back[len(back)-1]
		return out, nil
	}
	done := make(chan struct{})
	go func() { told(); close(done) }()
	last := make([]time.Time, number)
	for n := range last {
		last[n] = time.Now()
	}
	for ended := false; !ended; {
		each(func(ctx context.Context, n int) error {
			err := enter(ctx, n)
			mu.Lock()
			defer mu.Unlock()
			out.Calls++
			if d := time.Since(last[n]); err == nil && d > time.Second {
				out.Silent[name(n)] = max(out.Silent[name(n)], d)
			}
			last[n] = time.Now()
			return err
		})
		select {
		case <-done:
			ended = true
		default:
		}
	}
	each(func(ctx context.Context, n int) error {
		v, err := sdk.Call[visit](ctx, api.Object(name(n)), "get", struct{}{})
		if err == nil && v.Visits != int(entered[n].Load()) && args[0] == "room" {
			mu.Lock()
			out.Visits++
			mu.Unlock()
		}
		return err
	})
	out.Released = each(func(ctx context.Context, n int) error {
		is, err := api.Release(ctx, name(n))
		if err == nil && !is {
			err = fmt.Errorf("%s was not allocated when it was released", name(n))
		}
		return err
	})
	if err := enter(context.Background(), 0); err != nil {
		out.Missing = err.Error()
	}
	return out, nil
}

func (c *cluster) deployRooms(count, settings string) {
	c.t.Helper()
	dir := c.t.TempDir()
	buildInto(c.t, dir, "rooms", "./testdata/rooms")
	path := filepath.Join(dir, "app.yaml")
	writeFile(c.t, path, `name: rooms
services:
  rooms:
    run: rooms
    count: `+count+`
    objects: [{kind: room, placed: {slots: 1}}, {kind: booth, placed: {slots: 1}}]
`+settings, 0o600)
	c.must("deploy", path)
}

// TestPlacedObjects: they are where there is room, answer, are elsewhere when their instance is
// lost, and are gone when they are released.
func TestPlacedObjects(t *testing.T) {
	needLong(t)
	const rooms = 300
	c := up(t, 3)
	c.deployRooms("3", "    slots: 200\n")
	job := c.startChild(placeJob, []string{"room", strconv.Itoa(rooms), "32"})
	<-time.After(8 * time.Second)
	if err := syscall.Kill(*c.instanceOn("rooms", "").PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-time.After(8 * time.Second)
	var r placedReport
	job.report(&r)
	var silent time.Duration
	for _, d := range r.Silent {
		silent = max(silent, d)
	}
	t.Logf("RESULT %d placed objects: allocated in %v, p99 %v, called in %v, on %v; %d calls, %d failed, %d wrong; silent for %v at most; released in %v", rooms, r.Allocated, r.P99, r.Called, r.On, r.Calls, r.Failed, r.Visits, silent, r.Released)
	if r.Failed > 0 || r.Visits > 0 || silent > 2*time.Second {
		t.Errorf("%q", r.Errs)
	}
	for i, n := range r.On {
		if n < rooms/3-10 || n > rooms/3+10 {
			t.Errorf("%d of %d are on %s", n, rooms, i)
		}
	}
	if r.Missing == "" {
		t.Error("a room answers that was released")
	}
	t.Log(r.Missing)
}

// TestPlacedObjectsPerSecond: so many are allocated in a second by one allocator, each of them
// committed when it is answered; at first on three hosts of one machine.
func TestPlacedObjectsPerSecond(t *testing.T) {
	needLong(t)
	const booths = 20_000
	c := up(t, 3)
	c.deployRooms("3", "    slots: 100000\n    resources: {cpu: 0.1, memory: 256MiB}\n")
	job := c.startChild(placeJob, []string{"booth", strconv.Itoa(booths), "1024"})
	<-time.After(20 * time.Second)
	var r placedReport
	job.report(&r)
	perS := float64(booths) / r.Allocated.Seconds()
	t.Logf("RESULT %d placed objects: %.0f in a second, p99 %v, all called once in %v, on %v; %d of %d calls failed, released in %v", booths, perS, r.P99, r.Called, r.On, r.Failed, r.Calls, r.Released)
	if r.Failed > 0 {
		t.Errorf("%q", r.Errs)
	}
}

// TestAnInstanceOfManyIsLost, with a thousand placed objects on each.
func TestAnInstanceOfManyIsLost(t *testing.T) {
	needLong(t)
	const instances, booths, within = 30, 30_000, 5 * time.Second
	c := up(t, 3)
	c.deployRooms(strconv.Itoa(instances), "    slots: 2000\n    resources: {cpu: 0.05, memory: 48MiB}\n    update: {deadline: 10m}\n")
	c.waitReady(5*time.Minute, "rooms", "rooms", instances, nil)
	job := c.startChild(placeJob, []string{"booth", strconv.Itoa(booths), "1000", "lost"})
	var r placedReport
	job.report(&r)
	t.Logf("RESULT %d placed objects on %d instances: %.0f allocated in a second; of the %d of one that died all but 1 in 100 answer after %v, all after %v; %d calls failed", booths, len(r.On), booths/r.Allocated.Seconds(), r.Lost, r.LostP99, r.LostMost, r.Failed)
	if r.Failed > 0 || r.LostP99 > within {
		t.Errorf("want within %v: %q", within, r.Errs)
	}
}
