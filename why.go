package kbroker

import "time"

// WhyRequest asks a core why an app, or one of its instances, is as it is.
type WhyRequest struct {
	Tenant   TenantID   `json:"tenant"`
	App      AppName    `json:"app"`
	Instance InstanceID `json:"instance,omitempty"`
}

// WhyReply has App, or with an instance in the request Instance.
type WhyReply struct {
	Basis    Basis        `json:"basis"`
	App      *WhyApp      `json:"app,omitempty"`
	Instance *WhyInstance `json:"instance,omitempty"`
}

// Basis is what an answer rests on.
type Basis struct {
	Core   HostID  `json:"core"`   // who answered
	Leader *HostID `json:"leader"` // the super, as this core hears; null: none
	// Current is true when the store was read behind a barrier; else the answer
	// is what this core knew last.
	Current  bool   `json:"current"`
	Revision uint64 `json:"revision"` // of the control store
	// Notes say what is missing: a leader, a majority, the events.
	Notes []string `json:"notes"`
}

// WhyApp is an app with what decides where it runs.
type WhyApp struct {
	Row     AppRow    `json:"row"`
	Created time.Time `json:"created"` // of the wanted version
	Cause   string    `json:"cause"`
	Rollout Rollout   `json:"rollout"`
	Demand  *Demand   `json:"demand"` // null: the allocator has not spoken
	// Policy is PolicyOwn, or the built-in one that decides; Instead which one does where an
	// own one is refused.
	Policy   string       `json:"policy,omitempty"`
	Instead  string       `json:"instead,omitempty"`
	Services []WhyService `json:"services"`
	Events   []Event      `json:"events"` // the latest, oldest first
}

// WhyService is one service: its numbers, and what each host says to one more
// instance of it.
type WhyService struct {
	Service ServiceName `json:"service"`
	Count   Count       `json:"count"` // what the spec allows
	Wanted  int         `json:"wanted"`
	Placed  int         `json:"placed"`
	Ready   int         `json:"ready"`
	// Troubles are the first instances that are placed and not ready, with the
	// reason.
	Troubles []string  `json:"troubles"`
	Hosts    []HostFit `json:"hosts"` // at most MaxHostFits, the best first
}

// HostFit is what a host says to one more instance of a service.
type HostFit struct {
	Host HostID    `json:"host"`
	Fits bool      `json:"fits"`
	Rank int       `json:"rank,omitempty"` // 1: it would be taken next
	Same int       `json:"same"`           // instances of the service there
	Why  []string  `json:"why"`            // all that refuses it
	Ask  Resources `json:"asked"`
	Free Resources `json:"free"`
}

// WhyInstance is an instance: running, stopped, moved or gone.
type WhyInstance struct {
	// Placement is what is demanded; null: nothing is, any more.
	Placement *Placement `json:"placement"`
	// Status is what its agent reported last; null: nothing, or long ago.
	Status *Status       `json:"status"`
	State  InstanceState `json:"state"` // as ps shows it
	Host   HostID        `json:"host,omitempty"`
	Reason string        `json:"reason"` // why it is in that state
	Events []Event       `json:"events"` // its history, oldest first
}
