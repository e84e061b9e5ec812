package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// VerbDemand is that of subjects of Demand.
const VerbDemand = "demand"

// Demand is where the allocator of an app asks for instances; only the leader answers.
func Demand(t kbroker.TenantID, a kbroker.AppName) string {
	return "kb.demand." + string(t) + "." + string(a)
}

// AllDemands are the subjects of Demand.
const AllDemands = "kb.demand.*.*"

// ParseDemand splits a subject of Demand.
func ParseDemand(subject string) (t kbroker.TenantID, a kbroker.AppName, ok bool) {
	return parseOfApp(subject, VerbDemand)
}

// Lease is where the allocators of an app read and write the lease of the active one;
// any core answers.
func Lease(t kbroker.TenantID, a kbroker.AppName) string {
	return "kb.lease." + string(t) + "." + string(a)
}

// AllLeases are the subjects of Lease.
const AllLeases = "kb.lease.*.*"

// ParseLease splits a subject of Lease.
func ParseLease(subject string) (t kbroker.TenantID, a kbroker.AppName, ok bool) {
	return parseOfApp(subject, "lease")
}

// parseOfApp splits kb.<kind>.<tenant>.<app>.
func parseOfApp(subject, kind string) (t kbroker.TenantID, a kbroker.AppName, ok bool) {
	s := strings.Split(subject, ".")
	if len(s) != 4 || s[0] != "kb" || s[1] != kind || s[2] == "" || s[3] == "" {
		return "", "", false
	}
	return kbroker.TenantID(s[2]), kbroker.AppName(s[3]), true
}

// Ownership is the stream of an app's leases, and of who owns its objects; the names
// it is made of contain no underscore.
func Ownership(t kbroker.TenantID, a kbroker.AppName) (stream, all string) {
	return "OWN_" + string(t) + "_" + string(a), ownershipPrefix(t, a) + ">"
}

// AllocatorLease is the subject of the lease of an app's active allocator.
func AllocatorLease(t kbroker.TenantID, a kbroker.AppName) string {
	return ownershipPrefix(t, a) + KeyAllocatorLease
}

// IsAllocatorLease reports whether a subject is that of an app's AllocatorLease.
func IsAllocatorLease(subject string) bool {
	t := strings.Split(subject, ".")
	return len(t) == 5 && AllocatorLease(kbroker.TenantID(t[1]), kbroker.AppName(t[2])) == subject
}

func ownershipPrefix(t kbroker.TenantID, a kbroker.AppName) string {
	return "own." + string(t) + "." + string(a) + "."
}
