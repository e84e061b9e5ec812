package super

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestTheJournalDropsWhatIsBeyondItsBoundAndSaysSo(t *testing.T) {
	j := newJournal("h1", "p1", slog.New(slog.DiscardHandler))
	const over = 7
	for i := range maxJournal + over {
		j.add("super h1 epoch 1", kbroker.Event{Kind: kbroker.EventPlaced, Message: fmt.Sprint(i)})
	}
	var got []kbroker.Event
	for batch := j.next(); len(batch) > 0; batch = j.next() {
		if len(batch) > journalBatch+1 {
			t.Fatalf("a batch has %d events, the bound is %d", len(batch), journalBatch)
		}
		got = append(got, batch...)
	}
	if len(got) != maxJournal+1 {
		t.Fatalf("%d events are stored, want the first %d and one of those that were dropped", len(got), maxJournal)
	}
	ids := map[string]bool{}
	for i, e := range got[:maxJournal] {
		if e.Message != fmt.Sprint(i) || e.By != "super h1 epoch 1" || e.Time.IsZero() {
			t.Fatalf("event %d is %+v: out of order, or without who and when", i, e)
		}
		ids[e.ID] = true
	}
	if len(ids) != maxJournal {
		t.Errorf("%d different IDs of %d events", len(ids), maxJournal)
	}
	last := got[maxJournal]
	if last.Kind != kbroker.EventEventsDropped || !strings.HasPrefix(last.Message, fmt.Sprint(over, " events were dropped")) {
		t.Errorf("the last event is %s: %s; want that %d were dropped", last.Kind, last.Message, over)
	}
}

func TestTheJournalCutsLongMessages(t *testing.T) {
	j := newJournal("h1", "p1", slog.New(slog.DiscardHandler))
	j.add("agent h1", kbroker.Event{Message: strings.Repeat("x", 2*kbroker.MaxEventMessage), ID: "mine"})
	e := j.next()[0]
	if len(e.Message) > kbroker.MaxEventMessage+3 || e.ID != "mine" {
		t.Errorf("the message has %d bytes and the ID is %q", len(e.Message), e.ID)
	}
}

func TestAskedApp(t *testing.T) {
	for body, want := range map[string]kbroker.AppName{
		`{"app":"shop","count":3}`:                "shop",
		`{"app":{"name":"shop","services":[]}}`:   "shop",
		`{"demand":{"app":"shop","epoch":3}}`:     "shop",
		`{"host":"h2"}`:                           "",
		`{"app":"not a name"}`:                    "",
		`{"app":`:                                 "",
		`{"app":17}`:                              "",
		`{"app":{"name":"*"},"demand":{"app":1}}`: "",
	} {
		if got := askedApp([]byte(body)); got != want {
			t.Errorf("the app of %s is %q, want %q", body, got, want)
		}
	}
}
