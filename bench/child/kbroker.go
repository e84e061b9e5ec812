package child

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/kbroker/kbroker/sdk"
)

// KBroker is the SDK as an application uses it. Its responders are
// development instances: started by the bench, as those of the other peers are,
// rather than by agents.
type KBroker struct{}

const (
	kbrokerService = "bench/echo"
	kbrokerEcho    = "echo"
	kbrokerHere    = "here" // handled to learn that requests come to this process
)

func (KBroker) Name() string { return "kbroker" }

func (KBroker) Serve(ctx context.Context, env Env, ready func(string)) error {
	app := sdk.New(sdk.At(kbrokerServer(env)), sdk.As(kbrokerService), quiet())
	sdk.Handle(app, kbrokerEcho, func(_ context.Context, in []byte) ([]byte, error) { return in, nil })
	here := make(chan struct{})
	var once sync.Once
	sdk.Handle(app, kbrokerHere, func(context.Context, []byte) ([]byte, error) {
		once.Do(func() { close(here) })
		return nil, nil
	})

	probing, stop := context.WithCancel(ctx)
	var probe sync.WaitGroup
	probe.Go(func() {
		if callUntil(probing, app, here) {
			ready("")
		}
	})
	err := app.Run(ctx)
	stop()
	probe.Wait()
	return err
}

// callUntil calls the service, any instance of which may answer, until this
// one has; false if ctx ended first.
func callUntil(ctx context.Context, app *sdk.App, here <-chan struct{}) bool {
	for {
		_, err := sdk.Call[[]byte](ctx, app.Service(kbrokerService), kbrokerHere, []byte{})
		select {
		case <-here:
			return true
		case <-ctx.Done():
			return false
		default:
		}
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return false // Run returns why
		}
	}
}

func (KBroker) Dial(ctx context.Context, env Env, _ []string) (Caller, error) {
	client, err := sdk.Dial(ctx, sdk.At(kbrokerServer(env)), quiet())
	if err != nil {
		return nil, fmt.Errorf("connect %v: %w", env.Servers, err)
	}
	return kbrokerCaller{client, client.Service(kbrokerService)}, nil
}

// quiet lets only trouble through: coming and going is not the reader's.
func quiet() sdk.Option {
	return sdk.Logger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
}

// kbrokerServer is the own host's: of several the SDK would take any, and the
// sides would not have one responder on each host. It learns of the others from
// the server.
func kbrokerServer(env Env) string { return env.Servers[0] }

type kbrokerCaller struct {
	client  *sdk.Client
	service sdk.Target
}

func (c kbrokerCaller) Call(ctx context.Context, payload []byte) ([]byte, error) {
	return sdk.Call[[]byte](ctx, c.service, kbrokerEcho, payload)
}

func (c kbrokerCaller) Close() { c.client.Close() }
