package grants

import (
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Names of the accounts, for people; a tenant's follows tenantName.
const (
	systemName  = "SYS"
	controlName = "control"
	gateName    = "gate"
	tenantName  = "tenant "
)

// maxConnections bounds the connections of a tenant's account: a process has one, or
// for a moment two.
const maxConnections = 50_000

// maxStrangers bounds the connections of who shows no credential, to each server: a host
// that joins has one for a moment.
const maxStrangers = 1000

// What crosses from one account to another. All of it are streams of NATS: a message,
// and the subject that its answer is wanted on, goes over as it is, one way. So whoever
// answers sees where its answer goes, and is asked by the server whether it may publish
// there. With services of NATS the server would send the answer to wherever the one
// who asks names, of whatever it may publish to.

// asked is what control hears of a tenant.
func asked(t kbroker.TenantID) []string {
	return []string{
		subjects.Super("*", t, "*"), subjects.Core("*", t), subjects.Demand(t, "*"), subjects.Upload("*", t, "*"),
		subjects.Host("*", "*", t), subjects.Lease(t, "*"), subjects.AllRenews, subjects.Pong(t, "*", "*"), subjects.Endpoints(t, "*", "*"),
		subjects.Own(t, "*", "*", "*.*"), subjects.TopicAsk(t, "*", "*", "*", "*.*"), subjects.Kept(t, "*.*", "*", "*"),
	}
}

// told is what a tenant hears of control: answers to who has their inbox, questions to
// processes, changes of its own placements and apps, and of who owns their objects, and
// which of their starts have ended.
func told(t kbroker.TenantID) []string {
	return []string{
		subjects.AllInboxes, subjects.Ping(t, ">"), subjects.Keeper(t, ">"),
		subjects.Changed(subjects.KeyPlacement("*", t, "*")), subjects.Changed(subjects.KeyApp(t, "*")),
		subjects.AllOwned(t), subjects.Reaped(t, "*"),
	}
}

// What control hears of who shows no credential, and answers.
var (
	askedByNobody = []string{subjects.Join}
	toldToNobody  = []string{subjects.GateInbox + ".>"}
)

// Accounts are the claims of all accounts, by public key. revoked are users, by public
// key, that are out, with the time up to which what was signed for them is.
func (a *Authority) Accounts(revoked map[string]time.Time) map[string]*jwt.AccountClaims {
	system := jwt.NewAccountClaims(a.System())
	system.Name = systemName
	all := map[string]*jwt.AccountClaims{a.System(): system}
	for _, acc := range a.accounts {
		c := jwt.NewAccountClaims(acc.public)
		c.Name, c.Limits.LeafNodeConn = acc.name, 0
		for role, k := range acc.roles {
			scope := jwt.NewUserScope()
			scope.Key, scope.Role = k.public, string(role)
			scope.Template = roles[role].template()
			c.SigningKeys.AddScopedSigner(scope)
		}
		for user, at := range revoked {
			if a.revocable(user) {
				c.RevokeAt(user, at)
			}
		}
		all[acc.public] = c
	}
	control := all[a.Control()]
	control.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit, MaxAckPending: jwt.NoLimit,
		MemoryMaxStreamBytes: jwt.NoLimit, DiskMaxStreamBytes: jwt.NoLimit,
	}
	for _, acc := range a.accounts[1:] {
		c := all[acc.public]
		asks, hears := askedByNobody, toldToNobody
		if acc.tenant != "" {
			asks, hears = asked(acc.tenant), told(acc.tenant)
			c.Limits.Conn = maxConnections
		} else {
			c.Limits.Conn = maxStrangers
		}
		c.Limits.DisallowBearer = acc.tenant != ""
		cross(c, control, asks)
		cross(control, c, hears)
	}
	return all
}

// revocable reports whether a key can be taken back: that of the gate is everybody's who
// is to be let in, and what is no key may be all of them, as * is.
func (a *Authority) revocable(key string) bool {
	return key != a.gate.public && nkeys.IsValidPublicUserKey(key)
}

// cross has messages to subjects in one account be heard in the other, too.
func cross(from, to *jwt.AccountClaims, subjects []string) {
	for _, s := range subjects {
		s := jwt.Subject(s)
		if !slices.ContainsFunc(from.Exports, func(e *jwt.Export) bool { return e.Subject == s }) {
			from.Exports.Add(&jwt.Export{Name: string(s), Subject: s, Type: jwt.Stream})
		}
		to.Imports.Add(&jwt.Import{Name: from.Name + " " + string(s), Account: from.Subject, Subject: s, Type: jwt.Stream})
	}
}

// Encode signs the claims of an account.
func (a *Authority) Encode(c *jwt.AccountClaims) (string, error) { return c.Encode(a.operator) }
