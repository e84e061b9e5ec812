package super

import (
	"fmt"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

func refusedJoin(host, address string) kbroker.AuditRecord {
	return kbroker.AuditRecord{
		Actor: kbroker.Caller{Host: kbroker.HostID(host), Address: address}, Action: "join", Code: kbroker.Refused, Message: "no token",
		Outcome: kbroker.AuditRefused, By: "core h1",
	}
}

// counts adds up what records tell.
func counts(records []kbroker.AuditRecord) (n int) {
	for _, r := range records {
		n += max(1, r.Count)
	}
	return n
}

func TestEqualRefusalsAreOneRecord(t *testing.T) {
	s := newRefusals(0)
	for i := range 10_000 {
		s.add(refusedJoin("w1", ""), time.Duration(i)*10*time.Microsecond)
	}
	s.add(refusedJoin("w2", ""), 0)
	if out := s.due(refusalWindow-1, false); len(out) != 0 {
		t.Fatalf("%d are told before they were gathered", len(out))
	}
	out := s.due(refusalWindow, false)
	if len(out) != 2 || out[0].Count != 10_000 || out[1].Count != 0 || out[0].Actor.Host != "w1" || out[1].Actor.Host != "w2" {
		t.Fatalf("told are %+v, want one of 10,000 and one alone", out)
	}
	if s.lost() != 0 {
		t.Error("some were dropped")
	}
}

// TestRefusalsThatGoOnAreToldLessOften: a day of them leaves the trail its room.
func TestRefusalsThatGoOnAreToldLessOften(t *testing.T) {
	s := newRefusals(0)
	told, refused := 0, 0
	const day = 24 * time.Hour
	for now := time.Duration(0); now < day; now += 500 * time.Millisecond {
		s.add(refusedJoin("w1", ""), now)
		refused++
		out := s.due(now, false)
		told += len(out)
		refused -= counts(out)
	}
	refused -= counts(s.due(day, true))
	if limit := int(day/refusalWindowMax) + 12; told > limit || told < limit-10 {
		t.Errorf("%d records of a day, want about %d", told, limit)
	}
	if refused != 0 {
		t.Errorf("%d refusals are in no record", refused)
	}
	s.due(2*day, false)
	if len(s.groups) != 0 {
		t.Errorf("%d groups stay when nothing is refused any more", len(s.groups))
	}
}

// TestWhoComesWithEverNewNamesIsOneOfMany: names cost nothing.
func TestWhoComesWithEverNewNamesIsOneOfMany(t *testing.T) {
	s := newRefusals(0)
	told, all := 0, 0
	const guesses = 10_000
	for i := range guesses {
		now := time.Duration(i) * time.Millisecond
		s.add(refusedJoin(fmt.Sprintf("x%d", i), fmt.Sprintf("10.0.%d.%d", i/250, i%250)), now)
		out := s.due(now, false)
		told += len(out)
		all += counts(out)
	}
	out := s.due(time.Hour, true)
	if told += len(out); told > refusalsBurst+20 {
		t.Errorf("%d records of 10 s, want %d and a few", told, refusalsBurst)
	}
	if all += counts(out) + s.lost(); all != guesses {
		t.Errorf("%d of %d are told", all, guesses)
	}
	if out[len(out)-1].Actor != (kbroker.Caller{}) {
		t.Errorf("the last is %+v, want one of many", out[len(out)-1])
	}
	// A day later each is told again on its own.
	s.add(refusedJoin("w1", ""), 24*time.Hour)
	if out := s.due(25*time.Hour, false); len(out) != 1 || out[0].Actor.Host != "w1" {
		t.Errorf("a day later: %+v", out)
	}
}

func TestRefusalsBeyondTheirBoundAreCounted(t *testing.T) {
	s := newRefusals(0)
	all := 0
	for i := range 3 * maxRefusalGroups { // ever new codes: nothing in them is equal
		r := refusedJoin("w1", "")
		r.Action = fmt.Sprint(i)
		r.Count = 2
		s.add(r, 0)
		all += 2
	}
	if len(s.groups) != maxRefusalGroups {
		t.Errorf("%d groups, want %d", len(s.groups), maxRefusalGroups)
	}
	if n := counts(s.due(0, true)) + s.lost(); n != all {
		t.Errorf("%d of %d are told or counted", n, all)
	}
}
