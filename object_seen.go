package kbroker

import (
	"encoding/json"
	"slices"
	"time"
)

// What people see of objects, and what they have done with them: the messages of
// subjects.VerbObjects and its neighbours, and those between a core and the owner of an
// object on subjects.Keeper.

// Bounds of a list of objects.
const (
	// MaxObjectRows bounds one answer: ask again for what is after its last.
	MaxObjectRows = 250
	// MaxHotObjects bounds the objects of each instance that are named as busy, and those
	// that are in quarantine.
	MaxHotObjects = 20
)

// ObjectsRequest lists objects of an app, in the order of their shards, kinds and ids, and then
// the placed ones: those that are allocated, and those that are stored alone.
type ObjectsRequest struct {
	Tenant TenantID `json:"tenant"`
	App    AppName  `json:"app"`
	Kind   KindName `json:"kind,omitempty"`   // empty: of all kinds
	Prefix string   `json:"prefix,omitempty"` // of the id
	Limit  int      `json:"limit,omitempty"`  // 0, or more than that: MaxObjectRows
	// After is what the last answer said, to go on.
	After string `json:"after,omitempty"`
}

// ObjectsReply has the first of the objects; After is empty: they are all.
type ObjectsReply struct {
	Rows  []ObjectRow `json:"rows"`
	After string      `json:"after,omitempty"`
	// Incomplete: there may be placed objects that are stored, not allocated, and not listed, as
	// there are too many objects.
	Incomplete bool `json:"incomplete,omitempty"`
}

// ObjectRow is an object as it is stored, or allocated, and the owner of its shard.
type ObjectRow struct {
	Object string   `json:"object"` // app/kind:id
	Kind   KindName `json:"kind"`
	ID     string   `json:"id"`
	Shard  Shard    `json:"shard"`
	// Placed: its kind is, and the shard is its own.
	Placed bool `json:"placed,omitempty"`
	// Owner is the instance that owns its shard; empty: none does, so that a placed object is
	// not allocated.
	Owner InstanceID `json:"owner,omitempty"`
	// Unstored: it is allocated, and nothing is stored of it.
	Unstored  bool `json:"unstored,omitempty"`
	SizeBytes int  `json:"size_bytes"` // of its state
	Schema    int  `json:"schema,omitempty"`
}

// ObjectOwnersReply says who owns the objects of an app. It is asked for by a ListRequest.
type ObjectOwnersReply struct {
	App         AppName            `json:"app"`
	Kinds       []ObjectKindRow    `json:"kinds"`
	Owners      []ObjectOwnerRow   `json:"owners"`
	Unowned     int                `json:"unowned"` // shards without an owner
	Moving      []ObjectMoving     `json:"moving"`
	Hot         []ObjectHot        `json:"hot"`
	Quarantined []ObjectQuarantine `json:"quarantined"`
}

// ObjectKindRow counts the objects of a kind. Those that were deleted count for as long as
// their callers are known.
type ObjectKindRow struct {
	Kind    KindName    `json:"kind"`
	Service ServiceName `json:"service"`
	Stored  int         `json:"stored"`
	// About: there are many, so that they were counted in some of the shards alone.
	About  bool `json:"about,omitempty"`
	Active int  `json:"active"` // in memory, of the instances that have answered
}

// ObjectOwnerRow is an instance that owns shards, or is offered some.
type ObjectOwnerRow struct {
	Instance    InstanceID  `json:"instance"`
	Incarnation Incarnation `json:"incarnation"`
	Host        HostID      `json:"host,omitempty"`
	Shards      int         `json:"shards"`
	Arriving    int         `json:"arriving"` // shards on their way to it
	Leaving     int         `json:"leaving"`  // shards on their way from it
	// Lease is held, leaving, revoked or none.
	Lease string `json:"lease"`
	// Seen is what it says itself; nil: it does not answer, for the reason in Silent.
	Seen   *KeeperSeen `json:"seen,omitempty"`
	Silent string      `json:"silent,omitempty"`
}

// ObjectMoving is a shard that is on its way, or is wanted elsewhere.
type ObjectMoving struct {
	Shard Shard      `json:"shard"`
	From  InstanceID `json:"from,omitempty"`
	To    InstanceID `json:"to"`
	// Asked: an operator wants it there.
	Asked bool `json:"asked,omitempty"`
}

// ObjectHot is a busy object.
type ObjectHot struct {
	Object    string     `json:"object"`
	Instance  InstanceID `json:"instance"`
	TurnsPerS float64    `json:"turns_per_s"`
	Mailbox   int        `json:"mailbox"`
}

// ObjectQuarantine is an object whose calls its owner refuses.
type ObjectQuarantine struct {
	Object   string     `json:"object"`
	Instance InstanceID `json:"instance"`
	Reason   string     `json:"reason"`
}

// ObjectRequest is about one object.
type ObjectRequest struct {
	Tenant TenantID `json:"tenant"`
	App    AppName  `json:"app"`
	Kind   KindName `json:"kind"`
	ID     string   `json:"id"`
}

// ObjectDetail is what is known of an object.
type ObjectDetail struct {
	ObjectRow
	Incarnation Incarnation `json:"incarnation,omitempty"`
	Host        HostID      `json:"host,omitempty"`
	Epoch       uint64      `json:"epoch"` // of the shard
	Stored      bool        `json:"stored"`
	// InMemoryS is for how long it has been in memory, all in all, as far as was stored.
	InMemoryS float64 `json:"in_memory_s"`
	// AssignedAt is when who owns the shard, or is to own it, was decided last.
	AssignedAt *time.Time `json:"assigned_at,omitempty"`
	// Moving is where the shard is moving to.
	Moving InstanceID `json:"moving,omitempty"`
	// Releasing: it is a placed object that is not to be allocated any more.
	Releasing bool `json:"releasing,omitempty"`
	// Takes is what a placed object that is allocated takes, Labels are its labels.
	Takes  *Demanded         `json:"takes,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Wanted is where an operator wants the shard.
	Wanted InstanceID `json:"wanted,omitempty"`
	// Lease is that of the owner: held, leaving, revoked or none.
	Lease string `json:"lease"`
	// Outbox counts messages that wait to be sent, Reminders names those that wait; Due has
	// those of them whose record is readable, the next one first.
	Outbox    int              `json:"outbox"`
	Reminders []string         `json:"reminders"`
	Due       []ObjectReminder `json:"due,omitempty"`
	// Seen is what its owner knows of it; nil: it does not answer, for the reason in Silent.
	Seen   *ObjectSeen `json:"seen,omitempty"`
	Silent string      `json:"silent,omitempty"`
	// State is the stored state, if it was asked for: as it is, if it is JSON, otherwise a
	// string in base64.
	State json.RawMessage `json:"state,omitempty"`
}

// ObjectReminder is a call that an object makes to itself.
type ObjectReminder struct {
	Name   string    `json:"name"`
	Method string    `json:"method"`
	Due    time.Time `json:"due"`
	// EveryS is how much later it is due again, and again; 0: once.
	EveryS float64 `json:"every_s,omitempty"`
	// CatchUp is what becomes of the times that nobody could run it: one, none or all.
	CatchUp string `json:"catch_up,omitempty"`
}

// When an object is stored, as its owner says it: ObjectInterval has a time behind it.
const (
	ObjectEach     = "each" // before each answer
	ObjectInterval = "interval "
	ObjectNever    = "none"
)

// Verbs of an ObjectActRequest.
const (
	ObjectDeactivate = "deactivate"
	ObjectRelease    = "release"
	ObjectRemove     = "rm"
	ObjectMove       = "move"
	// ObjectRebalance has the allocator of an app make loads even; it is of no object.
	ObjectRebalance = "rebalance"
)

// ObjectActRequest has something done with an object, or moves shards.
type ObjectActRequest struct {
	Tenant TenantID `json:"tenant"`
	App    AppName  `json:"app"`
	Verb   string   `json:"verb"`
	// ID names the request: one that is sent again is done once.
	ID string `json:"id"`
	// Kind and Object are what it is done with.
	Kind   KindName `json:"kind,omitempty"`
	Object string   `json:"object,omitempty"`
	// Of a move: the shard of the object, else Shard, or else all shards of From. To is
	// where to; empty, of From: to all others.
	Shard *Shard     `json:"shard,omitempty"`
	From  InstanceID `json:"from,omitempty"`
	To    InstanceID `json:"to,omitempty"`
	// Even drops all wishes of moves before.
	Even bool `json:"even,omitempty"`
}

// ObjectActReply says what was done.
type ObjectActReply struct {
	Message string `json:"message"`
	// Moves are the shards that are to move, and to which start.
	Moves map[Shard]Incarnation `json:"moves,omitempty"`
	// Rebalancing is the rebalance that moves them; nil: it is none.
	Rebalancing *Rebalancing `json:"rebalancing,omitempty"`
}

// ObjectWishes are where operators want shards of an app: each at a start of an instance,
// for as long as that lives.
type ObjectWishes map[Incarnation][]Shard

// Of is where a shard is wanted; empty: anywhere.
func (w ObjectWishes) Of(n Shard) Incarnation {
	for to, shards := range w {
		if slices.Contains(shards, n) {
			return to
		}
	}
	return ""
}

// KeeperRequest is what a core asks an owner: of all that it owns, or of an object.
type KeeperRequest struct {
	// Verb is empty, or one of ObjectDeactivate, ObjectRelease and ObjectRemove; of an allocator
	// ObjectRebalance, of which DryRun asks alone.
	Verb   string `json:"verb,omitempty"`
	DryRun bool   `json:"dry_run,omitempty"`
	// ID is that of the ObjectActRequest.
	ID   string   `json:"id,omitempty"`
	Kind KindName `json:"kind,omitempty"`
	// Object is the id of an object.
	Object string `json:"object,omitempty"`
}

// KeeperReply answers it.
type KeeperReply struct {
	Keeper *KeeperSeen `json:"keeper,omitempty"`
	Object *ObjectSeen `json:"object,omitempty"`
	// Allocator is the answer of an active allocator.
	Allocator *AllocatorSeen `json:"allocator,omitempty"`
	// Message says what was done.
	Message string `json:"message,omitempty"`
}

// KeeperSeen is what an instance says of the objects that it owns.
type KeeperSeen struct {
	Shards  int              `json:"shards"` // that it serves
	Active  map[KindName]int `json:"active"` // in memory
	Mailbox int              `json:"mailbox"`
	// TurnsPerS are those of the last seconds.
	TurnsPerS float64 `json:"turns_per_s"`
	// Hot and Quarantined are without the instance, MaxHotObjects each.
	Hot         []ObjectHot        `json:"hot,omitempty"`
	Quarantined []ObjectQuarantine `json:"quarantined,omitempty"`
}

// ObjectFigures are what an instance has counted of its objects since it started, at most a
// second ago.
type ObjectFigures struct {
	Turns       uint64 `json:"turns"`
	Reads       uint64 `json:"reads"`
	Refused     uint64 `json:"refused"`     // calls that were not executed, or are too old to tell
	Activations uint64 `json:"activations"` // objects that came into memory
	// Commits are batches that were written, each with what some turns did, or claims;
	// CommitsRefused those that were not, as something was not where it was expected.
	Commits        uint64 `json:"commits"`
	CommitsRefused uint64 `json:"commits_refused"`
	// ShardsTaken are those that it has begun to serve, TakingS how long that took in all, from
	// when it was to serve them till it heard their requests; ShardsReleased are those that it
	// has left to another, ReleasingS how long, from when it heard no more till that was stored.
	ShardsTaken    uint64  `json:"shards_taken"`
	ShardsReleased uint64  `json:"shards_released"`
	TakingS        float64 `json:"taking_s"`
	ReleasingS     float64 `json:"releasing_s"`
	// Of now: shards that it serves, objects in memory, their messages that wait to be taken.
	Shards int `json:"shards"`
	Active int `json:"active"`
	Outbox int `json:"outbox"`
}

// ObjectSeen is what the owner of an object knows of it.
type ObjectSeen struct {
	// Serves: the instance owns the shard of the object, as far as it knows.
	Serves bool `json:"serves"`
	// Active: it is in memory; Phase is what it does there.
	Active  bool   `json:"active"`
	Phase   string `json:"phase,omitempty"`
	Mailbox int    `json:"mailbox"` // calls that wait
	// Turns counts those since it was activated, reads among them.
	Turns     uint64  `json:"turns"`
	TurnsPerS float64 `json:"turns_per_s"`
	// LastError is that of the last turn that failed, so long ago.
	LastError    string  `json:"last_error,omitempty"`
	LastErrorAgo float64 `json:"last_error_ago_s,omitempty"`
	// Quarantine is why its calls are refused; empty: they are not.
	Quarantine string `json:"quarantine,omitempty"`
	// Durable is when the kind is stored: ObjectEach, ObjectInterval and a time, ObjectNever;
	// empty, of an SDK of an earlier build: it is not known.
	Durable string `json:"durable,omitempty"`
}
