package broker

import (
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/subjects"
)

func TestCanarySingsOnlyWhileTheControlStreamTakesWrites(t *testing.T) {
	s := natstest.Start(t)
	nc := s.Connect(t)
	key := subjects.Control(subjects.KeyCanary("a"))
	c := &canary{conn: nc, subject: key}
	beat := func() error { return c.beat(t.Context(), time.Now()) }
	if err := beat(); err == nil {
		t.Fatal("a beat without a control stream succeeded")
	}
	if err := createStandalone(nc); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		if err := beat(); err != nil {
			t.Fatalf("beat %d: %v", n, err)
		}
	}
	// An earlier process of the host wrote the key: known by reading it.
	c = &canary{conn: nc, subject: key}
	if err := beat(); err != nil {
		t.Fatalf("first beat of a new process: %v", err)
	}
	// A write that was not answered moves the key: one beat fails, no more.
	if err := nc.Publish(key, []byte("late")); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := beat(); err == nil {
		t.Fatal("a beat on a stale sequence succeeded: it is not a compare-and-set")
	}
	if err := beat(); err != nil {
		t.Fatalf("beat after a conflict: %v", err)
	}
	s.Shutdown()
	if err := beat(); err == nil {
		t.Fatal("a beat without a server succeeded")
	}
}
