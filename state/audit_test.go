package state

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// audited is a running store with an audit trail of one record.
func audited(t *testing.T) (*natstest.Server, *Store) {
	t.Helper()
	srv, s := founded(t)
	if err := s.EnsureAudit(testContext(t, 10*time.Second), auditRecord("first")); err != nil {
		t.Fatal(err)
	}
	return srv, s
}

func auditRecord(id string) kbroker.AuditRecord {
	return kbroker.AuditRecord{ID: id, Action: "scale", Message: "of " + id, Outcome: kbroker.AuditDone, Time: time.Now()}
}

func appendAudit(t *testing.T, s *Store, ids ...string) {
	t.Helper()
	for _, id := range ids {
		if err := s.AppendAudit(testContext(t, 10*time.Second), auditRecord(id)); err != nil {
			t.Fatalf("append %s: %v", id, err)
		}
	}
}

// auditIDs reads the whole trail, as who verifies it does.
func auditIDs(t *testing.T, s *Store) (ids string, chain kbroker.AuditChain, err error) {
	t.Helper()
	var all []string
	for next := uint64(0); ; {
		page, err := s.Audit(testContext(t, 10*time.Second), kbroker.AuditRequest{After: &next})
		if err != nil {
			t.Fatalf("read the trail after %d: %v", next, err)
		}
		for _, r := range page.Records {
			if err := chain.Add(r); err != nil {
				return strings.Join(all, " "), chain, err
			}
			all = append(all, r.ID)
		}
		next = page.Next
		switch {
		case page.Unreadable != "":
			return strings.Join(all, " "), chain, errors.New(page.Unreadable)
		case page.Missing:
			return strings.Join(all, " "), chain, fmt.Errorf("missing after %d, of %d", next, page.Last)
		case !page.More && next >= page.Last:
			return strings.Join(all, " "), chain, nil
		}
	}
}

// wantTrail expects an intact trail of these records.
func wantTrail(t *testing.T, s *Store, want string) {
	t.Helper()
	if ids, _, err := auditIDs(t, s); err != nil || ids != want {
		t.Errorf("the trail tells %q, %v; want %q, intact", ids, err, want)
	}
}

func TestFoundAuditIsBeforeTheStore(t *testing.T) {
	srv := natstest.Start(t)
	conn := srv.Connect(t)
	for range 2 { // as a founder that is started again before it has founded
		if err := FoundAudit(testContext(t, 10*time.Second), conn, auditRecord("found")); err != nil {
			t.Fatal(err)
		}
	}
	if err := Found(testContext(t, 10*time.Second), conn); err != nil {
		t.Fatal(err)
	}
	if err := FoundAudit(testContext(t, 10*time.Second), conn, auditRecord("found again")); err != nil {
		t.Fatal(err)
	}
	s := open(t, conn, Config{})
	start(t, s.Run)
	if err := s.EnsureAudit(testContext(t, 10*time.Second), auditRecord("begin")); err != nil {
		t.Fatal(err)
	}
	wantTrail(t, s, "found")
}

func TestTheTrailOfAnOlderClusterBeginsWithItsFirstLeader(t *testing.T) {
	srv, s := founded(t)
	if page, err := s.Audit(testContext(t, 5*time.Second), kbroker.AuditRequest{}); err != nil || len(page.Records) != 0 || page.Records == nil {
		t.Errorf("without a trail: %+v, %v; want an empty page", page, err)
	}
	if err := FoundAudit(testContext(t, 10*time.Second), srv.Connect(t), auditRecord("found")); err != nil {
		t.Fatal(err)
	}
	if err := s.EnsureAudit(testContext(t, 10*time.Second), auditRecord("begin")); err != nil {
		t.Fatal(err)
	}
	wantTrail(t, s, "begin")
}

// TestATrailThatIsGoneBeginsAgain: a core can delete its stream.
func TestATrailThatIsGoneBeginsAgain(t *testing.T) {
	_, s := audited(t)
	appendAudit(t, s, "a", "b")
	ctx := testContext(t, 20*time.Second)
	err := s.js.DeleteStream(ctx, subjects.AuditStream)
	if err == nil {
		err = s.EnsureAudit(ctx, auditRecord("begin"))
	}
	if err != nil {
		t.Fatal(err)
	}
	appendAudit(t, s, "c")
	wantTrail(t, s, "begin c")
}

// TestNobodyCanPurgeTheTrail: not even who may do everything in the account.
func TestNobodyCanPurgeTheTrail(t *testing.T) {
	_, s := audited(t)
	appendAudit(t, s, "a", "b")
	ctx := testContext(t, 10*time.Second)
	stream, err := s.js.Stream(ctx, subjects.AuditStream)
	if err != nil {
		t.Fatal(err)
	}
	cfg := stream.CachedInfo().Config
	lifted := cfg
	lifted.DenyPurge = false
	deletes := cfg
	deletes.DenyDelete = false
	for name, err := range map[string]error{
		"purge":            stream.Purge(ctx),
		"delete a record":  stream.DeleteMsg(ctx, 2),
		"erase a record":   stream.SecureDeleteMsg(ctx, 2),
		"allow to purge":   func() error { _, err := s.js.UpdateStream(ctx, lifted); return err }(),
		"allow to delete":  func() error { _, err := s.js.UpdateStream(ctx, deletes); return err }(),
		"roll the rest up": func() error { _, err := s.js.PublishMsg(ctx, rollup()); return err }(),
	} {
		if err == nil {
			t.Errorf("%s: done, want it refused", name)
		}
	}
	wantTrail(t, s, "first a b")
}

func rollup() *nats.Msg {
	m := newRecord(subjects.AuditRecord, auditRecord("x"))
	m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupAll)
	return m
}

// TestWritersNeverForkTheChain: many processes write at once.
func TestWritersNeverForkTheChain(t *testing.T) {
	srv, s := audited(t)
	const writers, each = 6, 25
	var all sync.WaitGroup
	for w := range writers {
		other := open(t, srv.Connect(t), Config{Host: kbroker.HostID(fmt.Sprintf("w%d", w))})
		all.Go(func() {
			for i := range each {
				if err := other.AppendAudit(testContext(t, 60*time.Second), auditRecord(fmt.Sprintf("%d-%d", w, i))); err != nil {
					t.Errorf("append: %v", err)
				}
			}
		})
	}
	all.Wait()
	onceEach(t, s, writers, each)
}

// onceEach expects an intact trail with each record of each writer once, in its order.
func onceEach(t *testing.T, s *Store, writers, each int) {
	t.Helper()
	ids, chain, err := auditIDs(t, s)
	if err != nil || chain.Records != writers*each+1 {
		t.Fatalf("%d records, want %d; %v", chain.Records, writers*each+1, err)
	}
	next := make([]int, writers)
	for _, id := range strings.Fields(ids)[1:] {
		var w, i int
		if _, err := fmt.Sscanf(id, "%d-%d", &w, &i); err != nil || i != next[w] {
			t.Fatalf("record %s: want %d-%d: %v", id, w, next[w], err)
		}
		next[w]++
	}
}

// TestTheTrailOutlivesItsLeader: the server that leads its stream is stopped while three
// processes write; attempts without an answer are not doubled.
func TestTheTrailOutlivesItsLeader(t *testing.T) {
	c := natstest.StartCluster(t, 3)
	ctx := testContext(t, 60*time.Second)
	wait.Until(t, 20*time.Second, func() error { return Found(ctx, c.Connect(t, 0)) })
	js, err := jetstream.New(c.Connect(t, 0))
	if err != nil {
		t.Fatal(err)
	}
	// What is made beside the control stream has as many replicas as that has members.
	three := func(name string) error {
		stream, err := js.Stream(ctx, name)
		if err != nil {
			return err
		}
		if info := stream.CachedInfo(); info.Config.Replicas != 3 || info.Cluster == nil || len(info.Cluster.Replicas) != 2 {
			return fmt.Errorf("stream %s has %d replicas, and members %+v", name, info.Config.Replicas, info.Cluster)
		}
		return nil
	}
	for _, name := range []string{subjects.ControlStream, subjects.StatusStream} {
		wait.Until(t, 20*time.Second, func() error {
			stream, err := js.Stream(ctx, name)
			if err != nil {
				return err
			}
			cfg := stream.CachedInfo().Config
			cfg.Replicas = 3
			_, err = js.UpdateStream(ctx, cfg)
			return err
		})
		wait.Until(t, 20*time.Second, func() error { return three(name) })
	}
	var reader *Store
	wait.Until(t, 30*time.Second, func() error {
		reader = open(t, c.Connect(t, 0), Config{})
		return reader.EnsureAudit(testContext(t, 10*time.Second), auditRecord("first"))
	})
	wait.Until(t, 20*time.Second, func() error { return three(subjects.AuditStream) })
	const each = 60
	writing, half := sync.WaitGroup{}, sync.WaitGroup{}
	half.Add(3)
	for w := range 3 {
		s := open(t, c.Connect(t, w), Config{Host: kbroker.HostID(fmt.Sprintf("w%d", w))})
		writing.Go(func() {
			for i := range each {
				for { // as whoever has something to tell does
					if err := s.AppendAudit(testContext(t, 700*time.Millisecond), auditRecord(fmt.Sprintf("%d-%d", w, i))); err == nil {
						break
					}
					if ctx.Err() != nil {
						t.Errorf("record %d-%d was never taken", w, i)
						break
					}
				}
				if i == each/2 {
					half.Done()
				}
			}
		})
	}
	half.Wait()
	c.Stop(c.StreamLeader(subjects.AuditStream))
	writing.Wait()
	wait.Until(t, 20*time.Second, func() error {
		_, chain, err := auditIDs(t, reader)
		if err == nil && chain.Records < 3*each+1 {
			err = fmt.Errorf("%d records yet", chain.Records)
		}
		return err
	})
	onceEach(t, reader, 3, each)
}

// TestARecordInDoubtIsNotDoubled: the answer to an attempt was lost.
func TestARecordInDoubtIsNotDoubled(t *testing.T) {
	srv, s := audited(t)
	appendAudit(t, s, "a")
	lose := func(id string) { // the attempt that is sent next, and its answer
		s.trail.doubts[id] = s.trail.end + 1
	}
	other := open(t, srv.Connect(t), Config{Host: "h2"})

	lose("b") // it was written
	appendAudit(t, other, "b")
	appendAudit(t, s, "b")
	wantTrail(t, s, "first a b")

	lose("c") // somebody else was first
	appendAudit(t, other, "d")
	appendAudit(t, s, "c")
	wantTrail(t, s, "first a b d c")

	lose("e") // it was written, and others followed; this process has written another since
	appendAudit(t, other, "e", "f")
	appendAudit(t, s, "g", "e")
	wantTrail(t, s, "first a b d c e f g")

	lose("h") // it never came
	appendAudit(t, s, "h")
	wantTrail(t, s, "first a b d c e f g h")
}

func change(n uint64) PutAudit {
	r := auditRecord(fmt.Sprintf("c%d", n))
	r.Changes = n
	return PutAudit{r.Cleaned()}
}

func tell(t *testing.T, l *Leader) uint64 {
	t.Helper()
	told, err := l.TellChanges(testContext(t, 15*time.Second), nil)
	if err != nil {
		t.Fatalf("tell the changes: %v", err)
	}
	return told
}

// TestTheNextLeaderTellsWhatTheLastOneDidNot: it dies between a change and its record.
func TestTheNextLeaderTellsWhatTheLastOneDidNot(t *testing.T) {
	srv, s := audited(t)
	l, _, stop := leading(t, s)
	host := func(n int) Change { return PutHost{kbroker.Host{Name: kbroker.HostID(fmt.Sprintf("h%d", n))}} }
	mustCommit(t, l, view(t, s), change(1), host(1))
	if told := tell(t, l); told != 1 {
		t.Fatalf("%d changes are told, want 1", told)
	}
	mustCommit(t, l, view(t, s), change(2), host(2))
	mustCommit(t, l, view(t, s), change(3), host(3))
	appendAudit(t, s, "refused")
	stop()

	other := open(t, srv.Connect(t), Config{Host: "h2"})
	start(t, other.Run)
	next, _, _ := leading(t, other)
	var both sync.WaitGroup
	both.Go(func() { tell(t, next) })
	both.Go(func() { tell(t, l) }) // the last one is not dead after all
	both.Wait()
	mustCommit(t, next, view(t, other), change(4), host(4))
	if told := tell(t, next); told != 4 {
		t.Errorf("%d changes are told, want 4", told)
	}
	tell(t, next)
	wantTrail(t, other, "first c1 refused c2 c3 c4")
	page, err := other.Audit(testContext(t, 5*time.Second), kbroker.AuditRequest{Limit: 1})
	if err != nil || len(page.Records) != 1 || page.Records[0].Revision == 0 || page.Records[0].Revision > view(t, other).Sequence {
		t.Errorf("the last record is %+v, %v: want its revision in the control store", page.Records, err)
	}
	// The record of a change that a refused batch brings is not there.
	err = next.Commit(testContext(t, 5*time.Second), &View{}, []Change{change(5), host(4)})
	if !errors.Is(err, kbroker.Conflict) {
		t.Fatalf("a commit from nothing: %v, want a conflict", err)
	}
	tell(t, next)
	wantTrail(t, other, "first c1 refused c2 c3 c4")
}

// TestChangesHaveRoomToWait: a slot is free again when its change is told.
func TestChangesHaveRoomToWait(t *testing.T) {
	_, s := audited(t)
	l, _, _ := leading(t, s)
	n := uint64(0)
	for ; Room(n+1, 0); n++ {
		mustCommit(t, l, view(t, s), change(n+1))
	}
	if n != auditSlots {
		t.Errorf("%d changes may wait, want %d", n, auditSlots)
	}
	told := tell(t, l)
	if told != n || !Room(n+1, told) {
		t.Errorf("%d of %d are told", told, n)
	}
	mustCommit(t, l, view(t, s), change(n+1))
	if told = tell(t, l); told != n+1 {
		t.Errorf("%d of %d are told", told, n+1)
	}
	if _, chain, err := auditIDs(t, s); err != nil || chain.Records != int(n)+2 {
		t.Errorf("%d records, %v; want %d", chain.Records, err, n+2)
	}
}

// TestChangesThatAreGoneAreSaidToBeLost: a rescue may find a copy of the trail that is
// older than that of the control store.
func TestChangesThatAreGoneAreSaidToBeLost(t *testing.T) {
	_, s := audited(t)
	l, _, _ := leading(t, s)
	mustCommit(t, l, view(t, s), change(5), PutHost{kbroker.Host{Name: "h5"}})
	mustCommit(t, l, view(t, s), change(6))
	if told := tell(t, l); told != 6 {
		t.Errorf("%d are told, want 6", told)
	}
	wantTrail(t, s, "first lost 1 to 4 c5 c6")
	page, err := s.Audit(testContext(t, 5*time.Second), kbroker.AuditRequest{})
	if err != nil || page.Records[1].Action != kbroker.AuditLost || page.Records[1].Count != 4 {
		t.Errorf("the second record is %+v, %v; want that 4 are lost", page.Records, err)
	}
}
