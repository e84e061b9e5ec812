package node

// This file is about what this host connects with: a core signs its own credential, by
// the secret that all cores have; a worker has one that it was given when it was
// admitted, for a key of its own. What it signs for others is in sign.go and people.go.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/pki"
)

// grants are those of this core's cluster.
func (m *membership) grants() (*grants.Authority, error) {
	secret, err := m.secret()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kbroker.Errorf(kbroker.Refused, "%s is not there: host %s cannot sign credentials", filepath.Join(m.identityDir(), accountsFile), m.Host).
			WithHint("restore the file, it is the same on every core of the cluster; a directory from before there were credentials cannot be used")
	}
	if err != nil {
		return nil, err
	}
	return grants.New(secret)
}

// secret is that by which the credentials of this core's cluster are signed: one that
// was rescued has that of the lost one. fs.ErrNotExist: there is none.
func (m *membership) secret() (secret []byte, err error) {
	dirs := []string{m.identityDir()}
	if m.RescuedFrom != "" {
		dirs = append(dirs, m.identityOf(m.RescuedFrom))
	}
	for _, dir := range dirs {
		if secret, err = pki.LoadSecret(filepath.Join(dir, accountsFile)); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return secret, err
}

func (m *membership) ownKeyFile() string {
	return filepath.Join(filepath.Dir(m.path), identityDir, userFile)
}

// ownKey is the key that a worker asks with for a credential, made when there is none
// that can be read.
func (m *membership) ownKey() (credential.Credential, error) {
	c, err := credential.Load(m.ownKeyFile())
	if !lost(err) {
		return c, err
	}
	return m.newKey()
}

// newKey makes the key that a worker asks with from now on.
func (m *membership) newKey() (credential.Credential, error) {
	c, err := credential.New()
	if err != nil {
		return c, err
	}
	if err := makeDir(filepath.Dir(m.ownKeyFile())); err != nil {
		return c, err
	}
	return c, c.Save(m.ownKeyFile())
}

// lost reports whether a credential cannot be read because it is not there, or damaged.
func lost(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, kbroker.Invalid)
}

// keepCredential keeps what was signed for a worker's key.
func (m *membership) keepCredential(signed string) error {
	own, err := m.ownKey()
	if err != nil {
		return err
	}
	if signed == "" {
		return fmt.Errorf("host %s was admitted without a credential", m.Host)
	}
	return own.Signed(signed).Save(m.credential())
}

// credential is where a worker's is.
func (m *membership) credential() string { return filepath.Join(m.identityDir(), credsFile) }

// target is the cluster of a host that was admitted, with what its agent may do: a
// core everything.
func (m *membership) target() (connect.Target, error) {
	roots, err := m.roots()
	if err != nil {
		return connect.Target{}, err
	}
	t := connect.Target{Servers: m.servers(), Tenant: kbroker.DefaultTenant, CA: roots, Source: m.path}
	if m.Role == kbroker.RoleWorker {
		t.CredentialFile = m.credential()
		return t, nil
	}
	t.Credential, err = m.sign(grants.User{Role: grants.Core, Name: "core " + string(m.Host)})
	return t, err
}

// sign makes a credential with a key of its own, as the content of a .creds file.
func (m *membership) sign(u grants.User) (string, error) {
	g, err := m.grants()
	if err != nil {
		return "", err
	}
	c, err := credential.New()
	if err != nil {
		return "", err
	}
	u.Key = c.Key()
	signed, err := g.Sign(u, time.Now())
	if err != nil {
		return "", err
	}
	b, err := c.Signed(signed).Encode()
	return string(b), err
}

// connectTo connects to a core, as what this host is.
func (m *membership) connectTo(ctx context.Context, addr string) (*nats.Conn, error) {
	self, err := m.target()
	if err != nil {
		return nil, err
	}
	secure, err := self.Secure()
	if err != nil {
		return nil, err
	}
	timeout := askTimeout
	if at, ok := ctx.Deadline(); ok {
		timeout = min(timeout, max(time.Millisecond, time.Until(at)))
	}
	conn, err := nats.Connect(url(addr), append(secure, nats.Name("kbroker "+string(m.Role)+" "+string(m.Host)), nats.Timeout(timeout), nats.NoReconnect())...)
	if err != nil {
		return nil, fmt.Errorf("connect to core %s: %w", addr, err)
	}
	return conn, nil
}
