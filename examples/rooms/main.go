// Rooms is a back end of games: players get a seat in a room, rooms are where there is a slot
// for them, and there are as many instances as the rooms need.
//
//	kbroker deploy examples/rooms/app.yaml
//	kbroker call rooms/lobby play player=ann      # {"room":"open-1","seats":4,"players":["ann"]}
//	kbroker endpoints rooms/rooms                 # http://ADDRESS/open-1 shows the room
//
//	player --play, leave--> lobby (service)
//	lobby  --seat, leave--> hall (object, one of each mode): who sits where
//	lobby  --open---------> door (object, one of each room): Allocate
//	lobby  --join, leave--> room (placed object)
//	hall   ~~close~~~~~~~~> door, when the last one has left: Release
//
// What a hall tells is stored with what it knows, and done once. A room is allocated and
// released by its door alone, one after the other. So whatever is killed meanwhile, no room is
// left behind that nobody is in, and none is opened again.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"

	"github.com/kbroker/kbroker/sdk"
)

func main() {
	app := sdk.New()
	serve(app)
	go func() { // till the process ends
		err := http.ListenAndServe(net.JoinHostPort(os.Getenv("HOST_ADDRESS"), os.Getenv("PORT")), watch(app))
		slog.Error("nobody can watch", "err", err)
		os.Exit(1)
	}()
	app.Main() // signals, drain, exit code
}

// serve declares the objects.
func serve(app *sdk.App) {
	// Who sits in a room is stored before it is answered, which is the default: it happens
	// once in minutes, and a room whose host is lost is elsewhere with all who are in it. What
	// happens in a game, many times in a second, is for fields that are not exported: these
	// are in memory alone, and cost nothing. A kind that is Durable(sdk.None) would send all
	// of its players away when its instance leaves in the night.
	rooms := sdk.Objects[room](app, "room")
	sdk.Method(rooms, "join", (*room).join)
	sdk.Method(rooms, "leave", (*room).leave)
	sdk.Method(rooms, "end", (*room).end)
	sdk.ReadOnly(rooms, "state", (*room).state)

	doors := sdk.Objects[door](app, "door")
	for name, do := range map[string]func(*door, context.Context, *sdk.App) error{
		"open": (*door).open, "close": (*door).close, "forget": (*door).forget,
	} {
		sdk.Method(doors, name, func(d *door, ctx context.Context, _ struct{}) (struct{}, error) {
			return struct{}{}, do(d, ctx, app)
		})
	}

	halls := sdk.Objects[hall](app, "hall")
	sdk.Method(halls, "seat", (*hall).seat)
	sdk.ReadOnly(halls, "where", (*hall).where)
	sdk.Method(halls, "leave", (*hall).leave)
	sdk.Method(halls, "sweep", (*hall).sweep)
}

// watch shows a room to who is not in it, on any instance.
func watch(app *sdk.App) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{room}", func(w http.ResponseWriter, r *http.Request) {
		v, err := sdk.Call[view](r.Context(), app.Object("rooms/room:"+r.PathValue("room")), "state", nil)
		switch {
		case errors.Is(err, sdk.NotFound):
			http.Error(w, err.Error(), http.StatusNotFound)
		case err != nil:
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		default:
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(v) // who has gone reads nothing
		}
	})
	return mux
}
