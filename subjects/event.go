package subjects

import (
	"cmp"

	"github.com/kbroker/kbroker"
)

// The stream of events.
const (
	EventStream = "events"
	EventAll    = eventPrefix + ">"

	eventPrefix = "event."
	// eventNothing stands for a name that an event does not have; it is no name.
	eventNothing = "_"
)

// Event is where an event is stored; empty names stand for those it is not
// about.
func Event(t kbroker.TenantID, a kbroker.AppName, i kbroker.InstanceID) string {
	return eventPrefix + cmp.Or(string(t), eventNothing) + "." + cmp.Or(string(a), eventNothing) + "." + cmp.Or(string(i), eventNothing)
}

// EventsOf matches the events of an app (of a tenant, when app is empty), or
// with an instance those of that one.
func EventsOf(t kbroker.TenantID, a kbroker.AppName, i kbroker.InstanceID) string {
	return eventPrefix + string(t) + "." + cmp.Or(string(a), "*") + "." + cmp.Or(string(i), "*")
}
