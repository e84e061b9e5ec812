package connect

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/pki"
)

func TestContextsAreAddedUsedAndRemoved(t *testing.T) {
	w := newWorld(t)
	if err := os.RemoveAll(w.config); err != nil { // nothing is there at first
		t.Fatal(err)
	}
	if all, err := Contexts(); err != nil || len(all) != 0 {
		t.Errorf("at first: %v, %v; want none", all, err)
	}
	dev, prod := Context{Servers: []string{"nats://dev:1"}}, Context{Servers: []string{"nats://prod:1"}, Tenant: "acme"}
	if err := errors.Join(AddContext("prod", prod, false), AddContext("dev", dev, true), UseContext("prod")); err != nil {
		t.Fatal(err)
	}
	all, err := Contexts()
	if err != nil || len(all) != 2 || all[0].Name != "dev" || all[0].Current || !all[1].Current || all[1].Context.Tenant != "acme" {
		t.Errorf("contexts are %+v, %v", all, err)
	}
	for _, file := range []string{"current", "contexts/prod.json"} {
		if info, err := os.Stat(filepath.Join(w.config, "kbroker", file)); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s is %v, %v; want mode 0600", file, info, err)
		}
	}
	for place, want := range map[string]string{"": "prod", "dev": "dev", "prod": "prod"} {
		if got, err := Find(place); err != nil || got.Context != want || got.Servers[0] != "nats://"+want+":1" {
			t.Errorf("Find(%q) = %+v, %v; want context %s", place, got, err, want)
		}
	}
	if err := AddContext("dev", prod, false); !errors.Is(err, kbroker.Conflict) || !strings.Contains(kbroker.AsError(err).Hint, "--force") {
		t.Errorf("add one that is there: %v, want a conflict", err)
	}
	if got, err := UserContext("dev"); err != nil || got.Servers[0] != "nats://dev:1" {
		t.Errorf("it is %+v, %v; want the old one", got, err)
	}
	for what, err := range map[string]error{"use": UseContext("test"), "remove": RemoveContext("test", true), "flag": findError("test")} {
		if e := kbroker.AsError(err); !errors.Is(err, kbroker.NotFound) || !strings.Contains(e.Hint, "(dev, prod)") {
			t.Errorf("%s one that is not there: %v (%s), want that those are named that are", what, err, e.Hint)
		}
	}
	if err := RemoveContext("prod", false); !errors.Is(err, kbroker.Refused) {
		t.Errorf("remove the current one: %v, want refused", err)
	}
	if err := errors.Join(RemoveContext("dev", false), RemoveContext("prod", true)); err != nil {
		t.Fatal(err)
	}
	if name, err := CurrentContext(); err != nil || name != "" {
		t.Errorf("the current one is %q, %v; want none", name, err)
	}
	if _, err := Find(""); !errors.Is(err, kbroker.Unavailable) {
		t.Errorf("without contexts: %v, want that no cluster is known", err)
	}
}

func findError(place string) error {
	_, err := Find(place)
	return err
}

func TestAContextThatCannotBeReadIsListed(t *testing.T) {
	w := newWorld(t)
	w.named("good", "nats://good:1")
	w.write("{", "config", "kbroker", "contexts", "bad.json")
	w.write("{}", "config", "kbroker", "contexts", ".hidden.json")
	w.write("", "config", "kbroker", "contexts", "notes.txt")
	all, err := Contexts()
	if err != nil || len(all) != 2 || !errors.Is(all[0].Err, kbroker.Invalid) || all[1].Err != nil {
		t.Errorf("contexts are %+v, %v; want one that is bad and one that is good", all, err)
	}
	for _, name := range []string{"", ".", "..", "a/b", `a\b`, "a..b", "-a", "a b", strings.Repeat("a", 65)} {
		if err := AddContext(name, Context{Servers: []string{"nats://a:1"}}, true); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("a context called %q: %v, want Invalid", name, err)
		}
	}
}

func TestReadContextTakesANameAFileOrADirectory(t *testing.T) {
	w := newWorld(t)
	w.named("prod", "nats://named:1")
	dir := w.cluster("mine")
	for place, want := range map[string]string{"prod": "named", dir: "mine", filepath.Join(dir, ContextFile): "mine"} {
		if c, err := ReadContext(place); err != nil || c.Servers[0] != "nats://"+want+":1" {
			t.Errorf("%s: %+v, %v; want that of %s", place, c, err, want)
		}
	}
	for place, code := range map[string]kbroker.Code{"nowhere": kbroker.NotFound, w.cwd: kbroker.NotFound, w.write("[]", "list.json"): kbroker.Invalid, w.write(" ", "empty"): kbroker.Invalid} {
		if _, err := ReadContext(place); !errors.Is(err, code) {
			t.Errorf("%s: %v, want %s", place, err, code)
		}
	}
}

func TestCheckSaysWhatOfAContextCannotWork(t *testing.T) {
	root, err := pki.NewRoot("kb-1")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	servers := []string{"nats://a:1", "tls://[::1]:2"}
	good := Context{Servers: servers, Tenant: "acme", CA: string(pki.EncodeCerts(root.Cert)), Credential: signed(t, 0)}
	if err := good.Check(now); err != nil {
		t.Errorf("one that has all: %v", err)
	}
	if err := (Context{Servers: servers}).Check(now); err != nil {
		t.Errorf("servers alone: %v", err)
	}
	for name, tc := range map[string]struct {
		edit func(c *Context)
		want string
	}{
		"no server":        {func(c *Context) { c.Servers = nil }, "names no server"},
		"no URL":           {func(c *Context) { c.Servers = []string{"nats://a:1", "b:2"} }, `"b:2" is not the URL`},
		"no tenant":        {func(c *Context) { c.Tenant = "A.B" }, "tenant name"},
		"no roots":         {func(c *Context) { c.CA = "x" }, "roots of the cluster cannot be read"},
		"no credential":    {func(c *Context) { c.Credential = "x" }, "not a credential"},
		"one that is over": {func(c *Context) { c.Credential = signed(t, now.Add(-time.Hour).Unix()) }, "it expired at"},
		"one never signed": {func(c *Context) { c.Credential = unsigned(t) }, "no core has signed it"},
	} {
		c := good
		tc.edit(&c)
		err := c.Check(now)
		if e := kbroker.AsError(err); !errors.Is(err, kbroker.Invalid) || !strings.Contains(e.Message, tc.want) || e.Hint == "" {
			t.Errorf("%s: %v, want Invalid with %q and a hint", name, err, tc.want)
		}
	}
}

func unsigned(t *testing.T) string {
	t.Helper()
	c, err := credential.New()
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// signed is a credential that some account has signed, until a time.
func signed(t *testing.T, expires int64) string {
	t.Helper()
	c, err := credential.New()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.NewUserClaims(c.Key())
	claims.Expires = expires
	token, err := claims.Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Signed(token).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestASavedContextIsWrittenOverOnPurposeOnly.
func TestASavedContextIsWrittenOverOnPurposeOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ann.json")
	servers := func() []string {
		t.Helper()
		c, err := ReadContext(path)
		if err != nil {
			t.Fatal(err)
		}
		return c.Servers
	}
	if err := SaveContext(path, Context{Servers: []string{"nats://a:1"}}); err != nil {
		t.Fatal(err)
	}
	if err := SaveContext(path, Context{Servers: []string{"nats://b:1"}}); !errors.Is(err, kbroker.Conflict) || servers()[0] != "nats://a:1" {
		t.Errorf("another one: %v, servers %v; want a conflict and the first one", err, servers())
	}
	if err := ReplaceContext(path, Context{Servers: []string{"nats://b:1"}}); err != nil || servers()[0] != "nats://b:1" {
		t.Errorf("replaced: %v, servers %v", err, servers())
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	if err := SaveContext(filepath.Join(path, "below"), Context{}); err == nil {
		t.Error("saved below a file")
	}
}
