package sdk

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/natstest"
)

// gate is a server that answers only when it is released. knocked gets a value
// for each connection that waits.
func gate(t *testing.T, server string, knocked chan<- struct{}, release <-chan struct{}) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		from, err := l.Accept()
		if err != nil {
			return
		}
		defer from.Close()
		knocked <- struct{}{}
		select {
		case <-release:
		case <-t.Context().Done():
			return
		}
		to, err := net.Dial("tcp", strings.TrimPrefix(server, "nats://"))
		if err != nil {
			t.Errorf("dial %s: %v", server, err)
			return
		}
		defer to.Close()
		running.Go(func() { _, _ = io.Copy(to, from); _ = to.Close() }) // until one side closes
		_, _ = io.Copy(from, to)
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return "nats://" + l.Addr().String()
}

// TestALinkIsNotLostWithTheOneThatCameSecond: of two servers that answer at the
// same time one is taken and the other connection closed.
func TestALinkIsNotLostWithTheOneThatCameSecond(t *testing.T) {
	t.Parallel()
	const rounds = 20
	a, b := natstest.Start(t), natstest.Start(t)
	n := &network{log: slog.New(slog.DiscardHandler), target: connect.Target{Source: "test"}}
	events := linkEvents{connEvents{connected: func() {}, closed: func() {}}, func() {}}
	var links []*link
	for range rounds {
		knocked, release := make(chan struct{}), make(chan struct{})
		servers := []string{gate(t, a.URL, knocked, release), gate(t, b.URL, knocked, release)}
		go func() {
			<-knocked
			<-knocked
			close(release)
		}()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		l, err := n.second(ctx, servers, events)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(l.conn.Close)
		links = append(links, l)
	}
	for i, l := range links {
		select {
		case <-l.lost:
			t.Errorf("link %d of %d, to %s, counts as lost", i, rounds, l.conn.ConnectedUrl())
		default:
		}
	}
}
