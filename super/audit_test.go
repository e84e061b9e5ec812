package super

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// trail reads the audit trail as a client does, and verifies it.
func (d *desktop) trail() ([]kbroker.AuditRecord, error) {
	var chain kbroker.AuditChain
	var all []kbroker.AuditRecord
	for next := uint64(0); ; {
		var page kbroker.AuditReply
		if err := d.ask(subjects.Core(subjects.VerbAudit, tenant), kbroker.AuditRequest{After: &next}, &page); err != nil {
			return nil, err
		}
		for _, r := range page.Records {
			if err := chain.Add(r); err != nil {
				return nil, err
			}
		}
		all = append(all, page.Records...)
		if next = page.Next; !page.More && next >= page.Last {
			return all, nil
		}
	}
}

// awaitTrail waits until the trail has a record that matches, and returns all.
func (d *desktop) awaitTrail(what string, matches func(kbroker.AuditRecord) bool) (all []kbroker.AuditRecord) {
	d.t.Helper()
	wait.Until(d.t, 10*time.Second, func() error {
		var err error
		if all, err = d.trail(); err != nil {
			return err
		}
		for _, r := range all {
			if matches(r) {
				return nil
			}
		}
		return fmt.Errorf("none of %d records is of %s: %+v", len(all), what, all)
	})
	return all
}

func TestChangesAndRefusalsAreInTheTrail(t *testing.T) {
	d := startSuper(t)
	all := d.awaitTrail("the foundation", func(r kbroker.AuditRecord) bool { return r.Action == kbroker.AuditFound })
	if all[0].Action != kbroker.AuditFound || all[0].Object != "cluster kb-test" || all[0].Actor.Host != "h1" {
		t.Errorf("the first record is %+v, want the foundation by h1", all[0])
	}
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	var reply kbroker.DeployReply
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &reply)
	})
	scale := func(count int) error {
		return d.ask(subjects.Super(subjects.VerbScale, tenant, subjects.NoKey), kbroker.ScaleRequest{App: app.Name, Count: count}, &reply)
	}
	for _, count := range []int{5, 5, 4} { // the second changes nothing
		if err := scale(count); err != nil {
			t.Fatal(err)
		}
	}
	if err := scale(-1); err == nil {
		t.Fatal("a scale to -1 was taken")
	}
	for range 3 {
		if err := d.ask(subjects.Report("h1"), kbroker.ReportRequest{Host: "h2"}, &reply); err == nil {
			t.Fatal("h1 may report of h2")
		}
	}
	d.awaitTrail("the refused report", func(r kbroker.AuditRecord) bool { return r.Action == "report" })
	all = d.awaitTrail("the refused scale", func(r kbroker.AuditRecord) bool { return r.Action == "scale" && r.Outcome == kbroker.AuditRefused })
	var told []string
	changes := uint64(0)
	for _, r := range all[1:] {
		told = append(told, fmt.Sprintf("%s %s by %s at %q, %s %s x%d", r.Action, r.Object, r.Actor, r.Actor.Address, r.Outcome, r.Code, r.Count))
		if r.Changes == changes {
			continue
		}
		changes = r.Changes
		if r.Revision <= r.OldRevision || r.OldRevision == 0 || r.Message == "" || !strings.HasPrefix(r.By, "super h1 p1 epoch ") {
			t.Errorf("the change %+v: want revisions, a message and who decided", r)
		}
	}
	for what, want := range map[string]int{
		`deploy app shop by control at "", done  x0`:          1,
		`scale app shop by control at "", done  x0`:           2,
		`scale app shop by control at "", refused invalid x0`: 1,
		`report host h1 by h1 at "", refused refused x3`:      1,
	} {
		n := 0
		for _, line := range told {
			if line == what {
				n++
			}
		}
		if n != want {
			t.Errorf("%d times told %q, want %d: %q", n, what, want, told)
		}
	}
	if changes != 3 {
		t.Errorf("%d changes are told, want 3", changes)
	}
}

// TestGuessesDoNotFillTheTrail: 10,000 of them, as fast as they come.
func TestGuessesDoNotFillTheTrail(t *testing.T) {
	d := startSuper(t)
	wait.Until(t, 10*time.Second, func() error {
		var s kbroker.StatusReply
		if err := d.ask(subjects.Core(subjects.VerbStatus, tenant), kbroker.ListRequest{}, &s); err != nil || s.Leader == nil {
			return fmt.Errorf("no leader yet: %+v, %w", s.Leader, err)
		}
		return nil
	})
	const guesses = 10_000
	for n := range guesses {
		body, err := json.Marshal(guess(n))
		if err == nil {
			err = d.nc.Publish(subjects.Join, body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := d.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	var joins []kbroker.AuditRecord
	wait.Until(t, 20*time.Second, func() error {
		all, err := d.trail()
		joins = nil
		n := 0
		for _, r := range all {
			if r.Action == subjects.VerbJoin {
				joins = append(joins, r)
				n += max(1, r.Count)
			}
		}
		if err == nil && n != guesses {
			err = fmt.Errorf("%d of %d guesses are told, by %d records", n, guesses, len(joins))
		}
		return err
	})
	if len(joins) > refusalsBurst+20 {
		t.Errorf("%d records of %d guesses", len(joins), guesses)
	}
}

// TestATrailThatIsBehindStopsChanges: none is made that could not be told.
func TestATrailThatIsBehindStopsChanges(t *testing.T) {
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) { s.Artifact = kbroker.Artifact{Builtin: kbroker.BuiltinHello} })
	var reply kbroker.DeployReply
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &reply)
	})
	d.awaitTrail("the deploy", func(r kbroker.AuditRecord) bool { return r.Action == "deploy" })
	// A newer build has written a record: this one cannot go on behind it.
	if _, err := d.nc.Request(subjects.AuditRecord, []byte(`{"form":2}`), 5*time.Second); err != nil {
		t.Fatal(err)
	}
	const asked = 70 // at once: there is no round between them
	inbox := d.nc.NewRespInbox()
	answers, err := d.nc.SubscribeSync(inbox)
	for n := range asked {
		var body []byte
		if err == nil {
			body, err = json.Marshal(kbroker.ScaleRequest{App: app.Name, Count: 4 + n%2})
		}
		if err == nil {
			err = d.nc.PublishRequest(subjects.Super(subjects.VerbScale, tenant, subjects.NoKey), inbox, body)
		}
	}
	taken, refused := 0, 0
	for range asked {
		var m *nats.Msg
		if err == nil {
			m, err = answers.NextMsg(30 * time.Second)
		}
		switch {
		case err != nil:
			t.Fatalf("%d are taken, %d refused: %v", taken, refused, err)
		case m.Header.Get(subjects.HeaderCode) == "":
			if !strings.Contains(string(m.Data), "unchanged") {
				taken++
			}
		case strings.Contains(string(m.Data), "the audit trail is behind") && m.Header.Get(subjects.HeaderCode) == string(kbroker.Unavailable):
			refused++
		default:
			t.Fatalf("a scale was answered with %s", m.Data)
		}
	}
	if taken != 64 {
		t.Errorf("%d changes were made, want as many as can wait: 64", taken)
	}
}

// TestTheAuditorDropsWhatIsBeyondItsBoundAndSaysSo: and not more often than once a minute.
func TestTheAuditorDropsWhatIsBeyondItsBoundAndSaysSo(t *testing.T) {
	now := time.Hour
	a := newAuditor("h1", "p1", new(whose), func() time.Duration { return now }, slog.New(slog.DiscardHandler))
	all, told, lost := 0, 0, 0
	ids := map[string]bool{}
	drain := func(last bool) {
		for r, ok := a.next(last); ok; r, ok = a.next(last) {
			if again, _ := a.next(last); again.ID != r.ID {
				t.Fatalf("record %s is next, then %s, and none was written", r.ID, again.ID)
			}
			if ids[r.ID] {
				t.Fatalf("two records have the ID %s", r.ID)
			}
			ids[r.ID] = true
			if r.Action == kbroker.AuditDropped {
				lost++
			}
			told += max(1, r.Count)
			a.written()
		}
	}
	for end := now + 10*time.Minute; now < end; now += auditEvery {
		for n := range 3 * maxRefusalGroups { // nothing in them is equal
			a.refuse(kbroker.AuditRecord{Action: fmt.Sprint("x", n), Code: kbroker.Refused})
			all++
		}
		a.drop(5)
		all += 5
		drain(false)
	}
	drain(true)
	if told != all {
		t.Errorf("%d of %d are told or counted", told, all)
	}
	if lost < 2 || lost > 12 {
		t.Errorf("what was dropped is told %d times in 10 minutes", lost)
	}
	a.tell(kbroker.AuditRecord{Action: "develop"})
	if r, ok := a.next(true); !ok || r.Outcome != kbroker.AuditDone || r.Action != "develop" || r.ID == "" {
		t.Errorf("what was done is %+v, %t", r, ok)
	}
}
