package sdk

import (
	"context"
	"log/slog"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/inprocess"
)

func init() {
	inprocess.New = func(c inprocess.Config) (any, inprocess.App) {
		a := New(func(o *options) {
			o.log = c.Log
			o.find = func(string) (connect.Target, error) {
				return connect.Target{Servers: []string{c.Server}, Tenant: kbroker.DefaultTenant, Source: "test", Instance: &kbroker.InstanceFile{}}, nil
			}
			o.connect = func(target connect.Target, _ string, log *slog.Logger) dialFunc {
				return dialNATS(target, "test", log)
			}
		})
		a.hold = c.Hold
		return a, tested{a}
	}
}

// tested is an app in the process of a test.
type tested struct{ app *App }

func (t tested) Kinds() []kbroker.KindName {
	var names []kbroker.KindName
	for _, k := range t.app.kinds {
		names = append(names, k.name)
	}
	return names
}

func (t tested) Be(i kbroker.InstanceFile)     { t.app.identity = i }
func (t tested) Ready() bool                   { return t.app.phase.Load() == phaseReady }
func (t tested) Run(ctx context.Context) error { return t.app.Run(ctx) }
func (t tested) Cut()                          { t.app.client.Close() }
