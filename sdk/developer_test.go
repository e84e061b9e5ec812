package sdk

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
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
			i, err := developer(c.as, "acme")
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
			if other, _ := developer(c.as, "acme"); other.Instance == i.Instance || !strings.HasPrefix(string(i.Incarnation), string(i.Instance)+".") {
				t.Errorf("instances %s and %s (incarnation %s), want names of their own", i.Instance, other.Instance, i.Incarnation)
			}
		})
	}
}
