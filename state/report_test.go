package state

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func status(host, instance string, state kbroker.InstanceState) kbroker.Status {
	return kbroker.Status{Tenant: "default", App: "shop", Service: "web", Instance: kbroker.InstanceID(instance), Host: kbroker.HostID(host), State: state}
}

func report(t *testing.T, s *Store, r kbroker.ReportRequest) kbroker.ReportReply {
	t.Helper()
	reply, err := s.Report(testContext(t, 10*time.Second), r)
	if err != nil {
		t.Fatalf("report %d: %v", r.Number, err)
	}
	return reply
}

func TestReportNumbersOnlyGrow(t *testing.T) {
	_, s := founded(t)
	key := PlacementKey{"h1", "default", "shop-web-1"}
	send := func(process string, number uint64, state kbroker.InstanceState) kbroker.ReportReply {
		return report(t, s, kbroker.ReportRequest{Host: "h1", Process: process, Number: number, Statuses: []kbroker.Status{status("h1", "shop-web-1", state)}})
	}
	if r := send("p1", 5, kbroker.StateReady); !r.Accepted || r.Number != 5 {
		t.Fatalf("first report: %+v, want accepted", r)
	}
	for _, c := range []struct {
		process string
		number  uint64
	}{{"p1", 5}, {"p1", 4}, {"p2", 1}, {"p2", 5}} {
		if r := send(c.process, c.number, kbroker.StateBackoff); r.Accepted || r.Number != 5 {
			t.Fatalf("report %d of %s after 5: %+v, want it refused with 5", c.number, c.process, r)
		}
	}
	if r := send("p2", 6, kbroker.StateRunning); !r.Accepted {
		t.Fatalf("report 6 of a new process: %+v, want accepted", r)
	}
	wait.Until(t, 5*time.Second, func() error {
		if got := s.Peek().Statuses[key].State; got != kbroker.StateRunning {
			return fmt.Errorf("status is %q, want running", got)
		}
		return nil
	})
	if r := report(t, s, kbroker.ReportRequest{Host: "h2", Process: "q", Number: 1}); !r.Accepted {
		t.Fatalf("first report of another host: %+v, want accepted", r)
	}
}

// TestANameThatIsAdmittedAgainCountsItsReportsAnew: the host that had it may have used up
// all numbers.
func TestANameThatIsAdmittedAgainCountsItsReportsAnew(t *testing.T) {
	_, s := founded(t)
	for _, c := range []struct {
		generation int
		number     uint64
		accepted   bool
		stored     uint64
	}{
		{1, math.MaxUint64, true, math.MaxUint64},
		{1, 1, false, math.MaxUint64},
		{0, 1, false, math.MaxUint64}, // by a core that does not know the host
		{2, 1, true, 1},
		{1, math.MaxUint64, false, 1}, // of the one before, late
		{2, 1, false, 1},
		{0, 2, true, 2},
		{1, 3, false, 2},
		{2, 3, true, 3},
	} {
		r := report(t, s, kbroker.ReportRequest{Host: "h1", Generation: c.generation, Process: "p", Number: c.number})
		if r.Accepted != c.accepted || r.Number != c.stored {
			t.Errorf("report %d of generation %d: %+v, want accepted %t and number %d", c.number, c.generation, r, c.accepted, c.stored)
		}
	}
}

// TestARevocationThatLastsForGoodIsStored: the time that a record is kept has an end that
// what stores it can count to.
func TestARevocationThatLastsForGoodIsStored(t *testing.T) {
	_, s := founded(t)
	for n, until := range []time.Time{
		time.Now().Add(math.MaxInt64 - time.Minute), time.Now().Add(math.MaxInt64), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		user := fmt.Sprintf("U%d", n)
		_, err := s.Report(testContext(t, 10*time.Second), kbroker.ReportRequest{Host: "h1", Process: "p", Number: uint64(n + 1)}, kbroker.Revocation{User: user, Until: until})
		if err != nil {
			t.Fatalf("taken back until %v: %v", until, err)
		}
		wait.Until(t, 5*time.Second, func() error {
			if _, ok := s.Peek().Revoked[user]; !ok {
				return fmt.Errorf("taken back are %v, want %s until %v", s.Peek().Revoked, user, until)
			}
			return nil
		})
		m, err := readLast(t.Context(), s.cfg.Conn, subjects.StatusStream, subjects.Status(subjects.KeyRevoked(user)))
		if err != nil || m == nil {
			t.Fatalf("the record of %s is %v, %v", user, m, err)
		}
		ttl, err := time.ParseDuration(m.header.Get(jetstream.MsgTTLHeader))
		if last := time.Now().UnixNano() + int64(ttl); err != nil || ttl < 50*365*24*time.Hour || last < 0 {
			t.Errorf("the record of %s is kept for %v (%v), want for long, within what nanoseconds can count", user, ttl, err)
		}
	}
}

func TestAReportOfAnotherHostsInstanceIsInvalid(t *testing.T) {
	_, s := founded(t)
	_, err := s.Report(testContext(t, 5*time.Second), kbroker.ReportRequest{Host: "h1", Number: 1, Statuses: []kbroker.Status{status("h2", "shop-web-1", kbroker.StateReady)}})
	if !errors.Is(err, kbroker.Invalid) {
		t.Fatalf("report returned %v, want invalid", err)
	}
}

func TestAReportLargerThanABatch(t *testing.T) {
	_, s := founded(t)
	const n = 2*batchMessages + 100
	r := kbroker.ReportRequest{Host: "h1", Process: "p", Number: 1}
	for i := range n {
		r.Statuses = append(r.Statuses, status("h1", fmt.Sprintf("shop-web-%d", i), kbroker.StateReady))
	}
	if reply := report(t, s, r); !reply.Accepted || reply.Number != 1 {
		t.Fatalf("report: %+v, want accepted", reply)
	}
	wait.Until(t, 10*time.Second, func() error {
		if got := len(s.Peek().Statuses); got != n {
			return fmt.Errorf("%d statuses, want %d", got, n)
		}
		return nil
	})
}

func TestReportsOfOneHostThroughManyCoresAreEachAcceptedOnce(t *testing.T) {
	_, s := founded(t)
	const n = 8
	accepted := make([]bool, n+1)
	var wg sync.WaitGroup
	for i := uint64(1); i <= n; i++ {
		wg.Go(func() {
			for {
				r, err := s.Report(testContext(t, 10*time.Second), kbroker.ReportRequest{Host: "h1", Process: "p", Number: i})
				if err == nil {
					accepted[i] = r.Accepted
					return
				}
				if !errors.Is(err, kbroker.Unavailable) {
					t.Errorf("report %d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if !accepted[n] {
		t.Fatalf("the highest number was not accepted: %v", accepted)
	}
	if r := report(t, s, kbroker.ReportRequest{Host: "h1", Process: "p", Number: n}); r.Accepted || r.Number != n {
		t.Fatalf("after all reports: %+v, want number %d", r, n)
	}
}

// People ask what has ended, and why, when nothing is left of it.
func TestAnExitedInstanceIsListedAfterItIsGone(t *testing.T) {
	_, s := founded(t)
	key := PlacementKey{"h1", "default", "shop-web-1"}
	report(t, s, kbroker.ReportRequest{Host: "h1", Number: 1, Statuses: []kbroker.Status{status("h1", "shop-web-1", kbroker.StateExited)}})
	wait.Until(t, 5*time.Second, func() error {
		if got := s.Peek().Statuses[key].State; got != kbroker.StateExited {
			return fmt.Errorf("status is %q, want exited", got)
		}
		return nil
	})
	report(t, s, kbroker.ReportRequest{Host: "h1", Number: 2, Gone: []kbroker.StatusKey{{Tenant: "default", Instance: "shop-web-1"}}})
	report(t, s, kbroker.ReportRequest{Host: "h1", Number: 3, Statuses: []kbroker.Status{status("h1", "shop-web-2", kbroker.StateReady)}})
	wait.Until(t, 5*time.Second, func() error {
		if _, ok := s.Peek().Statuses[PlacementKey{"h1", "default", "shop-web-2"}]; !ok {
			return errors.New("the report after it is not applied")
		}
		return nil
	})
	if got := s.Peek().Statuses[key].State; got != kbroker.StateExited {
		t.Errorf("status is %q after it was gone, want exited until its time is over", got)
	}
}

func TestAGoneInstanceHasNoStatusAndCanComeBack(t *testing.T) {
	_, s := founded(t)
	key := PlacementKey{"h1", "default", "shop-web-1"}
	up := status("h1", "shop-web-1", kbroker.StateReady)
	has := func(want bool) {
		t.Helper()
		wait.Until(t, 5*time.Second, func() error {
			if _, ok := s.Peek().Statuses[key]; ok != want {
				return fmt.Errorf("status is there: %v, want %v", ok, want)
			}
			return nil
		})
	}
	report(t, s, kbroker.ReportRequest{Host: "h1", Number: 1, Statuses: []kbroker.Status{up}})
	has(true)
	report(t, s, kbroker.ReportRequest{Host: "h1", Number: 2, Gone: []kbroker.StatusKey{{Tenant: "default", Instance: "shop-web-1"}}})
	has(false)
	report(t, s, kbroker.ReportRequest{Host: "h1", Number: 3, Statuses: []kbroker.Status{up}})
	has(true)
}

// The server ends a record by its TTL with a marker; replicas hear of it.
func TestAnExpiredStatusLeavesTheReplica(t *testing.T) {
	_, s := founded(t)
	key := subjects.KeyStatus("h1", "default", "shop-web-1")
	report(t, s, kbroker.ReportRequest{Host: "h1", Number: 1, Statuses: []kbroker.Status{status("h1", "shop-web-1", kbroker.StateExited)}})
	m, err := readLast(testContext(t, 5*time.Second), s.cfg.Conn, subjects.StatusStream, subjects.Status(key))
	if err != nil || m.header.Get(jetstream.MsgTTLHeader) != statusTTL.String() {
		t.Fatalf("an exited status is stored as %+v, %v; want it with a TTL of %v", m, err, statusTTL)
	}
	short := newRecord(subjects.Status(key), status("h1", "shop-web-1", kbroker.StateExited))
	short.Header = nats.Header{jetstream.MsgTTLHeader: []string{"1s"}}
	if _, err := s.js.PublishMsg(testContext(t, 5*time.Second), short); err != nil {
		t.Fatalf("publish: %v", err)
	}
	wait.Until(t, 10*time.Second, func() error {
		if n := len(s.Peek().Statuses); n != 0 {
			return fmt.Errorf("%d statuses, want none", n)
		}
		return nil
	})
}

// TestRevocationsAreKeptUntilTheyEnd, however many are written at once.
func TestRevocationsAreKeptUntilTheyEnd(t *testing.T) {
	_, s := founded(t)
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	var all []kbroker.Revocation
	for i := range batchMessages + 10 {
		all = append(all, kbroker.Revocation{User: fmt.Sprintf("U%d", i), Until: until})
	}
	past := kbroker.Revocation{User: "Upast", Until: time.Now().Add(-time.Second)}
	if err := s.Revoke(testContext(t, 10*time.Second), append(all, past)); err != nil {
		t.Fatal(err)
	}
	wait.Until(t, 10*time.Second, func() error {
		got := s.Peek().Revoked
		if len(got) != len(all) || !got["U0"].Equal(until) || !got[all[len(all)-1].User].Equal(until) {
			return fmt.Errorf("%d are taken back, U0 until %v; want %d until %v", len(got), got["U0"], len(all), until)
		}
		return nil
	})
	soon := time.Now().Add(time.Hour)
	m, err := readLast(testContext(t, 5*time.Second), s.cfg.Conn, subjects.StatusStream, subjects.Status(subjects.KeyRevoked("U0")))
	if err != nil || m == nil {
		t.Fatalf("read: %v, %v", m, err)
	}
	if ttl, err := time.ParseDuration(m.header.Get(jetstream.MsgTTLHeader)); err != nil || ttl < time.Until(soon) || ttl > time.Hour+revokedLonger {
		t.Errorf("it is kept for %v (%v), want an hour and %v", ttl, err, revokedLonger)
	}
}
