package kbroker

import "time"

// The records of the control store. Each has one writer (ARCHITECTURE.md says
// which); package state is the only one that writes them.

// AppRecord is the head of an app: which version is wanted now, and how far
// its rollout is. Key app.<tenant>.<app>; written by super.
type AppRecord struct {
	Tenant  TenantID `json:"tenant"`
	App     AppName  `json:"app"`
	Version int      `json:"version"` // the wanted version, 1 and up
	Latest  int      `json:"latest"`  // the highest version ever made
	Stopped bool     `json:"stopped,omitempty"`
	// NextInstance numbers the app's instances; never reused.
	NextInstance int `json:"next_instance"`
	// ObjectStreams is how many streams the app's objects are in, from its first version
	// with objects on; 0: there was none.
	ObjectStreams int `json:"object_streams,omitempty"`
	// WriteSchemas are those that the states of kinds are written in at most, which all
	// placements and the version to return to can read; a kind that is not there: the
	// first. They only grow.
	WriteSchemas map[KindName]int `json:"write_schemas,omitempty"`
	Rollout      Rollout          `json:"rollout"`
	// Unplaced says what no host can take now, per service.
	Unplaced []Unplaced `json:"unplaced,omitempty"`
}

// RolloutState is where the change to an app's wanted version stands.
type RolloutState string

const (
	RolloutRunning RolloutState = "running"
	RolloutDone    RolloutState = "done"
	RolloutFailed  RolloutState = "failed"
)

// Rollout is the change from one version to another.
type Rollout struct {
	State   RolloutState `json:"state"`
	From    int          `json:"from,omitempty"` // the version before; 0 for a first deploy
	Reason  string       `json:"reason,omitempty"`
	Started time.Time    `json:"started"` // wall clock of the leader, for display
}

// Unplaced is demand that no host can take now.
type Unplaced struct {
	Service ServiceName `json:"service"`
	Count   int         `json:"count"`
	Reason  string      `json:"reason"`
}

// AppVersion is one stored version of an app's spec, immutable. Key
// app.<tenant>.<app>.v<N>; written by super.
type AppVersion struct {
	Tenant  TenantID  `json:"tenant"`
	Version int       `json:"version"`
	App     App       `json:"app"`
	Created time.Time `json:"created"` // wall clock, for display
	Cause   string    `json:"cause"`   // deploy, scale, rollback to N, restart
	// Request names the request that made it, where one sent twice would make
	// two.
	Request string `json:"request,omitempty"`
}

// Placement says that a host must run an instance, or (Stop) that it must not
// run it any more. Key place.<host>.<tenant>.<instance>; written by super.
type Placement struct {
	Tenant   TenantID    `json:"tenant"`
	App      AppName     `json:"app"`
	Service  ServiceName `json:"service"`
	Instance InstanceID  `json:"instance"`
	Host     HostID      `json:"host"`
	Version  int         `json:"version"` // the app version it belongs to now
	// Epoch grows with every change of what this record demands; a process
	// started under a lower one must leave.
	Epoch uint64 `json:"epoch"`
	// Stop makes the record a tombstone: kept until the agent has confirmed
	// the exit.
	Stop       bool   `json:"stop,omitempty"`
	StopReason string `json:"stop_reason,omitempty"`
	// Replace says why the instance is to be replaced, a new one first; empty:
	// it is not.
	Replace string `json:"replace,omitempty"`
	// Template is the hash of what the process is started from. A changed
	// template makes a new instance; anything else is updated in place.
	Template string  `json:"template"`
	Spec     Service `json:"spec"`
	// ObjectStreams are those of its app, of a service that has objects.
	ObjectStreams int `json:"object_streams,omitempty"`
	// WriteSchemas are those of its app, likewise.
	WriteSchemas map[KindName]int `json:"write_schemas,omitempty"`
	// Backoff is the number of crashes in a row that a replaced predecessor
	// had elsewhere: the delay before restarts goes with the instance.
	Backoff int `json:"backoff,omitempty"`
	// Failed are the hosts on which predecessors of the instance crashed again and
	// again, the last one last: it is not tried there once more so soon.
	Failed []HostID `json:"failed,omitempty"`
}

// Head is written in every batch that changes a host's placements. A view
// whose placements hash to it is complete. Key head.<host>; written by super.
type Head struct {
	Host     HostID `json:"host"`
	Revision uint64 `json:"revision"` // counts the batches that touched this host
	Count    int    `json:"count"`    // placement records, tombstones included
	Hash     string `json:"hash"`     // PlacementsHash
}

// HostState is what the cluster thinks of a host.
type HostState string

const (
	HostJoining HostState = "joining" // admitted, not yet seen
	HostReady   HostState = "ready"
	HostSuspect HostState = "suspect" // not heard for a moment; never stored
	HostLost    HostState = "lost"    // its instances run elsewhere
	HostRemoved HostState = "removed" // by an operator, for ever: its agent must end
	// HostDraining is ready and takes nothing new; shown, never stored (Host.Drain
	// is).
	HostDraining HostState = "draining"
)

// Role of a host.
type Role string

const (
	RoleCore   Role = "core"
	RoleWorker Role = "worker"
)

// Host is one server of the cluster. Key host.<host>; written by super.
type Host struct {
	Name     HostID            `json:"name"`
	Role     Role              `json:"role"`
	State    HostState         `json:"state"`
	Labels   map[string]string `json:"labels,omitempty"` // os, arch, host and the operator's own
	Capacity Resources         `json:"capacity"`
	// Client and Route are the addresses (host:port) of a core's broker.
	Client string `json:"client,omitempty"`
	Route  string `json:"route,omitempty"`
	// Address is where others reach what listens on the host: an IP.
	Address string    `json:"address,omitempty"`
	Since   time.Time `json:"since"` // of State; wall clock, for display
	// Fingerprint is that of the host's data directory: who asks under this name
	// with another one is another host.
	Fingerprint string `json:"fingerprint,omitempty"`
	// User is the public key of a worker's credential, the one that is signed; Revoked
	// are those that it has lost, and those of earlier admissions of the name.
	User    string   `json:"user,omitempty"`
	Revoked []string `json:"revoked,omitempty"`
	// Generation counts the admissions of the name. Whoever carries a lower one,
	// or that of a removed host, is not a member any more.
	Generation int `json:"generation,omitempty"`
	// CredentialLife is how long what this core signs for instances holds, as it said
	// last: see SignsFor.
	CredentialLife time.Duration `json:"credential_life,omitempty"`
	// Drain is set while the host gives its instances to others and takes no new
	// ones.
	Drain *Drain `json:"drain,omitempty"`
	// Maintenance is set while the host has leave to go down.
	Maintenance *Maintenance `json:"maintenance,omitempty"`
}

// Drain is an operator's wish that a host becomes empty.
type Drain struct {
	Since time.Time `json:"since"` // wall clock, for display
	// Force stops what no other host can take, instead of waiting for room.
	Force bool `json:"force,omitempty"`
}

// Member reports whether the host belongs to the cluster: it was not removed.
func (h Host) Member() bool { return h.Name != "" && h.State != HostRemoved }

// Core reports whether the host counts as one of the cores: a member that has
// been seen.
func (h Host) Core() bool { return h.Member() && h.Role == RoleCore && h.State != HostJoining }

// Removed reports whether a host that was admitted under the given generation
// has been removed since. 0, of a host older than generations, is only removed
// while the name is.
func (h Host) Removed(generation int) bool {
	return h.Name != "" && (h.State == HostRemoved && generation <= h.Generation || generation != 0 && generation < h.Generation)
}

// Demand is how many instances the app's allocator wants. Key
// demand.<tenant>.<app>; written by super on the active allocator's request.
type Demand struct {
	Tenant TenantID            `json:"tenant"`
	App    AppName             `json:"app"`
	Epoch  uint64              `json:"epoch"` // the allocator's lease epoch; a lower one is refused
	Wanted map[ServiceName]int `json:"wanted"`
	Reason string              `json:"reason,omitempty"`
	// Holds is how much each instance has that has to move if it leaves: where fewer are wanted,
	// those of least go first. One that is not named has nothing.
	Holds map[InstanceID]int `json:"holds,omitempty"`
	// Refused says why the app's own policy does not decide, and the one of its spec does;
	// empty: nothing is refused.
	Refused string `json:"refused,omitempty"`
}

// InstanceState is where an instance is in its life.
type InstanceState string

const (
	StatePending   InstanceState = "pending"   // wanted, not started
	StateStarting  InstanceState = "starting"  // artifact on its way, or process not yet up
	StateRunning   InstanceState = "running"   // process runs, not ready
	StateReady     InstanceState = "ready"     // answers
	StateDraining  InstanceState = "draining"  // asked to leave
	StateBackoff   InstanceState = "backoff"   // crashed, waits for its next start
	StateExited    InstanceState = "exited"    // stopped for good
	StateUnmanaged InstanceState = "unmanaged" // may run, but its agent is not there; never stored
	StateUnknown   InstanceState = "unknown"   // what was reported last is no news: its host is lost or was removed; never stored
)

// Status is what an agent last reported of an instance on its host. Key
// status.<host>.<tenant>.<instance> in the status bucket.
type Status struct {
	Tenant      TenantID      `json:"tenant"`
	App         AppName       `json:"app"`
	Service     ServiceName   `json:"service"`
	Instance    InstanceID    `json:"instance"`
	Host        HostID        `json:"host"`
	Version     int           `json:"version"`
	Epoch       uint64        `json:"epoch"` // of the placement it acts on
	Incarnation Incarnation   `json:"incarnation,omitempty"`
	State       InstanceState `json:"state"`
	PID         int           `json:"pid,omitempty"` // 0: no process
	Restarts    int           `json:"restarts"`
	Crashes     int           `json:"crashes,omitempty"` // in a row, without 60 s of health between
	StartedAt   time.Time     `json:"started_at,omitzero"`
	Exit        *Exit         `json:"exit,omitempty"`    // the last exit
	Message     string        `json:"message,omitempty"` // why it is in this state
	// Failing: it crashes again and again (a crash loop); kept until it was ready
	// for long enough.
	Failing bool `json:"failing,omitempty"`
	// Ports are the numbers of its ports, by name, at the address of its host.
	Ports map[string]int `json:"ports,omitempty"`
	// Unenforced are the limits and the isolation that its spec asks for and its host
	// cannot give, in words.
	Unenforced []string `json:"unenforced,omitempty"`
	// Credential is, in a report, what was signed for the start that runs (a NATS user
	// JWT). The core that takes the report stores User in its place: the public key of
	// it, if it was signed for this host.
	Credential string `json:"credential,omitempty"`
	User       string `json:"user,omitempty"`
}

// CrashLoopText begins the message of an instance that is Failing and waits for its
// next start.
const CrashLoopText = "crash loop: "

// Revocation takes a credential back.
type Revocation struct {
	User string `json:"user"` // its public key
	// Until is when all has ended that may have been signed for it, and with it this
	// record.
	Until time.Time `json:"until"`
}

// Exit is how a process ended.
type Exit struct {
	Code    *int      `json:"code,omitempty"` // nil: not known, or ended by a signal
	Signal  string    `json:"signal,omitempty"`
	OOM     bool      `json:"oom,omitempty"`
	Unknown bool      `json:"unknown,omitempty"` // an adopted process: the kernel told nobody
	At      time.Time `json:"at"`
}
