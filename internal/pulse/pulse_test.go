package pulse

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
)

func TestAPulseChangesItsFileUntilItsEndAndTakesItAlong(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "late")
	path := filepath.Join(dir, File)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var beats atomic.Int32
	done := make(chan struct{})
	go func() { defer close(done); Beat(ctx, path, time.Now(), func() { beats.Add(1) }) }()
	// Its directory is not there yet: it goes on trying.
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	seen := map[time.Time]bool{}
	wait.Until(t, 10*time.Second, func() error {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		if info.Mode() != 0o600 || info.Size() != 0 {
			t.Fatalf("%v of %d bytes, want -rw------- and none", info.Mode(), info.Size())
		}
		if seen[info.ModTime()] = true; len(seen) < 3 || beats.Load() < 3 {
			return errors.New("it was not touched three times")
		}
		return nil
	})
	cancel()
	<-done
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after its end: %v, want that there is no file", err)
	}
}

func TestAPulseFollowsNoLink(t *testing.T) {
	path := filepath.Join(t.TempDir(), File)
	target := path + ".target"
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	Beat(ctx, path, time.Now(), func() { t.Error("it has touched what a link leads to") })
	if _, err := os.Lstat(target); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target of a link: %v, want that it was not made", err)
	}
}

// Beats of a period come together with every second one of half of it, whenever one begins to wait.
func TestBeatsComeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		since := time.Now()
		for range 100 {
			<-time.After(37 * time.Millisecond)
			short, long := Until(since, 250*time.Millisecond), Until(since, 500*time.Millisecond)
			if short <= 0 || short > 250*time.Millisecond || long != short && long != short+250*time.Millisecond {
				t.Fatalf("after %v the beats come in %v and %v", time.Since(since), short, long)
			}
		}
		<-time.After(Until(since, Every))
		if next := Until(since, Every); next != Every || time.Since(since)%Every != 0 {
			t.Errorf("at a beat, %v after the first, the next one comes in %v", time.Since(since), next)
		}
	})
}
