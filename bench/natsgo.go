package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/bench/child"
	"github.com/kbroker/kbroker/internal/credential"
)

// natsgoPeer is what a program without kbroker would do: Request and
// QueueSubscribe of nats.go, on the same cluster.
type natsgoPeer struct{}

const (
	// natsgoSubject is one of the service that all peers have the credential of.
	natsgoSubject = "svc.bench.echo.natsgo"
	natsgoQueue   = "svc"
	// callTimeout is the SDK's default deadline.
	callTimeout = 5 * time.Second
)

func (natsgoPeer) Name() string { return "natsgo" }

func (natsgoPeer) Serve(ctx context.Context, env child.Env, ready func(string)) error {
	conn, err := natsgoConnect(env)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.QueueSubscribe(natsgoSubject, natsgoQueue, func(m *nats.Msg) { _ = m.Respond(m.Data) }); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	if err := conn.FlushTimeout(callTimeout); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	ready("")
	<-ctx.Done()
	return nil
}

func (natsgoPeer) Dial(_ context.Context, env child.Env, _ []string) (child.Caller, error) {
	conn, err := natsgoConnect(env)
	if err != nil {
		return nil, err
	}
	return natsgoCaller{conn}, nil
}

func natsgoConnect(env child.Env) (*nats.Conn, error) {
	options := []nats.Option{nats.DontRandomize()}
	if ca := os.Getenv(envCA); ca != "" {
		options = append(options, nats.RootCAs(ca))
	}
	if file := os.Getenv(envCreds); file != "" {
		own, err := credential.FileOptions(file) // as the SDK shows it, the prefix of the inbox too
		if err != nil {
			return nil, err
		}
		options = append(options, own...)
	}
	conn, err := nats.Connect(strings.Join(env.Servers, ","), options...)
	if err != nil {
		return nil, fmt.Errorf("connect %v: %w", env.Servers, err)
	}
	return conn, nil
}

type natsgoCaller struct{ conn *nats.Conn }

func (c natsgoCaller) Call(_ context.Context, payload []byte) ([]byte, error) {
	m, err := c.conn.Request(natsgoSubject, payload, callTimeout)
	if err != nil {
		return nil, err
	}
	return m.Data, nil
}

func (c natsgoCaller) Close() { c.conn.Close() }
