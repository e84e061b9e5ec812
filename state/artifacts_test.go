package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// noise is an incompressible file of that size, read as often as wanted.
func noise(size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{7}), size)
}

func digestOf(t testing.TB, r io.Reader) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		t.Fatalf("hash: %v", err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func openArtifacts(t testing.TB, s *Store) *Artifacts {
	t.Helper()
	a, err := s.Artifacts(testContext(t, 10*time.Second), "default")
	if err != nil {
		t.Fatalf("open artifacts: %v", err)
	}
	return a
}

func TestAnArtifactComesBackAsItWasPut(t *testing.T) {
	_, s := founded(t)
	a := openArtifacts(t, s)
	ctx := testContext(t, time.Minute)
	const size = 20<<20 + 13
	digest := digestOf(t, noise(size))
	if has, err := a.Has(ctx, digest); err != nil || has {
		t.Fatalf("has before the put: %v, %v; want false", has, err)
	}
	if _, err := a.Get(ctx, digest); !errors.Is(err, kbroker.NotFound) {
		t.Fatalf("get before the put returned %v, want not_found", err)
	}
	if err := a.Put(ctx, digest, noise(size)); err != nil {
		t.Fatalf("put: %v", err)
	}
	if has, err := a.Has(ctx, digest); err != nil || !has {
		t.Fatalf("has after the put: %v, %v; want true", has, err)
	}
	r, err := a.Get(ctx, digest)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	if got := digestOf(t, r); got != digest {
		t.Fatalf("the artifact came back with digest %s, want %s", got, digest)
	}
	if err := a.Put(ctx, digest, nil); err != nil { // not even read
		t.Fatalf("put of what is there: %v", err)
	}
}

func TestAnEmptyArtifact(t *testing.T) {
	_, s := founded(t)
	a := openArtifacts(t, s)
	ctx := testContext(t, 10*time.Second)
	digest := digestOf(t, bytes.NewReader(nil))
	if err := a.Put(ctx, digest, bytes.NewReader(nil)); err != nil {
		t.Fatalf("put: %v", err)
	}
	r, err := a.Get(ctx, digest)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Fatalf("read %d bytes, %v; want none", len(b), err)
	}
}

func TestAWrongDigestStaysInvisibleAndLeavesNothing(t *testing.T) {
	_, s := founded(t)
	a := openArtifacts(t, s)
	ctx := testContext(t, 20*time.Second)
	digest := digestOf(t, noise(1000))
	broken := errors.New("broken pipe")
	for name, c := range map[string]struct {
		r    io.Reader
		want error
	}{
		"other content": {noise(2 << 20), kbroker.Invalid},
		"cut short":     {noise(999), kbroker.Invalid},
		"read error":    {io.MultiReader(noise(2<<20), &failingReader{broken}), broken},
	} {
		if err := a.Put(ctx, digest, c.r); !errors.Is(err, c.want) {
			t.Fatalf("%s: put returned %v, want %v", name, err, c.want)
		}
		if has, err := a.Has(ctx, digest); err != nil || has {
			t.Fatalf("%s: has is %v, %v; want false", name, has, err)
		}
	}
	info, err := a.stream.Info(ctx)
	if err != nil || info.State.Msgs != 0 {
		t.Fatalf("%d messages are left of refused uploads, %v", info.State.Msgs, err)
	}
	for _, bad := range []string{"", "abc", digest[:63] + "G", digest + "0", digest[:60] + ".*.>"} {
		if err := a.Put(ctx, bad, noise(1)); !errors.Is(err, kbroker.Invalid) {
			t.Fatalf("put under digest %q returned %v, want invalid", bad, err)
		}
	}
}

type failingReader struct{ err error }

func (r *failingReader) Read([]byte) (int, error) { return 0, r.err }

func TestConcurrentPutsOfOneArtifact(t *testing.T) {
	_, s := founded(t)
	a := openArtifacts(t, s)
	ctx := testContext(t, 30*time.Second)
	const size = 3 << 20
	digest := digestOf(t, noise(size))
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := a.Put(ctx, digest, noise(size)); err != nil {
				t.Errorf("put: %v", err)
			}
		})
	}
	wg.Wait()
	r, err := a.Get(ctx, digest)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	if got := digestOf(t, r); got != digest {
		t.Fatalf("the artifact came back with digest %s, want %s", got, digest)
	}
	info, err := a.stream.Info(ctx)
	if err != nil || info.State.Msgs > size/artifactChunk+2 {
		t.Fatalf("%d messages, %v; want those of one upload", info.State.Msgs, err)
	}
}

func TestADamagedArtifactIsNotTakenForWhole(t *testing.T) {
	_, s := founded(t)
	a := openArtifacts(t, s)
	ctx := testContext(t, 20*time.Second)
	const size = 2 << 20
	digest := digestOf(t, noise(size))
	if err := a.Put(ctx, digest, noise(size)); err != nil {
		t.Fatalf("put: %v", err)
	}
	record, err := a.lookup(ctx, digest)
	if err != nil {
		t.Fatalf("lookup: %v", err)
	}
	// The second chunk twice: as long as before, and other bytes.
	subject := subjects.ArtifactChunk("default", record.Upload, 1)
	chunk, err := a.read(ctx, subject)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	chunk = bytes.Clone(chunk)
	chunk[len(chunk)/2] ^= 1
	if _, err := a.js.PublishMsg(ctx, newMsg(subject, chunk)); err != nil {
		t.Fatalf("publish: %v", err)
	}
	r, err := a.Get(ctx, digest)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err == nil {
		t.Fatal("a damaged artifact was read to its end without an error")
	}
}

func TestALargeArtifactNeedsLittleMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("100 MB")
	}
	_, s := founded(t)
	a := openArtifacts(t, s)
	ctx := testContext(t, 2*time.Minute)
	const size = 100 << 20
	digest := digestOf(t, noise(size))
	if err := a.Put(ctx, digest, noise(size)); err != nil {
		t.Fatalf("put: %v", err)
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	r, err := a.Get(ctx, digest)
	if err != nil {
		t.Fatalf("get: %v", err)
	}
	defer r.Close()
	h := sha256.New()
	if n, err := io.CopyN(h, r, size-1); err != nil {
		t.Fatalf("read %d bytes: %v", n, err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if held := int64(after.HeapAlloc) - int64(before.HeapAlloc); held > 32<<20 {
		t.Fatalf("%d MB are held at the end of reading 100 MB, want 32 or fewer", held>>20)
	}
	if n, err := io.Copy(h, r); err != nil || n != 1 {
		t.Fatalf("the last byte: %d, %v", n, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		t.Fatalf("digest %s, want %s", got, digest)
	}
}
