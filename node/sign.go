package node

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/spec"
)

// credentialLife is that of an instance's credential (ADR 16), as a rule.
const credentialLife = time.Hour

// signInstance is the credential of a start of an instance that is placed, for who has its
// key.
func (i *identity) signInstance(p kbroker.Placement, r kbroker.SignRequest) (string, error) {
	if err := owns(r.Key, r.Proof, r.Claim(p.Host)); err != nil {
		return "", err
	}
	return i.grants.Sign(i.start(p, r.Incarnation, r.Key), i.now())
}

// start is the user of a start.
func (i *identity) start(p kbroker.Placement, incarnation kbroker.Incarnation, key string) grants.User {
	role := grants.Instance
	// No service of a spec has that name; a program that somebody runs beside the cluster may
	// call itself anything.
	if p.Service == kbroker.AllocatorService && p.Host != developmentHost {
		role = grants.Allocator
	}
	return grants.User{
		Role: role, Name: string(incarnation), Key: key, Life: i.life,
		Tags: map[string][]string{
			grants.TagTenant: {string(p.Tenant)}, grants.TagHost: {string(p.Host)}, grants.TagApp: {string(p.App)}, grants.TagService: {string(p.Service)},
			grants.TagInstance: {string(p.Instance)}, grants.TagIncarnation: {string(incarnation)}, grants.TagCall: callsOf(p), grants.TagObjects: objectsOf(p),
			grants.TagTopic: topicsOf(p),
		},
	}
}

// owns refuses who does not prove to have a key.
func owns(key string, proof []byte, claim kbroker.Claim) error {
	if err := credential.CheckProof(key, proof, claim); err != nil {
		return kbroker.Errorf(kbroker.Refused, "who asks does not prove to have the key: %v", err).
			WithHint("a key is signed for who has its secret half; is this program of the same version as the cluster?")
	}
	return nil
}

// developmentHost is in the credentials of programs that run on no host of the
// cluster: no host has this name.
const developmentHost kbroker.HostID = "_"

// signProgram is the credential of a program that runs beside the cluster: it may call
// what who asks may, and holds for as long as theirs at most. Who they are they show: what
// has asks's inbox may be a program of theirs, and this core may not have heard of them.
func (i *identity) signProgram(r kbroker.DevelopRequest, asks string, revoked func(key string) bool) (string, error) {
	by, until, err := i.grants.Developer(r.Credential, r.Tenant, i.now())
	switch {
	case err != nil:
		err = fmt.Errorf("the credential of who asks: %w", err)
	case by != asks:
		err = fmt.Errorf("the credential is of key %s, and the answer would go to %s", by, asks)
	case revoked(by):
		err = errors.New("the credential of who asks was taken back")
	}
	if err != nil {
		return "", kbroker.Errorf(kbroker.Refused, "%v", err).
			WithHint("ask with the credential of a deployer, operator or admin that you connect with; is this program of the same version as the cluster?")
	}
	if err := owns(r.Key, r.Proof, r.Claim()); err != nil {
		return "", err
	}
	p := kbroker.Placement{Tenant: r.Tenant, App: r.App, Service: r.Service, Instance: r.Instance, Host: developmentHost}
	p.Spec.Calls = []string{spec.AllServices}
	p.Spec.Subscribes = p.Spec.Calls
	u := i.start(p, r.Incarnation, r.Key)
	u.By, u.Until = by, until
	return i.grants.Sign(u, i.now())
}

// signUser is the credential of a user of the record, as long as it holds, for who has the
// key.
func (i *identity) signUser(u kbroker.User, r kbroker.UserRequest) (string, error) {
	if err := owns(u.Key, r.Proof, r.Claim()); err != nil {
		return "", err
	}
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
func callsOf(p kbroker.Placement) []string { return namesOf(p.App, p.Spec.Calls) }

// topicsOf is what an instance may hear, likewise, as in subjects.Topics.
func topicsOf(p kbroker.Placement) []string { return namesOf(p.App, p.Spec.Subscribes) }

func namesOf(own kbroker.AppName, others []string) []string {
	names := []string{string(own) + ".*"}
	for _, c := range others {
		if c == spec.AllServices {
			c = "*/*"
		}
		names = append(names, strings.ReplaceAll(c, "/", "."))
	}
	return names
}

// objectsOf are the apps whose objects an instance may call: of whose services it may call
// one. An app's objects are its own affair, whichever of its services has them.
func objectsOf(p kbroker.Placement) []string {
	var apps []string
	for _, call := range callsOf(p) {
		app, _, _ := strings.Cut(call, ".")
		if !slices.Contains(apps, app) {
			apps = append(apps, app)
		}
	}
	return apps
}

// signed reads what was signed for a start of an instance.
func (i *identity) signed(credential string) (kbroker.InstanceFile, kbroker.Revocation, error) {
	of, key, until, err := i.grants.Signed(credential)
	return of, kbroker.Revocation{User: key, Until: until}, err
}
