package kbroker

import "time"

// The messages of the control API: JSON bodies on the subjects of package
// subjects. A failed request is answered with the header of subjects.HeaderCode
// and an Error as body.

// DeployRequest asks super to make App the wanted version.
type DeployRequest struct {
	Tenant TenantID `json:"tenant"`
	App    App      `json:"app"`
	// DryRun checks everything a deploy checks and changes nothing.
	DryRun bool `json:"dry_run,omitempty"`
	// CheckIndex is that of a plan: Refused when the app has changed since.
	// 0: whatever there is.
	CheckIndex uint64 `json:"check_index,omitempty"`
}

// DeployReply names the version that is wanted now. Unchanged is true when the
// spec is that of the running version: nothing was written.
type DeployReply struct {
	Version   int  `json:"version"`
	Unchanged bool `json:"unchanged,omitempty"`
}

// ScaleRequest sets the number of instances of a service by a new version.
type ScaleRequest struct {
	Tenant  TenantID    `json:"tenant"`
	App     AppName     `json:"app"`
	Service ServiceName `json:"service,omitempty"` // empty: the app's only one
	Count   int         `json:"count"`
}

// StopRequest stops an app; its spec and versions stay.
type StopRequest struct {
	Tenant TenantID `json:"tenant"`
	App    AppName  `json:"app"`
}

// DemandRequest is how an active allocator tells super what its app wants.
// Super refuses an epoch below the highest it has seen for the app.
type DemandRequest struct {
	Demand Demand `json:"demand"`
}

// JoinRequest asks super to admit a host. Asked again by the same host until
// it is answered with Admitted.
type JoinRequest struct {
	Host   HostID            `json:"host"`
	Role   Role              `json:"role"`
	Labels map[string]string `json:"labels,omitempty"`
	Client string            `json:"client"` // host:port where its broker will take clients
	Route  string            `json:"route"`  // host:port where its broker will take routes
	// ClusterID is set by a host that was admitted before and asks again.
	ClusterID string `json:"cluster_id,omitempty"`
	// Generation is, of a worker whose credential is refused, what it was admitted as:
	// it asks what became of it. 0: it asks to be admitted.
	Generation int `json:"generation,omitempty"`
	// Fingerprint is that of the host's own key (PKIX, DER), which is in its data
	// directory; Proof is the request signed with it. A core sends a box, too: the
	// HPKE key for secrets that it is given.
	Fingerprint string `json:"fingerprint"`
	Key         []byte `json:"key,omitempty"`
	Box         []byte `json:"box,omitempty"`
	Proof       []byte `json:"proof,omitempty"`
	// User is the public key of the credential (NATS) that a worker connects with.
	User string `json:"user,omitempty"`
	// UserProof is of Claim, by User.
	UserProof []byte `json:"user_proof,omitempty"`
	// Token is needed by a host that is no member yet.
	Token *ShownToken `json:"token,omitempty"`
}

// JoinReply admits a host, or tells it to ask again because another member
// change is under way (Wait says which).
type JoinReply struct {
	Admitted bool   `json:"admitted"`
	Wait     string `json:"wait,omitempty"`
	// Removed: Host, as it was admitted under Generation, is not a member any more.
	Removed bool   `json:"removed,omitempty"`
	Host    HostID `json:"host,omitempty"`
	// KeyRevoked: the host's User is a key that is not signed any more, or another
	// host's. It makes another one, and asks again.
	KeyRevoked bool   `json:"key_revoked,omitempty"`
	ClusterID  string `json:"cluster_id,omitempty"`
	// Generation is what the host was admitted as: it carries it from now on.
	Generation int `json:"generation,omitempty"`
	// Cores are the members it can reach, the joiner not included.
	Cores []CoreAddr `json:"cores,omitempty"`
	// Roots are the certificates that it is to believe. Of a core: its certificate,
	// with which it makes those that its connections show (both PEM); the root's key,
	// sealed for its box.
	Roots       string `json:"roots,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	RootKey     []byte `json:"root_key,omitempty"`
	// Accounts is, of a core, the secret by which it signs credentials, sealed;
	// Credential, of a worker, what was signed for its User.
	Accounts   []byte `json:"accounts,omitempty"`
	Credential string `json:"credential,omitempty"`
}

// SignRequest is an agent's, on subjects.Sign, for a start of an instance: it has
// made the key.
type SignRequest struct {
	Tenant      TenantID    `json:"tenant"`
	Instance    InstanceID  `json:"instance"`
	Epoch       uint64      `json:"epoch"`
	Incarnation Incarnation `json:"incarnation"`
	Key         string      `json:"key"`   // public, NATS
	Proof       []byte      `json:"proof"` // of Claim, by Key
}

// LeaseRequest is an allocator's, on subjects.Lease: it reads the lease of its app or,
// with Write, rewrites it by compare-and-set. The answer to both is a LeaseReply.
//
// Errors of a write: Conflict, nothing was written, as another sequence than Expected is
// there; Unavailable, it may have been written, or may yet be. Read, then.
type LeaseRequest struct {
	Write *AllocatorLease `json:"write,omitempty"`
	// Expected is the sequence of what Write takes the place of; 0: there is none.
	Expected uint64 `json:"expected,omitempty"`
}

// AllocatorLease is the lease of an app's active allocator.
type AllocatorLease struct {
	Holder   Incarnation `json:"holder"`
	Epoch    uint64      `json:"epoch"` // grows with every change of the holder
	Released bool        `json:"released,omitempty"`
}

// LeaseReply has the lease and its sequence, after a write the new one alone; 0: there
// is no lease.
type LeaseReply struct {
	Sequence uint64          `json:"sequence"`
	Lease    *AllocatorLease `json:"lease,omitempty"`
}

// DevelopRequest is a deployer's, for a program that runs beside the cluster as an
// instance of a service, without a placement.
type DevelopRequest struct {
	Tenant      TenantID    `json:"tenant"`
	App         AppName     `json:"app"`
	Service     ServiceName `json:"service"`
	Instance    InstanceID  `json:"instance"`
	Incarnation Incarnation `json:"incarnation"`
	Key         string      `json:"key"`
	Proof       []byte      `json:"proof"` // of Claim, by Key
	// Credential is the deployer's own (a NATS user JWT): the program's is no more than it.
	Credential string `json:"credential"`
}

// RenewRequest is that of a process on subjects.Renew of its own key: the credential (a
// NATS user JWT) that it has, which still holds. The answer is a SignReply.
type RenewRequest struct {
	Credential string `json:"credential"`
}

// SignReply has the credential (a NATS user JWT).
type SignReply struct {
	Credential string `json:"credential"`
}

// DrainRequest asks super to empty a host, or (Undrain) to let it take instances
// again.
type DrainRequest struct {
	Host    HostID `json:"host"`
	Undrain bool   `json:"undrain,omitempty"`
	Force   bool   `json:"force,omitempty"` // see Drain
}

// RemoveRequest asks super to take a host out of the cluster for good.
type RemoveRequest struct {
	Host HostID `json:"host"`
}

// HostReply answers a DrainRequest or a RemoveRequest. Unchanged: it was so
// already.
type HostReply struct {
	Unchanged bool `json:"unchanged,omitempty"`
}

// CoreAddr is where a core's broker listens.
type CoreAddr struct {
	Host   HostID `json:"host"`
	Client string `json:"client"`
	Route  string `json:"route"`
}

// Heartbeat is what every agent publishes each second over core NATS.
type Heartbeat struct {
	Host    HostID `json:"host"`
	Role    Role   `json:"role"`
	Process string `json:"process"` // random, one per start of the agent
	PID     int    `json:"pid"`
	// Generation is what the host was admitted as.
	Generation int               `json:"generation,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Capacity   Resources         `json:"capacity"`
	Client     string            `json:"client,omitempty"`
	Route      string            `json:"route,omitempty"`
	Address    string            `json:"address,omitempty"`
	Version    string            `json:"version"`
	// CredentialLife is how long what this core signs for instances holds.
	CredentialLife time.Duration `json:"credential_life,omitempty"`
}

// HeartbeatReply is what each core answers a heartbeat with.
type HeartbeatReply struct {
	Core HostID `json:"core"`
	// HeadRevision is the revision of the host's head as this core knows it:
	// who holds a lower one is behind.
	HeadRevision uint64 `json:"head_revision"`
	// Cores are all cores that take clients.
	Cores []CoreAddr `json:"cores,omitempty"`
	// Removed: this host was removed from the cluster. Its agent ends everything.
	Removed bool `json:"removed,omitempty"`
}

// HeardReply is one core's answer to "whom have you heard, and how long ago".
// A host that is missing was never heard by this process of the core.
type HeardReply struct {
	Core    HostID                   `json:"core"`
	Age     map[HostID]time.Duration `json:"age"`     // since the last heartbeat, on the boottime clock
	Looking time.Duration            `json:"looking"` // how long this core has been listening
	Current map[HostID]bool          `json:"current"` // broker members this core sees current
	Beat    map[HostID]Heartbeat     `json:"beat"`    // the last heartbeat itself
	// Witness: the broker's witness runs beside this core, which so has two of the
	// broker's votes.
	Witness bool `json:"witness,omitempty"`
	// Deaf: this core was paused a moment ago. Whom it has not heard since may have
	// spoken, so that it judges nobody.
	Deaf bool `json:"deaf,omitempty"`
}

// ViewRequest asks a core for everything that one host must know.
type ViewRequest struct {
	Host       HostID `json:"host"`
	Generation int    `json:"generation,omitempty"` // what the host was admitted as
}

// ViewReply is complete: it was read behind a barrier, and its placements hash
// to the head.
type ViewReply struct {
	Head       Head        `json:"head"`
	Placements []Placement `json:"placements"`
}

// ReportRequest carries statuses that changed. Numbers of one host grow; a core
// refuses (Refused, with the stored number in the reply's Number) a lower one.
type ReportRequest struct {
	Host       HostID   `json:"host"`
	Generation int      `json:"generation,omitempty"` // what the host was admitted as
	Process    string   `json:"process"`
	Number     uint64   `json:"number"`
	Statuses   []Status `json:"statuses"`
	// Gone are instances of which nothing is left to say. Those that have exited
	// stay listed for a while.
	Gone []StatusKey `json:"gone,omitempty"`
	// Ended are the credentials (NATS user JWTs) of starts of this host that are over.
	Ended []string `json:"ended,omitempty"`
}

// StatusKey names an instance of this host.
type StatusKey struct {
	Tenant   TenantID   `json:"tenant"`
	Instance InstanceID `json:"instance"`
}

// ReportReply acknowledges a report, or (Accepted false) names the number that
// the next one must exceed.
type ReportReply struct {
	Accepted bool   `json:"accepted"`
	Number   uint64 `json:"number"`
}

// ListRequest asks for the rows of a tenant; App and All narrow or widen it.
type ListRequest struct {
	Tenant TenantID `json:"tenant"`
	App    AppName  `json:"app,omitempty"`
	All    bool     `json:"all,omitempty"` // ended ones too
	// Wide asks for the figures of instances as well.
	Wide bool `json:"wide,omitempty"`
}

// PlacementRequest asks a core for the placement of one instance; the answer is
// a Placement, or NotFound. A core that answers NotFound may be behind.
type PlacementRequest struct {
	Host     HostID     `json:"host"`
	Instance InstanceID `json:"instance"`
}

// InstanceRow is one row of `ps`.
type InstanceRow struct {
	Tenant     TenantID       `json:"tenant"`
	App        AppName        `json:"app"`
	Service    ServiceName    `json:"service"`
	Instance   *InstanceID    `json:"instance"` // null: not placed yet
	Host       *HostID        `json:"host"`     // null: not placed yet
	State      InstanceState  `json:"state"`
	PID        *int           `json:"pid"`
	Restarts   int            `json:"restarts"`
	Version    int            `json:"version"`
	StartedAt  *time.Time     `json:"started_at"`
	Exit       *Exit          `json:"exit,omitempty"`
	Message    string         `json:"message,omitempty"`
	Failing    bool           `json:"failing,omitempty"`
	Ports      map[string]int `json:"ports,omitempty"`
	Unenforced []string       `json:"unenforced,omitempty"`
	// Figures are null where they were not asked for, it has no process, or its agent
	// is not heard.
	Figures *InstanceFigures `json:"figures"`
}

// HostRow is one row of `hosts`.
type HostRow struct {
	Name      HostID            `json:"name"`
	Role      Role              `json:"role"`
	State     HostState         `json:"state"`
	PID       *int              `json:"pid"` // the agent's
	Super     bool              `json:"super"`
	Instances int               `json:"instances"` // that it is to run
	Leaving   int               `json:"leaving"`   // that are stopped, their end not confirmed
	Capacity  Resources         `json:"capacity"`
	Reserved  Resources         `json:"reserved"`
	Labels    map[string]string `json:"labels"`
	Client    string            `json:"client,omitempty"`
	Version   string            `json:"version,omitempty"`
	HeardAgo  *float64          `json:"heard_ago_s"`
	// Out: it was removed, and is no member of the brokers' group, or not any more.
	Out bool `json:"out,omitempty"`
	// Drain and Maintenance as in Host.
	Drain       *Drain       `json:"drain,omitempty"`
	Maintenance *Maintenance `json:"maintenance,omitempty"`
	// Figures are null while its agent is not heard.
	Figures *HostFigures `json:"figures"`
}

// AppRow is one row of `apps`.
type AppRow struct {
	Tenant   TenantID     `json:"tenant"`
	App      AppName      `json:"app"`
	Version  int          `json:"version"`
	Stopped  bool         `json:"stopped"`
	Rollout  RolloutState `json:"rollout"`
	Reason   string       `json:"reason,omitempty"`
	Wanted   int          `json:"wanted"` // instances of its services, without allocators
	Ready    int          `json:"ready"`  // of the wanted version
	Services []string     `json:"services"`
	Unplaced []Unplaced   `json:"unplaced,omitempty"`
}

// StatusReply is the health of the cluster in one message.
type StatusReply struct {
	ClusterID string   `json:"cluster_id"`
	Core      HostID   `json:"core"`   // who answered
	Leader    *HostID  `json:"leader"` // the super
	Hosts     int      `json:"hosts"`
	HostsUp   int      `json:"hosts_up"`
	Cores     int      `json:"cores"`
	CoresUp   int      `json:"cores_up"`
	Replicas  int      `json:"replicas"` // of the control store
	Writable  bool     `json:"writable"` // the canary write succeeded lately
	Apps      int      `json:"apps"`
	Instances int      `json:"instances"`
	Ready     int      `json:"ready"`
	Alarms    []string `json:"alarms"`
}

// LogRequest reads a piece of an instance's output from its host's agent.
type LogRequest struct {
	Instance InstanceID `json:"instance"`
	// Offset counts the bytes ever written, so that it survives rotation.
	// Below what is kept: the oldest kept byte. Negative: that many bytes
	// before the end.
	Offset   int64 `json:"offset"`
	MaxBytes int   `json:"max_bytes"`
	// Since, if there, is instead of Offset: the first line that is known not to
	// be older, by the host's clock, or one up to a second older. What was
	// written while the host's agent was away counts as written at its return.
	Since *time.Time `json:"since,omitempty"`
}

// LogReply is a piece of output. Next is where the following one begins.
type LogReply struct {
	Offset int64  `json:"offset"`
	Next   int64  `json:"next"`
	Data   []byte `json:"data"`
	// DroppedBytes are those between what was asked for and Offset: they were
	// removed to keep the output in bounds. Oldest is the first byte that is
	// not, and so the number of all that were.
	DroppedBytes int64 `json:"dropped_bytes,omitempty"`
	Oldest       int64 `json:"oldest,omitempty"`
	// Marks date the piece, about once a second: what is before a mark's offset,
	// and after that of the one before, was seen at its time. What is after the
	// last one is of this moment.
	Marks []LogMark `json:"marks,omitempty"`
}

// LogMark says that an output ended at an offset at some time.
type LogMark struct {
	At     time.Time `json:"at"`
	Offset int64     `json:"offset"`
}

// Artifact transfer. A put is Begin, chunks in order, Commit, all with the same
// core (its host is in the Begin reply); the artifact is visible only after the
// core has checked the digest.
type (
	// ArtifactBegin opens an upload; Have in the reply ends it: it is there.
	ArtifactBegin struct {
		Tenant    TenantID `json:"tenant"`
		SHA256    string   `json:"sha256"`
		SizeBytes int64    `json:"size_bytes"` // uncompressed
	}
	// ArtifactBeginReply names the core that takes the chunks.
	ArtifactBeginReply struct {
		Have    bool   `json:"have"`
		Core    HostID `json:"core"`
		Session string `json:"session"`
	}
	// ArtifactChunkReply acknowledges the bytes received so far.
	ArtifactChunkReply struct {
		Received int64 `json:"received"`
	}
	// ArtifactGet reads a piece of an artifact from any core.
	ArtifactGet struct {
		Tenant   TenantID `json:"tenant"`
		SHA256   string   `json:"sha256"`
		Offset   int64    `json:"offset"`
		MaxBytes int      `json:"max_bytes"`
	}
)

// ArtifactChunkBytes is the size of a chunk of an artifact on the wire: well
// below the broker's payload limit of 1 MiB.
const ArtifactChunkBytes = 256 << 10

// MaxArtifactBytes bounds one artifact, uncompressed.
const MaxArtifactBytes = 2 << 30

// InstanceFile is what the agent writes for each instance before it starts it;
// the environment variable KBROKER_INSTANCE holds its path. The SDK reads it.
type InstanceFile struct {
	Tenant      TenantID    `json:"tenant"`
	App         AppName     `json:"app"`
	Service     ServiceName `json:"service"`
	Instance    InstanceID  `json:"instance"`
	Incarnation Incarnation `json:"incarnation"`
	Host        HostID      `json:"host"`
	Version     int         `json:"version"`
	Epoch       uint64      `json:"epoch"`
	Servers     []string    `json:"servers"` // nats:// URLs, this host's first
	// CA are the cluster's roots, in PEM, which its servers prove themselves with.
	CA string `json:"ca,omitempty"`
	// Credential is the path of the .creds file of the incarnation: its key, and what
	// a core has signed for it, which may come later and is renewed.
	Credential string `json:"credential,omitempty"`
	// Objects are the kinds of objects of its service, ObjectStreams in how many streams
	// those of the app are; 0: it has none.
	Objects       []KindName `json:"objects,omitempty"`
	ObjectStreams int        `json:"object_streams,omitempty"`
	Placed        []KindName `json:"placed,omitempty"` // those that are placed, sorted
	// Schemas are those of its kinds that have another than the first one, by its spec;
	// WriteSchemas in which the state of each is written.
	Schemas      map[KindName]Schema `json:"schemas,omitempty"`
	WriteSchemas map[KindName]int    `json:"write_schemas,omitempty"`
	// StockRaft: the cluster's leases have the terms of stock raft timing.
	StockRaft bool `json:"stock_raft,omitempty"`
	// MemoryLimitBytes is the limit of memory that the host enforces; 0: none.
	MemoryLimitBytes int64 `json:"memory_limit_bytes,omitempty"`
	// Crashes are those in a row that its instance has behind it, as in its status.
	Crashes int `json:"crashes,omitempty"`
}

// Reaped is what a core says on subjects.Reaped: these starts have ended, and were waited
// for by the agent that started them.
type Reaped struct {
	Incarnations []Incarnation `json:"incarnations"`
}

// PingReply is how a process answers its agent on subjects.Ping.
type PingReply struct {
	Incarnation Incarnation `json:"incarnation"`
	Ready       bool        `json:"ready"`
	Draining    bool        `json:"draining,omitempty"`
	// Allocator: it is one, and decides for its app when it holds the lease.
	Allocator bool `json:"allocator,omitempty"`
	// Requests were answered since it started, Errors of them with an error; nil: nobody
	// counts.
	Requests *uint64 `json:"requests,omitempty"`
	Errors   *uint64 `json:"errors,omitempty"`
	// Objects are those that it owns; nil: it has none.
	Objects *ObjectFigures `json:"objects,omitempty"`
}
