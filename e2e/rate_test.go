package e2e

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

// rated is what a load of requests at a rate has seen, second by second.
type rated struct {
	Seconds []ratedSecond `json:"seconds"`
	Errs    []string      `json:"errs"` // some of those that failed
}

// ratedSecond are the requests that were sent in a second.
type ratedSecond struct {
	At     time.Time     `json:"at"`
	Sent   int           `json:"sent"`
	Failed int           `json:"failed"`
	P99    time.Duration `json:"p99"`
}

// sendAtRates sends requests to a method, so many in a second for so long, whether they are
// answered or not: "waiter.wait", "500/10s", "1000/20s"; or to a thousand objects in turn:
// "counter/counter:.get". It ends early when it is told to.
func sendAtRates(args []string) (rated, error) {
	service, method, _ := strings.Cut(args[0], ".")
	api, err := sdk.Dial(context.Background(), sdk.At(""))
	if err != nil {
		return rated{}, err
	}
	defer api.Close()
	callee := func(int) sdk.Target { return api.Service(service) }
	if strings.HasSuffix(service, ":") {
		callee = func(n int) sdk.Target { return api.Object(service + strconv.Itoa(n%1000)) }
	}
	done := make(chan struct{})
	go func() { told(); close(done) }()
	var out rated
	var mu sync.Mutex
	took := map[int][]time.Duration{} // by second
	var all sync.WaitGroup
	began := time.Now()
	var number atomic.Int64
	send := func() {
		sent := time.Now()
		n := int(sent.Sub(began) / time.Second)
		_, err := sdk.Call[struct{}](context.Background(), callee(int(number.Add(1))), method, struct{}{})
		d := time.Since(sent)
		mu.Lock()
		defer mu.Unlock()
		for len(out.Seconds) <= n {
			out.Seconds = append(out.Seconds, ratedSecond{At: began.Add(time.Duration(len(out.Seconds)) * time.Second)})
		}
		s := &out.Seconds[n]
		s.Sent++
		if took[n] = append(took[n], d); err != nil {
			if s.Failed++; len(out.Errs) < 5 {
				out.Errs = append(out.Errs, err.Error())
			}
		}
	}
phases:
	for _, phase := range args[1:] {
		rate, lasts, _ := strings.Cut(phase, "/")
		perSecond, err := strconv.Atoi(rate)
		if err != nil {
			return out, err
		}
		d, err := time.ParseDuration(lasts)
		if err != nil {
			return out, err
		}
		from, sent := time.Now(), 0
		tick := time.NewTicker(5 * time.Millisecond)
		for time.Since(from) < d {
			for due := int(time.Since(from).Seconds() * float64(perSecond)); sent < due; sent++ {
				all.Go(send)
			}
			select {
			case <-done:
				tick.Stop()
				break phases
			case <-tick.C:
			}
		}
		tick.Stop()
	}
	all.Wait()
	for n, of := range took {
		slices.Sort(of)
		out.Seconds[n].P99 = of[len(of)*99/100]
	}
	return out, nil
}

func (r rated) String() string {
	var b strings.Builder
	for n, s := range r.Seconds {
		fmt.Fprintf(&b, "%d s: %d sent, %d failed, p99 %v\n", n, s.Sent, s.Failed, s.P99.Round(time.Millisecond))
	}
	return b.String()
}
