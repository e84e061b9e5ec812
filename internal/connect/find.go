package connect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pki"
)

// Environment variables that Find reads.
const (
	EnvInstance = "KBROKER_INSTANCE" // path of the instance file: set by an agent
	EnvDir      = "KBROKER_DIR"      // directory that `kbroker up` made
	EnvContext  = "KBROKER_CONTEXT"  // name or path of a context
	EnvURL      = "NATS_URL"         // server URLs, separated by commas
	EnvCA       = "NATS_CA"          // path of the roots of the cluster of such URLs, in PEM
	EnvCreds    = "NATS_CREDS"       // path of the .creds file with which to connect to them
)

// LocalDir is the directory that `kbroker up` makes when it is given none.
const LocalDir = ".kbroker"

// Target is a cluster that was found, and how.
type Target struct {
	Servers []string // nats:// URLs; an instance's own host first
	Tenant  kbroker.TenantID
	// CA are the roots, in PEM, that the servers prove themselves with. Empty: none
	// are known, and servers that ask for TLS are refused, unless the system's
	// roots know them.
	CA string
	// Credential is who this process is, as the content of a .creds file, or
	// CredentialFile where it is, if it is renewed there. Neither: nobody.
	Credential     string
	CredentialFile string
	// Source says which place won, for people: "KBROKER_DIR=/tmp/c".
	Source string
	// Context is the name of the context, if one of the user's won.
	Context string
	// Dir is the directory of the cluster, if one of a local cluster won.
	Dir string
	// Instance is set when this process was started by an agent.
	Instance *kbroker.InstanceFile
}

// Find looks for the cluster to talk to, in this order:
//
//  1. flag, if not empty: server URLs, the name of a context, a context file or
//     the directory of a cluster
//  2. KBROKER_INSTANCE: the instance file that an agent wrote
//  3. KBROKER_DIR: a directory that `kbroker up` made
//  4. KBROKER_CONTEXT: like flag, without URLs
//  5. .kbroker in the working directory or above it
//  6. the current context: kbroker/current in the user's configuration
//     directory names a file in kbroker/contexts
//  7. NATS_URL
//
// To URLs, of the flag or of NATS_URL, belong the roots in the file of NATS_CA and
// the credential of NATS_CREDS. Those of the flag, with neither, borrow from what would
// be found without it: they may be some of its cores. See Target.Borrow.
//
// What is named in 1 to 4 and not there is an error (NotFound): it is never
// silently another cluster. A file that is not what it should be is Invalid.
// Nothing found at all is Unavailable; its hint lists where Find looked.
func Find(flag string) (Target, error) {
	if flag != "" {
		return named(flag, "flag "+flag, true)
	}
	if path := os.Getenv(EnvInstance); path != "" {
		return instance(path)
	}
	if dir := os.Getenv(EnvDir); dir != "" {
		t, err := directory(dir, EnvDir+"="+dir)
		if errors.Is(err, kbroker.NotFound) {
			return Target{}, kbroker.AsError(err).WithHint("%s=%s holds no cluster; `kbroker up` makes one there", EnvDir, dir)
		}
		return t, err
	}
	if name := os.Getenv(EnvContext); name != "" {
		return named(name, EnvContext+"="+name, false)
	}
	looked := []string{EnvInstance, EnvDir, EnvContext}
	t, found, err := upward()
	if found || err != nil {
		return t, err
	}
	looked = append(looked, LocalDir+" here and above")
	t, found, err = current()
	if found || err != nil {
		return t, err
	}
	looked = append(looked, "the current context", EnvURL)
	if url := os.Getenv(EnvURL); url != "" {
		return urls(url, EnvURL+"="+url)
	}
	return Target{}, kbroker.Errorf(kbroker.Unavailable, "no cluster is known here").
		WithHint("`kbroker up` starts one on this machine; looked at %s", strings.Join(looked, ", "))
}

// Borrow is t with the roots of another place and the credential from there: the servers
// of t must prove that they are of the cluster that it is for, as who is shown it could
// use it elsewhere while it is shown. Without roots it is lent only to servers that from
// names itself.
func (t Target) Borrow(from Target) Target {
	t.CA, t.Credential, t.CredentialFile = from.CA, "", ""
	named := func(s string) bool { return slices.Contains(from.Servers, s) }
	if from.CA != "" || !slices.ContainsFunc(t.Servers, func(s string) bool { return !named(s) }) {
		t.Credential, t.CredentialFile = from.Credential, from.CredentialFile
	}
	return t
}

// named resolves what a person wrote: URLs (where allowed), a context's name,
// a directory or a file.
func named(value, source string, address bool) (Target, error) {
	if address && strings.Contains(value, "://") {
		t, err := urls(value, source)
		if err != nil {
			return t, err
		}
		if t.CA != "" || t.CredentialFile != "" {
			return t, nil
		}
		if around, err := Find(""); err == nil {
			t = t.Borrow(around)
		}
		return t, nil
	}
	at, err := locate(value)
	if err != nil {
		return Target{}, fmt.Errorf("%s: %w", source, err)
	}
	if at.dir != "" {
		return directory(at.dir, source)
	}
	t, err := file(at.path, source)
	t.Context = at.name
	return t, err
}

// urls takes server URLs, with the roots that the environment names.
func urls(value, source string) (Target, error) {
	t := Target{Servers: splitURLs(value), Tenant: kbroker.DefaultTenant, Source: source, CredentialFile: os.Getenv(EnvCreds)}
	path := os.Getenv(EnvCA)
	if path == "" {
		return t, nil
	}
	b, err := os.ReadFile(path)
	if err == nil {
		_, err = pki.ParseCerts(b)
	}
	if err != nil {
		return Target{}, kbroker.Errorf(kbroker.Invalid, "%s=%s: %v", EnvCA, path, err).
			WithHint("it names a file of certificates, such as identity/*/root.crt in the data directory of a core")
	}
	t.CA = string(b)
	return t, nil
}

// directory takes the context of a cluster's directory.
func directory(dir, source string) (Target, error) {
	t, err := file(filepath.Join(dir, ContextFile), source)
	if err != nil {
		return Target{}, err
	}
	if t.Dir, err = filepath.Abs(dir); err != nil {
		return Target{}, fmt.Errorf("directory %s: %w", dir, err)
	}
	return t, nil
}

func file(path, source string) (Target, error) {
	c, err := readContext(path)
	if err != nil {
		return Target{}, err
	}
	return Target{Servers: c.Servers, Tenant: tenantOr(c.Tenant), CA: c.CA, Credential: c.Credential, Source: source}, nil
}

func instance(path string) (Target, error) {
	var i kbroker.InstanceFile
	if err := readJSON(path, "instance file", &i); err != nil {
		return Target{}, err
	}
	if len(i.Servers) == 0 || i.Incarnation == "" {
		return Target{}, kbroker.Errorf(kbroker.Invalid, "instance file %s: servers or incarnation is missing", path)
	}
	i.Tenant = tenantOr(i.Tenant)
	return Target{
		Servers: i.Servers, Tenant: i.Tenant, CA: i.CA, CredentialFile: i.Credential,
		Source: EnvInstance + "=" + path, Instance: &i,
	}, nil
}

// upward looks for .kbroker from the working directory to the root. A
// directory of that name without a context is somebody else's.
func upward() (t Target, found bool, err error) {
	at, err := os.Getwd()
	if err != nil {
		return Target{}, false, nil // a removed working directory has nothing above it
	}
	for {
		dir := filepath.Join(at, LocalDir)
		t, err := directory(dir, dir)
		if !errors.Is(err, kbroker.NotFound) {
			return t, err == nil, err
		}
		above := filepath.Dir(at)
		if above == at {
			return Target{}, false, nil
		}
		at = above
	}
}

// current takes the user's current context, if there is one. A current context
// that does not exist is an error: the person chose it.
func current() (t Target, found bool, err error) {
	name, err := CurrentContext()
	if err != nil || name == "" {
		return Target{}, false, nil // a home that may not be read is somebody else's
	}
	path, err := contextPath(name)
	if err != nil {
		return Target{}, false, err
	}
	if t, err = file(path, "current context "+name); err != nil {
		if errors.Is(err, kbroker.NotFound) {
			err = errNoContext(name)
		}
		return Target{}, false, fmt.Errorf("current context: %w", err)
	}
	t.Context = name
	return t, true, nil
}

func tenantOr(t kbroker.TenantID) kbroker.TenantID {
	if t == "" {
		return kbroker.DefaultTenant
	}
	return t
}

func splitURLs(s string) []string {
	var urls []string
	for u := range strings.SplitSeq(s, ",") {
		if u = strings.TrimSpace(u); u != "" {
			urls = append(urls, u)
		}
	}
	return urls
}
