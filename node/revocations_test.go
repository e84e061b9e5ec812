package node

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func openRevoked(t testing.TB, path string, now func() time.Time) *revocations {
	t.Helper()
	r, err := openRevocations(path, now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func addRevoked(t testing.TB, r *revocations, more map[string]time.Time) (news bool) {
	t.Helper()
	news, err := r.add(more)
	if err != nil {
		t.Fatal(err)
	}
	return news
}

func second(n int64) time.Time { return time.Unix(n, 0).UTC() }

// TestARevocationIsNotForgotten: a store that is behind knows fewer, or earlier ends, and
// one that has ended is kept for a while longer; a restart knows what was known before.
func TestARevocationIsNotForgotten(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), revokedFile), second(1_000_000)
	clock := func() time.Time { return now }
	at := func(d time.Duration) time.Time { return now.Add(d) }
	r := openRevoked(t, path, clock)
	if addRevoked(t, r, nil) {
		t.Error("nothing is news")
	}
	if !addRevoked(t, r, map[string]time.Time{"a": at(time.Hour), "b": at(-revokedKept), "c": at(-revokedKept + time.Second)}) {
		t.Error("new users are no news")
	}
	if addRevoked(t, r, map[string]time.Time{"a": at(time.Minute)}) {
		t.Error("an earlier end is news")
	}
	addRevoked(t, r, map[string]time.Time{"d": at(time.Minute)})
	addRevoked(t, r, map[string]time.Time{"d": at(2 * time.Minute)})
	want := map[string]time.Time{"a": at(time.Hour), "c": at(-revokedKept + time.Second), "d": at(2 * time.Minute)}
	if got := r.all(); !maps.Equal(got, want) {
		t.Errorf("out are %v, want %v", got, want)
	}
	if got := openRevoked(t, path, clock).all(); !maps.Equal(got, want) {
		t.Errorf("after a restart out are %v, want %v", got, want)
	}
	now = now.Add(2 * time.Second)
	addRevoked(t, r, nil)
	delete(want, "c")
	if got := r.all(); !maps.Equal(got, want) {
		t.Errorf("later out are %v, want %v", got, want)
	}
}

// TestATornRevocationIsDropped, and nothing else: wherever a crash has cut the file off,
// or a bit has flipped, all other lines are read, and what is added then is read too.
func TestATornRevocationIsDropped(t *testing.T) {
	path := filepath.Join(t.TempDir(), revokedFile)
	clock := func() time.Time { return second(1_000_000) }
	all := map[string]time.Time{}
	var whole []byte
	var ends []int
	for i := range 5 {
		user := fmt.Sprintf("U%d", i)
		all[user] = second(2_000_000 + int64(i))
		whole = appendRevocation(whole, user, all[user])
		ends = append(ends, len(whole))
	}
	check := func(t *rapid.T, content []byte, lost func(line int) bool) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		want := map[string]time.Time{}
		for i := range ends {
			if user := fmt.Sprintf("U%d", i); !lost(i) {
				want[user] = all[user]
			}
		}
		r, err := openRevocations(path, clock)
		if err != nil {
			t.Fatal(err)
		}
		if got := r.all(); !maps.Equal(got, want) {
			t.Fatalf("of %q were read %v, want %v", content, got, want)
		}
		want["new"] = second(3_000_000)
		if _, err := r.add(map[string]time.Time{"new": want["new"]}); err != nil {
			t.Fatal(err)
		}
		if r, err = openRevocations(path, clock); err != nil || r.damaged || !maps.Equal(r.all(), want) {
			t.Fatalf("of %q were read, after more: %v (damaged %t, %v), want %v", content, r.all(), r.damaged, err, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, len(whole)).Draw(t, "cut off at")
		check(t, whole[:n], func(line int) bool { return ends[line] > n })
		flipped, at := bytes.Clone(whole), rapid.IntRange(0, len(whole)-1).Draw(t, "bit of")
		flipped[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		check(t, flipped, func(line int) bool {
			start := 0
			if line > 0 {
				start = ends[line-1]
			}
			joined := line > 0 && at == start-1 // the end of the line before
			return at >= start && at < ends[line] || joined
		})
	})
}

// TestTheFileOfRevocationsDoesNotGrowForEver: what has ended leaves it, and while it
// grows it is only added to.
func TestTheFileOfRevocationsDoesNotGrowForEver(t *testing.T) {
	path, now := filepath.Join(t.TempDir(), revokedFile), second(1_000_000)
	r := openRevoked(t, path, func() time.Time { return now })
	size, largest, rewritten := int64(0), int64(0), 0
	const live = 100
	for i := range 10 * live {
		if i%(live/2) == 0 {
			r = openRevoked(t, path, func() time.Time { return now }) // a restart
		}
		now = now.Add(time.Minute)
		addRevoked(t, r, map[string]time.Time{fmt.Sprintf("U%d", i): now.Add(live*time.Minute - revokedKept)})
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() < size {
			rewritten++
		}
		size = info.Size()
		largest = max(largest, size)
	}
	line := int64(len(appendRevocation(nil, "U1000", now)))
	if bound := 3 * compactFrom * line; largest > bound {
		t.Errorf("with %d users at a time the file has had %d bytes, want at most %d", live, largest, bound)
	}
	if rewritten == 0 || rewritten > 10 {
		t.Errorf("of %d times it was written anew %d times, want some and few", 10*live, rewritten)
	}
	if got, want := openRevoked(t, path, func() time.Time { return now }).all(), r.all(); !maps.Equal(got, want) {
		t.Errorf("a restart reads %d users, want %d", len(got), len(want))
	}
}

// TestRevocationsAreKnownWhenTheyCannotBeStored, and stored when they can be again.
func TestRevocationsAreKnownWhenTheyCannotBeStored(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "gone")
	path := filepath.Join(dir, revokedFile)
	clock := func() time.Time { return second(1_000_000) }
	r := openRevoked(t, path, clock)
	want := map[string]time.Time{"a": second(2_000_000)}
	if _, err := r.add(want); err == nil {
		t.Fatal("it was stored in a directory that is not there")
	}
	if !maps.Equal(r.all(), want) {
		t.Errorf("out are %v, want %v", r.all(), want)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	addRevoked(t, r, nil)
	if got := openRevoked(t, path, clock).all(); !maps.Equal(got, want) {
		t.Errorf("a restart reads %v, want %v", got, want)
	}
}
