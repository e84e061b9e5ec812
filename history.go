package kbroker

import "time"

// HistoryRow is one stored version of an app, as `history` lists it.
type HistoryRow struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	Cause   string    `json:"cause"` // deploy, scale, rollback to N, restart
	// Changes are what differs from the version before, a line for each
	// service; empty: nothing.
	Changes []string `json:"changes"`
	Wanted  bool     `json:"wanted"`  // it is the version that is wanted now
	Good    bool     `json:"good"`    // the app was last well with it
	Running int      `json:"running"` // instances of it that are placed, without allocators
}

// RollbackRequest asks super to make a version with the content of an old one
// the wanted version.
type RollbackRequest struct {
	Tenant TenantID `json:"tenant"`
	App    AppName  `json:"app"`
	// Version is the old one; 0: the one before what is wanted now.
	Version int `json:"version,omitempty"`
	// Request is random, the same in every repetition of the request: super
	// does it once.
	Request string `json:"request"`
}

// RestartRequest asks super to replace instances by new ones that are started
// in the same way: all of an app, of one service, or a single one.
type RestartRequest struct {
	Tenant   TenantID    `json:"tenant"`
	App      AppName     `json:"app"`
	Service  ServiceName `json:"service,omitempty"`  // empty: all
	Instance InstanceID  `json:"instance,omitempty"` // with Service: only this one
	Request  string      `json:"request"`            // as in RollbackRequest
}
