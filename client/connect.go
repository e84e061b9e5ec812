package client

import (
	"context"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/connect"
)

// Target is a cluster that was found, and how; Context is what is kept of one
// in the directory of `kbroker up`.
type (
	Target  = connect.Target
	Context = connect.Context
)

const (
	// EnvDir is the environment variable that names the directory of a
	// cluster, LocalDir that directory's name when nothing names it.
	EnvDir   = connect.EnvDir
	LocalDir = connect.LocalDir
	// ContextFile is the file of a Context in a cluster's directory.
	ContextFile = connect.ContextFile
)

// Find looks for the cluster that is meant: flag (a context's name, a
// directory, addresses) if not empty, then the places that the environment
// offers. Errors: NotFound, Invalid; Unavailable when nothing names a cluster.
func Find(flag string) (Target, error) { return connect.Find(flag) }

// WriteContext makes the cluster findable through its directory.
func WriteContext(dir string, c Context) error { return connect.WriteContext(dir, c) }

// SaveContext makes a file of c that only the owner may read. Conflict: there is a file.
func SaveContext(path string, c Context) error { return connect.SaveContext(path, c) }

// ReplaceContext replaces such a file, all of it or nothing.
func ReplaceContext(path string, c Context) error { return connect.ReplaceContext(path, c) }

// Open connects to a cluster under the given name. The caller closes the
// client with Close. Unavailable when no server answers, Refused when they do not take the
// credential.
func Open(ctx context.Context, t Target, name string, opts ...nats.Option) (*Client, error) {
	key, err := t.Key()
	if err != nil {
		return nil, err
	}
	c := newClient(nil, t.Tenant, key)
	c.refusals.role, c.signed = t.Role(), t.Signed
	conn, err := t.Connect(ctx, name, append([]nats.Option{nats.ErrorHandler(c.refusals.note)}, opts...)...)
	if err != nil {
		return nil, err
	}
	c.conn = conn
	return c, nil
}

// Close closes the connection of a client that Open made.
func (c *Client) Close() { c.conn.Close() }
