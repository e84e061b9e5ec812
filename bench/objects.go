package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kbroker/kbroker/bench/child"
	"github.com/kbroker/kbroker/sdk"
)

// What is measured of objects: of each, one side of ours and others.
const (
	whatUpdate = "update" // a durable update of one of updated records
	whatRead   = "read"   // a call of an object that only reads, its object in memory
	whatCold   = "cold"   // the first call of an object ever
	whatIdle   = "idle"   // a call that only reads of an object that its owner has put away
)

// updated is how many records updates are spread over.
const updated = 1000

// objectsRole is the word that makes this program an instance of the app whose objects are
// measured.
const objectsRole = "objects"

// keeperService is the service of its instances.
const keeperService = "keeper"

const objectsSpec = `name: bench
object_streams: 1
services:
  ` + keeperService + `:
    run: %s
    args: [%s]
    count: 3
    objects: [item, nap]
    env: {%s}
`

// item is an object of the app.
type item struct {
	Writes int64  `json:"writes"`
	Data   []byte `json:"data"`
}

// serveObjects is an instance of the app.
func serveObjects() {
	app := sdk.New()
	items := sdk.Objects[item](app, "item")
	sdk.Method(items, "put", func(i *item, _ context.Context, data []byte) ([]byte, error) {
		i.Writes++
		i.Data = data
		return data, nil
	})
	sdk.ReadOnly(items, "echo", func(_ *item, _ context.Context, data []byte) ([]byte, error) { return data, nil })
	serveNaps(app)
	sdk.Handle(app, "echo", func(_ context.Context, data []byte) ([]byte, error) { return data, nil })
	app.Main()
}

// measureObjects measures objects on a cluster of its own.
func (s settings) measureObjects(ctx context.Context, progress io.Writer) (results []Result, err error) {
	fmt.Fprintln(progress, "starting three hosts, and what they are compared with")
	c, err := startCluster(ctx, s.bin)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.deployObjects(ctx, ""); err != nil {
		return nil, err
	}
	stores, err := startStores(ctx, s.stores)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stores.close()) }()
	for _, l := range s.plan.Loads {
		p := s.plan
		p.Loads = []Load{l}
		p.Sides = []Side{{Name: own.Name(), Peer: objectPeer{what: l.What}.Name(), Cluster: c.Cluster, Served: true}}
		switch l.What {
		case whatUpdate:
			p.Sides = append(p.Sides, stores.sides()...)
		case whatRead:
			p.Sides = append(p.Sides, Side{Name: "stateless", Peer: statelessPeer{}.Name(), Cluster: c.Cluster, Served: true})
		}
		r, err := Run(ctx, p, progress)
		if err != nil {
			return nil, err
		}
		results = append(results, r...)
	}
	return results, nil
}

// deployObjects deploys the app whose instances are this program, with something in their
// environment.
func (c *cluster) deployObjects(ctx context.Context, env string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	file := filepath.Join(c.dir, "bench.yaml")
	if err := os.WriteFile(file, fmt.Appendf(nil, objectsSpec, self, objectsRole, env), 0o600); err != nil {
		return err
	}
	_, err = c.run(ctx, "deploy", file)
	return err
}

// objectPeer calls objects of the deployed app.
type objectPeer struct{ what string }

func (p objectPeer) Name() string { return "object-" + p.what }

func (objectPeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

var errServed = errors.New("it is served by the cluster")

func (p objectPeer) Dial(ctx context.Context, env child.Env, _ []string) (child.Caller, error) {
	c, err := sdk.Dial(ctx, sdk.At(env.Servers[0]))
	if err != nil {
		return nil, err
	}
	return &objectCaller{client: c, what: p.what, run: strconv.FormatUint(rand.Uint64(), 36)}, nil
}

type objectCaller struct {
	client *sdk.Client
	what   string
	run    string // of the cold ones
	next   counter
}

func (c *objectCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	method, id := "echo", strconv.Itoa(rand.IntN(updated))
	switch c.what {
	case whatUpdate:
		method = "put"
	case whatCold:
		id = c.run + "-" + strconv.FormatInt(c.next.Add(1), 10)
	}
	return sdk.Call[[]byte](ctx, c.client.Object("bench/item:"+id), method, payload)
}

func (c *objectCaller) Close() { c.client.Close() }

// statelessPeer calls the service of the same instances.
type statelessPeer struct{}

func (statelessPeer) Name() string { return "object-stateless" }

func (statelessPeer) Serve(context.Context, child.Env, func(string)) error { return errServed }

func (statelessPeer) Dial(ctx context.Context, env child.Env, _ []string) (child.Caller, error) {
	c, err := sdk.Dial(ctx, sdk.At(env.Servers[0]))
	if err != nil {
		return nil, err
	}
	return statelessCaller{c, c.Service("bench/keeper")}, nil
}

type statelessCaller struct {
	client  *sdk.Client
	service sdk.Target
}

func (c statelessCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	return sdk.Call[[]byte](ctx, c.service, "echo", payload)
}

func (c statelessCaller) Close() { c.client.Close() }

// objectLoads are what -objects measures.
func objectLoads(callers, what string) ([]Load, error) {
	some, err := numbers(callers)
	if err != nil {
		return nil, fmt.Errorf("-callers: %w", err)
	}
	var loads []Load
	for w := range strings.SplitSeq(what, ",") {
		if all := []string{whatUpdate, whatRead, whatCold, whatIdle}; !slices.Contains(all, w) {
			return nil, fmt.Errorf("-objects: %q, want some of %s", w, strings.Join(all, ", "))
		}
		for _, n := range some {
			loads = append(loads, Load{w, n, plainBytes})
		}
	}
	return loads, nil
}
