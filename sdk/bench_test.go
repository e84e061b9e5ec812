package sdk

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/natstest"
)

// BenchmarkRequest compares a call with nats.go's own request on the same
// broker, with the same handler and in one process; task bench does it across
// processes.
func BenchmarkRequest(b *testing.B) {
	s := natstest.Start(b)
	payload := make([]byte, 128)
	b.Run("sdk", func(b *testing.B) {
		a := newApp(s.URL, "echo-echo-1")
		Handle(a, "echo", func(_ context.Context, in []byte) ([]byte, error) { return in, nil })
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		defer func() { cancel(); <-done }()
		c, err := Dial(ctx, as(s.URL, nil))
		if err != nil {
			b.Fatal(err)
		}
		defer c.Close()
		target := c.Service("echo")
		if _, err := Call[[]byte](ctx, target, "echo", payload); err != nil {
			b.Fatal(err)
		}
		b.SetParallelism(8)
		b.ResetTimer()
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				if _, err := Call[[]byte](ctx, target, "echo", payload); err != nil {
					b.Error(err)
					return
				}
			}
		})
	})
	for name, header := range map[string]nats.Header{"nats.go": nil, "nats.go with headers": {"Kb-Request-Id": {"0011223344556677:1"}, "Kb-Timeout-Ms": {"5000"}}} {
		b.Run(name, func(b *testing.B) {
			server, caller := s.Connect(b), s.Connect(b)
			if _, err := server.QueueSubscribe("bench", "q", func(m *nats.Msg) {
				_ = m.RespondMsg(&nats.Msg{Data: m.Data, Header: header})
			}); err != nil {
				b.Fatal(err)
			}
			if err := server.Flush(); err != nil {
				b.Fatal(err)
			}
			b.SetParallelism(8)
			b.ResetTimer()
			b.RunParallel(func(p *testing.PB) {
				for p.Next() {
					if _, err := caller.RequestMsg(&nats.Msg{Subject: "bench", Data: payload, Header: header}, 5*time.Second); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
