package state

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Change is one write of super. Closed: only this package implements it.
type Change interface {
	// String says what changes, for logs and events.
	String() string
	change()
}

// The changes.
type (
	PutApp        struct{ Record kbroker.AppRecord }
	PutVersion    struct{ Version kbroker.AppVersion } // refused if it exists
	PutPlacement  struct{ Placement kbroker.Placement }
	DropPlacement struct{ Key PlacementKey }
	PutHost       struct{ Host kbroker.Host }
	DropHost      struct{ Host kbroker.HostID }
	PutDemand     struct{ Demand kbroker.Demand }
	PutToken      struct{ Token kbroker.Token }
	DropToken     struct{ ID string }
	PutUser       struct{ User kbroker.User }
	DropUser      struct{ Key UserKey }
	// PutAudit has the audit trail tell the commit that it is a part of.
	PutAudit struct{ Record kbroker.AuditRecord }
)

func (PutApp) change()        {}
func (PutVersion) change()    {}
func (PutPlacement) change()  {}
func (DropPlacement) change() {}
func (PutHost) change()       {}
func (DropHost) change()      {}
func (PutDemand) change()     {}
func (PutToken) change()      {}
func (DropToken) change()     {}
func (PutUser) change()       {}
func (DropUser) change()      {}
func (PutAudit) change()      {}

func (c PutApp) String() string {
	verb := "run"
	if c.Record.Stopped {
		verb = "stop"
	}
	return fmt.Sprintf("%s app %s/%s version %d, rollout %s", verb, c.Record.Tenant, c.Record.App, c.Record.Version, c.Record.Rollout.State)
}

func (c PutVersion) String() string {
	return fmt.Sprintf("store app %s/%s version %d (%s)", c.Version.Tenant, c.Version.App.Name, c.Version.Version, c.Version.Cause)
}

func (c PutPlacement) String() string {
	p := c.Placement
	if p.Stop {
		return fmt.Sprintf("stop %s/%s on %s, epoch %d: %s", p.Tenant, p.Instance, p.Host, p.Epoch, p.StopReason)
	}
	return fmt.Sprintf("place %s/%s on %s, version %d, epoch %d", p.Tenant, p.Instance, p.Host, p.Version, p.Epoch)
}

func (c DropPlacement) String() string {
	return fmt.Sprintf("drop placement %s/%s on %s", c.Key.Tenant, c.Key.Instance, c.Key.Host)
}

func (c PutHost) String() string {
	return fmt.Sprintf("host %s (%s) is %s", c.Host.Name, c.Host.Role, c.Host.State)
}

func (c DropHost) String() string { return fmt.Sprintf("drop host %s", c.Host) }

func (c PutDemand) String() string {
	return fmt.Sprintf("demand of %s/%s, epoch %d: %v", c.Demand.Tenant, c.Demand.App, c.Demand.Epoch, c.Demand.Wanted)
}

func (c PutToken) String() string {
	t := c.Token
	switch {
	case !t.Revoked.IsZero():
		return fmt.Sprintf("join token %s is revoked", t.ID)
	case t.Used != nil:
		return fmt.Sprintf("join token %s is used up by host %s, generation %d", t.ID, t.Used.Host, t.Used.Generation)
	case t.Waits != nil:
		return fmt.Sprintf("join token %s is kept for host %s, which waits", t.ID, t.Waits.Host)
	}
	return fmt.Sprintf("join token %s for a %s, until %s", t.ID, t.Role, t.Expires.Format(time.RFC3339))
}

func (c PutAudit) String() string {
	return fmt.Sprintf("audit change %d: %s by %s", c.Record.Changes, c.Record.Action, c.Record.Actor)
}

func (c DropToken) String() string { return fmt.Sprintf("drop join token %s", c.ID) }

func (c PutUser) String() string {
	u := c.User
	switch {
	case !u.Revoked.IsZero():
		return fmt.Sprintf("user %s/%s is revoked", u.Tenant, u.Name)
	case u.Expires.IsZero():
		return fmt.Sprintf("user %s/%s is %s", u.Tenant, u.Name, u.Role)
	}
	return fmt.Sprintf("user %s/%s is %s, until %s", u.Tenant, u.Name, u.Role, u.Expires.Format(time.RFC3339))
}

func (c DropUser) String() string { return fmt.Sprintf("drop user %s/%s", c.Key.Tenant, c.Key.Name) }

// SortChanges brings changes into the order in which Commit writes them: what the audit
// trail is to tell of them first, so that none is ever made and not told;
// versions and apps before the placements that name them, demands, tokens, users and
// hosts last, a token before the host that it admits: a batch of which only the
// beginning was written admits nobody with a token that is good for another one;
// within a kind by key. Changes of the same key keep their order.
func SortChanges(changes []Change) {
	slices.SortStableFunc(changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(keyOf(a), keyOf(b)))
	})
}

func rank(c Change) int {
	switch c.(type) {
	case PutAudit:
		return -1
	case PutVersion:
		return 0
	case PutApp:
		return 1
	case PutPlacement, DropPlacement:
		return 2
	case PutDemand:
		return 3
	case PutToken, DropToken:
		return 4
	case PutUser, DropUser:
		return 5
	default:
		return 6
	}
}

// keyOf is the key of the control bucket that c writes.
func keyOf(c Change) string {
	switch c := c.(type) {
	case PutApp:
		return subjects.KeyApp(c.Record.Tenant, c.Record.App)
	case PutVersion:
		return subjects.KeyVersion(c.Version.Tenant, c.Version.App.Name, c.Version.Version)
	case PutPlacement:
		return subjects.KeyPlacement(c.Placement.Host, c.Placement.Tenant, c.Placement.Instance)
	case DropPlacement:
		return subjects.KeyPlacement(c.Key.Host, c.Key.Tenant, c.Key.Instance)
	case PutHost:
		return subjects.KeyHost(c.Host.Name)
	case DropHost:
		return subjects.KeyHost(c.Host)
	case PutDemand:
		return subjects.KeyDemand(c.Demand.Tenant, c.Demand.App)
	case PutToken:
		return subjects.KeyToken(c.Token.ID)
	case DropToken:
		return subjects.KeyToken(c.ID)
	case PutUser:
		return subjects.KeyUser(c.User.Tenant, c.User.Name)
	case DropUser:
		return subjects.KeyUser(c.Key.Tenant, c.Key.Name)
	case PutAudit:
		return subjects.KeyAudit(AuditSlot(c.Record.Changes))
	}
	panic(fmt.Sprintf("state: unknown change %T", c))
}
