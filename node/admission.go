package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// askTimeout bounds one question to one core.
	askTimeout = 2 * time.Second
	// stdinFile is the name of standard input.
	stdinFile = "-"
	// maxTokenFile bounds a file with a token, in bytes.
	maxTokenFile = 4 << 10
)

// admission is how a host asks to be admitted. One that is of no cluster yet
// believes those whose root its token has pinned, and sends nothing to others.
type admission struct {
	request kbroker.JoinRequest
	box     *pki.Box // of a core
	pin     string   // fingerprint of the root; empty: the host knows the cluster
	was     int      // the generation of a worker that asks what became of it; 0: it asks to be admitted
	secure  []nats.Option
}

// prepare says who asks, and reads the token of a host that is of no cluster yet.
func (a *admission) prepare(m *membership, cfg Config) (err error) {
	a.request = kbroker.JoinRequest{
		Host: m.Host, Role: m.Role, Client: m.Client, Route: m.Route, Labels: cfg.Labels, ClusterID: m.ClusterID,
		Fingerprint: m.Fingerprint, Generation: a.was,
	}
	if m.ClusterID != "" {
		a.secure, err = m.secure()
	} else if err = a.show(cfg.TokenFile); err == nil {
		a.secure = []nats.Option{nats.Secure(pki.Pinned(a.pin, time.Now)), nats.CustomInboxPrefix(subjects.GateInbox)}
	}
	if err != nil {
		return err
	}
	a.box, err = m.present(&a.request)
	return err
}

// show adds a token to what is asked.
func (a *admission) show(file string) error {
	token, err := readToken(file)
	if err != nil {
		return err
	}
	if a.request.ClusterID == "" {
		a.pin = token.Root
	}
	a.request.Token = &kbroker.ShownToken{ID: token.ID, Secret: token.Secret[:]}
	return nil
}

func errNoToken() error {
	return kbroker.Errorf(kbroker.Invalid, "a host needs a token to join").
		WithHint("on a host of the cluster: kbroker token create --role core|worker; give it to this one with --token-file FILE")
}

// readToken reads the token of a file, or of standard input. Invalid, with nothing of
// what is in it.
func readToken(file string) (pki.Token, error) {
	in, from := os.Stdin, "standard input"
	switch {
	case file == "":
		return pki.Token{}, errNoToken()
	case file != stdinFile:
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return pki.Token{}, kbroker.Errorf(kbroker.Invalid, "there is no file %s, which should have the join token", file).
				WithHint("put there what kbroker token create has printed, with mode 0600; a host that has joined does not need it")
		}
		if err != nil {
			return pki.Token{}, fmt.Errorf("the join token: %w", err)
		}
		defer f.Close()
		in, from = f, file
	}
	text, err := io.ReadAll(io.LimitReader(in, maxTokenFile))
	if err != nil {
		return pki.Token{}, fmt.Errorf("read the join token from %s: %w", from, err)
	}
	token, err := pki.ParseToken(string(text))
	if e := kbroker.AsError(err); err != nil {
		return token, kbroker.Errorf(e.Code, "%s: %s", from, e.Message).WithHint("%s", e.Hint)
	}
	return token, nil
}

// another has the host ask with another key for its credential.
func (a *admission) another(m *membership) (err error) {
	if _, err = m.newKey(); err != nil {
		return err
	}
	a.box, err = m.present(&a.request)
	return err
}

// present adds to a request what shows who asks, and returns the box of a core's.
func (m *membership) present(r *kbroker.JoinRequest) (*pki.Box, error) {
	key, err := hostKey(filepath.Dir(m.path))
	if err != nil {
		return nil, err
	}
	var box *pki.Box
	if m.Role == kbroker.RoleCore {
		if box, err = pki.NewBox(); err != nil {
			return nil, err
		}
		r.Box = box.Public()
	} else {
		own, err := m.ownKey()
		if err != nil {
			return nil, err
		}
		r.User = own.Key()
		if r.UserProof, err = own.Prove(r.Claim()); err != nil {
			return nil, err
		}
	}
	return box, prove(key, r)
}

// ask asks one core. Refused: what answers is of another cluster than the token's;
// or the core has said so.
func (a *admission) ask(ctx context.Context, addr string) (kbroker.JoinReply, error) {
	var reply kbroker.JoinReply
	body, err := json.Marshal(a.request)
	if err != nil {
		return reply, fmt.Errorf("marshal join request: %w", err)
	}
	options := append(slices.Clone(a.secure), nats.Name("kbroker join"), nats.Timeout(askTimeout), nats.NoReconnect())
	conn, err := nats.Connect(url(addr), options...)
	switch {
	case a.pin != "" && (errors.Is(err, pki.ErrNotPinned) || errors.Is(err, nats.ErrSecureConnWanted)):
		return reply, kbroker.Errorf(kbroker.Refused, "what answers at %s is not of the cluster that the token is for: %v", addr, err).
			WithHint("nothing was sent to it; look at --join, and whether the token is one of this cluster: kbroker token create makes another one")
	case err != nil:
		return reply, fmt.Errorf("connect to core %s: %w", addr, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	msg, err := conn.RequestWithContext(ctx, subjects.Join, body)
	if err != nil {
		return reply, fmt.Errorf("ask core %s: %w", addr, err)
	}
	if msg.Header.Get(subjects.HeaderCode) != "" {
		var e kbroker.Error
		if err := json.Unmarshal(msg.Data, &e); err != nil {
			return reply, fmt.Errorf("unreadable refusal from %s: %w", addr, err)
		}
		return reply, &e
	}
	if err := json.Unmarshal(msg.Data, &reply); err != nil {
		return reply, fmt.Errorf("unreadable answer from %s: %w", addr, err)
	}
	return reply, nil
}
