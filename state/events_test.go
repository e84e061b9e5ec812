package state

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// event is the n-th of an app.
func event(app string, n int) kbroker.Event {
	return kbroker.Event{
		Kind: kbroker.EventPlaced, Tenant: "default", App: kbroker.AppName(app), Instance: kbroker.InstanceID(app + "-web-1"),
		Message: fmt.Sprint(n), ID: fmt.Sprint(app, n), Time: time.Unix(int64(n), 0).UTC(),
	}
}

func put(t *testing.T, s *Store, events ...kbroker.Event) {
	t.Helper()
	for len(events) > 0 {
		n := min(len(events), 500)
		if err := s.PutEvents(testContext(t, 20*time.Second), events[:n]); err != nil {
			t.Fatalf("put %d events: %v", n, err)
		}
		events = events[n:]
	}
}

// page reads a page, as soon as it covers every event that was put.
func page(t *testing.T, s *Store, r kbroker.EventsRequest) kbroker.EventsReply {
	t.Helper()
	r.Tenant = "default"
	reply, err := s.Events(testContext(t, 10*time.Second), r)
	if err != nil {
		t.Fatalf("events: %v", err)
	}
	return reply
}

func messages(events []kbroker.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, string(e.App)+e.Message)
	}
	return strings.Join(out, " ")
}

func TestEventsBeforeAnythingHappened(t *testing.T) {
	_, s := founded(t)
	if r := page(t, s, kbroker.EventsRequest{}); len(r.Events) != 0 || r.Next != 0 || r.Events == nil {
		t.Errorf("without a stream: %+v, want an empty page", r)
	}
	for range 2 {
		if err := s.EnsureEvents(testContext(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if r := page(t, s, kbroker.EventsRequest{}); len(r.Events) != 0 || r.Next != 0 {
		t.Errorf("of an empty stream: %+v, want an empty page", r)
	}
}

func TestEventPages(t *testing.T) {
	_, s := founded(t)
	if err := s.EnsureEvents(testContext(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	leads := kbroker.Event{Kind: kbroker.EventLeader, Host: "h1", Message: "leads", Time: time.Unix(0, 0).UTC()}
	put(t, s, leads, event("a", 1), event("b", 2), event("a", 3), event("b", 4))
	put(t, s, event("b", 4)) // again, after a lost acknowledgement
	after := func(n uint64) *uint64 { return &n }
	for _, tc := range []struct {
		name    string
		request kbroker.EventsRequest
		want    string
		next    uint64
	}{
		{"all", kbroker.EventsRequest{}, "leads a1 b2 a3 b4", 5},
		{"the newest", kbroker.EventsRequest{Limit: 2}, "a3 b4", 5},
		{"of an app", kbroker.EventsRequest{App: "a"}, "a1 a3", 5},
		{"of an instance", kbroker.EventsRequest{App: "b", Instance: "b-web-1"}, "b2 b4", 5},
		{"of an instance without any", kbroker.EventsRequest{App: "b", Instance: "b-web-2"}, "", 5},
		{"lately", kbroker.EventsRequest{Since: time.Unix(3, 0)}, "a3 b4", 5},
		{"after one", kbroker.EventsRequest{After: after(2)}, "b2 a3 b4", 5},
		{"after one, of an app that has none", kbroker.EventsRequest{After: after(4), App: "a"}, "", 5},
		{"after one, not more than", kbroker.EventsRequest{After: after(1), Limit: 2}, "a1 b2", 3},
		{"after the last", kbroker.EventsRequest{After: after(5)}, "", 5},
		{"after what is not there yet", kbroker.EventsRequest{After: after(9)}, "", 9},
	} {
		r := page(t, s, tc.request)
		if got := messages(r.Events); got != tc.want || r.Next != tc.next {
			t.Errorf("%s: %q, next %d; want %q, next %d", tc.name, got, r.Next, tc.want, tc.next)
		}
		if cut := tc.request.Limit == 2 && tc.request.After != nil; r.More != cut {
			t.Errorf("%s: more is %t, want %t", tc.name, r.More, cut)
		}
	}
	other := kbroker.EventsRequest{Tenant: "other"}
	if r, err := s.Events(testContext(t, 5*time.Second), other); err != nil || messages(r.Events) != "leads" {
		t.Errorf("another tenant gets %q, %v; want the cluster's only", messages(r.Events), err)
	}
}

// TestPagesLookBackFarEnough: rare events behind many others are found, and
// pages read one after the other have all of them once.
func TestPagesLookBackFarEnough(t *testing.T) {
	_, s := founded(t)
	if err := s.EnsureEvents(testContext(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	const many = 3500
	events := []kbroker.Event{event("rare", 1)}
	for i := range many {
		events = append(events, event("busy", i+2))
	}
	put(t, s, events...)
	if r := page(t, s, kbroker.EventsRequest{App: "rare", Limit: 5}); messages(r.Events) != "rare1" || r.Next != many+1 {
		t.Errorf("the rare app has %q, next %d; want rare1, next %d", messages(r.Events), r.Next, many+1)
	}
	if r := page(t, s, kbroker.EventsRequest{Limit: 1000}); len(r.Events) != 1000 || r.Events[999].Sequence != many+1 {
		t.Errorf("the newest 1000 are %d", len(r.Events))
	}
	next, seen := uint64(0), uint64(0)
	for more := true; more; {
		r := page(t, s, kbroker.EventsRequest{After: &next})
		for _, e := range r.Events {
			if e.Sequence != seen+1 {
				t.Fatalf("event %d follows %d", e.Sequence, seen)
			}
			seen = e.Sequence
		}
		next, more = r.Next, r.More
	}
	if seen != many+1 {
		t.Errorf("%d events were paged through, want %d", seen, many+1)
	}
}

func TestAPageFitsIntoAMessage(t *testing.T) {
	_, s := founded(t)
	if err := s.EnsureEvents(testContext(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	var events []kbroker.Event
	for i := range 400 {
		e := event("a", i)
		e.Message = strings.Repeat("x", kbroker.MaxEventMessage)
		events = append(events, e)
	}
	put(t, s, events...)
	begin := uint64(0)
	for _, r := range []kbroker.EventsReply{page(t, s, kbroker.EventsRequest{}), page(t, s, kbroker.EventsRequest{After: &begin})} {
		if n := len(r.Events); n == 0 || n*kbroker.MaxEventMessage > eventPageBytes {
			t.Errorf("a page has %d events of %d bytes, the bound is %d", n, kbroker.MaxEventMessage, eventPageBytes)
		}
	}
	if r := page(t, s, kbroker.EventsRequest{After: &begin}); r.Next != r.Events[len(r.Events)-1].Sequence || !r.More {
		t.Errorf("the page that was cut ends at %d with next %d", r.Events[len(r.Events)-1].Sequence, r.Next)
	}
}

// TestEventsSurviveALeadersDeath: what was stored is read without a majority,
// and a follower of the stream goes on without a gap when there is one again.
func TestEventsSurviveALeadersDeath(t *testing.T) {
	c := natstest.StartCluster(t, 3)
	wait.Until(t, 20*time.Second, func() error { return Found(t.Context(), c.Connect(t, 0)) })
	js, err := jetstream.New(c.Connect(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 20*time.Second, func() error { return open(t, c.Connect(t, 0), Config{}).EnsureEvents(t.Context()) })
	wait.Until(t, 20*time.Second, func() error { // as the broker does when a cluster has grown
		stream, err := js.Stream(t.Context(), subjects.EventStream)
		if err != nil {
			return err
		}
		cfg := stream.CachedInfo().Config
		cfg.Replicas = 3
		cfg.Placement = nil // it is pinned to one host
		_, err = js.UpdateStream(t.Context(), cfg)
		return err
	})
	holds := 0
	wait.Until(t, 20*time.Second, func() error {
		if holds = c.StreamLeader(subjects.EventStream); holds < 0 {
			return fmt.Errorf("the event stream has no leader")
		}
		return nil
	})
	s := open(t, c.Connect(t, (holds+1)%3), Config{})
	number := 0
	more := func(n int) {
		t.Helper()
		for range n {
			number++
			wait.Until(t, 20*time.Second, func() error { return s.PutEvents(testContext(t, 2*time.Second), []kbroker.Event{event("a", number)}) })
		}
	}
	more(20)
	next, seen := uint64(0), uint64(0)
	follow := func(until int) {
		t.Helper()
		wait.Until(t, 20*time.Second, func() error {
			r, err := s.Events(testContext(t, 2*time.Second), kbroker.EventsRequest{Tenant: "default", After: &next})
			if err != nil {
				return err
			}
			for _, e := range r.Events {
				if e.Sequence != seen+1 {
					t.Fatalf("event %d follows %d", e.Sequence, seen)
				}
				seen = e.Sequence
			}
			if next = r.Next; seen < uint64(until) {
				return fmt.Errorf("%d of %d events are seen", seen, until)
			}
			return nil
		})
	}
	follow(20)
	c.Stop(holds)
	more(20)
	follow(40)
}
