package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestAuditPages(t *testing.T) {
	_, s := audited(t)
	for i := range 120 {
		appendAudit(t, s, fmt.Sprint(i+2))
	}
	numbers := func(r kbroker.AuditRequest) (got []uint64, page kbroker.AuditReply) {
		page, err := s.Audit(testContext(t, 5*time.Second), r)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Records {
			got = append(got, r.Number)
		}
		return got, page
	}
	after := func(n uint64) *uint64 { return &n }
	for _, tc := range []struct {
		name           string
		request        kbroker.AuditRequest
		from, to, next uint64
		more           bool
	}{
		{"the newest", kbroker.AuditRequest{}, 72, 121, 121, true},
		{"the newest two", kbroker.AuditRequest{Limit: 2}, 120, 121, 121, true},
		{"before one", kbroker.AuditRequest{Before: 72}, 22, 71, 71, true},
		{"the oldest", kbroker.AuditRequest{Before: 22}, 1, 21, 21, false},
		{"before the first", kbroker.AuditRequest{Before: 1}, 0, 0, 0, false},
		{"before what is not there yet", kbroker.AuditRequest{Before: 1000, Limit: 1}, 121, 121, 121, true},
		{"after one", kbroker.AuditRequest{After: after(119)}, 120, 121, 121, false},
		{"after all", kbroker.AuditRequest{After: after(121)}, 0, 0, 121, false},
	} {
		got, page := numbers(tc.request)
		var want []uint64
		for n := tc.from; n <= tc.to && n > 0; n++ {
			want = append(want, n)
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || page.Next != tc.next || page.More != tc.more {
			t.Errorf("%s: %v, next %d, more %t; want %v, %d, %t", tc.name, got, page.Next, page.More, want, tc.next, tc.more)
		}
	}
}

// TestTheOldestRecordsLeaveATrailThatIsFull: what is left is intact from there.
func TestTheOldestRecordsLeaveATrailThatIsFull(t *testing.T) {
	_, s := founded(t)
	cfg := auditStream(1, nil)
	cfg.MaxBytes = 8 << 10
	if _, err := s.js.CreateStream(testContext(t, 5*time.Second), cfg); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		appendAudit(t, s, fmt.Sprint(i+1))
	}
	ids, chain, err := auditIDs(t, s)
	if err != nil || chain.First.Number < 2 || chain.Last.Number != 60 {
		t.Errorf("%d to %d, %v: %s; want an intact trail to 60 without its beginning", chain.First.Number, chain.Last.Number, err, ids)
	}
}

// tampered is a trail of six records in a stream that denies nothing, changed by change.
func tampered(t *testing.T, change func(ctx context.Context, stream jetstream.Stream) error, edit func(n int, r *kbroker.AuditRecord)) *Store {
	t.Helper()
	_, s := audited(t)
	appendAudit(t, s, "2", "3", "4", "5", "6")
	ctx := testContext(t, 20*time.Second)
	page, err := s.Audit(ctx, kbroker.AuditRequest{})
	if err == nil {
		err = s.js.DeleteStream(ctx, subjects.AuditStream)
	}
	cfg := auditStream(1, nil)
	cfg.DenyDelete, cfg.DenyPurge = false, false
	var stream jetstream.Stream
	if err == nil {
		stream, err = s.js.CreateStream(ctx, cfg)
	}
	for i, r := range page.Records {
		r.Sequence = 0
		if edit != nil {
			edit(i+1, &r)
		}
		if err == nil {
			_, err = s.js.PublishMsg(ctx, newRecord(subjects.AuditRecord, r))
		}
	}
	if err == nil && change != nil {
		err = change(ctx, stream)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.trail = newTrail(s.cfg.Conn, s.js)
	return s
}

func TestWhoTampersWithTheTrailIsFoundOut(t *testing.T) {
	remove := func(seq uint64) func(context.Context, jetstream.Stream) error {
		return func(ctx context.Context, stream jetstream.Stream) error { return stream.DeleteMsg(ctx, seq) }
	}
	for _, tc := range []struct {
		name, want string
		change     func(context.Context, jetstream.Stream) error
		edit       func(int, *kbroker.AuditRecord)
	}{
		{name: "nothing", want: ""},
		{name: "one is removed", want: "broken at record 4", change: remove(3)},
		{name: "the newest is removed", want: "missing after 5, of 6", change: remove(6)},
		{name: "one is altered", want: "broken at record 3", edit: func(n int, r *kbroker.AuditRecord) {
			if n == 3 {
				r.Actor.Name = "somebody else"
			}
		}},
		{name: "one is altered and hashed again", want: "broken at record 4", edit: func(n int, r *kbroker.AuditRecord) {
			if n == 3 {
				r.Actor.Name = "somebody else"
				r.Hash = r.Sum()
			}
		}},
	} {
		s := tampered(t, tc.change, tc.edit)
		_, _, err := auditIDs(t, s)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	// Who writes behind a removed end does not hide that.
	s := tampered(t, remove(6), nil)
	appendAudit(t, s, "7")
	if _, _, err := auditIDs(t, s); err == nil || !strings.Contains(err.Error(), "broken at record 6: it is at sequence 7") {
		t.Errorf("behind a removed end: %v, want that something was removed", err)
	}
}

// TestWhatIsNoRecordIsSaid: fields that are not hashed, or no record at all.
func TestWhatIsNoRecordIsSaid(t *testing.T) {
	for _, data := range []string{`{"form":1,"extra":1}`, `x`, `{"form":1}{}`, `{"form":2}`} {
		_, s := audited(t)
		if _, err := s.js.Publish(testContext(t, 5*time.Second), subjects.AuditRecord, []byte(data)); err != nil {
			t.Fatal(err)
		}
		if ids, _, err := auditIDs(t, s); err == nil || ids != "first" || !strings.Contains(err.Error(), "at sequence 2 is no record") {
			t.Errorf("%s: %s, %v", data, ids, err)
		}
		s.trail.known = false
		err := s.AppendAudit(testContext(t, 5*time.Second), auditRecord("next"))
		if newer := data == `{"form":2}`; newer != errors.Is(err, kbroker.Internal) || !newer && err != nil {
			t.Errorf("behind %s: %v, want internal where a newer build has written it, else that the trail goes on", data, err)
		}
		if ids, _, err := auditIDs(t, s); err == nil || ids != "first" {
			t.Errorf("behind %s: %s, %v; want that it is broken for ever", data, ids, err)
		}
	}
}

// TestACopyOfARecordIsNone: who may ask JetStream's API can have its answer sent to the
// trail. The chain goes on behind the last record, and not behind the copy. (One of a
// record with the condition under which it was written is refused; a rescue takes that off.)
func TestACopyOfARecordIsNone(t *testing.T) {
	srv, s := audited(t)
	restored := auditRecord("2").After(s.trail.last)
	_, err := s.js.PublishMsg(testContext(t, 5*time.Second), newRecord(subjects.AuditRecord, restored))
	if err == nil {
		appendAudit(t, s, "3")
		err = srv.Connect(t).PublishRequest("$JS.API.DIRECT.GET."+subjects.AuditStream, subjects.AuditRecord, []byte(`{"seq":2}`))
	}
	if err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 5*time.Second, func() error {
		last, err := lastSequence(testContext(t, time.Second), s.js, subjects.AuditStream)
		if err == nil && last != 4 {
			err = fmt.Errorf("the trail ends at %d", last)
		}
		return err
	})
	other := open(t, srv.Connect(t), Config{Host: "h2"})
	appendAudit(t, other, "4")
	page, err := s.Audit(testContext(t, 5*time.Second), kbroker.AuditRequest{Limit: 1})
	if err != nil || len(page.Records) != 1 || page.Records[0].Number != 4 || page.Records[0].ID != "4" {
		t.Errorf("behind a copy comes %+v, %v; want record 4", page.Records, err)
	}
	if _, _, err := auditIDs(t, s); err == nil || !strings.Contains(err.Error(), "broken at record 2: it follows record 3") {
		t.Errorf("a copy in the trail: %v, want that it is broken", err)
	}
}

// TestARescueLinksTheTrails: the copies of the trail and of the control store end where
// they end, and the chain goes on.
func TestARescueLinksTheTrails(t *testing.T) {
	chain := func(n uint64) []*nats.Msg { // a first record, and n changes
		last := auditRecord("first").After(kbroker.AuditRecord{})
		out := []*nats.Msg{newRecord(subjects.AuditRecord, last)}
		for i := range n {
			last = change(i + 1).Record.After(last)
			out = append(out, newRecord(subjects.AuditRecord, last))
		}
		return out
	}
	for _, tc := range []struct {
		name        string
		told, known uint64
		want        string
	}{
		{"both end at once", 3, 3, "first c1 c2 c3 rescue h1 4 c4"},
		{"the trail is older", 1, 3, "first c1 rescue h1 2 c2 c3 c4"},
		{"the control store is older", 3, 1, "first c1 c2 c3 rescue h1 4 c2"},
		{"no change was told", 0, 0, "first rescue h1 1 c1"},
	} {
		r := NewRescue("h1", time.Now())
		control := []*nats.Msg{hostMsg(kbroker.Host{Name: "h1", Role: kbroker.RoleCore, State: kbroker.HostReady})}
		for n := range tc.known {
			control = append(control, controlMsg(subjects.KeyAudit(AuditSlot(n+1)), change(n+1).Record))
		}
		control = rescue(t, r, subjects.ControlStream, control...)
		copied := rescue(t, r, subjects.AuditStream, chain(tc.told)...)

		_, s := founded(t)
		ctx := testContext(t, 20*time.Second)
		if _, err := s.js.CreateStream(ctx, auditStream(1, nil)); err != nil {
			t.Fatal(err)
		}
		for _, m := range append(control, copied...) {
			if _, err := s.js.PublishMsg(ctx, m); err != nil {
				t.Fatalf("%s: restore %s: %v", tc.name, m.Subject, err)
			}
		}
		l, _, _ := leading(t, s)
		tell(t, l)
		mustCommit(t, l, view(t, s), change(tc.known+1))
		tell(t, l)
		ids, found, err := auditIDs(t, s)
		if err != nil || ids != tc.want || len(found.Rescues) != 1 || found.Rescues[0] != tc.told+2 {
			t.Errorf("%s: %q, rescues %v, %v; want %q", tc.name, ids, found.Rescues, err, tc.want)
		}
	}
	// A copy without a trail has nothing to link.
	r := NewRescue("h1", time.Now())
	if out := rescue(t, r, subjects.AuditStream); len(out) != 0 {
		b, _ := json.Marshal(out)
		t.Errorf("of no trail came %s", b)
	}
}
