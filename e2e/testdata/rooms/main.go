// Rooms keeps rooms, as placed objects: some of them are stored, booths are not.
package main

import (
	"context"
	"os"
	"syscall"

	"github.com/kbroker/kbroker/sdk"
)

type room struct {
	Visits int    `json:"visits"`
	At     string `json:"at"` // the process that it is in
}

func (r *room) enter(context.Context, struct{}) (room, error) {
	r.Visits++
	r.At = os.Getenv("KBROKER_INSTANCE")
	return *r, nil
}

func (r *room) get(context.Context, struct{}) (room, error) { return *r, nil }

// die ends the instance, as a crash would.
func (r *room) die(context.Context, struct{}) (room, error) {
	return *r, syscall.Kill(os.Getpid(), syscall.SIGKILL)
}

func main() {
	app := sdk.New()
	rooms, booths := sdk.Objects[room](app, "room"), sdk.Objects[room](app, "booth", sdk.Durable(sdk.None))
	for _, k := range []*sdk.Kind[room]{rooms, booths} {
		sdk.Method(k, "enter", (*room).enter)
		sdk.ReadOnly(k, "get", (*room).get)
		sdk.Method(k, "die", (*room).die)
	}
	app.Main()
}
