package client

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// store takes uploads as a core does: chunks anywhere, the digest checked at
// the commit.
type store struct {
	c *cluster
	// drop and gone (may be nil) look at each message of a session first.
	drop func(session string, m *nats.Msg) bool

	mu       sync.Mutex
	begun    int
	sessions map[string][]byte
	digest   map[string]string
	stored   map[string][]byte
}

func (c *cluster) store() *store {
	s := &store{c: c, sessions: map[string][]byte{}, digest: map[string]string{}, stored: map[string][]byte{}}
	c.serve(subjects.Core(subjects.VerbArtifactBegin, kbroker.DefaultTenant), func(m *nats.Msg) any {
		r := parse[kbroker.ArtifactBegin](c.t, m)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.stored[r.SHA256] != nil {
			return kbroker.ArtifactBeginReply{Have: true}
		}
		s.begun++
		session := "s" + strconv.Itoa(s.begun)
		s.sessions[session], s.digest[session] = make([]byte, r.SizeBytes), r.SHA256
		return kbroker.ArtifactBeginReply{Core: "h1", Session: session}
	})
	return s
}

// open makes a session reachable, as long as the subscription lasts.
func (s *store) open(session string) *nats.Subscription {
	var received int64
	return s.c.serve(subjects.Upload("h1", kbroker.DefaultTenant, session), func(m *nats.Msg) any {
		if s.drop != nil && s.drop(session, m) {
			return nil
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		file := s.sessions[session]
		if m.Header.Get(subjects.HeaderCommit) != "" {
			sum := sha256.Sum256(file)
			if hex.EncodeToString(sum[:]) != s.digest[session] {
				return kbroker.Errorf(kbroker.Invalid, "the digest is another")
			}
			s.stored[s.digest[session]] = file
			return struct{}{}
		}
		offset, err := strconv.ParseInt(m.Header.Get(subjects.HeaderOffset), 10, 64)
		if err != nil {
			return err
		}
		received = max(received, offset+int64(copy(file[offset:], m.Data)))
		return kbroker.ArtifactChunkReply{Received: received}
	})
}

// program is a random artifact that does not end on a chunk's end.
func program() (content []byte, digest string) {
	content = make([]byte, 10*kbroker.ArtifactChunkBytes+12345)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range content {
		content[i] = byte(rng.Uint32())
	}
	sum := sha256.Sum256(content)
	return content, hex.EncodeToString(sum[:])
}

func TestAnArtifactArrivesWholeAndOnlyOnce(t *testing.T) {
	c := newCluster(t)
	s := c.store()
	s.open("s1")
	content, digest := program()
	var progress []int64
	put := func() error {
		return c.client().PutArtifact(t.Context(), digest, int64(len(content)), bytes.NewReader(content), func(n int64) { progress = append(progress, n) })
	}
	if err := put(); err != nil {
		t.Fatalf("put: %v", err)
	}
	if !bytes.Equal(s.stored[digest], content) {
		t.Fatal("what is stored is not what was sent")
	}
	if last := progress[len(progress)-1]; last != int64(len(content)) || len(progress) < 11 {
		t.Fatalf("progress %v, want every chunk and the whole at the end", progress)
	}
	if err := put(); err != nil {
		t.Fatalf("put again: %v", err)
	}
	if s.begun != 1 {
		t.Fatalf("%d uploads, want 1: the cluster had it", s.begun)
	}
}

func TestALostChunkIsSentAgain(t *testing.T) {
	c := newCluster(t)
	s := c.store()
	var dropped atomic.Bool
	s.drop = func(_ string, m *nats.Msg) bool {
		return m.Header.Get(subjects.HeaderOffset) == strconv.Itoa(2*kbroker.ArtifactChunkBytes) && dropped.CompareAndSwap(false, true)
	}
	s.open("s1")
	content, digest := program()
	if err := c.client().PutArtifact(t.Context(), digest, int64(len(content)), bytes.NewReader(content), nil); err != nil {
		t.Fatalf("put: %v", err)
	}
	if !dropped.Load() || !bytes.Equal(s.stored[digest], content) {
		t.Fatalf("dropped: %v; what is stored is not what was sent", dropped.Load())
	}
}

func TestAnotherCoreTakesOverAnUpload(t *testing.T) {
	for name, dies := range map[string]func(m *nats.Msg) bool{
		"in the middle": func(m *nats.Msg) bool {
			return m.Header.Get(subjects.HeaderOffset) == strconv.Itoa(3*kbroker.ArtifactChunkBytes)
		},
		"at the commit":  func(m *nats.Msg) bool { return m.Header.Get(subjects.HeaderCommit) != "" },
		"from the start": func(*nats.Msg) bool { return true },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			s := c.store()
			var first atomic.Pointer[nats.Subscription]
			s.drop = func(session string, m *nats.Msg) bool {
				if session != "s1" {
					return false
				}
				sub := first.Load()
				if sub == nil || !sub.IsValid() || !dies(m) {
					return sub != nil && !sub.IsValid()
				}
				if err := sub.Unsubscribe(); err != nil {
					t.Errorf("unsubscribe: %v", err)
				}
				return true
			}
			first.Store(s.open("s1"))
			s.open("s2")
			content, digest := program()
			if err := c.client().PutArtifact(t.Context(), digest, int64(len(content)), bytes.NewReader(content), nil); err != nil {
				t.Fatalf("put: %v", err)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.begun != 2 || !bytes.Equal(s.stored[digest], content) {
				t.Fatalf("%d uploads begun, want 2; stored %d bytes, want %d", s.begun, len(s.stored[digest]), len(content))
			}
		})
	}
}

func TestAWrongDigestIsInvalid(t *testing.T) {
	c := newCluster(t)
	c.store().open("s1")
	content, digest := program()
	content[5]++
	err := c.client().PutArtifact(t.Context(), digest, int64(len(content)), bytes.NewReader(content), nil)
	if !errors.Is(err, kbroker.Invalid) {
		t.Fatalf("put: %v, want code invalid", err)
	}
}

func TestAFileThatBecameShorterIsAnError(t *testing.T) {
	c := newCluster(t)
	s := c.store()
	s.open("s1")
	content, digest := program()
	err := c.client().PutArtifact(t.Context(), digest, int64(len(content)), bytes.NewReader(content[:len(content)-1]), nil)
	if err == nil || len(s.stored) != 0 {
		t.Fatalf("put: %v, stored %d, want an error and nothing stored", err, len(s.stored))
	}
}
