package node

import (
	"slices"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestWhatAnInstanceMayCall(t *testing.T) {
	for name, c := range map[string]struct{ calls, want []string }{
		"nothing named":       {nil, []string{"shop.*"}},
		"a service":           {[]string{"bank/ledger"}, []string{"shop.*", "bank.ledger"}},
		"all of an app":       {[]string{"bank/*"}, []string{"shop.*", "bank.*"}},
		"all":                 {[]string{"*"}, []string{"shop.*", "*.*"}},
		"several of the kind": {[]string{"a/b", "c/*"}, []string{"shop.*", "a.b", "c.*"}},
	} {
		if got := callsOf(kbroker.Placement{App: "shop", Spec: kbroker.Service{Calls: c.calls}}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
