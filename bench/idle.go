package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker/bench/child"
	"github.com/kbroker/kbroker/sdk"
)

// Objects that are called when they were put away: enough of them that none is called
// again before it was.
const (
	napAfter = 200 * time.Millisecond
	naps     = 10_000
	// nappers write them at once, before anything is measured.
	nappers = 64
	// napLate is how long after napAfter one is put away at most.
	napLate = 800 * time.Millisecond
)

// nap is such an object.
type nap struct {
	Data  []byte        `json:"data"`
	calls *atomic.Int64 // that have waked it, since it was loaded
}

func serveNaps(app *sdk.App) {
	kind := sdk.Objects[nap](app, "nap", sdk.IdleAfter(napAfter))
	sdk.OnActivate(kind, func(n *nap, _ context.Context) error {
		n.calls = new(atomic.Int64)
		return nil
	})
	sdk.Method(kind, "put", func(n *nap, _ context.Context, data []byte) ([]byte, error) {
		n.Data = data
		return data, nil
	})
	sdk.ReadOnly(kind, "wake", func(n *nap, _ context.Context, data []byte) ([]byte, error) {
		if n.calls.Add(1) > 1 {
			return nil, errors.New("the object was awake")
		}
		return data, nil
	})
}

// idlePeer calls one after the other.
type idlePeer struct{}

func (idlePeer) Name() string { return objectPeer{whatIdle}.Name() }

func (idlePeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

// Dial returns when the objects are stored and have been put away.
func (idlePeer) Dial(ctx context.Context, env child.Env, _ []string) (child.Caller, error) {
	client, err := sdk.Dial(ctx, sdk.At(env.Servers[0]))
	if err != nil {
		return nil, err
	}
	c := &idleCaller{client: client}
	if err := c.store(ctx); err != nil {
		client.Close()
		return nil, err
	}
	time.Sleep(napAfter + napLate)
	return c, nil
}

type idleCaller struct {
	client *sdk.Client
	next   counter
}

func (c *idleCaller) store(ctx context.Context) error {
	var next counter
	errs := make([]error, nappers)
	var writing sync.WaitGroup
	for i := range errs {
		writing.Go(func() {
			for n := next.Add(1); n <= naps && errs[i] == nil; n = next.Add(1) {
				_, errs[i] = sdk.Call[[]byte](ctx, c.object(n), "put", []byte("asleep"))
			}
		})
	}
	writing.Wait()
	return errors.Join(errs...)
}

func (c *idleCaller) object(n int64) sdk.Target {
	return c.client.Object("bench/nap:" + strconv.FormatInt(n%naps, 10))
}

func (c *idleCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	n := c.next.Add(1)
	reply, err := sdk.Call[[]byte](ctx, c.object(n), "wake", payload)
	if err != nil {
		err = fmt.Errorf("call %d: %w", n, err)
	}
	return reply, err
}

func (c *idleCaller) Close() { c.client.Close() }
