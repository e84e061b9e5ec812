package main

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/kbroker/kbroker/sdk"
)

// Bounds of a room.
const (
	keep         = 100  // messages are known
	maxTextRunes = 1000 // of a message
	maxNameRunes = 30   // of a member or a room
	maxHere      = 200  // members of a room that one web server names
	maxVisited   = 12   // rooms that a member is shown
	// sweepEvery is how often a room looks which web servers it has not heard of since the
	// last time: what these said of who is there is forgotten then.
	sweepEvery = 5 * time.Second
)

// message is one, as it is stored and as browsers get it.
type message struct {
	Number int       `json:"number"` // of the change
	From   string    `json:"from"`
	Text   string    `json:"text"`
	At     time.Time `json:"at"`
}

// room has what was said last, and who is there. It numbers its changes, 1, 2, 3: a message,
// or that somebody comes or goes.
type room struct {
	Last     int                 `json:"last"` // change
	Messages []message           `json:"messages"`
	Here     map[string][]string `json:"here"` // members, by web server

	heard map[string]bool // web servers, since the last sweep; nil: no sweep is due
}

// post is a message to a room. here says who is at a web server, and asks for what is new.
type (
	post struct{ From, Text string }
	here struct {
		At    string
		Names []string
		After int // the change that it has seen
	}
	page struct {
		Last     int       `json:"last"`     // change
		Messages []message `json:"messages"` // after the change that was asked for
		Here     []string  `json:"here"`
	}
)

// changes is the topic of what changes in rooms, one event for each change.
const changes = "changes"

type change struct {
	Room string `json:"room"`
	page
}

// changed has the last change published, once the turn is stored.
func (r *room) changed(ctx context.Context) error {
	return sdk.Publish(ctx, changes, change{Room: sdk.Self(ctx).ID, page: r.after(r.Last - 1)})
}

func (r *room) post(ctx context.Context, in post) (struct{}, error) {
	if err := r.add(in); err != nil {
		return struct{}{}, err
	}
	return struct{}{}, r.changed(ctx)
}

func (r *room) add(in post) error {
	text := strings.TrimSpace(in.Text)
	if n := utf8.RuneCountInString(text); n < 1 || n > maxTextRunes {
		return sdk.Errorf(sdk.Invalid, "a message has 1 to %d letters, not %d", maxTextRunes, n)
	}
	if err := checkName("member", in.From); err != nil {
		return err
	}
	r.Last++
	r.Messages = append(r.Messages, message{Number: r.Last, From: in.From, Text: text, At: time.Now().UTC()})
	if more := len(r.Messages) - keep; more > 0 {
		r.Messages = slices.Delete(r.Messages, 0, more)
	}
	return nil
}

// arrive takes who is at a web server: all of them, in place of what was said before.
func (r *room) arrive(ctx context.Context, in here) (page, error) {
	if len(in.Names) > maxHere {
		return page{}, sdk.Errorf(sdk.Invalid, "%d members at one web server, want %d at most", len(in.Names), maxHere)
	}
	if r.heard == nil {
		r.heard = map[string]bool{}
		if err := sdk.Timer(ctx, sweepEvery, "sweep", nil); err != nil {
			return page{}, err
		}
	}
	r.heard[in.At] = true
	err := r.move(ctx, func(all map[string][]string) {
		if all[in.At] = in.Names; len(in.Names) == 0 {
			delete(all, in.At)
		}
	})
	return r.after(in.After), err
}

// sweep forgets web servers that were not heard of for a while.
func (r *room) sweep(ctx context.Context, _ struct{}) (struct{}, error) {
	heard := r.heard
	r.heard = nil
	if heard != nil { // else it was forgotten with a turn that failed
		err := r.move(ctx, func(all map[string][]string) {
			maps.DeleteFunc(all, func(at string, _ []string) bool { return !heard[at] })
		})
		if err != nil || len(r.Here) == 0 {
			return struct{}{}, err
		}
	}
	r.heard = map[string]bool{}
	return struct{}{}, sdk.Timer(ctx, sweepEvery, "sweep", nil)
}

// move changes who is there; it is a change of the room if others see it.
func (r *room) move(ctx context.Context, by func(map[string][]string)) error {
	before := r.names()
	if r.Here == nil {
		r.Here = map[string][]string{}
	}
	by(r.Here)
	if slices.Equal(before, r.names()) {
		return nil
	}
	r.Last++
	return r.changed(ctx)
}

// names are those of who is there, each once.
func (r *room) names() []string {
	names := slices.Concat(slices.Collect(maps.Values(r.Here))...)
	slices.Sort(names)
	return slices.Compact(names)
}

// after is the room behind a change.
func (r *room) after(number int) page {
	return page{Last: r.Last, Messages: after(r.Messages, number), Here: r.names()}
}

func after(all []message, number int) []message {
	at := slices.IndexFunc(all, func(m message) bool { return m.Number > number })
	if at < 0 {
		return []message{}
	}
	return slices.Clone(all[at:])
}

// member is somebody, by name.
type member struct {
	Rooms []string `json:"rooms"` // that were visited, the last one in front
}

// visit notes that the member looks at a room.
func (m *member) visit(_ context.Context, room string) (member, error) {
	if err := checkName("room", room); err != nil {
		return member{}, err
	}
	rooms := slices.DeleteFunc(slices.Clone(m.Rooms), func(r string) bool { return r == room })
	m.Rooms = append([]string{room}, rooms...)
	m.Rooms = m.Rooms[:min(len(m.Rooms), maxVisited)]
	return *m, nil
}

func (m *member) profile(context.Context, struct{}) (member, error) { return *m, nil }

// checkName refuses what is no name of a room or a member.
func checkName(of, name string) error {
	if n := utf8.RuneCountInString(name); n < 1 || n > maxNameRunes || strings.TrimSpace(name) != name || !utf8.ValidString(name) {
		return sdk.Errorf(sdk.Invalid, "%.100q is no name of a %s: want 1 to %d letters", name, of, maxNameRunes)
	}
	return nil
}

// serveRooms declares the objects.
func serveRooms(app *sdk.App) {
	rooms := sdk.Objects[room](app, "room")
	sdk.Method(rooms, "post", (*room).post)
	sdk.Method(rooms, "here", (*room).arrive)
	sdk.Method(rooms, "sweep", (*room).sweep)
	members := sdk.Objects[member](app, "member")
	sdk.Method(members, "visit", (*member).visit)
	sdk.ReadOnly(members, "profile", (*member).profile)
}
