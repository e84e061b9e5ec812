package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/kbroker/kbroker/sdk"
)

const (
	// maxFrame bounds what a browser sends at a time.
	maxFrame = 8 << 10
	// writeWithin bounds one message to a browser: who does not read is let go.
	writeWithin = 5 * time.Second
	// byeWithin is how long a server that ends waits for its last pages.
	byeWithin = time.Second
)

//go:embed index.html
var index []byte

// front is a web server: it shows rooms to browsers, and keeps nothing.
type front struct {
	name   string
	client *sdk.Client

	mu    sync.Mutex
	feeds map[string]*feed
	busy  sync.WaitGroup
}

// newFront is the web server of an instance, which hears what changes in rooms.
func newFront(app *sdk.App) *front {
	f := &front{name: string(app.Instance()), client: app.Client(), feeds: map[string]*feed{}}
	sdk.Subscribe(app, "chat/"+changes, f.hear)
	return f
}

// hear takes an event of any room.
func (f *front) hear(_ context.Context, c change) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if feed := f.feeds[c.Room]; feed != nil {
		feed.take(c.page, c.Last-1)
	}
	return nil
}

// run serves until ctx ends, and returns when all browsers have been let go.
func (f *front) run(ctx context.Context, listener net.Listener) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = w.Write(index) // who has gone reads nothing
	})
	mux.HandleFunc("GET /room", func(w http.ResponseWriter, r *http.Request) { f.visit(ctx, w, r) })
	server := &http.Server{Handler: mux, ReadHeaderTimeout: writeWithin}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	select {
	case <-ctx.Done():
	case err := <-ended:
		return err
	}
	stop()
	defer f.busy.Wait() // Shutdown knows nothing of WebSockets
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), byeWithin)
	defer cancel()
	err := server.Shutdown(bye)
	if errors.Is(err, context.DeadlineExceeded) { // browsers connect in advance, and ask nothing
		err = server.Close()
	}
	if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// visit shows a room to a browser, over a WebSocket, until one of them goes.
func (f *front) visit(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	name, room := r.URL.Query().Get("name"), r.URL.Query().Get("room")
	seen, _ := strconv.Atoi(r.URL.Query().Get("after")) // of a browser that connects anew: nothing
	if err := errors.Join(checkName("member", name), checkName("room", room)); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.busy.Add(1)
	defer f.busy.Done()
	conn, err := websocket.Accept(w, r, nil) // pages of other sites are refused
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow() //nolint:errcheck // whatever it says, it is gone
	conn.SetReadLimit(maxFrame)
	ctx, leave := context.WithCancel(ctx)
	defer leave()
	feed := f.enter(ctx, room, name)
	defer f.leave(feed, name)
	var sides sync.WaitGroup
	defer sides.Wait()
	defer leave()
	rooms := make(chan []string, 1)
	sides.Go(func() { f.note(ctx, name, room, rooms) })
	sides.Go(func() {
		defer leave()
		f.show(ctx, conn, feed, seen, rooms)
	})
	f.listen(ctx, conn, feed, name)
}

// shown is what a browser gets.
type shown struct {
	page
	Rooms []string `json:"rooms,omitempty"` // of the member, with the first
	Error string   `json:"error,omitempty"`
}

// note has a member know that it visits a room, and learns which others it has visited.
func (f *front) note(ctx context.Context, name, room string, rooms chan<- []string) {
	for ctx.Err() == nil {
		m, err := sdk.Call[member](ctx, f.client.Object("chat/member:"+name), "visit", room)
		if err == nil {
			rooms <- m.Rooms
			return
		}
		if errors.Is(err, sdk.Invalid) || ctx.Err() != nil {
			return
		}
		slog.Warn("a member does not hear where it is; it is told again", "member", name, "room", room, "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(sayEvery):
		}
	}
}

// show sends a room to a browser as it changes after what it has seen.
func (f *front) show(ctx context.Context, conn *websocket.Conn, feed *feed, seen int, rooms <-chan []string) {
	var visited []string
	for {
		p, known, more := feed.after(seen)
		if known {
			if err := send(ctx, conn, shown{page: p, Rooms: visited}); err != nil {
				return
			}
			seen, visited = p.Last, nil
		}
		select {
		case <-ctx.Done():
			_ = conn.Close(websocket.StatusGoingAway, "the server ends") // best effort
			return
		case <-more:
		case visited = <-rooms:
		}
	}
}

func send(ctx context.Context, conn *websocket.Conn, v shown) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeWithin)
	defer cancel()
	return conn.Write(ctx, websocket.MessageText, b)
}

// listen posts what a browser sends, until it goes.
func (f *front) listen(ctx context.Context, conn *websocket.Conn, feed *feed, name string) {
	for {
		_, text, err := conn.Read(ctx)
		if err != nil {
			return
		}
		_, err = sdk.Call[struct{}](ctx, feed.room, "post", post{From: name, Text: string(text)})
		if err != nil && send(ctx, conn, shown{page: page{Messages: []message{}}, Error: err.Error()}) != nil {
			return
		}
	}
}

// enter is the feed of a room, with one more who looks at it.
func (f *front) enter(ctx context.Context, room, name string) *feed {
	f.mu.Lock()
	defer f.mu.Unlock()
	of := f.feeds[room]
	if of == nil {
		of = newFeed(room, f.name, f.client.Object("chat/room:"+room))
		f.feeds[room] = of
		ctx, of.stop = context.WithCancel(context.WithoutCancel(ctx)) // for others, too
		go of.run(ctx)                                                // leave waits for it
	}
	of.add(name, 1)
	return of
}

// leave ends a feed that nobody looks at any more, once it has said so.
func (f *front) leave(of *feed, name string) {
	f.mu.Lock()
	last := of.add(name, -1) == 0
	if last {
		delete(f.feeds, of.name)
	}
	f.mu.Unlock()
	if last {
		of.stop()
		<-of.done
	}
}
