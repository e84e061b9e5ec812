package broker

import (
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestNobodyIsDeafAfterAnUpdate: while a server takes over the claims of an account it
// imports nothing into it for a moment, and who subscribes in that moment would hear
// nothing from another account for ever.
func TestNobodyIsDeafAfterAnUpdate(t *testing.T) {
	cfg := configOf(t, "c1", true)
	h := start(t, cfg)
	h.awaitReady(30 * time.Second)
	core := dialAs(t, cfg.ClientAddr, callerNamed(t, "core"))
	viewer := callerNamed(t, "viewer")
	const connections = 20
	rounds := 6
	if *long {
		rounds = 60
	}
	var all []*nats.Conn
	for range connections {
		options, err := viewer.user.options()
		if err != nil {
			t.Fatal(err)
		}
		nc, err := nats.Connect("nats://"+cfg.ClientAddr, append(options, nats.ReconnectWait(10*time.Millisecond), nats.MaxReconnects(-1))...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		all = append(all, nc)
	}
	for round := range rounds {
		var subscribing sync.WaitGroup
		subs := make([][]*nats.Subscription, connections)
		begun := make(chan struct{}, connections)
		done := make(chan struct{})
		for i, nc := range all {
			subscribing.Go(func() {
				for n := 0; ; n++ {
					subject := fmt.Sprintf("%s.%d.%d.%d", subjects.Inbox(viewer.key), round, i, n)
					sub, err := nc.SubscribeSync(subject)
					if err == nil {
						_ = nc.Flush() // it may just have been cut
					}
					if err != nil {
						t.Error(err)
						return
					}
					subs[i] = append(subs[i], sub)
					if n == 0 {
						begun <- struct{}{}
					}
					select {
					case <-done:
						return
					default:
					}
				}
			})
		}
		for range all {
			<-begun
		}
		for n := range 5 {
			if err := h.Revoke(map[string]time.Time{"U" + strconv.Itoa(round*5+n): time.Now()}); err != nil {
				t.Error(err)
			}
		}
		close(done)
		subscribing.Wait()
		for _, some := range subs {
			for _, sub := range some {
				wait.Until(t, 10*time.Second, func() error {
					if err := core.Publish(sub.Subject, nil); err != nil {
						return err
					}
					_, err := sub.NextMsg(100 * time.Millisecond)
					return err
				})
				_ = sub.Unsubscribe()
			}
		}
	}
}
