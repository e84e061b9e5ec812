package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/sdk"
	"github.com/kbroker/kbroker/sdk/sdktest"
)

// patience bounds what must happen soon.
const patience = 30 * time.Second

// serveFront runs a web server until the test ends, or stop is called.
func serveFront(t *testing.T, c *sdktest.Cluster) (address string, stop func()) {
	t.Helper()
	var f *front
	c.Run("chat/web", func(app *sdk.App) { f = newFront(app) })
	return serve(t, f)
}

func serve(t *testing.T, f *front) (address string, stop func()) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.run(ctx, listener) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("web server %s: %v", f.name, err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return listener.Addr().String(), stop
}

// tab is a browser without one: what has come over its WebSocket.
type tab struct {
	t    *testing.T
	conn *websocket.Conn
	said []string
	here []string
	errs []string
}

// visit opens a room, after the changes that were seen before.
func visit(t *testing.T, address, room, name string, after ...string) *tab {
	t.Helper()
	conn, _, err := websocket.Dial(t.Context(), "ws://"+address+"/room?"+url.Values{"room": {room}, "name": {name}, "after": after}.Encode(), nil)
	if err != nil {
		t.Fatalf("%s visits %s: %v", name, room, err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	return &tab{t: t, conn: conn}
}

func (b *tab) say(text string) {
	b.t.Helper()
	if err := b.conn.Write(b.t.Context(), websocket.MessageText, []byte(text)); err != nil {
		b.t.Fatal(err)
	}
}

// sees waits until the tab shows what is wanted.
func (b *tab) sees(what string, is func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), patience)
	defer cancel()
	for !is() {
		_, data, err := b.conn.Read(ctx)
		if err != nil {
			b.t.Fatalf("want %s; said is %q, here %q, errors %q: %v", what, b.said, b.here, b.errs, err)
		}
		var s shown
		if err := json.Unmarshal(data, &s); err != nil {
			b.t.Fatal(err)
		}
		if s.Error != "" {
			b.errs = append(b.errs, s.Error)
			continue
		}
		for _, m := range s.Messages {
			b.said = append(b.said, m.From+": "+m.Text)
		}
		b.here = s.Here
	}
}

func (b *tab) seesSaid(want ...string) {
	b.t.Helper()
	b.sees(fmt.Sprintf("%q to be said", want), func() bool { return len(b.said) >= len(want) })
	if !slices.Equal(b.said, want) {
		b.t.Errorf("said is %q, want %q", b.said, want)
	}
}

func (b *tab) seesHere(want ...string) {
	b.t.Helper()
	b.sees(fmt.Sprintf("%q here", want), func() bool { return slices.Equal(b.here, want) })
}

// Two people at two web servers write to each other, while the room moves.
func TestARoomOutlivesItsOwner(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("chat/rooms", serveRooms)
	c.Run("chat/rooms", serveRooms)
	first, _ := serveFront(t, c)
	second, stop := serveFront(t, c)
	alice := visit(t, first, "tea & cake", "alice")
	bob := visit(t, second, "tea & cake", "bob")
	alice.seesHere("alice", "bob")
	bob.seesHere("alice", "bob")
	alice.say("hello")
	bob.seesSaid("alice: hello")
	bob.say("  good morning ")
	alice.seesSaid("alice: hello", "bob: good morning")

	c.Kill(c.Owner("chat/room:tea & cake"))
	carol := visit(t, first, "tea & cake", "carol")
	carol.seesSaid("alice: hello", "bob: good morning")
	carol.seesHere("alice", "bob", "carol")
	bob.say("still here")
	alice.seesSaid("alice: hello", "bob: good morning", "bob: still here")

	_ = carol.conn.Close(websocket.StatusNormalClosure, "")
	alice.sees("carol to be gone", func() bool { return !slices.Contains(alice.here, "carol") })
	stop() // says that bob is gone
	alice.seesHere("alice")
}

// A web server that dies says nothing any more: its people are gone by the room's timer.
func TestWhoIsNotHeardOfIsGone(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("chat/rooms", serveRooms)
	room := c.Object("chat/room:lobby")
	p, err := sdk.Call[page](t.Context(), room, "here", here{At: "web-9", Names: []string{"ghost"}})
	if err != nil || !slices.Equal(p.Here, []string{"ghost"}) {
		t.Fatalf("here is %q, %v", p.Here, err)
	}
	c.Advance(sweepEvery - time.Second)
	look := func() []string {
		p, err := sdk.Call[page](t.Context(), room, "here", here{At: "web-1"})
		if err != nil {
			t.Fatal(err)
		}
		return p.Here
	}
	if got := look(); len(got) != 1 {
		t.Errorf("here is %q too soon", got)
	}
	wait.Until(t, patience, func() error {
		c.Advance(time.Second)
		if got := look(); len(got) != 0 {
			return fmt.Errorf("here is still %q", got)
		}
		return nil
	})
}

func TestWebServersHearOfEachChange(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("chat/rooms", serveRooms)
	var f *front
	c.Run("chat/web", func(app *sdk.App) { f = newFront(app) })
	heard := newFeed("lobby", f.name, sdk.Target{}) // it does not run: it asks nothing
	f.mu.Lock()
	f.feeds["lobby"] = heard
	f.mu.Unlock()
	room := c.Object("chat/room:lobby")
	for _, step := range []struct {
		method string
		in     any
		last   int
		here   []string
	}{
		{"here", here{At: "web-9", Names: []string{"alice"}}, 1, []string{"alice"}},
		{"here", here{At: "web-9", Names: []string{"alice"}}, 1, []string{"alice"}},
		{"post", post{From: "alice", Text: "hello"}, 2, []string{"alice"}},
		{"here", here{At: "web-8", Names: []string{"bob"}}, 3, []string{"alice", "bob"}},
		{"here", here{At: "web-9"}, 4, []string{"bob"}},
	} {
		if _, err := sdk.Call[page](t.Context(), room, step.method, step.in); err != nil {
			t.Fatal(err)
		}
		wait.Until(t, patience, func() error {
			if p, _, _ := heard.after(0); p.Last != step.last || !slices.Equal(p.Here, step.here) {
				return fmt.Errorf("after %s with %v: heard of change %d, here %q, want %d, %q", step.method, step.in, p.Last, p.Here, step.last, step.here)
			}
			return nil
		})
	}
	if p, _, _ := heard.after(0); len(p.Messages) != 1 || p.Messages[0].Number != 2 || p.Messages[0].Text != "hello" || len(heard.stir) > 0 {
		t.Errorf("heard %+v, and %d changes were missed", p.Messages, len(heard.stir))
	}
}

// A web server that hears no events shows what is said all the same, also to a browser
// that connects again: what that has not seen.
func TestWhatIsNotHeardIsAskedFor(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	c.Run("chat/rooms", serveRooms)
	deaf := &front{name: "web-9", client: c.Client(), feeds: map[string]*feed{}}
	address, _ := serve(t, deaf)
	alice := visit(t, address, "lobby", "alice")
	alice.seesHere("alice")
	room := c.Object("chat/room:lobby")
	for _, text := range []string{"one", "two"} {
		if _, err := sdk.Call[struct{}](t.Context(), room, "post", post{From: "bob", Text: text}); err != nil {
			t.Fatal(err)
		}
	}
	third := message{Number: 3, From: "bob", Text: "two"}
	_ = deaf.hear(t.Context(), change{Room: "lobby", page: page{Last: 3, Messages: []message{third}}}) // is nil
	alice.seesSaid("bob: one", "bob: two")

	_ = alice.conn.Close(websocket.StatusNormalClosure, "")
	again := visit(t, address, "lobby", "alice", "2")
	again.seesSaid("bob: two")
}

func TestAFeedTakesEachChangeOnce(t *testing.T) {
	f := newFeed("lobby", "web-1", sdk.Target{})
	said := func(numbers ...int) (p page) {
		for _, n := range numbers {
			p.Last = n
			p.Messages = append(p.Messages, message{Number: n})
		}
		return p
	}
	for _, step := range []struct {
		name   string
		take   page
		number int
		want   []int
		asks   bool
	}{
		{"an event before the first answer", said(4), 3, nil, true},
		{"the first answer", said(2, 3), 0, []int{2, 3}, false},
		{"the next event", said(4), 3, []int{2, 3, 4}, false},
		{"it comes twice", said(4), 3, []int{2, 3, 4}, false},
		{"one was lost before it", said(6), 5, []int{2, 3, 4}, true},
		{"the answer", said(5, 6), 4, []int{2, 3, 4, 5, 6}, false},
		{"an answer that was overtaken by events", said(4, 5), 3, []int{2, 3, 4, 5, 6}, false},
		{"an answer that has what was heard as well", said(5, 6, 7), 4, []int{2, 3, 4, 5, 6, 7}, false},
	} {
		f.take(step.take, step.number)
		asks := len(f.stir) > 0
		if asks {
			<-f.stir
		}
		p, _, _ := f.after(0)
		var got []int
		for _, m := range p.Messages {
			got = append(got, m.Number)
		}
		if !slices.Equal(got, step.want) || asks != step.asks {
			t.Errorf("%s: shows %v and asks: %t, want %v and %t", step.name, got, asks, step.want, step.asks)
		}
	}
}

func TestARoomKeepsTheLastMessages(t *testing.T) {
	var r room
	for n := range keep + 5 {
		if err := r.add(post{From: "alice", Text: fmt.Sprint(n + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	p := r.after(0)
	if len(p.Messages) != keep || p.Messages[0].Number != 6 || p.Messages[0].Text != "6" || p.Last != keep+5 {
		t.Errorf("%d messages from %+v to %d, want %d from 6 to %d", len(p.Messages), p.Messages[0], p.Last, keep, keep+5)
	}
	if p := r.after(keep + 4); len(p.Messages) != 1 || p.Messages[0].Number != keep+5 {
		t.Errorf("behind the last but one are %+v", p.Messages)
	}
}

func TestWhatIsNotSaid(t *testing.T) {
	var r room
	for name, in := range map[string]post{
		"nothing":            {From: "alice", Text: " \n"},
		"too much":           {From: "alice", Text: strings.Repeat("é", maxTextRunes+1)},
		"by nobody":          {Text: "hello"},
		"by a name too long": {From: strings.Repeat("a", maxNameRunes+1), Text: "hello"},
	} {
		if err := r.add(in); err == nil || r.Last != 0 {
			t.Errorf("%s: no error, or it was said", name)
		}
	}
	if err := r.add(post{From: "alice", Text: strings.Repeat("é", maxTextRunes)}); err != nil {
		t.Errorf("a long message: %v", err)
	}
}

func TestAMemberHasTheLastRooms(t *testing.T) {
	var m member
	for _, room := range []string{"a", "b", "a"} {
		if _, err := m.visit(t.Context(), room); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(m.Rooms, []string{"a", "b"}) {
		t.Errorf("rooms are %q, want a and b", m.Rooms)
	}
	for n := range 2 * maxVisited {
		_, _ = m.visit(t.Context(), fmt.Sprint(n)) // is found below
	}
	if len(m.Rooms) != maxVisited || m.Rooms[0] != fmt.Sprint(2*maxVisited-1) {
		t.Errorf("rooms are %q, want the last %d", m.Rooms, maxVisited)
	}
}

// A page of another site cannot speak for who looks at it; a name that is none is refused.
func TestWhoIsRefused(t *testing.T) {
	t.Parallel()
	c := sdktest.New(t)
	address, _ := serveFront(t, c)
	for name, r := range map[string]struct{ query, origin string }{
		"another site": {"room=lobby&name=alice", "https://evil.example"},
		"no name":      {"room=lobby", ""},
		"no room":      {"name=alice", ""},
	} {
		header := http.Header{}
		if r.origin != "" {
			header.Set("Origin", r.origin)
		}
		conn, _, err := websocket.Dial(t.Context(), "ws://"+address+"/room?"+r.query, &websocket.DialOptions{HTTPHeader: header})
		if err == nil {
			_ = conn.CloseNow()
			t.Errorf("%s: was let in", name)
		}
	}
}
