package connect

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

// ContextFile is the name of the file, in the directory of a cluster, that
// says how to reach it.
const ContextFile = "context.json"

// Context says how to reach a cluster, and as whom.
type Context struct {
	Servers []string         `json:"servers"`          // nats:// URLs, at least one
	Tenant  kbroker.TenantID `json:"tenant,omitempty"` // empty: kbroker.DefaultTenant
	CA      string           `json:"ca,omitempty"`     // the cluster's roots, in PEM
}

// WriteContext replaces dir's context, durably, all of it or nothing. Only the owner may read it. dir must exist. A context
// without servers is Invalid.
func WriteContext(dir string, c Context) error {
	if len(c.Servers) == 0 {
		return kbroker.Errorf(kbroker.Invalid, "the context for %s names no server", dir)
	}
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode context: %w", err)
	}
	if err := durable.Replace(filepath.Join(dir, ContextFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write context: %w", err)
	}
	return nil
}

// readContext reads and checks one context file. A missing file is NotFound,
// anything that is not a context Invalid.
func readContext(path string) (Context, error) {
	var c Context
	if err := readJSON(path, "context", &c); err != nil {
		return Context{}, err
	}
	if len(c.Servers) == 0 {
		return Context{}, kbroker.Errorf(kbroker.Invalid, "context %s names no server", path)
	}
	return c, nil
}

// readJSON reads one small file (what: "context", "instance file").
func readJSON(path, what string, into any) error {
	b, err := os.ReadFile(path)
	switch {
	case os.IsNotExist(err):
		return kbroker.Errorf(kbroker.NotFound, "there is no %s %s", what, path)
	case err != nil:
		return fmt.Errorf("read %s: %w", what, err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "%s %s: %v", what, path, err)
	}
	return nil
}
