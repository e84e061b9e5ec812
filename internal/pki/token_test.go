package pki

import (
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
)

// newToken is a token of a root, as it is written.
func newToken(t testing.TB, root *Authority) (Token, string) {
	t.Helper()
	token := NewToken(FingerprintOf(root.Cert))
	text, err := token.Written()
	if err != nil {
		t.Fatal(err)
	}
	return token, text
}

func TestATokenComesBackFromItsText(t *testing.T) {
	root := newRoot(t, cluster)
	seen := map[string]bool{}
	for range 100 {
		want, text := newToken(t, root)
		got, err := ParseToken(" \n" + text + "\r\n")
		if err != nil || got != want {
			t.Fatalf("%s is %+v, %v", want, got, err)
		}
		if seen[got.ID] || seen[string(got.Secret[:])] {
			t.Fatal("a token has come twice")
		}
		seen[got.ID], seen[string(got.Secret[:])] = true, true
	}
	if _, err := NewToken("short").Written(); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a token for no root: %v, want invalid", err)
	}
}

// TestATokenThatWasDamagedSaysSo: whatever one does to it, and never with its secret.
func TestATokenThatWasDamagedSaysSo(t *testing.T) {
	root := newRoot(t, cluster)
	token, text := newToken(t, root)
	for name, tc := range map[string]struct{ text, want string }{
		"nothing":                   {" \n", "no token"},
		"something else":            {"hunter2", "not a join token"},
		"a key in PEM":              {"-----BEGIN PRIVATE KEY-----\n", "not a join token"},
		"a later kind":              {"kbt2." + text[5:], "does not know"},
		"one that was cut":          {text[:len(text)-1], "was cut"},
		"one of which half is left": {text[:len(text)/2], "was cut"},
		"one with the prompt":       {text + "$", "was cut"},
		"two":                       {text + "\n" + text, "was cut"},
		"one with a blank":          {text[:40] + " " + text[41:], "no token has"},
		"one with a line end":       {text[:40] + "\n" + text[41:], "no token has"},
		"one of another name":       {text[:5] + "abcdefghijkl" + text[17:], "mistyped"},
		"one in capitals":           {text[:5] + strings.ToUpper(text[5:17]) + text[17:], "no token has"},
	} {
		_, err := ParseToken(tc.text)
		e := kbroker.AsError(err)
		if err == nil || e.Code != kbroker.Invalid || !strings.Contains(e.Message, tc.want) || e.Hint == "" {
			t.Errorf("%s: %v with hint %q, want %q and a hint", name, err, e.Hint, tc.want)
		}
		if shows(fmt.Sprint(err, e.Hint), token, text) {
			t.Errorf("%s: the error shows the secret: %v", name, err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		at := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		by := rapid.SampledFrom([]byte("abcdefghijklmnopqrstuvwxyz234567ABC-_.")).Draw(t, "by")
		if by == text[at] {
			return
		}
		typo := text[:at] + string(by) + text[at+1:]
		if got, err := ParseToken(typo); err == nil {
			t.Fatalf("%q in place of %q at %d is read as %s", by, text[at], at, got)
		} else if shows(err.Error(), token, text) {
			t.Fatalf("the error shows the secret: %v", err)
		}
	})
}

// shows reports whether a text has something of a token's secret in it.
func shows(s string, token Token, text string) bool {
	secret := base64.RawURLEncoding.EncodeToString(token.Secret[:])
	for i := 0; i+6 <= len(secret); i++ {
		if strings.Contains(s, secret[i:i+6]) {
			return true
		}
	}
	return strings.Contains(s, text) || strings.Contains(s, string(token.Secret[:]))
}

func TestAPrintedTokenHasNoSecret(t *testing.T) {
	token, text := newToken(t, newRoot(t, cluster))
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		for _, v := range []any{token, &token} {
			if s := fmt.Sprintf(format, v); !strings.Contains(s, token.ID) || shows(s, token, text) || strings.Contains(s, "0x") {
				t.Errorf("%s shows %s", format, s)
			}
		}
	}
}

// A text that is read is the text that is written: no two spellings of one token.
func FuzzParseToken(f *testing.F) {
	_, text := newToken(f, newRoot(f, cluster))
	for _, seed := range []string{text, text[:50], "kbt1.", "kbt1.aaaaaaaaaaaa." + strings.Repeat("A", 80), "", "kbt2.x"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			if !errors.Is(err, kbroker.Invalid) || kbroker.AsError(err).Hint == "" {
				t.Errorf("%q: %v, want invalid with a hint", text, err)
			}
			return
		}
		if again, err := token.Written(); err != nil || again != strings.TrimSpace(text) {
			t.Errorf("%q is written %q, %v", text, again, err)
		}
	})
}

// TestWhoKnowsTheFingerprintAloneKnowsTheCluster: of the servers, those of its root
// are talked to.
func TestWhoKnowsTheFingerprintAloneKnowsTheCluster(t *testing.T) {
	root, other := newRoot(t, cluster), newRoot(t, cluster)
	clock := func() time.Time { return began }
	as := func(root *Authority, core *Authority, i Identity, shown ...*Authority) *Identities {
		h := newHost(t, core, i, began)
		chain := h.chain
		for _, a := range shown {
			chain = append(chain, a.Cert)
		}
		s := NewIdentities(clock)
		s.Open()
		s.Use(Shown(h.key, chain...))
		s.Believe(Trust{Cluster: cluster, Roots: certs(root)})
		return s
	}
	core := newCore(t, root, cluster, "a")
	a := Identity{cluster, kbroker.RoleCore, "a", 1}
	foreign := newCore(t, other, cluster, "a")
	// A certificate around the true root's public key, which only its holder could sign.
	forged := forge(t, root, other)
	pin := FingerprintOf(root.Cert)
	for name, tc := range map[string]struct {
		server *Identities
		want   bool
		not    bool // ErrNotPinned
	}{
		"a core that shows its root":                    {as(root, core, a, root), true, false},
		"a core that shows two":                         {as(root, core, a, other, root), true, false},
		"a core that shows a forged one":                {as(root, core, a, forged), false, true},
		"a core that does not show it":                  {as(root, core, a), false, true},
		"a core of another root":                        {as(other, foreign, a, other), false, true},
		"a core of another root that shows this one":    {as(other, foreign, a, root), false, true},
		"a core of another root with a forged this one": {as(other, foreign, a, forged), false, true},
		"a worker of this root":                         {as(root, core, Identity{cluster, kbroker.RoleWorker, "w", 1}, root), false, false},
	} {
		s, c := shake(t, tc.server.Server(), Pinned(pin, clock))
		if (s == nil && c == nil) != tc.want {
			t.Errorf("%s: server %v, client %v; want it to come about: %t", name, s, c, tc.want)
		}
		if errors.Is(c, ErrNotPinned) != tc.not {
			t.Errorf("%s: client %v; want that it is of another cluster: %t", name, c, tc.not)
		}
	}
	// Who knows the root does not mind that it is shown, and neither do cores.
	one, two := as(root, core, a, root), as(root, newCore(t, root, cluster, "b"), Identity{cluster, kbroker.RoleCore, "b", 1}, root)
	if s, c := shake(t, one.Server(), Client(certs(root), clock)); s != nil || c != nil {
		t.Errorf("a client that knows the root: server %v, client %v", s, c)
	}
	if s, c := shake(t, one.Peers(), two.Peers()); s != nil || c != nil {
		t.Errorf("two cores: server %v, client %v", s, c)
	}
}

func certs(of ...*Authority) []*x509.Certificate {
	var out []*x509.Certificate
	for _, a := range of {
		out = append(out, a.Cert)
	}
	return out
}

// forge makes a root's certificate for its key, signed by another one.
func forge(t *testing.T, root, by *Authority) *Authority {
	t.Helper()
	template, err := template("kbroker "+cluster, always, forEver)
	if err != nil {
		t.Fatal(err)
	}
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	cert, err := sign(template, template, root.Key().Public(), by.Key())
	if err != nil {
		t.Fatal(err)
	}
	return &Authority{cert, nil}
}
