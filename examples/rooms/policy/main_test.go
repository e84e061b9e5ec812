package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/allocator"
)

// at is a view in which instances of 5 slots have so many rooms each, and so many wait.
func at(waiting int, used ...int) allocator.View {
	s := kbroker.Service{
		Name: "rooms", Objects: []kbroker.KindName{"room"}, Slots: 5, Count: kbroker.Count{Min: 1, Max: 10},
		Placed: map[kbroker.KindName]kbroker.Demanded{"room": {Slots: 1}},
	}
	v := allocator.View{App: kbroker.App{Name: "rooms", Services: []kbroker.Service{s}}, Missing: kbroker.Demanded{Slots: waiting}}
	for n, u := range used {
		name := kbroker.InstanceID(fmt.Sprintf("rooms-rooms-%d", n+1))
		v.Owners = append(v.Owners, kbroker.Incarnation(name+".a"))
		v.Rooms = append(v.Rooms, allocator.Room{
			Owner: v.Owners[n], Instance: name, Host: kbroker.HostID(fmt.Sprintf("h%d", n+1)),
			Has: kbroker.Demanded{Slots: 5}, Used: kbroker.Demanded{Slots: u}, Objects: u,
		})
	}
	for range waiting {
		v.Waiting = append(v.Waiting, allocator.Placed{Demanded: kbroker.Demanded{Slots: 1}})
	}
	return v
}

func TestWhatIsReadyGrowsWithTheEvening(t *testing.T) {
	for _, c := range []struct {
		name string
		view allocator.View
		want int
	}{
		{"nobody plays", at(0, 0), 1},
		{"a night with room for two more", at(0, 3), 1},
		{"a morning with room for one more", at(0, 4), 2},
		{"at noon", at(0, 5, 5, 2), 3},
		{"in the evening there are six slots more", at(0, 5, 5, 5, 5, 5), 7},
		{"those that wait count", at(5, 5, 5, 5, 5), 7},
		{"no more than there may be", at(100, 5), 10},
	} {
		if d := evening(c.view); d.Wanted["rooms"] != c.want {
			t.Errorf("%s: %d instances are wanted (%s), want %d", c.name, d.Wanted["rooms"], d.Why["rooms"], c.want)
		}
	}
}

func TestRoomsAreOnFewInstances(t *testing.T) {
	wished := at(2, 3, 1, 2)
	wished.Waiting[0].Host = "h2"
	wished.Waiting[1].Instance = "rooms-rooms-1"
	for _, c := range []struct {
		name string
		view allocator.View
		want []int // instances; 0: it waits
	}{
		{"on the fullest", at(1, 1, 3, 2), []int{2}},
		{"that has room", at(1, 1, 5, 2), []int{3}},
		{"and then on the next", at(4, 1, 3, 2), []int{2, 2, 3, 3}},
		{"of equals on the first", at(1, 2, 2), []int{1}},
		{"nowhere, if all are full", at(2, 5, 4), []int{2, 0}},
		{"where it is wished", wished, []int{2, 1}},
	} {
		want := make([]kbroker.Incarnation, len(c.want))
		for i, n := range c.want {
			if n > 0 {
				want[i] = c.view.Owners[n-1]
			}
		}
		if got := evening(c.view).Placed; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", c.name, got, want)
		}
	}
}
