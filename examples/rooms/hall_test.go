package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

func TestAHallFillsTheFullestRoom(t *testing.T) {
	var h hall
	sits := func(who string, room int, fresh bool) {
		t.Helper()
		if s, is := h.take(who, time.Now()); s.Room != room || is != fresh {
			t.Errorf("%s sits in room %d, new: %t, want %d and %t", who, s.Room, is, room, fresh)
		}
	}
	leaves := func(who string, empty bool) {
		t.Helper()
		if _, is := h.give(who); is != empty {
			t.Errorf("%s leaves, and the room is empty: %t, want %t", who, is, empty)
		}
	}
	for n := range 2 * seats { // of the first room, then of the second
		room := 1 + n/seats*seats
		sits(fmt.Sprint(n), room, n%seats == 0)
		sits(fmt.Sprint(n), room, false) // again
	}
	leaves("0", false)
	leaves("1", false)
	leaves(fmt.Sprint(seats), false)
	sits("a", 1+seats, false) // with one that is free
	sits("b", 1, false)       // with two
	for n := range seats - 1 {
		leaves(fmt.Sprint(n+seats+1), false)
	}
	leaves("a", true)
	leaves("a", false) // again
}

// TestSeatsAreGivenOnce: whoever comes and goes, no room has two on a seat, and none is empty.
func TestSeatsAreGivenOnce(t *testing.T) {
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	var h hall
	tickets := map[int]string{}
	for range 5000 {
		who := fmt.Sprint(random.IntN(50))
		if random.IntN(2) == 0 {
			s, _ := h.take(who, time.Now())
			if was := tickets[s.Ticket]; was != "" && was != who {
				t.Fatalf("seed %d: %s and %s have ticket %d", seed, was, who, s.Ticket)
			}
			tickets[s.Ticket] = who
		} else {
			h.give(who)
		}
		sum := 0
		for n, of := range h.Rooms {
			if sum += taken(of); taken(of) == 0 {
				t.Fatalf("seed %d: room %d is empty", seed, n)
			}
		}
		for who, s := range h.Seats {
			if h.Rooms[s.Room][s.Seat] != s.Ticket {
				t.Fatalf("seed %d: %s has ticket %d for a seat of %d", seed, who, s.Ticket, h.Rooms[s.Room][s.Seat])
			}
		}
		if sum != len(h.Seats) {
			t.Fatalf("seed %d: %d seats are taken by %d", seed, sum, len(h.Seats))
		}
	}
}

// TestWhoIsLateHasNoSeat: what comes in another order ends as what came in that of tickets.
func TestWhoIsLateHasNoSeat(t *testing.T) {
	ann, bob := ticket{"ann", 0, 1}, ticket{"bob", 0, 2}
	for _, c := range []struct {
		name string
		do   []func(*room) error
		want sitting
		left bool // the last one is refused
	}{
		{"who comes again stays", []func(*room) error{joins(ann), joins(ann)}, sitting{"ann", 1}, false},
		{"who leaves has gone", []func(*room) error{joins(ann), leaves(ann)}, sitting{"", 1}, false},
		{"who has left comes late", []func(*room) error{leaves(ann), joins(ann)}, sitting{"", 1}, true},
		{"the next one takes the seat before it is free", []func(*room) error{joins(ann), joins(bob)}, sitting{"bob", 2}, false},
		{"the one before leaves late", []func(*room) error{joins(ann), joins(bob), leaves(ann)}, sitting{"bob", 2}, false},
		{"the one before comes late", []func(*room) error{joins(bob), joins(ann)}, sitting{"bob", 2}, true},
	} {
		var r room
		var err error
		for _, do := range c.do {
			err = do(&r)
		}
		e, refused := errors.AsType[*sdk.Error](err)
		if r.Seats[0] != c.want || (err != nil) != c.left || refused && e.Code != "left" {
			t.Errorf("%s: %+v sits there (%v), want %+v", c.name, r.Seats[0], err, c.want)
		}
	}
}

func joins(k ticket) func(*room) error { return func(r *room) error { return r.sit(k) } }

func leaves(k ticket) func(*room) error {
	return func(r *room) error {
		r.free(k)
		return nil
	}
}
