package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/spec"
)

// Credentials: a core signs them, for itself and for others, by the secret that all
// cores have; a worker has one that it was given when it was admitted, for a key of
// its own.

// The life of an instance's credential: as a rule, and the bounds of another one.
const (
	credentialLife    = time.Hour
	minCredentialLife = 10 * time.Second
	maxCredentialLife = 720 * time.Hour
)

// userFile is under the identity directory, as host.key: the key of a worker's
// credential, made before it first asks to join.
const userFile = "user.creds"

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

// Roles of the credentials that a core host makes for people: each may do what the one
// before may. CoreRole may also write what only cores should.
var Roles = []string{string(grants.Viewer), string(grants.Deployer), string(grants.Operator), AdminRole, CoreRole}

// The highest of Roles.
const (
	AdminRole = string(grants.Admin)
	CoreRole  = string(grants.Core)
)

// Credential makes one for a person, for ever, as the content of a .creds file: who may
// read the directory of a core may do everything. Errors: NotFound - the host is of no
// cluster yet; Refused - it is no core; Invalid - a role that is none of Roles.
func Credential(dir, role string) (string, error) {
	m, err := readMember(dir)
	if err != nil {
		return "", err
	}
	switch {
	case m.ClusterID == "":
		return "", kbroker.Errorf(kbroker.NotFound, "host %s is of no cluster yet", m.Host).WithHint("start its agent first")
	case m.Role == kbroker.RoleWorker:
		return "", kbroker.Errorf(kbroker.Refused, "host %s is a worker: it signs nothing", m.Host).WithHint("ask for a credential on a core host")
	case !slices.Contains(Roles, role):
		return "", kbroker.Errorf(kbroker.Invalid, "there is no role %q for people", role).WithHint("one of %s", strings.Join(Roles, ", "))
	}
	return m.person(role)
}

// person makes a credential of a role for somebody, for ever.
func (m *membership) person(role string) (string, error) {
	return m.sign(grants.User{
		Role: grants.Role(role), Name: role + " at " + string(m.Host),
		Tags: map[string][]string{grants.TagTenant: {string(kbroker.DefaultTenant)}},
	})
}

// writeContext has the data directory of a core say how to reach the cluster, as an
// admin: who may read it could make that credential anyhow. Of a worker's it has no say.
func (m *membership) writeContext() error {
	if m.Role == kbroker.RoleWorker {
		return nil
	}
	roots, err := m.roots()
	if err != nil {
		return err
	}
	admin, err := m.person(AdminRole)
	if err != nil {
		return err
	}
	return connect.WriteContext(filepath.Dir(m.path), connect.Context{
		Servers: m.servers(), Tenant: kbroker.DefaultTenant, CA: roots, Credential: admin,
	})
}

// signInstance is the credential of a start of an instance that is placed.
func (i *identity) signInstance(p kbroker.Placement, r kbroker.SignRequest) (string, error) {
	role := grants.Instance
	if p.Spec.Artifact.Builtin == kbroker.BuiltinAllocator {
		role = grants.Allocator
	}
	return i.grants.Sign(grants.User{
		Role: role, Name: string(r.Incarnation), Key: r.Key, By: r.By, Until: r.Until, Life: i.life,
		Tags: map[string][]string{
			grants.TagTenant: {string(p.Tenant)}, grants.TagHost: {string(p.Host)}, grants.TagApp: {string(p.App)}, grants.TagService: {string(p.Service)},
			grants.TagInstance: {string(p.Instance)}, grants.TagIncarnation: {string(r.Incarnation)}, grants.TagCall: callsOf(p),
		},
	}, i.now())
}

// signUser is the credential of a user of the record, as long as it holds.
func (i *identity) signUser(u kbroker.User) (string, error) {
	now := i.now()
	user := grants.User{
		Role: grants.Role(u.Role), Name: string(u.Name), Key: u.Key, Tags: map[string][]string{grants.TagTenant: {string(u.Tenant)}},
	}
	if !u.Expires.IsZero() {
		if user.Life = u.Expires.Sub(now); user.Life <= 0 {
			return "", fmt.Errorf("it expired at %s", u.Expires.Format(time.RFC3339))
		}
	}
	return i.grants.Sign(user, now)
}

// callsOf is what an instance may call, as in subjects.Methods: its own app, and what
// its spec names. A program that a person runs beside the cluster may call what that
// person may.
func callsOf(p kbroker.Placement) []string {
	calls := []string{string(p.App) + ".*"}
	for _, c := range p.Spec.Calls {
		if c == spec.AllServices {
			c = "*/*"
		}
		calls = append(calls, strings.ReplaceAll(c, "/", "."))
	}
	return calls
}

// signed reads what was signed for a start of an instance.
func (i *identity) signed(credential string) (kbroker.HostID, kbroker.Revocation, error) {
	host, key, until, err := i.grants.Signed(credential)
	return kbroker.HostID(host), kbroker.Revocation{User: key, Until: until}, err
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
