package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"

	"github.com/kbroker/kbroker/bench/child"
	"github.com/kbroker/kbroker/sdk"
)

// What is done with many objects, which have numbers.
const (
	manyFill  = "fill"  // store one more
	manyWake  = "wake"  // call the next one, so that it is loaded
	manyKnown = "known" // call any of those that were called so
)

// manyStep leads from one object to the next that is activated: it has no divisor in common
// with usual numbers of objects.
const manyStep = 611_953

// manyPeer calls many objects.
type manyPeer struct{ what string }

func (p manyPeer) Name() string { return "object-" + p.what }

func (manyPeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

func (p manyPeer) Dial(ctx context.Context, env child.Env, _ []string) (child.Caller, error) {
	objects, err := numberIn(envObjects)
	if err != nil {
		return nil, err
	}
	active, err := numberIn(envActive)
	if err != nil {
		return nil, err
	}
	c, err := sdk.Dial(ctx, sdk.At(env.Servers[0]))
	if err != nil {
		return nil, err
	}
	return &manyCaller{client: c, what: p.what, objects: objects, active: active}, nil
}

// nth is the number of the object that is activated after so many others.
func nth(i, objects int64) int64 { return i % objects * manyStep % objects }

// numberIn reads a number of objects.
func numberIn(env string) (int64, error) {
	n, err := strconv.ParseInt(os.Getenv(env), 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%s=%q, want a number above 0", env, os.Getenv(env))
	}
	return n, nil
}

type manyCaller struct {
	client          *sdk.Client
	what            string
	objects, active int64
	next            counter
}

func (c *manyCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	method, n := "echo", int64(0)
	switch c.what {
	case manyFill:
		method, n = "put", c.next.Add(1)-1
	case manyWake:
		n = nth(c.next.Add(1)-1, c.objects)
	case manyKnown:
		n = nth(rand.Int64N(c.active), c.objects)
	}
	return sdk.Call[[]byte](ctx, c.client.Object("bench/item:"+strconv.FormatInt(n, 10)), method, payload)
}

func (c *manyCaller) Close() { c.client.Close() }
