package credential

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
)

// kept is a credential in a file.
func kept(t *testing.T, own Credential) (path string, k *Kept) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "own.creds")
	if err := own.Save(path); err != nil {
		t.Fatal(err)
	}
	k, err := Keep(path)
	if err != nil {
		t.Fatal(err)
	}
	return path, k
}

func near(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if d := got - want; d < -10*time.Second || d > 10*time.Second {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestLifeCountsFromReceipt, whatever the clock of who signed: the end of one whose life is
// an hour is that hour away, though it says that it is over, or that it begins tomorrow.
func TestLifeCountsFromReceipt(t *testing.T) {
	own := fresh(t)
	for name, off := range map[string]time.Duration{"same": 0, "a day behind": -24 * time.Hour, "a day ahead": 24 * time.Hour} {
		signed := signedAt(t, own, time.Now().Add(off), time.Hour)
		path, k := kept(t, own)
		if err := k.Take(signed); err != nil {
			t.Fatal(err)
		}
		h := k.Look()
		near(t, name+": its life", h.Life(), time.Hour)
		near(t, name+": its end", h.Left(1), time.Hour)
		near(t, name+": half of it", h.Left(0.5), 30*time.Minute)
		if err := k.Save(); err != nil {
			t.Fatal(err)
		}
		near(t, name+": its end, after it was written", k.Look().Left(1), time.Hour)
		written := time.Now().Add(-40 * time.Minute)
		if err := os.Chtimes(path, written, written); err != nil {
			t.Fatal(err)
		}
		found, err := Keep(path)
		if err != nil {
			t.Fatal(err)
		}
		near(t, name+": the end of what was written 40 minutes ago", found.Look().Left(1), 20*time.Minute)
		written = time.Now().Add(40 * time.Minute) // the clock was put back since
		if err := os.Chtimes(path, written, written); err != nil {
			t.Fatal(err)
		}
		if found, err = Keep(path); err != nil {
			t.Fatal(err)
		}
		near(t, name+": the end of what is written in 40 minutes", found.Look().Left(1), time.Hour)
	}
}

// TestTheClockThatSaysMoreCounts of the two that a machine has: one stands still while it
// sleeps, the other is put back.
func TestTheClockThatSaysMoreCounts(t *testing.T) {
	own := fresh(t)
	h := hold(own.Signed(signedAt(t, own, time.Now(), time.Hour)), 0)
	near(t, "after a sleep", h.left(1, time.Now().Round(0).Add(40*time.Minute)), 20*time.Minute)
	h.since = h.since.Add(-40 * time.Minute)
	near(t, "by both", h.left(1, time.Now()), 20*time.Minute)
	back := hold(own.Signed(signedAt(t, own, time.Now(), time.Hour)), 0)
	near(t, "when the wall clock is put back", back.left(1, time.Now()), time.Hour)
}

// TestWhatCannotBeWrittenIsUsed, and written when that can be done again.
func TestWhatCannotBeWrittenIsUsed(t *testing.T) {
	own := fresh(t)
	path, k := kept(t, own.Signed(signedAt(t, own, time.Now(), time.Minute)))
	aside := filepath.Dir(path) + ".aside"
	for _, do := range []func() error{
		func() error { return os.Rename(filepath.Dir(path), aside) }, // stands for a disk that takes nothing
		func() error { return k.Take(signedAt(t, own, time.Now(), time.Hour)) },
	} {
		if err := do(); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Save(); err == nil {
		t.Fatal("it is written to nowhere")
	}
	var shown Held
	var options nats.Options
	for _, set := range k.Options(func(h Held) { shown = h }) {
		if err := set(&options); err != nil {
			t.Fatal(err)
		}
	}
	jwt, err := options.UserJWT()
	if err != nil || jwt != k.Look().JWT() || jwt != shown.JWT() {
		t.Errorf("a connection shows something else: %v", err)
	}
	near(t, "what is shown", shown.Left(1), time.Hour)
	if err := errors.Join(os.Rename(aside, filepath.Dir(path)), k.Save()); err != nil {
		t.Fatal(err)
	}
	if there, err := Load(path); err != nil || there.JWT() != jwt {
		t.Errorf("written is something else: %v", err)
	}
}

// TestWhoeverSavesKeepsTheLaterEnd of a file that an agent and a process write.
func TestWhoeverSavesKeepsTheLaterEnd(t *testing.T) {
	own := fresh(t)
	path, _ := kept(t, own)
	const writers = 8
	var all []*Kept
	last := ""
	for i := range writers {
		k, err := Keep(path)
		if err != nil {
			t.Fatal(err)
		}
		last = signedAt(t, own, time.Now(), time.Hour+time.Duration(i)*time.Second)
		if err := k.Take(last); err != nil {
			t.Fatal(err)
		}
		all = append(all, k)
	}
	var saving sync.WaitGroup
	for _, k := range all {
		saving.Go(func() {
			if err := k.Save(); err != nil {
				t.Error(err)
			}
		})
	}
	saving.Wait()
	if there, err := Load(path); err != nil || there.JWT() != last {
		t.Errorf("written is another one than that which ends last: %v", err)
	}
	for i, k := range all {
		if k.Look().JWT() != last || k.Save() != nil {
			t.Errorf("writer %d does not know the one that ends last", i)
		}
	}
}

// TestOneSignedByASlowClockKeepsWhatIsThere: it ends before, but shows that a core renews.
func TestOneSignedByASlowClockKeepsWhatIsThere(t *testing.T) {
	own := fresh(t)
	first := signedAt(t, own, time.Now().Add(time.Hour), time.Hour)
	path, _ := kept(t, own.Signed(first))
	written := time.Now().Add(-50 * time.Minute)
	if err := os.Chtimes(path, written, written); err != nil {
		t.Fatal(err)
	}
	k, err := Keep(path)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "before", k.Look().Left(1), 10*time.Minute)
	if err := k.Take(signedAt(t, own, time.Now(), time.Hour)); err != nil {
		t.Fatal(err)
	}
	near(t, "after", k.Look().Left(1), time.Hour)
	if k.Look().JWT() != first {
		t.Error("what ends first is taken")
	}
}

// TestNothingIsTakenOrMadeThatIsNotOurs: of another key, or after it was removed.
func TestNothingIsTakenOrMadeThatIsNotOurs(t *testing.T) {
	own, other := fresh(t), fresh(t)
	path, k := kept(t, own)
	for _, signed := range []string{"", "x", signedAt(t, other, time.Now(), time.Hour)} {
		if err := k.Take(signed); err == nil || k.Look().IsSigned() {
			t.Errorf("%.5q is taken", signed)
		}
	}
	if err := other.Signed(signedAt(t, other, time.Now(), time.Hour)).Save(path); err != nil {
		t.Fatal(err)
	}
	if k.Look().IsSigned() {
		t.Error("what is for another key is taken from the file")
	}
	if err := errors.Join(k.Take(signedAt(t, own, time.Now(), 2*time.Hour)), k.Save()); err != nil {
		t.Fatal(err)
	}
	if there, err := Load(path); err != nil || there.Key() != other.Key() {
		t.Errorf("another's file is written over: %v", err)
	}
	if err := errors.Join(os.Remove(path), k.Take(signedAt(t, own, time.Now(), 3*time.Hour)), k.Save()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that was removed is made again: %v", err)
	}
}
