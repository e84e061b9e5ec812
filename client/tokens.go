package client

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/subjects"
)

// Token is a join token that was made just now.
type Token struct {
	ID string `json:"id"`
	// Text is what the host that joins needs. It is nowhere else, and lets who has
	// it join: show it to nobody, log it nowhere.
	Text    string         `json:"token"`
	Role    kbroker.Role   `json:"role"`
	Name    kbroker.HostID `json:"name,omitempty"`
	Expires time.Time      `json:"expires"`
}

// CreateToken makes a token with which one host joins as role, under name (empty:
// any), within ttl; by says who makes it. The cluster is told the hash of its secret.
// Errors: Invalid; Refused - there are too many; NoLeader, Unavailable.
func (c *Client) CreateToken(ctx context.Context, role kbroker.Role, name kbroker.HostID, ttl time.Duration, by string) (Token, error) {
	t := pki.NewToken("")
	hash := sha256.Sum256(t.Secret[:])
	var r kbroker.TokenReply
	ask := kbroker.TokenRequest{ID: t.ID, Hash: hash[:], Role: role, Name: name, TTL: ttl, By: by}
	if err := c.write(ctx, subjects.VerbToken, ask, &r); err != nil {
		return Token{}, err
	}
	t.Root = r.Root
	text, err := t.Written()
	return Token{ID: t.ID, Text: text, Role: role, Name: name, Expires: r.Expires}, err
}

// Tokens lists the join tokens, the newest last; those that ended are in it for a day.
// Errors: Unavailable.
func (c *Client) Tokens(ctx context.Context) ([]kbroker.TokenRow, error) {
	var rows []kbroker.TokenRow
	return rows, c.read(ctx, subjects.VerbTokens, kbroker.ListRequest{}, &rows)
}

// RevokeToken ends a token that nobody has used. Errors: NotFound; Refused - a host
// has joined with it; NoLeader, Unavailable.
func (c *Client) RevokeToken(ctx context.Context, id string) (kbroker.RevokeReply, error) {
	var r kbroker.RevokeReply
	return r, c.write(ctx, subjects.VerbRevoke, kbroker.RevokeRequest{ID: id}, &r)
}
