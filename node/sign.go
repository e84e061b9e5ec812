package node

import (
	"fmt"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/spec"
)

// credentialLife is that of an instance's credential (ADR 16), as a rule.
const credentialLife = time.Hour

// signInstance is the credential of a start of an instance that is placed.
func (i *identity) signInstance(p kbroker.Placement, r kbroker.SignRequest) (string, error) {
	role := grants.Instance
	if p.Spec.Artifact.Builtin == kbroker.BuiltinAllocator {
		role = grants.Allocator
	}
	return i.grants.Sign(grants.User{
		Role: role, Name: string(r.Incarnation), Key: r.Key, By: r.By, Until: r.Until, Life: i.life,
		Tags: map[string][]string{
			grants.TagTenant: {string(p.Tenant)}, grants.TagHost: {string(p.Host)}, grants.TagApp: {string(p.App)}, grants.TagService: {string(p.Service)},
			grants.TagInstance: {string(p.Instance)}, grants.TagIncarnation: {string(r.Incarnation)}, grants.TagCall: callsOf(p),
		},
	}, i.now())
}

// signUser is the credential of a user of the record, as long as it holds.
func (i *identity) signUser(u kbroker.User) (string, error) {
	now := i.now()
	user := grants.User{
		Role: grants.Role(u.Role), Name: string(u.Name), Key: u.Key, Tags: map[string][]string{grants.TagTenant: {string(u.Tenant)}},
	}
	if !u.Expires.IsZero() {
		if user.Life = u.Expires.Sub(now); user.Life <= 0 {
			return "", fmt.Errorf("it expired at %s", u.Expires.Format(time.RFC3339))
		}
	}
	return i.grants.Sign(user, now)
}

// callsOf is what an instance may call, as in subjects.Methods: its own app, and what
// its spec names. A program that a person runs beside the cluster may call what that
// person may.
func callsOf(p kbroker.Placement) []string {
	calls := []string{string(p.App) + ".*"}
	for _, c := range p.Spec.Calls {
		if c == spec.AllServices {
			c = "*/*"
		}
		calls = append(calls, strings.ReplaceAll(c, "/", "."))
	}
	return calls
}

// signed reads what was signed for a start of an instance.
func (i *identity) signed(credential string) (kbroker.HostID, kbroker.Revocation, error) {
	host, key, until, err := i.grants.Signed(credential)
	return kbroker.HostID(host), kbroker.Revocation{User: key, Until: until}, err
}
