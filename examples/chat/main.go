// Chat is rooms in which people write to each other, in their browsers. Rooms and members are
// objects: a room has its last messages, which survive what happens to hosts, and knows who is
// there. The web servers keep nothing; any number of them shows the same rooms.
//
//	kbroker deploy examples/chat/app.yaml
//	kbroker endpoints chat/web      # where browsers find it
//
//	browser --WebSocket--> web (service) --calls--> room, member (objects)
//	browser <--WebSocket-- web (service) <--events-- room
//
// A room publishes each of its changes, with a number. An event may be lost: a web server that
// misses a number asks the room, and so it does when a browser comes, and every two seconds, as
// it says who is there.
package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/kbroker/kbroker/sdk"
)

func main() {
	app := sdk.New()
	if len(os.Args) < 2 {
		serveRooms(app)
		app.Main() // signals, drain, exit code
	}
	if os.Args[1] != "web" {
		slog.Error("want no argument, for the objects, or web, for browsers", "argument", os.Args[1])
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := serveWeb(ctx, app, net.JoinHostPort(os.Getenv("HOST_ADDRESS"), os.Getenv("PORT"))); err != nil {
		slog.Error("web server failed", "err", err)
		os.Exit(1)
	}
}

// serveWeb serves browsers at an address, and the app, until ctx ends or one of them fails.
func serveWeb(ctx context.Context, app *sdk.App, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	calling, leave := context.WithCancel(context.WithoutCancel(ctx)) // to the last browser's end
	defer leave()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	front, web := newFront(app), make(chan error, 1)
	go func() {
		defer leave()
		web <- front.run(ctx, listener)
	}()
	err = app.Run(calling)
	stop()
	return errors.Join(err, <-web)
}
