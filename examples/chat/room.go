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
	maxHere      = 1000 // members of a room at one web server
	maxVisited   = 12   // rooms that a member is shown
	// sweepEvery is how often a room looks which web servers it has not heard of since the
	// last time: what these said of who is there is forgotten then.
	sweepEvery = 5 * time.Second
)

// message is one, as it is stored and as browsers get it.
type message struct {
	Number int       `json:"number"` // 1, 2, 3 of its room
	From   string    `json:"from"`
	Text   string    `json:"text"`
	At     time.Time `json:"at"`
}

// room has what was said last, and who is there. Who is there is not stored: web servers
// say it every few seconds, also to who has taken the room over.
type room struct {
	Last     int       `json:"last"` // number of a message
	Messages []message `json:"messages"`

	here map[string]*crowd // by web server
}

// crowd are the members that look at a room at one web server.
type crowd struct {
	names []string
	heard bool // since the last sweep
}

// post is a message to a room, here who is at a web server, ask a question for what is new.
type (
	post struct{ From, Text string }
	here struct {
		At    string
		Names []string
	}
	ask  struct{ After int }
	page struct {
		Last     int       `json:"last"`
		Messages []message `json:"messages"` // after the one that was asked for
		Here     []string  `json:"here"`
	}
)

func (r *room) post(_ context.Context, in post) (page, error) {
	text := strings.TrimSpace(in.Text)
	if n := utf8.RuneCountInString(text); n < 1 || n > maxTextRunes {
		return page{}, sdk.Errorf(sdk.Invalid, "a message has 1 to %d letters, not %d", maxTextRunes, n)
	}
	if err := checkName("member", in.From); err != nil {
		return page{}, err
	}
	r.Last++
	r.Messages = append(r.Messages, message{Number: r.Last, From: in.From, Text: text, At: time.Now().UTC()})
	if more := len(r.Messages) - keep; more > 0 {
		r.Messages = slices.Delete(r.Messages, 0, more)
	}
	return r.after(r.Last - 1), nil
}

// arrive takes who is at a web server: all of them, in place of what was said before.
func (r *room) arrive(ctx context.Context, in here) (page, error) {
	if len(in.Names) > maxHere {
		return page{}, sdk.Errorf(sdk.Invalid, "%d members at one web server, want %d at most", len(in.Names), maxHere)
	}
	if r.here == nil {
		r.here = map[string]*crowd{}
	}
	if len(r.here) == 0 {
		if err := sdk.Timer(ctx, sweepEvery, "sweep", nil); err != nil {
			return page{}, err
		}
	}
	r.here[in.At] = &crowd{names: in.Names, heard: true}
	return r.after(r.Last), nil
}

// sweep forgets web servers that were not heard of for a while.
func (r *room) sweep(ctx context.Context, _ struct{}) (struct{}, error) {
	for at, c := range r.here {
		if !c.heard || len(c.names) == 0 {
			delete(r.here, at)
		}
		c.heard = false
	}
	if len(r.here) == 0 {
		return struct{}{}, nil
	}
	return struct{}{}, sdk.Timer(ctx, sweepEvery, "sweep", nil)
}

func (r *room) look(_ context.Context, in ask) (page, error) { return r.after(in.After), nil }

// after is the room behind a message.
func (r *room) after(number int) page {
	p := page{Last: r.Last, Messages: []message{}}
	for _, m := range r.Messages {
		if m.Number > number {
			p.Messages = append(p.Messages, m)
		}
	}
	names := map[string]bool{}
	for _, c := range r.here {
		for _, n := range c.names {
			names[n] = true
		}
	}
	p.Here = slices.Sorted(maps.Keys(names))
	return p
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
	sdk.ReadOnly(rooms, "look", (*room).look)
	members := sdk.Objects[member](app, "member")
	sdk.Method(members, "visit", (*member).visit)
	sdk.ReadOnly(members, "profile", (*member).profile)
}
