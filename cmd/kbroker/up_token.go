package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/node"
)

// tokenFile, in the directory of a host of `up`, is there while the host joins.
const tokenFile = "join.token"

// makeToken has the cluster make a token for a host, and puts it where its agent
// reads it. It waits until there is a leader, while the agents that were started run.
func (c *cli) makeToken(ctx context.Context, l *localCluster, h localHost, started []spawned) error {
	role := h.Role
	if role == "" {
		role = kbroker.RoleCore
	}
	for {
		for _, s := range started {
			if err := s.ended(); err != nil {
				return l.withLog(s.host, s.log, err)
			}
		}
		t, err := c.tokenFor(ctx, l, h.Name, role)
		if err == nil {
			return l.saveToken(h, t.Text)
		}
		if refused := kbroker.AsError(err); ctx.Err() == nil && (refused.Code == kbroker.Refused || refused.Code == kbroker.Invalid) {
			return err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			return l.withLog(l.members()[0].Name, 0, kbroker.Errorf(kbroker.DeadlineExceeded, "the cluster in %s makes no token for host %s: %v", l.dir, h.Name, err).
				WithHint("kbroker up goes on where it is; the logs are %s/*/%s", l.dir, agentLog))
		case <-time.After(upPoll):
		}
	}
}

func (c *cli) tokenFor(ctx context.Context, l *localCluster, host kbroker.HostID, role kbroker.Role) (client.Token, error) {
	ctx, cancel := context.WithTimeout(ctx, upAsk)
	defer cancel()
	if err := l.trust(); err != nil {
		return client.Token{}, err
	}
	api, _, err := c.open(ctx)
	if err != nil {
		return client.Token{}, err
	}
	defer api.Close()
	return api.CreateToken(ctx, role, host, kbroker.TokenTTL, "kbroker up")
}

// needsToken reports whether a host has not joined the cluster yet, which the first one
// founds.
func (l *localCluster) needsToken(h localHost) (bool, error) {
	if h.Name == l.Hosts[0].Name {
		return false, nil
	}
	joined, err := node.Admitted(l.hostDir(h.Name))
	return !joined, err
}

// saveToken puts a token where the agent of a host reads it.
func (l *localCluster) saveToken(h localHost, text string) error {
	dir := l.hostDir(h.Name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of host %s: %w", h.Name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, tokenFile), []byte(text+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the token of host %s: %w", h.Name, err)
	}
	return nil
}

// forgetTokens removes the tokens of all hosts.
func (l *localCluster) forgetTokens() error {
	var all error
	for _, h := range l.Hosts {
		if err := os.Remove(filepath.Join(l.hostDir(h.Name), tokenFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, fmt.Errorf("remove the token of host %s: %w", h.Name, err))
		}
	}
	return all
}
