package super

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestAProgramIsSignedForByWhoShowsWhoTheyAre: what is looked at is the request of the
// tenant, and whose inbox its answer goes to. What is refused is refused as it is told.
func TestAProgramIsSignedForByWhoShowsWhoTheyAre(t *testing.T) {
	d := startSuper(t, func(c *Config) {
		c.Develop = func(r kbroker.DevelopRequest, asks string) (string, error) {
			if r.Credential != "of "+asks {
				return "", kbroker.Errorf(kbroker.Refused, "it is %s", r.Credential).WithHint("show your own")
			}
			return "for " + asks + " of " + string(r.Tenant), nil
		}
	})
	ask := kbroker.DevelopRequest{Tenant: "other", App: "shop", Service: "web", Instance: "shop-web-dev", Incarnation: "shop-web-dev.1"}
	ann := publicKey(1)
	d.nc.Opts.InboxPrefix = subjects.Inbox(ann)
	var reply kbroker.SignReply
	ask.Credential = "of " + ann
	develop := func() error { return d.ask(subjects.Core(subjects.VerbDevelop, tenant), ask, &reply) }
	wait.Until(t, 10*time.Second, func() error {
		err := develop()
		if errors.Is(err, nats.ErrNoResponders) {
			return err
		}
		if err != nil || reply.Credential != "for "+ann+" of default" {
			t.Fatalf("%+v, %v", reply, err)
		}
		return nil
	})
	ask.Credential = "of " + publicKey(2)
	err := develop()
	if !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint != "show your own" {
		t.Errorf("with what another has: %v, want refused with the hint", err)
	}
	ask.Credential, ask.Incarnation = "of "+ann, "shop-web-1.1"
	if err := develop(); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a start of another instance: %v, want invalid", err)
	}
}

// TestNoKeyIsOnRecordThatWasNotProved: neither what a worker asks with that has not proved
// to have it, nor what a core names.
func TestNoKeyIsOnRecordThatWasNotProved(t *testing.T) {
	notYours := kbroker.Errorf(kbroker.Invalid, "the key is not yours")
	d := startSuper(t, func(c *Config) {
		c.Admit = func(r kbroker.JoinRequest, _ *kbroker.JoinReply) error {
			if r.User == publicKey(7) {
				return notYours
			}
			return nil
		}
	})
	shown := makeToken(t, d, kbroker.RoleWorker)
	r := kbroker.JoinRequest{Host: "w1", Role: kbroker.RoleWorker, Fingerprint: "w", User: publicKey(1), Token: shown}
	join := func(user string) (err error) {
		r.User = user
		wait.Until(t, 10*time.Second, func() error {
			var reply kbroker.JoinReply
			err = d.ask(subjects.Join, r, &reply)
			if reply.Wait != "" {
				return errors.New(reply.Wait)
			}
			return nil
		})
		return err
	}
	if err := join(publicKey(7)); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a host joins with another's key: %v", err)
	}
	for _, step := range []struct {
		user string
		ok   bool
	}{{publicKey(1), true}, {publicKey(7), false}, {publicKey(2), true}} {
		if err := join(step.user); (err == nil) != step.ok {
			t.Fatalf("with key %s: %v", step.user, err)
		}
	}
	if h := d.store.Load().Peek().Hosts["w1"]; h.User != publicKey(2) || !slices.Equal(h.Revoked, []string{publicKey(1)}) {
		t.Errorf("on record is %+v, want its last key, and the first one taken back", h)
	}
	j := newJoiner(t)
	core := hostAsks("h2", kbroker.RoleCore, j.fresh(kbroker.RoleCore, ""))
	core.User = publicKey(7)
	j.must(core)
	j.onRecord(t, "h2", "")
}
