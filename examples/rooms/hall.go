package main

import (
	"context"
	"fmt"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

const (
	// seatFor is how long a seat is kept for who does not play again: a player that has gone
	// without a word.
	seatFor = 5 * time.Minute
	// sweepEvery is how often those are looked for, sweepMost how many of them go at a time:
	// a turn tells 64 others.
	sweepEvery = 30 * time.Second
	sweepMost  = 32
)

// hall knows who sits where, in the rooms of one mode of the game: its id.
type hall struct {
	Last  int                `json:"last"`  // ticket; rooms have the number of their first one
	Rooms map[int][seats]int `json:"rooms"` // tickets by seat, 0 is free; no room is empty
	Seats map[string]seat    `json:"seats"` // by player
}

type seat struct {
	Room   int       `json:"room"`
	Seat   int       `json:"seat"`
	Ticket int       `json:"ticket"`
	Until  time.Time `json:"until"`
}

type player struct {
	Player string `json:"player"`
}

// seated is where somebody sits.
type seated struct {
	Room string `json:"room"`
	New  bool   `json:"new"` // it is to be opened
	ticket
}

// seat gives somebody a seat, or the one that there is, for seatFor or half of that at least.
func (h *hall) seat(ctx context.Context, in player) (seated, error) {
	if in.Player == "" {
		return seated{}, sdk.Errorf(sdk.Invalid, "player is empty")
	}
	if len(h.Seats) == 0 {
		if err := sdk.SetReminder(ctx, "sweep", sdk.Reminder{Method: "sweep", After: sweepEvery, Every: sweepEvery}); err != nil {
			return seated{}, err
		}
	}
	s, fresh := h.take(in.Player, time.Now())
	return seated{roomID(ctx, s.Room), fresh, ticket{in.Player, s.Seat, s.Ticket}}, nil
}

// where is the seat that somebody has; its room is empty, if there is none.
func (h *hall) where(ctx context.Context, in player) (seated, error) {
	s, has := h.Seats[in.Player]
	if !has {
		return seated{}, nil
	}
	return seated{roomID(ctx, s.Room), false, ticket{in.Player, s.Seat, s.Ticket}}, nil
}

// leave frees a seat that the room has let go, and has the room closed if it was the last one:
// that is told once, whatever fails meanwhile.
func (h *hall) leave(ctx context.Context, in player) (struct{}, error) {
	s, empty := h.give(in.Player)
	if !empty {
		return struct{}{}, nil
	}
	return struct{}{}, sdk.Tell(ctx, sdk.Object("rooms/door:"+roomID(ctx, s.Room)), "close", nil)
}

// sweep frees the seats of those who have not been heard of.
func (h *hall) sweep(ctx context.Context, _ struct{}) (struct{}, error) {
	gone := 0
	for who, s := range h.Seats {
		if time.Now().Before(s.Until) {
			continue
		}
		if gone++; gone > sweepMost {
			break
		}
		if err := sdk.Tell(ctx, sdk.Object("rooms/room:"+roomID(ctx, s.Room)), "leave", ticket{who, s.Seat, s.Ticket}); err != nil {
			return struct{}{}, err
		}
		if _, err := h.leave(ctx, player{who}); err != nil {
			return struct{}{}, err
		}
	}
	if len(h.Seats) == 0 {
		return struct{}{}, sdk.CancelReminder(ctx, "sweep")
	}
	return struct{}{}, nil
}

// take is the seat that somebody has, else one in the fullest room that has one, else one in
// a new room: so few rooms are open, and those that are emptied close.
func (h *hall) take(who string, now time.Time) (s seat, fresh bool) {
	if h.Rooms == nil {
		h.Rooms, h.Seats = map[int][seats]int{}, map[string]seat{}
	}
	s, has := h.Seats[who]
	if !has {
		h.Last++
		s = seat{Room: h.fullest(), Ticket: h.Last}
		if fresh = s.Room == 0; fresh {
			s.Room = s.Ticket
		}
		of := h.Rooms[s.Room]
		for of[s.Seat] != 0 {
			s.Seat++
		}
		of[s.Seat] = s.Ticket
		h.Rooms[s.Room] = of
	}
	if s.Until.Sub(now) < seatFor/2 { // else who asks again changes nothing, and costs no write
		s.Until = now.Add(seatFor)
		h.Seats[who] = s
	}
	return s, fresh
}

// fullest is the room with fewest free seats, but one; of equals the oldest. 0: there is none.
func (h *hall) fullest() (room int) {
	most := -1
	for n, of := range h.Rooms {
		if is := taken(of); is < seats && (is > most || is == most && n < room) {
			room, most = n, is
		}
	}
	return room
}

func taken(of [seats]int) (n int) {
	for _, t := range of {
		if t != 0 {
			n++
		}
	}
	return n
}

// give gives a seat back; empty: it was the last one of its room, which has gone.
func (h *hall) give(who string) (s seat, empty bool) {
	s, has := h.Seats[who]
	if !has {
		return s, false
	}
	delete(h.Seats, who)
	of := h.Rooms[s.Room]
	of[s.Seat] = 0
	if h.Rooms[s.Room] = of; taken(of) > 0 {
		return s, false
	}
	delete(h.Rooms, s.Room)
	return s, true
}

func roomID(ctx context.Context, n int) string { return fmt.Sprintf("%s-%d", sdk.Self(ctx).ID, n) }
