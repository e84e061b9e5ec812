package main

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

const (
	demoApp   = "hello"
	demoCount = 3
)

// helloApp is the demonstration: what examples/hello deploys, with the program
// that this binary carries.
func helloApp() kbroker.App {
	return kbroker.App{Name: demoApp, Services: []kbroker.Service{{
		Name:      demoApp,
		Artifact:  kbroker.Artifact{Builtin: kbroker.BuiltinHello},
		Count:     kbroker.Count{Min: demoCount, Max: demoCount},
		Resources: kbroker.Resources{CPU: spec.DefaultCPU, MemoryBytes: spec.DefaultMemoryBytes},
		Health:    kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: spec.DefaultInterval}},
		Update:    kbroker.Update{Parallel: spec.DefaultParallel, MinHealthy: spec.DefaultMinHealthy, Deadline: spec.DefaultDeadline},
		Stop:      kbroker.Stop{Signal: spec.DefaultSignal, Grace: spec.DefaultGrace},
		Spread:    spec.SpreadHost,
	}}}
}

// demonstrate deploys hello and returns the answer to one call. An app of that
// name that is there already is started if need be and otherwise left alone.
func (c *cli) demonstrate(ctx context.Context) (json.RawMessage, error) {
	api, _, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	defer api.Close()
	app := helloApp()
	there, err := api.Version(ctx, demoApp)
	switch {
	case err == nil:
		app = there.App
	case !errors.Is(err, kbroker.NotFound):
		return nil, err
	}
	reply, err := api.Deploy(ctx, app)
	if err != nil {
		return nil, err
	}
	if err := c.rollout(ctx, api, demoApp, reply.Version); err != nil {
		return nil, err
	}
	return c.call(ctx, called{app: demoApp, service: demoApp}, "greet", []byte(`{"name": "World"}`), "")
}

// hasHello reports whether there is an app to try a call on.
func (c *cli) hasHello(ctx context.Context) bool {
	api, _, err := c.open(ctx)
	if err != nil {
		return false
	}
	defer api.Close()
	row, err := api.App(ctx, demoApp)
	return err == nil && !row.Stopped
}
