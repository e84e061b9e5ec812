package kbroker

import "time"

// EventKind says what an event is about. The set is closed: kinds are added,
// never renamed.
type EventKind string

// The kinds of events.
const (
	EventVersionStored EventKind = "version_stored" // a new version is wanted
	EventAppStarted    EventKind = "app_started"    // a stopped app is wanted again
	EventAppStopped    EventKind = "app_stopped"    // nothing of the app is wanted
	EventDemand        EventKind = "demand"         // its allocator wants other numbers
	EventPolicy        EventKind = "policy"         // the app's own policy is refused, or not any more
	EventRolloutDone   EventKind = "rollout_done"   // every instance runs as wanted
	EventRolloutFailed EventKind = "rollout_failed" // it stays where it stopped
	EventRolledBack    EventKind = "rolled_back"    // it failed and returned to the version before
	EventUnplaced      EventKind = "unplaced"       // no host can take some instances
	EventPlaced        EventKind = "placed"         // a host must run an instance
	EventStopped       EventKind = "stopped"        // a host must not run it any more
	EventMoved         EventKind = "moved"          // stopped, and replaced by one on another host
	EventReplacing     EventKind = "replacing"      // it will leave when a new one is ready
	EventReady         EventKind = "ready"          // an incarnation answers for the first time
	EventCrashed       EventKind = "crashed"        // its process ended and should not have
	EventBackoff       EventKind = "backoff"        // it waits before its next start
	EventCrashLoop     EventKind = "crash_loop"     // it crashes again and again; further crashes are not told
	EventRecovered     EventKind = "recovered"      // it was in a crash loop, and is well now
	EventExited        EventKind = "exited"         // its process ended as it should
	EventHostJoined    EventKind = "host_joined"    // admitted
	EventHostReady     EventKind = "host_ready"     // seen for the first time, or back
	EventHostSuspect   EventKind = "host_suspect"   // not heard for a moment
	EventHostLost      EventKind = "host_lost"      // its instances run elsewhere
	EventHostRemoved   EventKind = "host_removed"   // not known any more
	EventHostChanged   EventKind = "host_changed"   // something else of its record
	EventLeader        EventKind = "leader"         // a super leads
	EventUserCreated   EventKind = "user_created"   // somebody has a credential
	EventUserRevoked   EventKind = "user_revoked"   // it was taken back
	EventRefused       EventKind = "refused"        // a request that is not allowed now
	EventEventsDropped EventKind = "events_dropped" // events that could not be stored
)

const (
	// MaxEventMessage bounds the message of an event, in bytes; a longer one is
	// cut. It has room for the last 4 KiB of a crashed process's output.
	MaxEventMessage = 5 << 10
	// MaxEventsPerRequest bounds the events that a core answers at once.
	MaxEventsPerRequest = 1000
)

// Event is something that was decided or happened. Events are for people and
// for tools that watch: nothing is ever decided by them, and one may be missing
// when whoever acted died before it was stored.
type Event struct {
	Sequence uint64    `json:"sequence"` // of the event stream; grows
	Time     time.Time `json:"time"`     // wall clock of who wrote it
	Kind     EventKind `json:"kind"`
	// What it is about; empty where it does not apply. Events of hosts and of
	// the cluster have no tenant.
	Tenant   TenantID    `json:"tenant,omitempty"`
	App      AppName     `json:"app,omitempty"`
	Service  ServiceName `json:"service,omitempty"`
	Instance InstanceID  `json:"instance,omitempty"`
	Host     HostID      `json:"host,omitempty"`
	By       string      `json:"by"` // who decided or saw it: `super h2 epoch 7`, `agent h1`
	Message  string      `json:"message"`
	// Version and Epoch are those that the event led to, the old ones those
	// that it found; 0 where there is none.
	OldVersion int    `json:"old_version,omitempty"`
	Version    int    `json:"version,omitempty"`
	OldEpoch   uint64 `json:"old_epoch,omitempty"`
	Epoch      uint64 `json:"epoch,omitempty"`
	// Revision is that of the control store on which it was decided.
	Revision uint64 `json:"revision,omitempty"`
	Exit     *Exit  `json:"exit,omitempty"` // of crashed, crash_loop and exited
	// ID is the same in every repetition of the same event; not shown.
	ID string `json:"id,omitempty"`
}

// EventsRequest asks a core for a page of events: those of the tenant and those
// of the cluster.
type EventsRequest struct {
	Tenant   TenantID   `json:"tenant"`
	App      AppName    `json:"app,omitempty"`      // only of this app
	Instance InstanceID `json:"instance,omitempty"` // with App: only of this instance
	// After a sequence: the events that follow it, oldest first. Without it the
	// newest ones.
	After *uint64 `json:"after,omitempty"`
	// Since leaves out what is older; zero: nothing.
	Since time.Time `json:"since,omitzero"`
	// Limit bounds the page, MaxEventsPerRequest at most; 0: that.
	Limit int `json:"limit,omitempty"`
}

// EventsReply is a page, oldest first.
type EventsReply struct {
	Events []Event `json:"events"`
	// Next is what After has to be for the page that follows. It only covers
	// what the core that answered has really read: one that lags never makes
	// its caller skip an event.
	Next uint64 `json:"next"`
	// More: the next page is there already.
	More bool `json:"more,omitempty"`
}
