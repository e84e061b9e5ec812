package client

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/subjects"
)

// TestATokensSecretStaysWithItsMaker: the cluster hears the hash, also when it is asked
// again after a lost answer, and the same token each time.
func TestATokensSecretStaysWithItsMaker(t *testing.T) {
	c := newCluster(t)
	root := base64.RawURLEncoding.EncodeToString(make([]byte, sha256.Size))
	expires := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var asked atomic.Int32
	heard := make(chan kbroker.TokenRequest, 8)
	bodies := make(chan string, 8)
	c.serve(subjects.Super(subjects.VerbToken, kbroker.DefaultTenant, subjects.NoKey), func(m *nats.Msg) any {
		heard <- parse[kbroker.TokenRequest](c.t, m)
		bodies <- string(m.Data)
		if asked.Add(1) == 1 {
			return nil // the answer is lost
		}
		return kbroker.TokenReply{Root: root, Expires: expires}
	})
	made, err := c.client().CreateToken(t.Context(), kbroker.RoleCore, "h2", time.Minute, "ann")
	if err != nil {
		t.Fatal(err)
	}
	token, err := pki.ParseToken(made.Text)
	if err != nil || token.Root != root || token.ID != made.ID || !made.Expires.Equal(expires) {
		t.Fatalf("made %s, read as %v, %v", made.ID, token, err)
	}
	first, second := <-heard, <-heard
	hash := sha256.Sum256(token.Secret[:])
	if first.ID != made.ID || first.ID != second.ID || string(first.Hash) != string(hash[:]) || string(second.Hash) != string(hash[:]) ||
		first.Role != kbroker.RoleCore || first.Name != "h2" || first.TTL != time.Minute || first.By != "ann" {
		t.Errorf("asked for %+v, then for %+v", first, second)
	}
	for _, secret := range []string{made.Text[len(made.Text)-80:], base64.StdEncoding.EncodeToString(token.Secret[:])} {
		if body := <-bodies; strings.Contains(body, secret) {
			t.Errorf("the secret was sent: %s", body)
		}
	}
}

func TestTokensAreListedAndRevoked(t *testing.T) {
	c := newCluster(t)
	c.serve(subjects.Core(subjects.VerbTokens, kbroker.DefaultTenant), func(*nats.Msg) any {
		return []kbroker.TokenRow{{ID: "abcdefghijkl", State: kbroker.TokenUnused}}
	})
	c.serve(subjects.Super(subjects.VerbRevoke, kbroker.DefaultTenant, subjects.NoKey), func(m *nats.Msg) any {
		if parse[kbroker.RevokeRequest](c.t, m).ID != "abcdefghijkl" {
			return kbroker.Errorf(kbroker.NotFound, "there is no such token")
		}
		return kbroker.RevokeReply{}
	})
	if rows, err := c.client().Tokens(t.Context()); err != nil || len(rows) != 1 || rows[0].State != kbroker.TokenUnused {
		t.Errorf("tokens are %+v, %v", rows, err)
	}
	if _, err := c.client().RevokeToken(t.Context(), "abcdefghijkl"); err != nil {
		t.Error(err)
	}
	if _, err := c.client().RevokeToken(t.Context(), "aaaaaaaaaaaa"); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("one that nobody made: %v, want not found", err)
	}
}
