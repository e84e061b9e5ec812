// Events hears the topic that its argument names, says what it is told to in topic orders of
// its own app, and serves a stream.
package main

import (
	"context"
	"os"
	"sync/atomic"

	"github.com/kbroker/kbroker/sdk"
)

func main() {
	app := sdk.New()
	var heard, shared atomic.Int64
	sdk.Subscribe(app, os.Args[1], func(_ context.Context, n int64) error {
		heard.Add(n)
		return nil
	})
	sdk.Subscribe(app, os.Args[2], func(_ context.Context, n int64) error {
		shared.Add(n)
		return nil
	}, sdk.Shared())
	sdk.Handle(app, "say", func(ctx context.Context, n int64) (int64, error) {
		if err := sdk.Publish(ctx, "orders", n); err != nil {
			return 0, err
		}
		return n, sdk.Publish(ctx, "payments", n)
	})
	sdk.HandleStream(app, "tail", func(ctx context.Context, n int64, send func([3]any) error) error {
		for i := int64(0); i != n; i++ {
			if err := send([3]any{app.Instance(), heard.Load(), shared.Load()}); err != nil {
				return err
			}
		}
		return nil
	})
	app.Main()
}
