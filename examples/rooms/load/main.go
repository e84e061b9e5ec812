// Load has players come and go as in a day that takes a minute: few in the night, most in the
// evening. Each gets a seat, keeps it for a while, and leaves. It asks the cluster how many
// instances there are for it, and prints one line of JSON: instance-seconds that were used, that
// its players would have needed if every room and every instance but one had been full, and the
// ratio of both.
//
// The exit code is 1 when a player did not get a seat, or could not leave, 2 when it could not run.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

const (
	// connectTime bounds the first connection.
	connectTime = 10 * time.Second
	// every is how often players come.
	every = 20 * time.Millisecond
)

func main() {
	var d day
	flag.DurationVar(&d.duration, "duration", time.Minute, "how long the day is")
	flag.IntVar(&d.players, "players", 140, "how many play in the evening")
	flag.DurationVar(&d.stay, "stay", 10*time.Second, "how long a player stays, on average")
	flag.DurationVar(&d.patience, "patience", 15*time.Second, "how long a player waits for a seat")
	flag.IntVar(&d.seats, "seats", 4, "of a room, as in the program")
	flag.IntVar(&d.slots, "slots", 4, "of an instance, as in its app.yaml")
	flag.Uint64Var(&d.seed, "seed", rand.Uint64(), "of how long players stay")
	at := flag.String("at", "", "the cluster: a directory, a context or nats:// URLs (default: as for kbroker)")
	flag.Parse()
	if d.duration <= 0 || d.players < 1 || d.stay <= 0 || d.patience <= 0 || d.seats < 1 || d.slots < 1 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "load: all flags must be above 0, and there are no arguments")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := run(ctx, *at, &d)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(r)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	if r.Failed > 0 {
		os.Exit(1)
	}
}

// report is what a day came to.
type report struct {
	Joined  int     `json:"joined"`
	Failed  int     `json:"failed"`
	P50MS   float64 `json:"p50_ms"` // of joining
	P99MS   float64 `json:"p99_ms"`
	Peak    int     `json:"peak"` // players at a time
	Used    float64 `json:"used_instance_s"`
	Minimum float64 `json:"minimum_instance_s"`
	Ratio   float64 `json:"ratio"`
	Seed    uint64  `json:"seed"`
}

// day is one of players.
type day struct {
	duration, stay, patience time.Duration
	players, seats, slots    int
	seed                     uint64

	client *sdk.Client
	log    *slog.Logger
	name   string
	here   sync.WaitGroup

	mu      sync.Mutex
	playing int // those that have a seat, or wait for one
	took    []time.Duration
	failed  int
}

// run lives a day. An interrupt ends it early: what was until then is told.
func run(ctx context.Context, at string, d *day) (report, error) {
	d.log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	dialling, cancel := context.WithTimeout(ctx, connectTime)
	client, err := sdk.Dial(dialling, sdk.At(at), sdk.Logger(d.log))
	cancel()
	if err != nil {
		return report{}, err
	}
	defer client.Close()
	d.client, d.name = client, fmt.Sprintf("load-%x", d.seed)
	return d.live(ctx)
}

// live has players come, as many as the curve says, and counts instances meanwhile.
func (d *day) live(ctx context.Context) (report, error) {
	ctx, stop := context.WithTimeout(ctx, d.duration)
	defer stop()
	began, random := time.Now(), rand.New(rand.NewPCG(d.seed, 0))
	counted := make(chan error, 1)
	var used, minimum meter
	go func() { counted <- d.count(ctx, began, &used) }()
	tick := time.NewTicker(every)
	defer tick.Stop()
	peak, came := 0, 0
	for ctx.Err() == nil {
		at := time.Since(began)
		d.mu.Lock()
		missing := int(curve(min(1, at.Seconds()/d.duration.Seconds()))*float64(d.players)) - d.playing
		d.playing += max(0, missing)
		peak = max(peak, d.playing)
		minimum.take(at, needs(d.playing, d.seats, d.slots))
		d.mu.Unlock()
		for range missing {
			came++
			name, stay := fmt.Sprintf("%s-%d", d.name, came), time.Duration(random.ExpFloat64()*float64(d.stay))
			d.here.Go(func() { d.play(ctx, name, stay) })
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	ended := time.Since(began)
	err := <-counted
	d.here.Wait()
	used.take(ended, 0)
	minimum.take(ended, 0)
	ms := func(part float64) float64 { return float64(percentile(d.took, part).Microseconds()) / 1000 }
	return report{
		Joined: len(d.took), Failed: d.failed, P50MS: ms(0.5), P99MS: ms(0.99), Peak: peak,
		Used: used.sum, Minimum: minimum.sum, Ratio: used.sum / max(minimum.sum, 1), Seed: d.seed,
	}, err
}

// seat is what a player gets, and gives back.
type seat struct {
	Room   string          `json:"room"`
	Ticket json.RawMessage `json:"ticket"`
}

// play is one player's visit; the end of the day ends it.
func (d *day) play(ctx context.Context, name string, stay time.Duration) {
	lobby, who := d.client.Service("rooms/lobby"), map[string]any{"player": name}
	call := func(method string) (got seat, err error) { // what has begun when the day ends is ended
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.patience)
		defer cancel()
		return sdk.Call[seat](ctx, lobby, method, who)
	}
	began := time.Now()
	got, err := call("play")
	took := time.Since(began)
	d.mu.Lock()
	if err == nil {
		d.took = append(d.took, took)
	}
	d.mu.Unlock()
	if err == nil {
		timer := time.NewTimer(stay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
	if err == nil {
		who["room"], who["ticket"] = got.Room, got.Ticket
	}
	_, left := call("leave") // also who has not heard of a seat may have one
	d.mu.Lock()
	defer d.mu.Unlock()
	d.playing--
	for _, err := range []error{err, left} {
		if err != nil {
			d.failed++
			d.log.Warn("player failed", "player", name, "err", err)
		}
	}
}

// count notes how many instances for rooms are ready, until ctx ends.
func (d *day) count(ctx context.Context, began time.Time, used *meter) error {
	tick := time.NewTicker(250 * time.Millisecond) // asks once a second
	defer tick.Stop()
	for {
		all, err := d.client.Endpoints(ctx, "rooms/rooms", "watch")
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("how many instances there are: %w", err)
		}
		used.take(time.Since(began), len(all))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
