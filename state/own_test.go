package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

const shopStreams = 4

// ownedObjects is a running store with the streams of an app that has objects.
func ownedObjects(t testing.TB) (*natstest.Server, *Store) {
	t.Helper()
	srv, s := ownedApp(t)
	for range 2 { // the second changes nothing
		if err := s.EnsureObjects(testContext(t, 5*time.Second), shopKey, shopStreams); err != nil {
			t.Fatalf("ensure objects: %v", err)
		}
	}
	return srv, s
}

func alice(n int) kbroker.Object {
	return kbroker.Object{Kind: "account", ID: fmt.Sprintf("alice %d", n)}
}

// own writes a batch.
func (s *Store) own(t testing.TB, writes ...kbroker.Write) (kbroker.OwnWriteReply, error) {
	t.Helper()
	return s.OwnWrite(testContext(t, 5*time.Second), shopKey, shopStreams, kbroker.OwnWriteRequest{Writes: writes})
}

func mustOwn(t testing.TB, s *Store, writes ...kbroker.Write) kbroker.OwnWriteReply {
	t.Helper()
	reply, err := s.own(t, writes...)
	if err != nil {
		t.Fatalf("write %v: %v", writes, err)
	}
	return reply
}

func ownRead(t testing.TB, s *Store, r kbroker.OwnReadRequest) kbroker.OwnReadReply {
	t.Helper()
	reply, err := s.OwnRead(testContext(t, 5*time.Second), shopKey, shopStreams, r)
	if err != nil {
		t.Fatalf("read %+v: %v", r, err)
	}
	return reply
}

// at reads the revision and the value of a key.
func at(t testing.TB, s *Store, key string) (kbroker.Revision, string) {
	t.Helper()
	reply := ownRead(t, s, kbroker.OwnReadRequest{Keys: []string{key}})
	if len(reply.Records) != 1 || reply.Records[0].Key != key || reply.More {
		t.Fatalf("%s is read as %+v", key, reply)
	}
	return reply.Records[0].Revision, string(reply.Records[0].Value)
}

func TestABatchOfAnAppIsWrittenWholeOrNotAtAll(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	o := alice(1)
	state, out, due := subjects.KeyState(o), subjects.KeyOut(o, 1), subjects.KeyDue(o, "tick tock")
	first := mustOwn(t, s, kbroker.Write{Key: state, Value: []byte("one")}, kbroker.Write{Key: out, Value: []byte("tell")}, kbroker.Write{Key: due, Value: []byte("noon")})
	for i, key := range []string{state, out, due} {
		if rev, value := at(t, s, key); rev != first.At(i) || rev == 0 || value == "" {
			t.Fatalf("%s is %q at %d, the answer says %d", key, value, rev, first.At(i))
		}
	}
	for name, writes := range map[string][]kbroker.Write{
		"the first is elsewhere":   {{Key: state, Expected: first.At(0) + 1, Value: []byte("two")}, {Key: out, Expected: first.At(1), Value: []byte("two")}},
		"the last is elsewhere":    {{Key: out, Expected: first.At(1), Value: []byte("two")}, {Key: due, Value: []byte("two")}, {Key: state, Expected: first.At(0) - 1, Value: []byte("two")}},
		"one is not there":         {{Key: out, Expected: first.At(1), Value: []byte("two")}, {Key: subjects.KeyOut(o, 2), Expected: 7, Value: []byte("two")}},
		"a guard is elsewhere":     {{Key: out, Expected: first.At(1), Value: []byte("two")}, {Key: subjects.KeyOut(o, 2), Guard: state, GuardAt: first.At(0) + 1, Value: []byte("two")}},
		"a guard is there already": {{Key: subjects.KeyOut(o, 2), Guard: state, Value: []byte("two")}},
		"alone":                    {{Key: state, Value: []byte("two")}},
	} {
		_, err := s.own(t, writes...)
		if !errors.Is(err, kbroker.Conflict) || kbroker.AsError(err).Executed != kbroker.ExecutedNo {
			t.Errorf("%s: %v, want a conflict, executed no", name, err)
		}
	}
	for i, key := range []string{state, out, due} {
		if rev, _ := at(t, s, key); rev != first.At(i) {
			t.Errorf("%s is at %d after what was refused, want %d", key, rev, first.At(i))
		}
	}
	if rev, _ := at(t, s, subjects.KeyOut(o, 2)); rev != 0 {
		t.Errorf("a part of a refused batch is at %d", rev)
	}
	second := mustOwn(t, s, kbroker.Write{Key: state, Expected: first.At(0), Value: []byte("two")}, kbroker.Write{Key: subjects.KeyOut(o, 2), Guard: due, GuardAt: first.At(2), Value: []byte("tell")}, kbroker.Write{Key: out, Expected: first.At(1)})
	if rev, value := at(t, s, out); rev != second.At(2) || value != "" {
		t.Errorf("what was taken away is %q at %d, want nothing at %d", value, rev, second.At(2))
	}
	if _, err := s.own(t, kbroker.Write{Key: out, Value: []byte("late")}); !errors.Is(err, kbroker.Conflict) {
		t.Errorf("a late copy of the first batch puts back what was taken away: %v", err)
	}
}

// What was taken away leaves a marker that ends by itself, or an outbox would grow for ever,
// and the leases of starts that have ended.
func TestWhatWasTakenAwayIsCollected(t *testing.T) {
	t.Parallel()
	srv, s := ownedObjects(t)
	for _, key := range []string{subjects.KeyOut(alice(1), 1), subjects.KeyLease("shop-web-1.1")} {
		reply := mustOwn(t, s, kbroker.Write{Key: key, Value: []byte("{}")})
		mustOwn(t, s, kbroker.Write{Key: key, Expected: reply.First})
		stream, prefix, _ := subjects.StoredAt("default", "shop", shopStreams, key)
		m, err := readLast(t.Context(), srv.Connect(t), stream, prefix+key)
		if err != nil || m == nil || !deleted(m.header) || m.header.Get(jetstream.MsgTTLHeader) != workMarkerTTL.String() {
			t.Fatalf("the marker of %s is %+v (%v), want one that is collected after %v", key, m, err, workMarkerTTL)
		}
	}
	if got := ownRead(t, s, kbroker.OwnReadRequest{Match: subjects.MatchOuts(alice(1).Shard())}); len(got.Records) != 0 || got.More {
		t.Errorf("what was taken away is listed: %+v", got)
	}
}

func TestABatchIsOfOneStream(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	a := alice(1)
	other := 2
	for alice(other).Shard()%shopStreams == a.Shard()%shopStreams {
		other++
	}
	b := alice(other)
	for name, writes := range map[string][]kbroker.Write{
		"objects of two streams":      {{Key: subjects.KeyState(a)}, {Key: subjects.KeyState(b)}},
		"ownership and an object":     {{Key: subjects.KeyAssign(1)}, {Key: subjects.KeyState(b)}},
		"a guard of another":          {{Key: subjects.KeyState(a), Guard: subjects.KeyState(b)}},
		"what is no key":              {{Key: "x"}},
		"a guard that is no key":      {{Key: subjects.KeyState(a), Guard: fmt.Sprintf("%d.x", a.Shard())}},
		"the shard of another":        {{Key: fmt.Sprintf("%d.state.account.bob", a.Shard())}},
		"nothing":                     nil,
		"ownership that is too large": {{Key: subjects.KeyAssign(1), Value: make([]byte, kbroker.MaxOwnershipBytes+1)}},
		"a lease that is none":        {{Key: subjects.KeyAllocatorLease, Value: []byte("x")}},
		"a lease taken away":          {{Key: subjects.KeyAllocatorLease}},
		"the lease of another app":    {{Key: subjects.KeyAllocatorLease, Value: []byte(`{"holder":"bank-allocator-1.a","epoch":1}`)}},
	} {
		if _, err := s.own(t, writes...); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	for name, r := range map[string]kbroker.OwnReadRequest{
		"two streams": {Keys: []string{subjects.KeyState(a), subjects.KeyState(b)}}, "no key": {Keys: []string{"x"}}, "the beginning of nothing": {Match: "x"}, "nothing": {},
	} {
		if reply, err := s.OwnRead(t.Context(), shopKey, shopStreams, r); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("read %s: %+v, %v, want invalid", name, reply, err)
		}
	}
	// An app without objects has an ownership all the same, and no objects.
	if _, err := s.OwnWrite(t.Context(), shopKey, 0, kbroker.OwnWriteRequest{Writes: []kbroker.Write{{Key: subjects.KeyState(a), Value: []byte("x")}}}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("an object without streams: %v, want invalid", err)
	}
	if reply, err := s.OwnRead(t.Context(), shopKey, 0, kbroker.OwnReadRequest{Match: subjects.MatchAssigns}); err != nil || len(reply.Records) != 0 {
		t.Errorf("the assignments of an app without objects: %+v, %v", reply, err)
	}
}

// The lease of the allocators is the same record, whether it is written alone or in a batch.
func TestABatchBehindTheLeaseOfTheAllocators(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	seeded, err := s.ask(t.Context(), kbroker.LeaseRequest{})
	if err != nil {
		t.Fatal(err)
	}
	mine := kbroker.AllocatorLease{Holder: "shop-allocator-1.a", Epoch: 3}
	value, _ := json.Marshal(mine)
	reply := mustOwn(t, s, kbroker.Write{Key: subjects.KeyAllocatorLease, Expected: kbroker.Revision(seeded.Sequence), Value: value}, kbroker.Write{Key: subjects.KeyAssign(7), Value: []byte("a")})
	got, err := s.ask(t.Context(), kbroker.LeaseRequest{})
	if err != nil || got.Lease == nil || *got.Lease != mine || kbroker.Revision(got.Sequence) != reply.First {
		t.Fatalf("the lease is %+v (%v), want %+v at %d", got, err, mine, reply.First)
	}
	var back kbroker.AllocatorLease
	if rev, value := at(t, s, subjects.KeyAllocatorLease); json.Unmarshal([]byte(value), &back) != nil || back != mine || rev != reply.First {
		t.Fatalf("the lease is read as %q at %d", value, rev)
	}
	// A deposed holder's batch is refused whole.
	if _, err := s.own(t, kbroker.Write{Key: subjects.KeyAllocatorLease, Expected: kbroker.Revision(seeded.Sequence), Value: value}, kbroker.Write{Key: subjects.KeyAssign(7), Expected: reply.At(1), Value: []byte("b")}); !errors.Is(err, kbroker.Conflict) {
		t.Fatalf("a batch behind an old lease: %v, want a conflict", err)
	}
	if rev, value := at(t, s, subjects.KeyAssign(7)); rev != reply.At(1) || value != "a" {
		t.Errorf("the assignment is %q at %d after a batch behind an old lease", value, rev)
	}
}

func TestReadsAreBounded(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	const n = kbroker.MaxReadKeys + 20
	var want []string
	for some := range slices.Chunk(make([]struct{}, n), kbroker.MaxBatchWrites) {
		var writes []kbroker.Write
		for range some {
			writes = append(writes, kbroker.Write{Key: subjects.KeyAssign(kbroker.Shard(len(want))), Value: []byte("a")})
			want = append(want, writes[len(writes)-1].Key)
		}
		mustOwn(t, s, writes...)
	}
	gone, _ := at(t, s, want[3])
	mustOwn(t, s, kbroker.Write{Key: want[3], Expected: gone})
	want = slices.Delete(want, 3, 4)
	slices.Sort(want)
	var got []string
	asked := 0
	for r, more := (kbroker.OwnReadRequest{Match: subjects.MatchAssigns}), true; more; asked++ {
		reply := ownRead(t, s, r)
		if len(reply.Records) == 0 || len(reply.Records) > kbroker.MaxReadKeys {
			t.Fatalf("%d records at once, behind %q", len(reply.Records), r.After)
		}
		for _, rec := range reply.Records {
			got = append(got, rec.Key)
		}
		r.After, more = got[len(got)-1], reply.More
	}
	if asked != 2 || !slices.Equal(got, want) {
		t.Errorf("%d records are listed in %d answers, want %d in 2, in the order of their keys", len(got), asked, len(want))
	}
	// Large ones do not fit one answer: those that do are the first.
	o, big := alice(1), make([]byte, kbroker.MaxObjectBytes)
	keys := []string{subjects.KeyState(o), subjects.KeyOut(o, 1), subjects.KeyOut(o, 2)}
	for _, k := range keys {
		mustOwn(t, s, kbroker.Write{Key: k, Value: big})
	}
	for len(keys) > 0 {
		reply := ownRead(t, s, kbroker.OwnReadRequest{Keys: keys})
		if len(reply.Records) != 1 || reply.Records[0].Key != keys[0] || len(reply.Records[0].Value) != len(big) || reply.More != (len(keys) > 1) {
			t.Fatalf("of %q an answer has %d records, more %t", keys, len(reply.Records), reply.More)
		}
		if data, err := reply.MarshalBinary(); err != nil || len(data) > 1<<20 {
			t.Fatalf("the answer has %d bytes (%v)", len(data), err)
		}
		keys = keys[1:]
	}
}

// A batch on whose commit nobody answers may have been written.
func TestAWriteThatNobodyAnswers(t *testing.T) {
	t.Parallel()
	srv, s := ownedObjects(t)
	conn := srv.Connect(t)
	// Who leads this one takes the batch, and dies with it.
	_, all := subjects.Ownership("default", "gone")
	if _, err := conn.Subscribe(all, func(m *nats.Msg) {
		if m.Header.Get(headerCommit) == "" {
			_ = m.Respond(nil)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		app      kbroker.AppName
		code     kbroker.Code
		executed kbroker.Executed
	}{
		"the leader dies": {"gone", kbroker.Unavailable, kbroker.ExecutedUnknown},
		"nobody leads":    {"nobody", kbroker.Unavailable, kbroker.ExecutedNo},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		_, err := s.OwnWrite(ctx, AppKey{"default", c.app}, 1, kbroker.OwnWriteRequest{Writes: []kbroker.Write{{Key: subjects.KeyAssign(1), Value: []byte("a")}, {Key: subjects.KeyAssign(2), Value: []byte("a")}}})
		cancel()
		if e := kbroker.AsError(err); e == nil || e.Code != c.code || e.Executed != c.executed {
			t.Errorf("%s: %+v, want %s, executed %s", name, e, c.code, c.executed)
		}
	}
	if _, err := s.OwnRead(t.Context(), AppKey{"default", "nobody"}, 1, kbroker.OwnReadRequest{Keys: []string{subjects.KeyAssign(1)}}); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("a read of a stream that is not there: %v, want unavailable", err)
	}
}

// What the server says of a batch, and what it means.
func TestOutcomesOfAWrite(t *testing.T) {
	for code, want := range map[jetstream.ErrorCode]struct {
		code     kbroker.Code
		executed kbroker.Executed
	}{
		codeWrongSequence: {kbroker.Conflict, kbroker.ExecutedNo}, codeInFlight: {kbroker.Overloaded, kbroker.ExecutedNo},
		codeIncompleteBatch: {kbroker.Overloaded, kbroker.ExecutedNo}, codeManyBatches: {kbroker.Overloaded, kbroker.ExecutedNo},
		10077: {kbroker.Unavailable, kbroker.ExecutedUnknown},
	} {
		err := ownError(fmt.Errorf("publish: %w", &jetstream.APIError{ErrorCode: code}), shopKey, []kbroker.Write{{Key: "head"}})
		if e := kbroker.AsError(err); e.Code != want.code || e.Executed != want.executed {
			t.Errorf("%d: %+v, want %s, executed %s", code, e, want.code, want.executed)
		}
	}
}

// Of many who write by what they have read, each sees a history without a lost update.
func TestNoUpdateOfAnObjectIsLost(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	const writers, each = 4, 10
	key := subjects.KeyState(alice(1))
	done := make(chan error, writers)
	for range writers {
		go func() {
			for added := 0; added < each; {
				ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				reply, err := s.OwnRead(ctx, shopKey, shopStreams, kbroker.OwnReadRequest{Keys: []string{key}})
				if err == nil {
					now := reply.Records[0]
					_, err = s.OwnWrite(ctx, shopKey, shopStreams, kbroker.OwnWriteRequest{Writes: []kbroker.Write{{Key: key, Expected: now.Revision, Value: append(slices.Clone(now.Value), 'x')}}})
				}
				cancel()
				switch {
				case err == nil:
					added++
				case !errors.Is(err, kbroker.Conflict) && !errors.Is(err, kbroker.Overloaded):
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range writers {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	if _, value := at(t, s, key); value != strings.Repeat("x", writers*each) {
		t.Errorf("after %d accepted writes there are %d", writers*each, len(value))
	}
}

// The stream of an app is what a map would be, whatever is written.
func TestOwnershipIsAMapOfRevisions(t *testing.T) {
	t.Parallel()
	_, s := ownedObjects(t)
	type record struct {
		revision kbroker.Revision
		value    string
	}
	model := map[string]record{}
	rapid.Check(t, func(rt *rapid.T) {
		var writes []kbroker.Write
		legal, used := true, map[string]bool{}
		for range rapid.IntRange(1, 4).Draw(rt, "writes") {
			key := subjects.KeyAssign(kbroker.Shard(rapid.IntRange(0, 5).Draw(rt, "shard")))
			if used[key] {
				continue
			}
			used[key] = true
			w := kbroker.Write{Key: key, Expected: model[key].revision, Value: []byte(rapid.SampledFrom([]string{"", "a", "b"}).Draw(rt, "value"))}
			switch rapid.IntRange(0, 5).Draw(rt, "how") {
			case 0:
				w.Expected++
				legal = false
			case 1:
				guard := subjects.KeyRelease(kbroker.Shard(rapid.IntRange(0, 3).Draw(rt, "guard")))
				w.Expected, w.Guard, w.GuardAt = 0, guard, model[guard].revision
			}
			writes = append(writes, w)
		}
		reply, err := s.OwnWrite(t.Context(), shopKey, shopStreams, kbroker.OwnWriteRequest{Writes: writes})
		switch {
		case legal && err != nil:
			rt.Fatalf("%v is refused: %v", writes, err)
		case !legal && !errors.Is(err, kbroker.Conflict):
			rt.Fatalf("%v: %v, want a conflict", writes, err)
		case legal:
			for i, w := range writes {
				model[w.Key] = record{reply.At(i), string(w.Value)}
			}
		}
	})
	for key, want := range model {
		if rev, value := at(t, s, key); rev != want.revision || value != want.value {
			t.Errorf("%s is %q at %d, want %q at %d", key, value, rev, want.value, want.revision)
		}
	}
}

// An app that an older build has made gets what this one needs, and keeps what it has.
func TestTheStreamOfAnOlderBuildIsAmended(t *testing.T) {
	t.Parallel()
	srv, s := founded(t)
	name, all := subjects.Ownership(shopKey.Tenant, shopKey.App)
	old := recordStream(name, all, "", 1, nil)
	old.Metadata = map[string]string{"kept": "yes"}
	if _, err := s.js.CreateStream(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	mustOwn(t, s, kbroker.Write{Key: subjects.KeyAssign(1), Value: []byte("a")})
	for range 2 {
		if err := s.EnsureApp(testContext(t, 5*time.Second), shopKey); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := s.js.Stream(t.Context(), name)
	if err != nil || stream.CachedInfo().Config.Metadata["kept"] != "yes" {
		t.Fatalf("the stream is %+v (%v), want its metadata kept", stream, err)
	}
	if rev, value := at(t, s, subjects.KeyAssign(1)); rev != 1 || value != "a" {
		t.Fatalf("what was in it is %q at %d", value, rev)
	}
	conn := srv.Connect(t)
	heard, err := conn.SubscribeSync(subjects.AllOwned("default"))
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	mustOwn(t, s, kbroker.Write{Key: subjects.KeyAssign(1), Expected: 1, Value: []byte("b")})
	wait.Until(t, 5*time.Second, func() error {
		m, err := heard.NextMsg(time.Second)
		if err == nil && (m.Subject != subjects.Owned("default", "shop", subjects.KeyAssign(1)) || string(m.Data) != "b" || m.Header.Get("Nats-Sequence") != "2") {
			err = fmt.Errorf("%s %q %v", m.Subject, m.Data, m.Header)
		}
		return err
	})
}

// The server that leads a stream goes away in the middle of batches. What was accepted is
// there, what was refused is not, and of what nobody answered the same batch, sent once
// more, finds out.
func TestBatchesWhoseLeaderGoesAway(t *testing.T) {
	t.Parallel()
	c := natstest.StartCluster(t, 3)
	if err := Found(testContext(t, 20*time.Second), c.Connect(t, 0)); err != nil {
		t.Fatalf("found: %v", err)
	}
	replicate(t, c.Connect(t, 0))
	if err := open(t, c.Connect(t, 0), Config{}).EnsureObjects(testContext(t, 20*time.Second), shopKey, 1); err != nil {
		t.Fatal(err)
	}
	stream, _ := subjects.Objects(shopKey.Tenant, shopKey.App, 0)
	var leader int
	wait.Until(t, 10*time.Second, func() error {
		if leader = c.StreamLeader(stream); leader < 0 {
			return errors.New("nobody leads the stream")
		}
		return nil
	})
	s := open(t, c.Connect(t, (leader+1)%3), Config{})
	o := alice(1)
	state := subjects.KeyState(o)
	var at kbroker.Revision
	unknown := 0
	const turns, stopped = 60, 20
	gone := make(chan struct{})
	for n := 1; n <= turns; n++ {
		if n == stopped {
			go func() { c.Stop(leader); close(gone) }()
		}
		batch := kbroker.OwnWriteRequest{Writes: []kbroker.Write{
			{Key: subjects.KeyOut(o, uint64(n)), Value: []byte("tell")}, {Key: state, Expected: at, Value: fmt.Append(nil, n)},
		}}
		before, resent := at, false
		wait.Until(t, 20*time.Second, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			reply, err := s.OwnWrite(ctx, shopKey, 1, batch)
			switch e := kbroker.AsError(err); {
			case err == nil:
				at = reply.At(1)
			case errors.Is(err, kbroker.Conflict) && resent:
				read, err := s.OwnRead(ctx, shopKey, 1, kbroker.OwnReadRequest{Keys: []string{state}})
				if err != nil {
					return err
				}
				if string(read.Records[0].Value) != fmt.Sprint(n) || read.Records[0].Revision <= before {
					t.Fatalf("batch %d is refused, the state is %+v, was at %d", n, read.Records[0], before)
				}
				at = read.Records[0].Revision
			case errors.Is(err, kbroker.Conflict):
				t.Fatalf("batch %d is refused at once: %v", n, err)
			case e.Executed == kbroker.ExecutedNo:
				return err
			default:
				unknown, resent = unknown+1, true
				return err
			}
			return nil
		})
	}
	<-gone
	wait.Until(t, 10*time.Second, func() error {
		out, err := s.OwnRead(t.Context(), shopKey, 1, kbroker.OwnReadRequest{Match: subjects.MatchOuts(o.Shard())})
		if err == nil && len(out.Records) != turns {
			t.Fatalf("%d messages are to be sent after %d turns", len(out.Records), turns)
		}
		return err
	})
	t.Logf("%d outcomes were not known", unknown)
}

// TestWhatWasNotWrittenSinceIsNotReadAgain, whatever else was.
func TestWhatWasNotWrittenSinceIsNotReadAgain(t *testing.T) {
	_, s := ownedObjects(t)
	write := func(key string, expected kbroker.Revision) kbroker.Revision {
		return mustOwn(t, s, kbroker.Write{Key: key, Expected: expected, Value: []byte(`{}`)}).First
	}
	first := write(subjects.KeyAssign(1), 0)
	write(subjects.KeyAssign(2), 0)
	whole := ownRead(t, s, kbroker.OwnReadRequest{Match: subjects.MatchAssigns})
	if len(whole.Records) != 2 || whole.Same || whole.At < first+1 {
		t.Fatalf("read %+v, want both, until %d at least", whole, first+1)
	}
	since := kbroker.OwnReadRequest{Match: subjects.MatchAssigns, Since: whole.At}
	write(subjects.KeyRelease(1), 0)
	if got := ownRead(t, s, since); len(got.Records) != 0 || !got.Same {
		t.Errorf("read %+v, want that it is the same", got)
	}
	second := write(subjects.KeyAssign(1), first)
	got := ownRead(t, s, since)
	if len(got.Records) != 2 || got.Same || got.At < second {
		t.Errorf("read %+v, want both anew", got)
	}
	since.Since = got.At
	mustOwn(t, s, kbroker.Write{Key: subjects.KeyAssign(2), Expected: first + 1}) // it is taken away
	if got := ownRead(t, s, since); len(got.Records) != 1 || got.Same {
		t.Errorf("read %+v, want the one that is left", got)
	}
}
