package broker

import (
	"bytes"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/grants"
)

func TestPermissionNeedsACredentialThatHolds(t *testing.T) {
	cfg := configOf(t, "c1", true)
	start(t, cfg).awaitReady(30 * time.Second)
	other, err := grants.New(bytes.Repeat([]byte{1}, grants.SecretSize))
	if err != nil {
		t.Fatal(err)
	}
	by := func(g *grants.Authority, now time.Time) user {
		u, err := newUser(func(key string) (string, error) {
			return g.Sign(grants.User{Role: grants.Core, Name: "core", Key: key, Life: time.Minute}, now)
		})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	good := by(testGrants, time.Now())
	for name, c := range map[string]struct {
		user user
		want error
	}{
		"a good one":                        {good, nil},
		"of another cluster":                {by(other, time.Now()), nats.ErrAuthorization},
		"one that has ended":                {by(testGrants, time.Now().Add(-time.Hour)), nats.ErrAuthorization},
		"somebody else's, with another key": {user{good.jwt, by(testGrants, time.Now()).key}, nats.ErrAuthorization},
	} {
		t.Run(name, func(t *testing.T) {
			options, err := c.user.options()
			if err != nil {
				t.Fatal(err)
			}
			nc, err := nats.Connect("nats://"+cfg.ClientAddr, append(options, nats.NoReconnect())...)
			if err == nil {
				nc.Close()
			}
			if !errors.Is(err, c.want) {
				t.Errorf("connect: %v, want %v", err, c.want)
			}
		})
	}
	// The servers take what they cannot read for no credential.
	all := attempts()
	broken := try(t, cfg.ClientAddr, caller{name: "a broken credential", user: user{"eyJ", good.key}}, all, strings.NewReplacer())
	if none := try(t, cfg.ClientAddr, nobody(t), all, strings.NewReplacer()); !maps.Equal(broken, none) {
		t.Errorf("with a broken credential %d of %d attempts are refused, without one %d; want the same", len(broken), len(all), len(none))
	}
}
