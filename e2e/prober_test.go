package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// probeEvery is the pause between two probes of one way, whatever the
	// answers take; probeTime is how long one may take that is not repeated.
	probeEvery = 50 * time.Millisecond
	probeTime  = time.Second
	// probeLate is what counts as late for one that the SDK may repeat.
	probeLate = 250 * time.Millisecond
	// viaSDK is the way of the SDK; the others are core addresses.
	viaSDK = "sdk"
	// maxProbes bounds what a prober remembers of one way.
	maxProbes = 100_000
)

// probe is one request to hello that failed or was late.
type probe struct {
	Sent time.Time     `json:"sent"`
	Took time.Duration `json:"took"`
	Err  string        `json:"err,omitempty"`
}

// leaseWrite is one write of the super lease, as the stream's leader told it to
// everybody. Every write of super is a batch that begins with one.
type leaseWrite struct {
	Sequence uint64 `json:"sequence"`
	Holder   string `json:"holder"`
	Epoch    uint64 `json:"epoch"`
}

// probes is what a prober says: by way, how many requests and which of them
// failed (one connection that begins at one core, no repetition) or failed or
// were late (SDK).
type probes struct {
	Sent   map[string]int     `json:"sent"`
	Bad    map[string][]probe `json:"bad"`
	Leases []leaseWrite       `json:"leases"`
}

// prober sends requests on several ways at a fixed rate.
type prober struct {
	under sync.WaitGroup // requests under way

	mu sync.Mutex // guards what follows
	probes
	leases map[uint64]leaseWrite
}

// probeUntilTold sends as one of the people, and hears of the lease as a core.
func probeUntilTold(people, core client.Target, servers []string) (probes, error) {
	p := &prober{probes: probes{Sent: map[string]int{}, Bad: map[string][]probe{}}, leases: map[uint64]leaseWrite{}}
	ways := map[string]func() error{}
	for i, server := range servers {
		first := slices.Concat(servers[i:], servers[:i])
		nc, err := connectTo(people, first...)
		if err != nil {
			return probes{}, err
		}
		defer nc.Close()
		store, err := connectTo(core, first...)
		if err != nil {
			return probes{}, err
		}
		defer store.Close()
		if _, err := store.Subscribe(subjects.Changed(subjects.KeySuperLease), p.lease); err != nil {
			return probes{}, err
		}
		ways[server] = func() error { return greet(nc) }
	}
	dialling, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	caller, err := sdk.Dial(dialling)
	if err != nil {
		return probes{}, err
	}
	defer caller.Close()
	hello := caller.Service("hello")
	ways[viaSDK] = func() error {
		_, err := sdk.Call[json.RawMessage](context.Background(), hello, "greet", map[string]string{"name": "Ann"})
		return err
	}
	ctx, end := context.WithCancel(context.Background())
	var sending sync.WaitGroup
	for way, send := range ways {
		sending.Go(func() { p.send(ctx, way, send) })
	}
	told()
	end()
	sending.Wait()
	p.under.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.leases {
		p.Leases = append(p.Leases, l)
	}
	return p.probes, nil
}

// greet is one request to hello, not repeated.
func greet(nc *nats.Conn) error {
	reply, err := nc.Request(subjects.Method("hello", "hello", "greet"), []byte(`{"name":"Ann"}`), probeTime)
	if err == nil && reply.Header.Get(subjects.HeaderCode) != "" {
		err = fmt.Errorf("answered %q", reply.Data)
	}
	return err
}

// send sends on one way until ctx ends.
func (p *prober) send(ctx context.Context, way string, request func() error) {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for n := 1; n <= maxProbes; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		p.under.Go(func() {
			sent := time.Now()
			err := request()
			r := probe{Sent: sent, Took: time.Since(sent)}
			if err != nil {
				r.Err = err.Error()
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.Sent[way]++
			if err != nil || way == viaSDK && r.Took > probeLate {
				p.Bad[way] = append(p.Bad[way], r)
			}
		})
	}
}

func (p *prober) lease(m *nats.Msg) {
	var l leaseWrite
	seq, err := strconv.ParseUint(m.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil || json.Unmarshal(m.Data, &l) != nil {
		return
	}
	l.Sequence = seq
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leases[seq] = l
}

// startProbes probes beside what the test does.
func (c *cluster) startProbes(servers []string) (end func() probes) {
	c.t.Helper()
	r := c.startChild(proberJob, servers)
	return func() probes {
		c.t.Helper()
		var p probes
		r.report(&p)
		return p
	}
}

// stopped is when, after a fault, the last bad request of the ways was sent; 0
// when none was.
func (p probes) stopped(t *testing.T, fault time.Time, ways ...string) time.Duration {
	t.Helper()
	var last time.Duration
	for _, way := range ways {
		if p.Sent[way] == 0 {
			t.Errorf("the prober sent nothing via %s", way)
		}
		for _, b := range p.Bad[way] {
			last = max(last, b.Sent.Sub(fault))
		}
	}
	return last
}

// show logs what was bad on each way.
func (p probes) show(t *testing.T, fault time.Time) {
	t.Helper()
	for way, sent := range p.Sent {
		bad := p.Bad[way]
		if len(bad) == 0 {
			t.Logf("probes via %s: %d, none bad", way, sent)
			continue
		}
		slices.SortFunc(bad, func(a, b probe) int { return a.Sent.Compare(b.Sent) })
		slowest := slices.MaxFunc(bad, func(a, b probe) int { return int(a.Took - b.Took) })
		failed, last := 0, bad[len(bad)-1]
		for _, b := range bad {
			if b.Err != "" {
				failed++
			}
		}
		t.Logf("probes via %s: %d, %d late or failed (%d failed), sent %v to %v after the fault, slowest %v; last error %q",
			way, sent, len(bad), failed, bad[0].Sent.Sub(fault).Round(time.Millisecond), last.Sent.Sub(fault).Round(time.Millisecond),
			slowest.Took.Round(time.Millisecond), last.Err)
	}
}
