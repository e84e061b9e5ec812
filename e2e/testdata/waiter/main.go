// Waiter has requests wait: it is at its bound long before its processor is.
package main

import (
	"context"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

// What a request waits for, and how many do at a time.
const (
	waits = 20 * time.Millisecond
	bound = 8
)

func main() {
	app := sdk.New()
	sdk.Handle(app, "wait", func(ctx context.Context, _ struct{}) (struct{}, error) {
		select {
		case <-ctx.Done():
			return struct{}{}, ctx.Err()
		case <-time.After(waits):
			return struct{}{}, nil
		}
	}, sdk.Concurrency(bound))
	app.Main()
}
