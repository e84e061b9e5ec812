package node

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// TestAHostThatStopsBeatsUntilItsBrokerHas: the broker waits seconds for its
// clients, and a host that is silent for as long is judged lost.
func TestAHostThatStopsBeatsUntilItsBrokerHas(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	start(t, Config{Dir: filepath.Join(work, "a"), Name: "a", Found: true, Advertise: "127.0.0.1"})
	a := awaitLeader(t, filepath.Join(work, "a"))
	stop := start(t, Config{Dir: filepath.Join(work, "b"), Name: "b", Join: []string{a.Client}, TokenFile: newToken(t, a, kbroker.RoleCore), Advertise: "127.0.0.1"})
	awaitCopies(t, a, "b")
	b, err := readMembership(filepath.Join(work, "b"))
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan struct{})
	client, err := b.dial(nats.NoReconnect(), nats.LameDuckModeHandler(func(*nats.Conn) { close(told) }))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close() // it does not leave when it is told to
	other, err := a.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	beats, err := other.SubscribeSync(subjects.Heartbeat("b"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	defer func() {
		if err := <-ended; err != nil {
			t.Errorf("the host ended with %v", err)
		}
	}()
	select {
	case <-told:
	case <-time.After(10 * time.Second):
		t.Fatal("clients were not told that the broker stops")
	}
	before, _, err := beats.Pending()
	if err != nil {
		t.Fatal(err)
	}
	for range before {
		if _, err := beats.NextMsg(time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := beats.NextMsg(2 * time.Second); err != nil {
		t.Errorf("no heartbeat came while the broker waited for its clients: %v", err)
	}
}
