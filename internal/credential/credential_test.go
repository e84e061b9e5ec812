package credential

import (
	"encoding/base64"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// signed is a credential that a made-up account has signed for a key.
func signed(t *testing.T, c Credential, key string, expires time.Time) Credential {
	t.Helper()
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.NewUserClaims(key)
	claims.Name = "ann"
	if !expires.IsZero() {
		claims.Expires = expires.Unix()
	}
	token, err := claims.Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	return c.Signed(token)
}

func fresh(t *testing.T) Credential {
	t.Helper()
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCheckSaysWhyNoClusterWouldTakeIt(t *testing.T) {
	now := time.Now()
	own, other := fresh(t), fresh(t)
	for _, tc := range []struct {
		name string
		c    Credential
		want string
	}{
		{"for ever", signed(t, own, own.Key(), time.Time{}), ""},
		{"until later", signed(t, own, own.Key(), now.Add(time.Hour)), ""},
		{"over", signed(t, own, own.Key(), now.Add(-time.Hour)), "it expired at " + now.Add(-time.Hour).UTC().Format(time.RFC3339)},
		{"for somebody else", signed(t, own, other.Key(), time.Time{}), "it was signed for another key"},
		{"nothing signed", own, "no core has signed it"},
	} {
		got := ""
		if err := tc.c.Check(now); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if err := own.Signed("x").Check(now); err == nil {
		t.Error("what is no JWT is taken")
	}
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	own := fresh(t)
	for _, c := range []Credential{own, signed(t, own, own.Key(), time.Unix(4e9, 0))} {
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Parse(b)
		if err != nil || got.Key() != c.Key() || got.IsSigned() != c.IsSigned() || got.Name() != c.Name() || !until(got).Equal(until(c)) {
			t.Errorf("read %+v, %v; want %+v", got, err, c)
		}
	}
	if c := signed(t, own, own.Key(), time.Time{}); c.Name() != "ann" || own.Name() != "" {
		t.Errorf("names are %q and %q, want ann and nobody", c.Name(), own.Name())
	}
}

func until(c Credential) time.Time {
	_, at := c.Holds()
	return at
}

// TestAConnectionMayBeginBeforeItsCredentialIsSigned: the one that is made in the
// background, which asks for it with each attempt.
func TestAConnectionMayBeginBeforeItsCredentialIsSigned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "own.creds")
	if err := fresh(t).Save(path); err != nil {
		t.Fatal(err)
	}
	options, err := FileOptions(path)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect("nats://127.0.0.1:1", append(options, nats.RetryOnFailedConnect(true))...)
	if err != nil {
		t.Fatalf("%v, want a connection that tries again", err)
	}
	nc.Close()
}

// signedAt is signed for a life by a clock that may be off: as jwt notes the time itself,
// that is changed after it has.
func signedAt(t *testing.T, c Credential, now time.Time, life time.Duration) string {
	t.Helper()
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	claims := jwt.NewUserClaims(c.Key())
	claims.Expires = now.Add(life).Unix()
	token, err := claims.Encode(account)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(token, ".")
	body, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	body = regexp.MustCompile(`"iat":\d+`).ReplaceAll(body, fmt.Appendf(nil, `"iat":%d`, now.Unix()))
	head := parts[0] + "." + base64.RawURLEncoding.EncodeToString(body)
	signature, err := account.Sign([]byte(head))
	if err != nil {
		t.Fatal(err)
	}
	return head + "." + base64.RawURLEncoding.EncodeToString(signature)
}
