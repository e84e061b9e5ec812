// Package kbroker is the vocabulary of the system: the names, the app spec's
// model, the records of the control store, the messages of the control API and
// the one error type. It has no I/O and imports only the standard library, so
// that every part can speak it.
package kbroker

import (
	"fmt"
	"regexp"
	"strings"
)

// Names that must not be mixed up. Each is one NATS subject token: lower-case
// letters, digits and dashes; see CheckName.
type (
	// TenantID names an isolated user of the cluster.
	TenantID string
	// AppName names one deployed application of a tenant.
	AppName string
	// ServiceName names one program of an app.
	ServiceName string
	// HostID names one server. It is also the broker's server name and is
	// bound to the host's data directory for ever.
	HostID string
	// InstanceID names one wanted process of a service on one host; unique in
	// its tenant: <app>-<service>-<suffix>.
	InstanceID string
	// Incarnation names one start of an instance: <instance>.<16 hex digits>.
	// What owns, leases and is fenced is an incarnation.
	Incarnation string
)

// Instance is the instance that it is a start of.
func (i Incarnation) Instance() InstanceID {
	name, _, _ := strings.Cut(string(i), ".")
	return InstanceID(name)
}

const (
	// DefaultTenant is the only tenant until tenants are managed.
	DefaultTenant TenantID = "default"
	// AllocatorService is the reserved service name of an app's allocator.
	AllocatorService ServiceName = "allocator"
	// MaxNameBytes bounds app, service, host and tenant names.
	MaxNameBytes = 40
)

// NamePattern is the form of a name, as a regular expression.
const NamePattern = `^[a-z]([a-z0-9-]*[a-z0-9])?$`

var nameForm = regexp.MustCompile(NamePattern)

// CheckName reports why name is not usable as the name of a thing (what: "app",
// "service", "host", "tenant"), or nil. The error has code Invalid and a hint.
func CheckName(what, name string) error {
	switch {
	case name == "":
		return &Error{Code: Invalid, Message: what + " name is empty", Hint: nameHint}
	case len(name) > MaxNameBytes:
		return &Error{Code: Invalid, Message: fmt.Sprintf("%s name %.20q... has %d bytes, at most %d are allowed", what, name, len(name), MaxNameBytes), Hint: nameHint}
	case !nameForm.MatchString(name):
		return &Error{Code: Invalid, Message: fmt.Sprintf("%s name %q is not valid", what, name), Hint: nameHint}
	}
	return nil
}

const nameHint = "use lower-case letters, digits and dashes, starting with a letter, without a dot"
