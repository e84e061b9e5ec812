package sdk

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/credential"
)

func TestWithoutAnAgentTheSpecSaysWhoThisIs(t *testing.T) {
	for _, c := range []struct {
		name, spec, as string
		want           string // "app/service", or a code
	}{
		{"the service of the same name", "name: shop\nservices:\n  cart: {run: a}\n  shop: {run: b}\n", "", "shop/shop"},
		{"the only service", "name: shop\nservices:\n  cart: {run: a}\n", "", "shop/cart"},
		{"the option wins", "name: shop\nservices:\n  cart: {run: a}\n", "bank/ledger", "bank/ledger"},
		{"the option alone", "", "bank", "bank/bank"},
		{"two services, none of the same name", "name: shop\nservices:\n  cart: {run: a}\n  till: {run: b}\n", "", "invalid"},
		{"no spec", "", "", "not_found"},
		{"a spec that is not valid", "name: a.b\n", "", "invalid"},
		{"an option that is not valid", "", "a.b/c", "invalid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			if c.spec != "" {
				if err := os.WriteFile(specFile, []byte(c.spec), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			i, err := developer(c.as, connect.Target{Tenant: "acme"})
			if !strings.Contains(c.want, "/") {
				if !errors.Is(err, kbroker.Code(c.want)) {
					t.Errorf("error %v, want code %s", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatalf("developer: %v", err)
			}
			if got := string(i.App) + "/" + string(i.Service); got != c.want || i.Tenant != "acme" || i.Host != "" {
				t.Errorf("identity %+v, want %s of tenant acme, on no host", i, c.want)
			}
			if other, _ := developer(c.as, connect.Target{Tenant: "acme"}); other.Instance == i.Instance || !strings.HasPrefix(string(i.Incarnation), string(i.Instance)+".") {
				t.Errorf("instances %s and %s (incarnation %s), want names of their own", i.Instance, other.Instance, i.Incarnation)
			}
		})
	}
}

// TestAProgramIsWhomItsCredentialIsFor: the servers let it answer as no other.
func TestAProgramIsWhomItsCredentialIsFor(t *testing.T) {
	own, err := credential.New()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.NewUserClaims(own.Key())
	claims.Tags.Add("tenant:acme", "host:_", "app:shop", "service:web", "instance:shop-web-dev1", "incarnation:shop-web-dev1.12", "call:*.*")
	signed, err := claims.Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "own.creds")
	if err := own.Signed(signed).Save(path); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{connect.EnvURL: "nats://127.0.0.1:1", connect.EnvCreds: path, connect.EnvCA: "", connect.EnvInstance: "", connect.EnvDir: "", connect.EnvContext: "", "XDG_CONFIG_HOME": t.TempDir()} {
		t.Setenv(name, value)
	}
	t.Chdir(t.TempDir())
	made := func(as string) *App {
		a := New(As(as))
		t.Cleanup(a.client.Close)
		return a
	}
	a := made("shop/web")
	want := kbroker.InstanceFile{Tenant: "acme", App: "shop", Service: "web", Instance: "shop-web-dev1", Incarnation: "shop-web-dev1.12"}
	if a.err != nil || !reflect.DeepEqual(a.identity, want) {
		t.Errorf("it is %+v, %v; want %+v", a.identity, a.err, want)
	}
	if a := made("shop/cart"); !errors.Is(a.err, kbroker.Invalid) || kbroker.AsError(a.err).Hint == "" {
		t.Errorf("as another service than it has the credential of: %v, want invalid, with a hint", a.err)
	}
	if err := own.Signed(signFor(own.Key(), time.Hour)).Save(path); err != nil {
		t.Fatal(err)
	}
	if a := made("shop/cart"); a.err != nil || a.identity.Service != "cart" || a.identity.Incarnation == "" {
		t.Errorf("with the credential of no instance: %+v, %v", a.identity, a.err)
	}
}
