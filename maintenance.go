package kbroker

import "time"

// MaintenanceLimit is how long a leave to go down lasts at most, by the
// leader's own clock: after that another host may have it, whatever became of
// who took it.
const MaintenanceLimit = 5 * time.Minute

// Maintenance is a host's leave to go down for a moment: an agent is upgraded.
// One host of the cluster has it at a time.
type Maintenance struct {
	Holder string    `json:"holder"` // random, one per upgrade
	Since  time.Time `json:"since"`  // wall clock, for display
	// Silent is how long the host may be silent meanwhile, where that is longer than
	// a restart takes.
	Silent time.Duration `json:"silent,omitempty"`
}

// MaintainRequest asks super for the leave of a host to go down, or (Done) gives
// it back. Asked again by the same holder it changes nothing.
type MaintainRequest struct {
	Host   HostID `json:"host"`
	Holder string `json:"holder"`
	Done   bool   `json:"done,omitempty"`
	// Silent is how long the host may be silent before it is judged as any other.
	Silent time.Duration `json:"silent,omitempty"`
}

// MaintainReply grants it. Warning: what stops meanwhile all the same.
type MaintainReply struct {
	Unchanged bool   `json:"unchanged,omitempty"`
	Warning   string `json:"warning,omitempty"`
}
