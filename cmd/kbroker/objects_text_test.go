package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

func TestRemindersAreShownWithTheirTimes(t *testing.T) {
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.Local)
	d := kbroker.ObjectDetail{
		Reminders: []string{"broken", "dinner", "interest"},
		Due: []kbroker.ObjectReminder{
			{Name: "dinner", Method: "dine", Due: now.Add(-90 * time.Second), CatchUp: "one"},
			{Name: "interest", Method: "pay", Due: now.Add(150 * time.Minute), EveryS: 86400, CatchUp: "all"},
		},
	}
	want := []string{
		"dinner: dine is due since 1m30s (Nov 28 11:58:30)",
		"interest: pay in 2h30m (Nov 28 14:30:00), then every 24h0m0s",
		"broken",
	}
	if got := remindersText(d, now); !slices.Equal(got, want) {
		t.Errorf("reminders are shown as %q, want %q", got, want)
	}
	d.Due = nil // a core of an earlier build
	if got := remindersText(d, now); !slices.Equal(got, d.Reminders) {
		t.Errorf("names alone are shown as %q", got)
	}
}

func TestWhySaysWhenAKindIsStored(t *testing.T) {
	for durable, want := range map[string]string{
		"each":        "Its kind is stored before each answer: what was answered is not lost.",
		"interval 2s": "Its kind is stored up to 2s after a call is answered: if its owner dies, what was answered in that time is lost.",
		"none":        "Its kind is never stored: it is gone when its owner ends, when it moves, and when it is put away.",
		"":            "", // an SDK of an earlier build
		"whenever":    "", // of a later one
	} {
		said := whySo(kbroker.ObjectDetail{Seen: &kbroker.ObjectSeen{Serves: true, Durable: durable}})
		at := slices.IndexFunc(said, func(s string) bool { return strings.HasPrefix(s, "Its kind") })
		if is := at >= 0; is != (want != "") || is && said[at] != want {
			t.Errorf("of %q why says %q, want %q", durable, said, want)
		}
		if nothing := slices.ContainsFunc(said, func(s string) bool { return strings.HasPrefix(s, "Nothing is stored") }); nothing == (durable == "none") {
			t.Errorf("of %q why says %q", durable, said)
		}
	}
	if said := whySo(kbroker.ObjectDetail{ObjectRow: kbroker.ObjectRow{Owner: "bank-ledger-1"}, Silent: "it does not answer"}); len(said) != 2 {
		t.Errorf("of an owner that is silent why says %q", said)
	}
}
