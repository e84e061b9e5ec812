// Lobby gives players a seat in a room that has one, and opens rooms where there is none. It
// keeps nothing: who sits where is known by the halls, one for each mode of the game, and any
// instance does for any player.
package main

import (
	"cmp"
	"context"
	"errors"

	"github.com/kbroker/kbroker/sdk"
)

func main() {
	app := sdk.New()
	l := lobby{app}
	// Both may be sent again: who has a seat gets the same one, and who has none has left.
	sdk.Handle(app, "play", l.play, sdk.Idempotent(), sdk.Concurrency(10_000))
	sdk.Handle(app, "leave", l.leave, sdk.Idempotent(), sdk.Concurrency(10_000))
	app.Main() // signals, drain, exit code
}

type lobby struct{ app *sdk.App }

// playing is who wants to play what, or no longer.
type playing struct {
	Player string `json:"player"`
	Mode   string `json:"mode"` // of the game; empty: open
	// Of who leaves: what play has answered. It is looked up, where it is left out.
	Room   string `json:"room"`
	Ticket ticket `json:"ticket"`
}

type player struct {
	Player string `json:"player"`
}

// ticket is what a hall gives for a seat in a room.
type ticket struct {
	Player string `json:"player"`
	Seat   int    `json:"seat"`
	Ticket int    `json:"ticket"`
}

type seated struct {
	Room string `json:"room"`
	New  bool   `json:"new"`
	ticket
}

type room struct {
	Room    string   `json:"room"`
	Seats   int      `json:"seats"`
	Players []string `json:"players"`
	Ticket  ticket   `json:"ticket"` // of who has joined
}

// play returns the room in which the player has a seat; if there is no slot for a new one it
// waits, until ctx ends. A player that gets an error may play again, and is to leave otherwise;
// one that plays for minutes plays again each minute, or its seat is given to another one.
func (l lobby) play(ctx context.Context, in playing) (room, error) {
	s, err := sdk.Call[seated](ctx, l.hall(in.Mode), "seat", player{in.Player})
	if err != nil {
		return room{}, err
	}
	if !s.New { // most are open already
		r, err := l.join(ctx, s)
		if !errors.Is(err, sdk.NotFound) {
			return r, err
		}
	}
	if _, err := sdk.Call[struct{}](ctx, l.app.Object("rooms/door:"+s.Room), "open", nil); err != nil {
		return room{}, err
	}
	return l.join(ctx, s)
}

func (l lobby) join(ctx context.Context, s seated) (room, error) {
	r, err := sdk.Call[room](ctx, l.app.Object("rooms/room:"+s.Room), "join", s.ticket)
	r.Ticket = s.ticket
	return r, err
}

// leave frees the seat, once the room has let the player go. Who has none has left.
func (l lobby) leave(ctx context.Context, in playing) (struct{}, error) {
	s := seated{Room: in.Room, ticket: in.Ticket}
	if s.Room == "" {
		var err error
		if s, err = sdk.Call[seated](ctx, l.hall(in.Mode), "where", player{in.Player}); err != nil || s.Room == "" {
			return struct{}{}, err
		}
	}
	_, err := sdk.Call[struct{}](ctx, l.app.Object("rooms/room:"+s.Room), "leave", s.ticket)
	if err != nil && !errors.Is(err, sdk.NotFound) { // it was not open
		return struct{}{}, err
	}
	return sdk.Call[struct{}](ctx, l.hall(in.Mode), "leave", player{in.Player})
}

func (l lobby) hall(mode string) sdk.Target {
	return l.app.Object("rooms/hall:" + cmp.Or(mode, "open"))
}
