package super

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

func digestOf(content string) string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}

func (d *desktop) begin(digest string, size int64) (r kbroker.ArtifactBeginReply, err error) {
	return r, d.ask(subjects.Core(subjects.VerbArtifactBegin, tenant), kbroker.ArtifactBegin{SHA256: digest, SizeBytes: size}, &r)
}

// awaitStore waits until uploads are taken.
func (d *desktop) awaitStore() {
	d.t.Helper()
	wait.Until(d.t, 10*time.Second, func() error {
		_, err := d.begin("none", 1)
		if errors.Is(err, kbroker.Invalid) {
			return nil
		}
		return fmt.Errorf("begin: %w", err)
	})
}

func (d *desktop) chunk(session string, offset int64, data string) error {
	var r kbroker.ArtifactChunkReply
	m := &nats.Msg{Subject: subjects.Upload("h1", tenant, session), Data: []byte(data), Header: nats.Header{}}
	m.Header.Set(subjects.HeaderOffset, strconv.FormatInt(offset, 10))
	return d.send(m, &r)
}

func (d *desktop) commit(session string) error {
	var r struct{}
	m := &nats.Msg{Subject: subjects.Upload("h1", tenant, session), Header: nats.Header{}}
	m.Header.Set(subjects.HeaderCommit, "1")
	return d.send(m, &r)
}

func (d *desktop) put(content string) {
	d.t.Helper()
	r, err := d.begin(digestOf(content), int64(len(content)))
	if err == nil {
		err = errors.Join(d.chunk(r.Session, 0, content), d.commit(r.Session))
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *desktop) get(digest string) (string, error) {
	body := fmt.Sprintf(`{"sha256":%q,"max_bytes":%d}`, digest, kbroker.ArtifactChunkBytes)
	m, err := d.nc.Request(subjects.Core(subjects.VerbArtifactGet, tenant), []byte(body), 5*time.Second)
	switch {
	case err != nil:
		return "", err
	case m.Header.Get(subjects.HeaderCode) != "":
		return "", kbroker.Code(m.Header.Get(subjects.HeaderCode))
	}
	return string(m.Data), nil
}

// files are those in a folder of the core.
func (d *desktop) files(folder string) []string {
	d.t.Helper()
	paths, err := filepath.Glob(filepath.Join(d.cfg.Dir, folder, "*"))
	if err != nil {
		d.t.Fatal(err)
	}
	return paths
}

// An upload can be written and committed by who has its session, and its session
// cannot be guessed.
func TestAnUploadBelongsToWhoBeganIt(t *testing.T) {
	d := startSuper(t)
	d.awaitStore()
	const content = "content"
	mine, err := d.begin(digestOf(content), int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	other, err := d.begin(digestOf(content), int64(len(content)))
	if err != nil || other.Session == mine.Session || len(mine.Session) < 26 { // of 5 bits each
		t.Fatalf("sessions %q and %q, %v; want two secrets", mine.Session, other.Session, err)
	}
	guess := strings.Map(func(r rune) rune { return 'A' }, mine.Session)
	for _, session := range []string{guess, strings.ToLower(mine.Session), mine.Session[:25], digestOf(content)} {
		if err := d.chunk(session, 0, "attack!"); !errors.Is(err, kbroker.NotFound) {
			t.Errorf("a chunk to %q: %v, want not found", session, err)
		}
		if err := d.commit(session); !errors.Is(err, kbroker.NotFound) {
			t.Errorf("a commit of %q: %v, want not found", session, err)
		}
	}
	// What is written to one upload is not in the other.
	if err := errors.Join(d.chunk(other.Session, 0, "attack!"), d.chunk(mine.Session, 0, content), d.commit(mine.Session)); err != nil {
		t.Fatal(err)
	}
	if got, err := d.get(digestOf(content)); err != nil || got != content {
		t.Errorf("stored is %q, %v", got, err)
	}
}

func TestAWrongDigestLeavesNothing(t *testing.T) {
	d := startSuper(t)
	d.awaitStore()
	for name, spoil := range map[string]func(session string) error{
		"other content": func(s string) error { return d.chunk(s, 0, "attack!") },
		"too little":    func(s string) error { return d.chunk(s, 0, "cont") },
		"only its end":  func(s string) error { return d.chunk(s, 6, "t") },
		"nothing":       func(string) error { return nil },
	} {
		r, err := d.begin(digestOf("content"), 7)
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(r.Session); err != nil {
			t.Fatal(err)
		}
		if err := d.commit(r.Session); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: commit: %v, want invalid", name, err)
		}
		if err := d.chunk(r.Session, 0, "content"); !errors.Is(err, kbroker.NotFound) {
			t.Errorf("%s: a chunk after the commit: %v, want not found", name, err)
		}
		if left := d.files("uploads"); len(left) > 0 {
			t.Errorf("%s: %q is left", name, left)
		}
		if got, err := d.get(digestOf("content")); !errors.Is(err, kbroker.NotFound) {
			t.Errorf("%s: get: %q, %v; want not found", name, got, err)
		}
	}
}

func TestUploadsAreBound(t *testing.T) {
	d := startSuper(t)
	d.awaitStore()
	for _, size := range []int64{-1, 0, kbroker.MaxArtifactBytes + 1} {
		if _, err := d.begin(digestOf("x"), size); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("an upload of %d bytes: %v, want invalid", size, err)
		}
	}
	for range 2 {
		r, err := d.begin(digestOf("x"), kbroker.MaxArtifactBytes)
		if err != nil {
			t.Fatal(err)
		}
		for _, offset := range []int64{-1, kbroker.MaxArtifactBytes, 1<<63 - 1} {
			if err := d.chunk(r.Session, offset, "x"); !errors.Is(err, kbroker.Invalid) {
				t.Errorf("a chunk at %d: %v, want invalid", offset, err)
			}
		}
	}
	if _, err := d.begin(digestOf("x"), 1); !errors.Is(err, kbroker.Overloaded) {
		t.Errorf("one byte more than all may have: %v, want overloaded", err)
	}
	d.stop()
	if left := d.files("uploads"); len(left) > 0 {
		t.Errorf("%q is left of uploads that were not committed", left)
	}
}

func TestTheNumberOfUploadsIsBound(t *testing.T) {
	d := startSuper(t)
	d.awaitStore()
	for range maxUploads {
		if _, err := d.begin(digestOf("x"), 1); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.begin(digestOf("x"), 1); !errors.Is(err, kbroker.Overloaded) {
		t.Errorf("one more upload: %v, want overloaded", err)
	}
}

// A digest is the name of a file on the core: it can name nothing else there, and who
// asks for what is not there takes no room.
func TestOnlyDigestsAreHandedOut(t *testing.T) {
	d := startSuper(t)
	d.awaitStore()
	d.put("content")
	if got, err := d.get(digestOf("content")); err != nil || got != "content" {
		t.Fatalf("get: %q, %v", got, err)
	}
	secret := filepath.Join(d.cfg.Dir, "served", "other-"+digestOf("of another tenant"))
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, digest := range []string{"", "x/other-" + digestOf("of another tenant"), "../served/other-" + digestOf("of another tenant"), strings.ToUpper(digestOf("content"))} {
		if got, err := d.get(digest); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("get %q: %q, %v; want invalid", digest, got, err)
		}
	}
	for i := range maxServed + 5 {
		if _, err := d.get(digestOf(fmt.Sprint(i))); !errors.Is(err, kbroker.NotFound) {
			t.Errorf("get of what is not there: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(d.cfg.Dir, "served", string(tenant)+"-"+digestOf("content"))); err != nil {
		t.Errorf("what is there had to make room for what is not: %v", err)
	}
}

func TestAFileThatWasChangedOnTheCoreIsNotHandedOut(t *testing.T) {
	d := startSuper(t)
	d.awaitStore()
	d.put("content")
	served := filepath.Join(d.cfg.Dir, "served", string(tenant)+"-"+digestOf("content"))
	for name, change := range map[string]func() error{
		"written":  func() error { return os.WriteFile(served, []byte("attacks"), 0o600) },
		"replaced": func() error { return errors.Join(os.Remove(served), os.WriteFile(served, []byte("attack!"), 0o600)) },
		"removed":  func() error { return os.Remove(served) },
	} {
		if got, err := d.get(digestOf("content")); err != nil || got != "content" {
			t.Fatalf("get: %q, %v", got, err)
		}
		info, err := os.Stat(served)
		if err != nil {
			t.Fatal(err)
		}
		wait.Until(t, 5*time.Second, func() error { // the kernel's clock for files has ticks
			if time.Since(info.ModTime()) < 50*time.Millisecond {
				return errors.New("just written")
			}
			return nil
		})
		if err := change(); err != nil {
			t.Fatal(err)
		}
		if got, err := d.get(digestOf("content")); err != nil || got != "content" {
			t.Errorf("%s: get: %q, %v", name, got, err)
		}
	}
}

// TestWhoWaitsForAnArtifactGoesWithItsTime: another may unpack it for longer.
func TestWhoWaitsForAnArtifactGoesWithItsTime(t *testing.T) {
	s := newServing(t.TempDir(), nil)
	e := &served{unpacking: make(chan struct{}, 1)}
	e.unpacking <- struct{}{} // somebody does
	digest := strings.Repeat("a", 64)
	s.files[string(tenant)+"-"+digest] = e
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.open(ctx, tenant, digest); !errors.Is(err, kbroker.DeadlineExceeded) {
		t.Errorf("%v, want %s", err, kbroker.DeadlineExceeded)
	}
}
