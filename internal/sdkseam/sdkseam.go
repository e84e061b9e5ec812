// Package sdkseam is where package sdk can be opened by sdk/sdktest, and by nobody else: what
// an app is, its clock and its cables come from a test then, not from an agent. Package sdk
// registers New when it is linked; applications cannot import this package.
package sdkseam

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
)

// Process is one start of an instance.
type Process struct {
	// Identity needs no kinds of objects: they are those that the app declares.
	Identity kbroker.InstanceFile
	Log      *slog.Logger
	// Clock is the boottime clock; Due says that it was turned.
	Clock func() time.Duration
	Due   <-chan struct{}
	// Cut is closed to end Run at once, as a kill would: nothing is drained.
	Cut <-chan struct{}
	// Cable makes the connections.
	Cable nats.CustomDialer
}

// App is the app of a Process.
type App struct {
	SDK any // *sdk.App
	// Kinds are its kinds of objects, and their schemas that are not the first, once all
	// are declared; its spec names them from then on.
	Kinds func() ([]kbroker.KindName, map[kbroker.KindName]kbroker.Schema)
	Run   func(ctx context.Context) error
}

// New makes an app.
var New func(Process) App
