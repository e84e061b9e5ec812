package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/grants"
)

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
	path := filepath.Join(filepath.Dir(m.path), connect.ContextFile)
	if info, err := os.Lstat(path); err == nil && !info.Mode().IsRegular() {
		if _, err := durable.SetAside(path); err != nil {
			return err
		}
	}
	return connect.WriteContext(filepath.Dir(m.path), connect.Context{
		Servers: m.servers(), Tenant: kbroker.DefaultTenant, CA: roots, Credential: admin,
	})
}
