// Package inprocess is the door through which sdktest makes apps of package sdk that share
// the test's process: each with an instance file of its own, on a network that the test
// can cut. Applications cannot import it.
package inprocess

import (
	"context"
	"log/slog"

	"github.com/kbroker/kbroker"
)

// Config of an app in the test's process.
type Config struct {
	Server string // nats:// URL
	Log    *slog.Logger
	// Hold blocks for as long as the instance stands still; it is called by what runs the
	// objects, before it does anything.
	Hold func()
}

// App is what the test does with an app, besides what its program does.
type App interface {
	// Kinds are the kinds of objects that the program has declared.
	Kinds() []kbroker.KindName
	// Be is who it is; before Run.
	Be(kbroker.InstanceFile)
	// Ready reports whether it serves.
	Ready() bool
	Run(ctx context.Context) error
	// Cut ends its connection at once, and for good.
	Cut()
}

// New makes an app: a *sdk.App, and the same for the test. Set by package sdk.
var New func(Config) (program any, app App)
