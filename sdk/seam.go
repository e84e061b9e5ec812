package sdk

import (
	"context"
	"log/slog"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/sdkseam"
)

func init() { sdkseam.New = newTested }

// newTested makes the app of a process that lives in a test.
func newTested(p sdkseam.Process) sdkseam.App {
	of := p.Identity
	a := New(Logger(p.Log), func(o *options) {
		o.find = func(string) (connect.Target, error) {
			return connect.Target{Servers: of.Servers, Tenant: of.Tenant, Source: "sdktest", Instance: &of}, nil
		}
		o.connect = func(target connect.Target, name string, log *slog.Logger) dialFunc {
			return dialOver(target, name, log, nats.SetCustomDialer(p.Cable))
		}
	})
	a.clock, a.due, a.cut = p.Clock, p.Due, p.Cut
	kinds := func() ([]kbroker.KindName, map[kbroker.KindName]kbroker.Schema) {
		own := &a.identity
		own.Objects, own.Schemas = nil, nil
		for _, k := range a.kinds {
			own.Objects = append(own.Objects, k.name)
			if n := k.schema.of(); n > 1 {
				if own.Schemas == nil {
					own.Schemas = map[kbroker.KindName]kbroker.Schema{}
				}
				own.Schemas[k.name] = kbroker.Schema{Number: n, Lowest: n}
			}
		}
		a.client.knowPlaced(own)
		return own.Objects, own.Schemas
	}
	return sdkseam.App{SDK: a, Kinds: kinds, Run: a.Run}
}

// dialOver is dialNATS with options of the connections.
func dialOver(target connect.Target, name string, log *slog.Logger, extra ...nats.Option) dialFunc {
	return func(ctx context.Context, on connEvents) (transport, error) {
		n := newNetwork(target, name, log)
		n.extra = extra
		t, err := newNATSTransport(ctx, n, calm, on)
		if err != nil {
			return nil, err // not t: a nil pointer is no nil transport
		}
		return t, nil
	}
}
