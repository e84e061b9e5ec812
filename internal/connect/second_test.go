package connect

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
)

func TestOthersAreAllThatAreKnownButTheOwn(t *testing.T) {
	c := natstest.StartCluster(t, 3)
	target := Target{Servers: []string{c.URL(0), refused(t)}}
	nc, err := target.Connect(t.Context(), "test", nats.DontRandomize())
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer nc.Close()
	want := []string{target.Servers[1], c.URL(1), c.URL(2)}
	slices.Sort(want)
	wait.Until(t, 10*time.Second, func() error { // the cluster may still form
		got := target.Others(nc)
		if slices.Sort(got); !slices.Equal(got, want) {
			return kbroker.Errorf(kbroker.Conflict, "others are %v, want %v", got, want)
		}
		return nil
	})
}

func TestOthersKeepTheUserOfTheURL(t *testing.T) {
	s := natstest.Start(t)
	nc := s.Connect(t)
	target := Target{Servers: []string{"nats://ann:secret@127.0.0.1:1", "nats://127.0.0.1:2"}}
	got := target.Others(nc)
	slices.Sort(got)
	if want := []string{"nats://ann:secret@127.0.0.1:1", "nats://ann:secret@127.0.0.1:2"}; !slices.Equal(got, want) {
		t.Errorf("others are %v, want %v", got, want)
	}
}

func TestConnectToDoesNotWaitForAFrozenServer(t *testing.T) {
	s := natstest.Start(t)
	servers := []string{refused(t), silent(t), silent(t), s.URL}
	began := time.Now()
	var tried []int
	nc, to, err := Target{Servers: servers, Instance: &kbroker.InstanceFile{}}.ConnectTo(t.Context(), servers, "test", func(i int) []nats.Option {
		tried = append(tried, i)
		return []nats.Option{nats.Name(servers[i])}
	})
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer nc.Close()
	if took := time.Since(began); took > 4*nextServer {
		t.Errorf("connected after %v, want %v for each frozen server", took, nextServer)
	}
	if nc.ConnectedUrl() != s.URL || servers[to] != s.URL {
		t.Errorf("connected to %s, server %d, want %s", nc.ConnectedUrl(), to, s.URL)
	}
	if !slices.Equal(tried, []int{0, 1, 2, 3}) || nc.Opts.Name != s.URL {
		t.Errorf("tried %v with options of their own, connected with those of %s", tried, nc.Opts.Name)
	}
	if got := nc.Servers(); len(got) != len(servers) {
		t.Errorf("knows %v, want all of %v to reconnect to", got, servers)
	}
}

func TestConnectToIsBounded(t *testing.T) {
	alive := natstest.Start(t) // known, but not wanted
	for name, servers := range map[string][]string{
		"nobody is there":          {refused(t), refused(t)},
		"all are frozen":           {silent(t), silent(t)},
		"no other server is known": nil,
	} {
		t.Run(name, func(t *testing.T) {
			target := Target{Servers: []string{alive.URL}, Source: "test", Instance: &kbroker.InstanceFile{}}
			began := time.Now()
			_, _, err := target.ConnectTo(t.Context(), servers, "test", nil)
			if !errors.Is(err, kbroker.Unavailable) {
				t.Errorf("connect: %v, want Unavailable", err)
			}
			if took, bound := time.Since(began), 2*attemptTimeout; took > bound {
				t.Errorf("took %v, want %v at most", took, bound)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), nextServer/2)
	defer cancel()
	began := time.Now()
	if _, _, err := (Target{}).ConnectTo(ctx, []string{silent(t)}, "test", nil); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("connect: %v, want Unavailable", err)
	}
	if took := time.Since(began); took > attemptTimeout/2 {
		t.Errorf("took %v with a context that ended after %v: the handshake went on", took, nextServer/2)
	}
}
