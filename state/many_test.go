package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

const assigned = `{"owner":"shop-web-1.0123456789abcdef","epoch":3}`

// assignAll writes an assignment of every shard, and returns their keys, sorted.
func assignAll(t testing.TB, s *Store) (keys []string) {
	t.Helper()
	for n := range kbroker.Shard(kbroker.Shards) {
		keys = append(keys, subjects.KeyAssign(n))
	}
	slices.Sort(keys)
	for some := range slices.Chunk(keys, kbroker.MaxBatchWrites) {
		var writes []kbroker.Write
		for _, key := range some {
			writes = append(writes, kbroker.Write{Key: key, Value: []byte(assigned)})
		}
		mustOwn(t, s, writes...)
	}
	return keys
}

// checkAssigned checks that all assignments are read, one of which is written anew.
func checkAssigned(t *testing.T, s *Store, keys []string, anew string, want kbroker.Stored) {
	t.Helper()
	all, err := s.OwnBelow(testContext(t, 5*time.Second), shopKey, subjects.MatchAssigns)
	if err != nil || len(all) != len(keys) {
		t.Fatalf("%d assignments are read (%v), want %d", len(all), err, len(keys))
	}
	for i, key := range keys {
		value := assigned
		if key == anew {
			value = string(want.Value)
		}
		if all[i].Key != key || string(all[i].Value) != value || key == anew && all[i].Revision != want.Revision {
			t.Fatalf("record %d is %s %q at %d, want %s %q", i, all[i].Key, all[i].Value, all[i].Revision, key, value)
		}
	}
}

// TestManyAreReadTogether: who owns all the shards is read with two questions.
func TestManyAreReadTogether(t *testing.T) {
	t.Parallel()
	srv, s := ownedObjects(t)
	keys := assignAll(t, s)
	rev, _ := at(t, s, keys[5])
	mustOwn(t, s, kbroker.Write{Key: keys[5], Expected: rev})
	rev, _ = at(t, s, keys[7])
	newest := mustOwn(t, s, kbroker.Write{Key: keys[7], Expected: rev, Value: []byte("newest")})
	conn := srv.Connect(t)
	asked, err := conn.SubscribeSync("$JS.API.>")
	if err == nil {
		err = conn.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	checkAssigned(t, s, slices.Delete(slices.Clone(keys), 5, 6), keys[7], kbroker.Stored{Revision: newest.First, Value: []byte("newest")})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	stream, _ := subjects.Ownership(shopKey.Tenant, shopKey.App)
	for _, want := range []string{subjects.LeaderInfo(stream), subjects.AnyRead(stream)} {
		if m, err := asked.NextMsg(time.Second); err != nil || m.Subject != want {
			t.Errorf("a question is %+v (%v), want one on %s", m, err, want)
		}
	}
	if n, _, err := asked.Pending(); err != nil || n > 0 {
		t.Errorf("%d more questions were asked (%v)", n, err)
	}
}

// TestWhoIsBehindDoesNotCount: what is read together is what the leader has, whoever answers.
func TestWhoIsBehindDoesNotCount(t *testing.T) {
	t.Parallel()
	srv, s := ownedObjects(t)
	keys := assignAll(t, s)
	anew := keys[7]
	old, _ := at(t, s, anew)
	newest := mustOwn(t, s, kbroker.Write{Key: anew, Expected: old, Value: []byte("newest")}).First
	stream, all := subjects.Ownership(shopKey.Tenant, shopKey.App)
	prefix := strings.TrimSuffix(all, ">")
	js, err := s.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	cfg := js.CachedInfo().Config
	cfg.AllowDirect = false // the server is silent, another one answers
	if _, err := s.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	stored := kbroker.Stored{Revision: newest, Value: []byte("newest")}
	checkAssigned(t, s, keys, anew, stored) // nobody answers
	type record struct {
		key   string
		rev   kbroker.Revision
		value string
	}
	later := newest + 1
	for name, c := range map[string]struct {
		says []record
		upTo kbroker.Revision
		lost int // of what it says
		want kbroker.Stored
	}{
		"who is behind":              {says: []record{{anew, old, "old"}}, upTo: newest - 1, lost: -1, want: stored},
		"who says not how far it is": {says: []record{{anew, old, "old"}}, lost: -1, want: stored},
		"who has nothing":            {upTo: newest, lost: -1, want: stored},
		"an answer with a gap":       {says: []record{{keys[1], 1, "lost"}, {anew, later, "later"}}, upTo: later, want: stored},
		"who has a later one":        {says: []record{{anew, later, "later"}}, upTo: later, lost: -1, want: kbroker.Stored{Revision: later, Value: []byte("later")}},
	} {
		asked := 0
		conn := srv.Connect(t)
		other, err := conn.Subscribe(subjects.AnyRead(stream), func(m *nats.Msg) {
			asked++
			before, left := kbroker.Revision(0), len(c.says)
			say := func(subject string, header map[string]kbroker.Revision, value string) {
				reply := nats.NewMsg(m.Reply)
				reply.Data = []byte(value)
				for k, v := range header {
					reply.Header.Set(k, fmt.Sprint(v))
				}
				if subject != "" {
					reply.Header.Set(jetstream.SubjectHeader, subject)
				}
				_ = conn.PublishMsg(reply)
			}
			for i, r := range c.says {
				if left--; i != c.lost {
					say(prefix+r.key, map[string]kbroker.Revision{jetstream.SequenceHeader: r.rev, jetstream.LastSequenceHeader: before, headerPending: kbroker.Revision(left)}, r.value)
				}
				before = r.rev
			}
			say("", map[string]kbroker.Revision{headerPending: 0, jetstream.LastSequenceHeader: before, headerUpTo: c.upTo}, "")
		})
		if err == nil {
			err = conn.Flush()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) { checkAssigned(t, s, keys, anew, c.want) })
		if err := other.Drain(); err != nil {
			t.Fatal(err)
		}
		conn.Close()
		if asked == 0 {
			t.Errorf("%s: it was not asked", name)
		}
	}
}

// BenchmarkAssignments reads who owns all the shards of an app, on three servers: together, and
// one by one at the leader.
func BenchmarkAssignments(b *testing.B) {
	c := natstest.StartCluster(b, 3)
	if err := Found(testContext(b, 20*time.Second), c.Connect(b, 0)); err != nil {
		b.Fatalf("found: %v", err)
	}
	replicate(b, c.Connect(b, 0))
	s := open(b, c.Connect(b, 0), Config{})
	if err := s.EnsureApp(testContext(b, 20*time.Second), shopKey); err != nil {
		b.Fatal(err)
	}
	wait.Until(b, 10*time.Second, func() error {
		_, err := s.own(b, kbroker.Write{Key: subjects.KeyOwnershipHead, Value: []byte("x")})
		return err
	})
	keys := assignAll(b, s)
	for i := range 3 {
		s := open(b, c.Connect(b, i), Config{})
		b.Run(fmt.Sprintf("together/%d", i), func(b *testing.B) {
			for b.Loop() {
				if all, err := s.OwnBelow(testContext(b, 5*time.Second), shopKey, subjects.MatchAssigns); err != nil || len(all) != kbroker.Shards {
					b.Fatalf("%d records: %v", len(all), err)
				}
			}
		})
		b.Run(fmt.Sprintf("each/%d", i), func(b *testing.B) {
			at, err := ownPlace(shopKey, 0, keys)
			for b.Loop() {
				if _, _, err := s.keysBelow(testContext(b, 5*time.Second), shopKey, 0, subjects.MatchAssigns, ""); err != nil {
					b.Fatal(err)
				}
				for some := range slices.Chunk(keys, readsAtOnce) {
					if err == nil {
						_, err = s.readAll(testContext(b, 5*time.Second), at, some)
					}
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
