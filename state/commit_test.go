package state

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func TestACommitFromAnOldViewIsAConflict(t *testing.T) {
	_, s := founded(t)
	l, ctx, _ := leading(t, s)
	old := view(t, s)
	mustCommit(t, l, old, PutPlacement{placement("h1", "shop-web-1", 1)})
	for name, change := range map[string]Change{
		"the same record":              PutPlacement{placement("h1", "shop-web-1", 2)},
		"another instance of the host": PutPlacement{placement("h1", "shop-web-2", 1)}, // its head has changed
	} {
		err := l.Commit(testContext(t, 5*time.Second), old, []Change{change, PutHost{kbroker.Host{Name: "h5"}}})
		if !errors.Is(err, kbroker.Conflict) {
			t.Fatalf("%s: commit from an old view returned %v, want conflict", name, err)
		}
	}
	v := view(t, s)
	if len(v.Hosts) != 0 || len(v.Placements) != 1 || v.Placements[PlacementKey{"h1", "default", "shop-web-1"}].Epoch != 1 {
		t.Fatalf("a part of a refused batch was written: %+v", v)
	}
	mustCommit(t, l, v, PutPlacement{placement("h1", "shop-web-1", 2)}) // the lease survived the conflicts
	if ctx.Err() != nil {
		t.Fatal("a conflict ended the lease")
	}
}

func TestAVersionIsImmutable(t *testing.T) {
	_, s := founded(t)
	l, _, _ := leading(t, s)
	put := PutVersion{kbroker.AppVersion{Tenant: "default", Version: 1, App: kbroker.App{Name: "shop"}, Cause: "deploy"}}
	mustCommit(t, l, view(t, s), put)
	put.Version.Cause = "scale"
	if err := l.Commit(testContext(t, 5*time.Second), view(t, s), []Change{put}); !errors.Is(err, kbroker.Conflict) {
		t.Fatalf("a second version 1 returned %v, want conflict", err)
	}
}

func TestTwoChangesOfOneRecordAreInvalid(t *testing.T) {
	_, s := founded(t)
	l, _, _ := leading(t, s)
	err := l.Commit(testContext(t, 5*time.Second), view(t, s), []Change{
		PutPlacement{placement("h1", "shop-web-1", 1)}, DropPlacement{PlacementKey{"h1", "default", "shop-web-1"}},
	})
	if !errors.Is(err, kbroker.Invalid) {
		t.Fatalf("commit returned %v, want invalid", err)
	}
}

func TestACommitLargerThanABatch(t *testing.T) {
	_, s := founded(t)
	l, _, _ := leading(t, s)
	const hosts, each = 7, 400
	var changes []Change
	for i := range hosts * each {
		changes = append(changes, PutPlacement{placement(fmt.Sprintf("h%d", i%hosts), fmt.Sprintf("shop-web-%d", i), 1)})
	}
	mustCommit(t, l, view(t, s), changes...)
	v := view(t, s)
	if len(v.Placements) != hosts*each {
		t.Fatalf("%d placements, want %d", len(v.Placements), hosts*each)
	}
	headsMatch(t, v, hosts)
}

func headsMatch(t interface {
	Helper()
	Fatalf(string, ...any)
}, v *View, hosts int,
) {
	t.Helper()
	if len(v.Heads) != hosts {
		t.Fatalf("%d heads, want %d", len(v.Heads), hosts)
	}
	for host, head := range v.Heads {
		if on := v.On(host); head.Hash != kbroker.PlacementsHash(on) || head.Count != len(on) {
			t.Fatalf("head %d of %s does not match its %d placements", head.Revision, host, len(on))
		}
	}
}

// Whatever is committed: the view shows exactly it, and heads match.
func TestHeadsMatchAfterEveryCommit(t *testing.T) {
	_, s := founded(t)
	l, _, _ := leading(t, s)
	want := map[PlacementKey]kbroker.Placement{}
	revisions := map[kbroker.HostID]uint64{}
	rapid.Check(t, func(t *rapid.T) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		v, err := s.View(ctx)
		if err != nil {
			t.Fatalf("view: %v", err)
		}
		picks := rapid.SliceOfNDistinct(rapid.IntRange(0, 59), 1, 20, rapid.ID[int]).Draw(t, "instances")
		var changes []Change
		touched := map[kbroker.HostID]bool{}
		for _, i := range picks {
			p := placement(fmt.Sprintf("h%d", i%4), fmt.Sprintf("shop-web-%d", i), rapid.Uint64Range(1, 9).Draw(t, "epoch"))
			k := PlacementKey{p.Host, p.Tenant, p.Instance}
			p.Stop = rapid.Bool().Draw(t, "stop")
			if _, ok := want[k]; ok && rapid.Bool().Draw(t, "drop") {
				changes = append(changes, DropPlacement{k})
				delete(want, k)
			} else {
				changes = append(changes, PutPlacement{p})
				want[k] = p
			}
			touched[p.Host] = true
		}
		if err := l.Commit(ctx, v, changes); err != nil {
			t.Fatalf("commit: %v", err)
		}
		for h := range touched {
			revisions[h]++
		}
		got, err := s.View(ctx)
		if err != nil {
			t.Fatalf("view: %v", err)
		}
		if len(got.Placements) != len(want) {
			t.Fatalf("%d placements, want %d", len(got.Placements), len(want))
		}
		for k, p := range want {
			if g := got.Placements[k]; g.Epoch != p.Epoch || g.Stop != p.Stop {
				t.Fatalf("%v is %+v, want %+v", k, g, p)
			}
		}
		headsMatch(t, got, len(revisions))
		for h, n := range revisions {
			if got.Heads[h].Revision != n {
				t.Fatalf("head of %s has revision %d after %d commits", h, got.Heads[h].Revision, n)
			}
		}
	})
}

// A server that goes away in the middle of commits loses none that was
// acknowledged. With three replicas only whole batches are ever seen; with one,
// a batch may be cut short: what is left is its beginning, and its heads are
// mended.
func TestCommitsOfUnknownOutcome(t *testing.T) {
	for name, replicas := range map[string]int{"three replicas": 3, "one replica": 1} {
		t.Run(name, func(t *testing.T) {
			c := natstest.StartCluster(t, 3)
			if err := Found(testContext(t, 20*time.Second), c.Connect(t, 0)); err != nil {
				t.Fatalf("found: %v", err)
			}
			if replicas > 1 {
				replicate(t, c.Connect(t, 0))
			}
			commitsAndStops(t, c, replicas > 1)
		})
	}
}

func commitsAndStops(t *testing.T, c *natstest.Cluster, whole bool) {
	leader := c.StreamLeader(subjects.ControlStream)
	conn := c.Connect(t, (leader+1)%3, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
	times := quick
	times.HolderStops, times.ObserverActs = 40*time.Second, 50*time.Second
	s := open(t, conn, Config{Times: times})
	start(t, s.Run)
	l, _, _ := leading(t, s)
	w := &roundWriter{store: s, leader: l, t: t}
	start(t, w.run)
	for range 3 {
		w.waitFor(t, &w.acknowledged, w.acknowledged.Load()+3)
		w.waitFor(t, &w.begun, w.begun.Load()+1)
		if leader = c.StreamLeader(subjects.ControlStream); leader == c.Index(conn) {
			continue // this connection would be cut, too
		}
		acknowledged := uint64(w.acknowledged.Load())
		c.Stop(leader) // a commit is on its way
		c.Restart(t, leader)
		var v *View
		wait.Until(t, 30*time.Second, func() error {
			if v = view(t, s); len(v.torn()) > 0 {
				return fmt.Errorf("heads of %v are not mended", v.torn())
			}
			return nil
		})
		w.check(t, v, acknowledged, whole)
	}
	t.Logf("commits begun %d, last acknowledged %d, outcomes unknown: %d", w.begun.Load(), w.acknowledged.Load(), w.unknown.Load())
}

// roundWriter writes the same placements again and again, with the number of
// the round as their epoch.
type roundWriter struct {
	store  *Store
	leader *Leader
	t      testing.TB

	begun, acknowledged, unknown atomic.Int64
}

const roundSize = 300

func (w *roundWriter) run(ctx context.Context) error {
	for round := uint64(1); ctx.Err() == nil; round++ {
		v, err := w.store.View(ctx)
		if err != nil {
			continue
		}
		changes := make([]Change, 0, roundSize)
		for i := range roundSize {
			changes = append(changes, PutPlacement{placement("h1", fmt.Sprintf("shop-web-%03d", i), round)})
		}
		w.begun.Store(int64(round))
		switch err := w.leader.Commit(ctx, v, changes); {
		case err == nil:
			w.acknowledged.Store(int64(round))
		case errors.Is(err, kbroker.Unavailable):
			w.unknown.Add(1)
		case errors.Is(err, kbroker.Conflict): // heads were mended, or a batch of unknown outcome came late
		case ctx.Err() == nil:
			w.t.Errorf("commit %d returned %v", round, err)
			return nil
		}
	}
	return nil
}

func (w *roundWriter) waitFor(t testing.TB, counter *atomic.Int64, n int64) {
	t.Helper()
	wait.Until(t, 60*time.Second, func() error {
		if got := counter.Load(); got < n {
			return fmt.Errorf("in round %d, waiting for %d", got, n)
		}
		return nil
	})
}

// check sees in a view what was acknowledged before it was asked for, and whole
// rounds only, or the beginning of one over another.
func (w *roundWriter) check(t *testing.T, v *View, acknowledged uint64, whole bool) {
	t.Helper()
	headsMatch(t, v, 1)
	on := v.On("h1")
	if len(on) != roundSize {
		t.Fatalf("%d placements, want %d", len(on), roundSize)
	}
	first, last := on[0].Epoch, on[len(on)-1].Epoch
	if last < acknowledged {
		t.Fatalf("the last placement is of round %d, but %d was acknowledged", last, acknowledged)
	}
	if whole && first != last {
		t.Fatalf("half a batch: the first placement is of round %d, the last of %d", first, last)
	}
	for i := range on[1:] {
		if on[i].Epoch < on[i+1].Epoch {
			t.Fatalf("%s is of round %d after one of round %d: not the beginning of a batch", on[i+1].Instance, on[i+1].Epoch, on[i].Epoch)
		}
	}
}

// A batch that was cut short, as a store with one replica leaves it.
func TestATornHeadIsMendedByTheNextLeader(t *testing.T) {
	_, s := founded(t)
	l, _, stop := leading(t, s)
	mustCommit(t, l, view(t, s), PutPlacement{placement("h1", "shop-web-1", 1)}, PutPlacement{placement("h2", "shop-web-2", 1)})
	stop()
	torn := placement("h1", "shop-web-3", 1)
	if _, err := s.js.PublishMsg(testContext(t, 5*time.Second), newRecord(subjects.Control(subjects.KeyPlacement("h1", "default", "shop-web-3")), torn)); err != nil {
		t.Fatalf("publish: %v", err)
	}
	if _, err := s.HostView(testContext(t, 5*time.Second), "h1"); !errors.Is(err, kbroker.Unavailable) {
		t.Fatalf("view of a host whose head does not match returned %v, want unavailable", err)
	}
	leading(t, s)
	reply, err := s.HostView(testContext(t, 5*time.Second), "h1")
	if err != nil || len(reply.Placements) != 2 || reply.Head.Revision != 2 {
		t.Fatalf("after the mending: %+v, %v; want 2 placements under head 2", reply, err)
	}
	if got := s.HeadRevision("h2"); got != 1 {
		t.Fatalf("head of h2 is %d, want it untouched at 1", got)
	}
}

func TestSortChangesIsStableAndByKind(t *testing.T) {
	host := PutHost{kbroker.Host{Name: "a"}}
	p1, p2 := PutPlacement{placement("h1", "shop-web-1", 1)}, PutPlacement{placement("h1", "shop-web-2", 1)}
	app := PutApp{kbroker.AppRecord{Tenant: "default", App: "shop"}}
	version := PutVersion{kbroker.AppVersion{Tenant: "default", Version: 1, App: kbroker.App{Name: "shop"}}}
	demand := PutDemand{kbroker.Demand{Tenant: "default", App: "shop"}}
	token := PutToken{kbroker.Token{ID: "z"}}
	user := PutUser{kbroker.User{Tenant: "default", Name: "a"}}
	got := []Change{host, user, token, demand, p2, app, p1, version}
	SortChanges(got)
	for i, want := range []Change{version, app, p1, p2, demand, token, user, host} {
		if got[i].String() != want.String() || keyOf(got[i]) != keyOf(want) {
			t.Fatalf("change %d is %s, want %s", i, got[i], want)
		}
	}
	if k := subjects.ParseKey(keyOf(p1)); k.Table != subjects.PlacementTable || k.Instance != "shop-web-1" {
		t.Fatalf("key of %s is %s", p1, keyOf(p1))
	}
}

// A join token is used up in the batch that admits its host: of two leaders' batches
// from the same view, or of a deposed one's, none is written in part.
func TestATokenIsUsedOnce(t *testing.T) {
	_, s := founded(t)
	l, _, _ := leading(t, s)
	token := kbroker.Token{ID: "a2b3c4d5e6f7", Role: kbroker.RoleWorker}
	mustCommit(t, l, view(t, s), PutToken{token})
	old := view(t, s)
	admit := func(host kbroker.HostID) []Change {
		used := token
		used.Used = &kbroker.TokenUse{Host: host}
		return []Change{PutHost{kbroker.Host{Name: host}}, PutToken{used}}
	}
	mustCommit(t, l, old, admit("w1")...)
	if err := l.Commit(testContext(t, 5*time.Second), old, admit("w2")); !errors.Is(err, kbroker.Conflict) {
		t.Fatalf("a second use of the token returned %v, want conflict", err)
	}
	v := view(t, s)
	if used := v.Tokens[token.ID].Used; len(v.Hosts) != 1 || used == nil || used.Host != "w1" {
		t.Fatalf("hosts are %v, the token is used by %+v; want w1 alone", v.Hosts, used)
	}
}

// A newer build may have written more into a token, and an older one less.
func TestATokenOfAnotherBuildIsRead(t *testing.T) {
	for name, data := range map[string]string{
		"newer": `{"id":"a2b3c4d5e6f7","role":"core","expires":"2026-01-02T03:04:05Z","zone":"x","used":{"host":"h1","zone":"x"}}`,
		"older": `{"id":"a2b3c4d5e6f7","role":"core"}`,
	} {
		r := decode(message{subject: subjects.Control(subjects.KeyToken("a2b3c4d5e6f7")), data: []byte(data)}, subjects.ControlKey)
		if got, ok := r.value.(kbroker.Token); r.err != nil || !ok || got.Role != kbroker.RoleCore {
			t.Errorf("%s: %+v, %v", name, r.value, r.err)
		}
	}
	r := decode(message{subject: subjects.Control(subjects.KeyToken("b2b3c4d5e6f7")), data: []byte(`{"id":"a2b3c4d5e6f7"}`)}, subjects.ControlKey)
	if r.err == nil {
		t.Error("a token under the key of another is read")
	}
}

// A newer build may have written more of a user; the record under the key of another one
// is not read.
func TestAUserOfAnotherBuildIsRead(t *testing.T) {
	key := subjects.Control(subjects.KeyUser("default", "ann"))
	r := decode(message{subject: key, data: []byte(`{"tenant":"default","name":"ann","role":"auditor","zone":"x","revoked":"2026-01-02T03:04:05Z"}`)}, subjects.ControlKey)
	if got, ok := r.value.(kbroker.User); r.err != nil || !ok || got.Role != "auditor" || got.Revoked.IsZero() {
		t.Errorf("%+v, %v", r.value, r.err)
	}
	for _, data := range []string{`{"tenant":"default","name":"bob"}`, `{"tenant":"other","name":"ann"}`} {
		if r := decode(message{subject: key, data: []byte(data)}, subjects.ControlKey); r.err == nil {
			t.Errorf("%s is read as ann of default", data)
		}
	}
}
