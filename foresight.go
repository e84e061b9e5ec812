package kbroker

// PlanRequest asks a core what deploying App would do. Services whose program
// is not there yet have no digest.
type PlanRequest struct {
	Tenant TenantID `json:"tenant"`
	App    App      `json:"app"`
}

// PlanReply is what a deploy would do, as far as one can know now.
type PlanReply struct {
	App       AppName `json:"app"`
	Version   int     `json:"version"`   // that would be wanted
	From      int     `json:"from"`      // that is wanted now; 0: none
	Unchanged bool    `json:"unchanged"` // the app runs like this already: nothing would be written
	// CheckIndex changes with the app's wanted state and with its placements.
	// A deploy that names it is refused once they are not the same any more.
	CheckIndex uint64        `json:"check_index"`
	Services   []ServicePlan `json:"services"`
	// Start and Leave are the first MaxPlanned, in the order in which they
	// would; Starts and Leaves count all.
	Start    []PlannedInstance `json:"start"`
	Leave    []PlannedInstance `json:"leave"`
	Starts   int               `json:"starts"`
	Leaves   int               `json:"leaves"`
	Unplaced []UnplacedPlan    `json:"unplaced"` // for what no host has room
	Warnings []string          `json:"warnings"`
}

// Bounds of an answer: what is beyond them is counted, not listed.
const (
	MaxPlanned  = 1000 // instances of a plan
	MaxHostFits = 50   // hosts of a service, the best ones
)

// ServiceChange is what becomes of a service.
type ServiceChange string

const (
	ServiceNew       ServiceChange = "new"
	ServiceChanged   ServiceChange = "changed"
	ServiceRemoved   ServiceChange = "removed"
	ServiceUnchanged ServiceChange = "unchanged"
)

// ChangeMode is how running instances get there.
type ChangeMode string

const (
	ModeStart   ChangeMode = "start"    // all at once
	ModeRolling ChangeMode = "rolling"  // replaced one after the other, new ones first
	ModeInPlace ChangeMode = "in place" // nothing that runs is restarted
	ModeStop    ChangeMode = "stop"
)

// ServicePlan is the part of a plan that concerns one service.
type ServicePlan struct {
	Service ServiceName   `json:"service"`
	Change  ServiceChange `json:"change"`
	Mode    ChangeMode    `json:"mode,omitempty"` // empty: nothing to do
	Changes []string      `json:"changes"`        // in words
	Before  int           `json:"before"`         // instances wanted now
	After   int           `json:"after"`
}

// PlannedInstance would be started or stopped. The name of one that would be
// started may turn out to be another.
type PlannedInstance struct {
	Service  ServiceName `json:"service"`
	Instance InstanceID  `json:"instance"`
	Host     HostID      `json:"host"`
	Version  int         `json:"version"`
	Reason   string      `json:"reason,omitempty"` // of a stop
}

// UnplacedPlan is demand that no host could take, with each host's reason.
type UnplacedPlan struct {
	Service ServiceName `json:"service"`
	Count   int         `json:"count"`
	Hosts   []HostFit   `json:"hosts"` // at most MaxHostFits
}
