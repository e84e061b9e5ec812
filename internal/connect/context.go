package connect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/pki"
)

// ContextFile is the name of the file, in the directory of a cluster, that
// says how to reach it.
const ContextFile = "context.json"

// Context says how to reach a cluster, and as whom.
type Context struct {
	Servers []string         `json:"servers"`          // nats:// URLs, at least one
	Tenant  kbroker.TenantID `json:"tenant,omitempty"` // empty: kbroker.DefaultTenant
	CA      string           `json:"ca,omitempty"`     // the cluster's roots, in PEM
	// Credential is the content of a .creds file: as whom.
	Credential string `json:"credential,omitempty"`
}

// Check says what of c could not work at the time: Invalid, with a hint. It asks
// nobody.
func (c Context) Check(now time.Time) error {
	if len(c.Servers) == 0 {
		return kbroker.Errorf(kbroker.Invalid, "the context names no server").WithHint("--server nats://HOST:PORT names one, as kbroker hosts shows its address")
	}
	for _, s := range c.Servers {
		if u, err := url.Parse(s); err != nil || u.Scheme == "" || u.Hostname() == "" {
			return kbroker.Errorf(kbroker.Invalid, "%q is not the URL of a server", s).WithHint("one is nats://10.0.0.1:4222, for example")
		}
	}
	if c.Tenant != "" {
		if err := kbroker.CheckName("tenant", string(c.Tenant)); err != nil {
			return err
		}
	}
	if c.CA != "" {
		if _, err := pki.ParseCerts([]byte(c.CA)); err != nil {
			return kbroker.Errorf(kbroker.Invalid, "the roots of the cluster cannot be read: %v", err).
				WithHint("they are in identity/*/root.crt in the data directory of a host")
		}
	}
	if c.Credential == "" {
		return nil
	}
	who, err := credential.Parse([]byte(c.Credential))
	if err == nil {
		err = who.Check(now)
	}
	if err != nil {
		return kbroker.Errorf(kbroker.Invalid, "the credential is of no use: %v", err).
			WithHint("kbroker agent creds, on a core host, prints one")
	}
	return nil
}

// WriteContext replaces dir's context, durably, all of it or nothing. Only the owner
// may read it. dir must exist. A context without servers is Invalid.
func WriteContext(dir string, c Context) error {
	if len(c.Servers) == 0 {
		return kbroker.Errorf(kbroker.Invalid, "the context for %s names no server", dir)
	}
	return writeContext(filepath.Join(dir, ContextFile), c)
}

// ReplaceContext replaces a context file, durably, all of it or nothing. Only the owner
// may read it.
func ReplaceContext(path string, c Context) error { return writeContext(path, c) }

// SaveContext makes a context file, durably, that only the owner may read. Conflict: there
// is a file of that name.
func SaveContext(path string, c Context) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode context: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return kbroker.Errorf(kbroker.Conflict, "there is a file %s already", path)
	}
	if err != nil {
		return fmt.Errorf("write context: %w", err)
	}
	_, err = f.Write(append(b, '\n'))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = durable.Sync(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("write context: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

func writeContext(path string, c Context) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode context: %w", err)
	}
	if err := durable.Replace(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write context: %w", err)
	}
	return nil
}

// ReadContext reads the context that place names: one of the user's, a context
// file or the directory of a cluster. NotFound: there is none; Invalid: it is none.
func ReadContext(place string) (Context, error) {
	at, err := locate(place)
	if err != nil {
		return Context{}, fmt.Errorf("%s: %w", place, err)
	}
	return readContext(at.path)
}

// ParseContext takes the content of a context file; source says which, after the word
// context. Invalid: it is none.
func ParseContext(b []byte, source string) (Context, error) {
	var c Context
	if len(strings.TrimSpace(string(b))) == 0 {
		return c, kbroker.Errorf(kbroker.Invalid, "context %s is empty", source)
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, kbroker.Errorf(kbroker.Invalid, "context %s: %v", source, err)
	}
	if len(c.Servers) == 0 {
		return c, kbroker.Errorf(kbroker.Invalid, "context %s names no server", source)
	}
	return c, nil
}

// located is a context file, and how it was named.
type located struct {
	path string
	name string // it is one of the user's
	dir  string // it is that of the directory of a cluster
}

// locate looks for what a person named: a context of their own, a directory, a file.
func locate(place string) (located, error) {
	if path, err := contextPath(place); err == nil {
		if _, err := os.Stat(path); err == nil {
			return located{path: path, name: place}, nil
		}
	}
	info, err := os.Stat(place)
	switch {
	case err != nil:
		return located{}, kbroker.Errorf(kbroker.NotFound, "there is no context, file or directory of that name").
			WithHint("name a context%s, a %s file or the directory of a cluster", existing(), ContextFile)
	case info.IsDir():
		return located{path: filepath.Join(place, ContextFile), dir: place}, nil
	}
	return located{path: place}, nil
}

// readContext reads and checks one context file. A missing file is NotFound,
// anything that is not a context Invalid.
func readContext(path string) (Context, error) {
	b, err := readFile(path, "context")
	if err != nil {
		return Context{}, err
	}
	return ParseContext(b, path)
}

// readJSON reads one small file (what: "instance file").
func readJSON(path, what string, into any) error {
	b, err := readFile(path, what)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "%s %s: %v", what, path, err)
	}
	return nil
}

func readFile(path, what string) ([]byte, error) {
	b, err := os.ReadFile(path)
	switch {
	case os.IsNotExist(err):
		return nil, kbroker.Errorf(kbroker.NotFound, "there is no %s %s", what, path)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return b, nil
}
