package main

import (
	"context"
	"math/rand/v2"
	"strconv"

	"github.com/kbroker/kbroker/bench/child"
	"github.com/kbroker/kbroker/sdk"
)

// What is done with many objects, which have numbers.
const (
	manyFill  = "fill"  // store one more
	manyWake  = "wake"  // call the next one, so that it is loaded
	manyKnown = "known" // call any of the first ones
)

// manyPeer calls many objects.
type manyPeer struct{ what string }

func (p manyPeer) Name() string { return "object-" + p.what }

func (manyPeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

func (p manyPeer) Dial(ctx context.Context, env child.Env, _ []string) (child.Caller, error) {
	known, err := manyObjects()
	if err != nil {
		return nil, err
	}
	c, err := sdk.Dial(ctx, sdk.At(env.Servers[0]))
	if err != nil {
		return nil, err
	}
	return &manyCaller{client: c, what: p.what, known: known}, nil
}

type manyCaller struct {
	client *sdk.Client
	what   string
	known  int
	next   counter
}

func (c *manyCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	method, n := "echo", int64(rand.IntN(c.known))
	if c.what != manyKnown {
		n = c.next.Add(1) - 1
	}
	if c.what == manyFill {
		method = "put"
	}
	return sdk.Call[[]byte](ctx, c.client.Object("bench/item:"+strconv.FormatInt(n, 10)), method, payload)
}

func (c *manyCaller) Close() { c.client.Close() }
