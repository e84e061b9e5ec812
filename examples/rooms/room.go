package main

import (
	"context"
	"errors"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

// seats are those of a room.
const seats = 4

// room is one in which a game is played: a placed object.
type room struct {
	Seats [seats]sitting `json:"seats"`
}

// sitting is who sits on a seat; empty: nobody, since the ticket was given back.
type sitting struct {
	Player string `json:"player"`
	Ticket int    `json:"ticket"`
}

// ticket is what a hall gives for a seat. A later one of the same seat is higher.
type ticket struct {
	Player string `json:"player"`
	Seat   int    `json:"seat"`
	Ticket int    `json:"ticket"`
}

// view is what is shown of a room.
type view struct {
	Room    string   `json:"room"`
	Seats   int      `json:"seats"`
	Players []string `json:"players"`
}

// join takes somebody in.
func (r *room) join(ctx context.Context, in ticket) (view, error) {
	if err := r.sit(in); err != nil {
		return view{}, err
	}
	return r.state(ctx, struct{}{})
}

// sit gives somebody the seat of a ticket, in place of who had it before. Who has left, or has
// been heard of too late, does not get it.
func (r *room) sit(in ticket) error {
	if in.Seat < 0 || in.Seat >= seats {
		return sdk.Errorf(sdk.Invalid, "seat %d of %d", in.Seat, seats)
	}
	is := &r.Seats[in.Seat]
	if in.Ticket < is.Ticket || in.Ticket == is.Ticket && in.Player != is.Player {
		return sdk.Errorf("left", "%s has given its seat back", in.Player)
	}
	*is = sitting{in.Player, in.Ticket}
	return nil
}

// leave lets somebody go, or who has not come yet stay away.
func (r *room) leave(_ context.Context, in ticket) (struct{}, error) {
	if in.Seat < 0 || in.Seat >= seats {
		return struct{}{}, sdk.Errorf(sdk.Invalid, "seat %d of %d", in.Seat, seats)
	}
	r.free(in)
	return struct{}{}, nil
}

func (r *room) free(in ticket) {
	if is := &r.Seats[in.Seat]; in.Ticket >= is.Ticket {
		*is = sitting{"", in.Ticket}
	}
}

func (r *room) state(ctx context.Context, _ struct{}) (view, error) {
	v := view{sdk.Self(ctx).ID, seats, []string{}}
	for _, s := range r.Seats {
		if s.Player != "" {
			v.Players = append(v.Players, s.Player)
		}
	}
	return v, nil
}

// end leaves nothing stored of a room.
func (r *room) end(ctx context.Context, _ struct{}) (struct{}, error) {
	sdk.Delete(ctx)
	return struct{}{}, nil
}

// doorFor is how long a door is remembered that is closed: who was late to open it has given
// up by then.
const doorFor = 5 * time.Minute

// door opens the room of its id, and closes it for good. One of both at a time.
type door struct {
	Closed bool `json:"closed"`
}

// open waits for a slot for the room, as long as its caller does.
func (d *door) open(ctx context.Context, app *sdk.App) error {
	if d.Closed {
		return sdk.Errorf("closed", "room %s is closed", sdk.Self(ctx).ID)
	}
	_, err := app.Allocate(ctx, "rooms/room:"+sdk.Self(ctx).ID)
	return err
}

// close is told by the hall, until it has been done.
func (d *door) close(ctx context.Context, app *sdk.App) error {
	room := "rooms/room:" + sdk.Self(ctx).ID
	_, err := sdk.Call[struct{}](ctx, app.Object(room), "end", nil)
	if err != nil && !errors.Is(err, sdk.NotFound) { // it was not open
		return err
	}
	if _, err := app.Release(ctx, room); err != nil {
		return err
	}
	d.Closed = true
	return sdk.SetReminder(ctx, "forget", sdk.Reminder{Method: "forget", After: doorFor})
}

func (d *door) forget(ctx context.Context, _ *sdk.App) error {
	sdk.Delete(ctx)
	return nil
}
