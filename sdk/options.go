package sdk

import (
	"context"
	"log/slog"
	"time"

	"github.com/kbroker/kbroker/internal/connect"
)

// Bounds of an app that has not set its own.
const (
	// DefaultConcurrency bounds the requests that one method of one instance
	// works on at a time.
	DefaultConcurrency = 256
	// DefaultGrace is how long handlers may take to finish when the app leaves.
	DefaultGrace = 10 * time.Second
)

// Option changes New or Dial.
type Option func(*options)

// dialFunc connects a client.
type dialFunc = func(context.Context, connEvents) (transport, error)

type options struct {
	log     *slog.Logger
	at      string
	as      string
	grace   time.Duration
	find    func(flag string) (connect.Target, error)
	connect func(connect.Target, string, *slog.Logger) dialFunc
}

// Logger takes the app's own log; the default is slog.Default.
func Logger(log *slog.Logger) Option { return func(o *options) { o.log = log } }

// At names the cluster: server URLs, a context, or the directory of a cluster.
// An empty name changes nothing.
func At(cluster string) Option { return func(o *options) { o.at = cluster } }

// As says which "app/service" the program is when no agent started it, instead
// of the app.yaml of the working directory.
func As(name string) Option { return func(o *options) { o.as = name } }

// Grace bounds how long handlers may take to finish when the app leaves.
func Grace(d time.Duration) Option { return func(o *options) { o.grace = d } }

func collect(opts []Option) options {
	o := options{log: slog.Default(), grace: DefaultGrace, find: connect.Find, connect: dialNATS}
	for _, set := range opts {
		set(&o)
	}
	return o
}

// client makes the client of New or Dial. name is what the servers show when no
// agent says who this is.
func (o options) client(name string) (*Client, connect.Target, error) {
	target, err := o.find(o.at)
	if err != nil {
		return nil, connect.Target{}, err
	}
	if target.Instance != nil {
		name = string(target.Instance.Incarnation)
	}
	c := newClient(o.log, o.connect(target, name, o.log))
	c.tenant = target.Tenant
	return c, target, nil
}
