package kbroker

import "time"

// Scale is what decides how many instances of a service there are, within the bounds of
// its count. Each target is what an instance is to have on average; the one that needs most
// instances counts, and 0 is none. Without a target it is Busy, DefaultBusy.
type Scale struct {
	// Busy is the part of what an instance works on at once that is under way: of the
	// requests of its method that is nearest to its bound; 0 to 1.
	Busy     float64 `json:"busy,omitempty"`
	CPU      float64 `json:"cpu,omitempty"`      // of the cores that it reserves
	Requests float64 `json:"requests,omitempty"` // in a second
	Mailbox  float64 `json:"mailbox,omitempty"`  // calls of objects that wait
	Objects  float64 `json:"objects,omitempty"`  // objects in memory
	// Buffer are instances beyond what the targets need, for load that comes at once.
	Buffer int `json:"buffer,omitempty"`
	// Down is for how long fewer were needed before instances are drained; 0: DefaultDown.
	Down time.Duration `json:"down,omitempty"`
}

const (
	// DefaultBusy leaves room for what comes while instances start.
	DefaultBusy = 0.7
	// DefaultDown is what a Kubernetes HorizontalPodAutoscaler waits by default
	// (--horizontal-pod-autoscaler-downscale-stabilization).
	DefaultDown = 5 * time.Minute
)

// LoadEvery is how often an instance tells the allocator of its app its load. What is older
// than LoadFor is no news.
const (
	LoadEvery = 500 * time.Millisecond
	LoadFor   = 3 * time.Second
)

// InstanceLoad is what an instance says of its load on subjects.Load. Numbers count since it
// started, so that one that is lost changes no rate.
type InstanceLoad struct {
	Incarnation Incarnation `json:"incarnation"`
	Service     ServiceName `json:"service"`
	Host        HostID      `json:"host"`
	AtS         float64     `json:"at_s"` // when it says so: seconds since it started
	Draining    bool        `json:"draining,omitempty"`
	// Requests were answered, Refused of them as they were too many at once.
	Requests uint64 `json:"requests"`
	Refused  uint64 `json:"refused"`
	// Busy is the part of its bound that was under way of the method that is nearest to it,
	// on average since the last message; 0 to 1.
	Busy float64 `json:"busy"`
	// Objects are those that it owns; nil: it has none. Waiting are their calls that wait,
	// Busiest the shards with most to do since the last message, MaxBusiest at most, Work and
	// BytesPerS what all shards had: of those that are none of Busiest the rest.
	Objects   *ObjectFigures `json:"objects,omitempty"`
	Waiting   int            `json:"waiting,omitempty"`
	Busiest   []ShardLoad    `json:"busiest,omitempty"`
	Work      float64        `json:"work,omitempty"`
	BytesPerS float64        `json:"bytes_per_s,omitempty"`
	Weighs    bool           `json:"weighs,omitempty"` // it says these, and CPU; SDKs of earlier builds do not
	// CPU are the cores that its process has used since the last message, on average.
	CPU float64 `json:"cpu,omitempty"`
	// Placed are the placed objects that it knows to be its own, or to come to it, and
	// PlacedTurnsPerS their turns in a second, reads among them, since the last message.
	Placed          int     `json:"placed,omitempty"`
	PlacedTurnsPerS float64 `json:"placed_turns_per_s,omitempty"`
}

// MaxBusiest bounds InstanceLoad.Busiest.
const MaxBusiest = 64

// ShardLoad is what the objects of a shard have to do. Work is for how long turns ran of a
// second, all together: an object whose calls wait has 1. BytesPerS are those of the states
// that turns have changed, to be stored; TurnsPerS has reads, too.
type ShardLoad struct {
	Shard     Shard   `json:"shard"`
	TurnsPerS float64 `json:"turns_per_s"`
	Work      float64 `json:"work,omitempty"`
	BytesPerS float64 `json:"bytes_per_s,omitempty"`
}

// AllocatorRequest asks what the active allocator of an app decides.
type AllocatorRequest struct {
	Tenant TenantID `json:"tenant"`
	App    AppName  `json:"app"`
	// Rebalance: also what a rebalance would move. Nothing is done.
	Rebalance bool `json:"rebalance,omitempty"`
}

// AllocatorReply is what it decides.
type AllocatorReply struct {
	App       AppName    `json:"app"`
	Allocator InstanceID `json:"allocator"` // that holds the lease
	AllocatorSeen
}

// AllocatorSeen is what an active allocator says of its decisions.
type AllocatorSeen struct {
	Epoch     uint64          `json:"epoch"`
	Version   int             `json:"version"` // of the spec that it decides by
	Services  []AllocatorNeed `json:"services"`
	Instances []AllocatorLoad `json:"instances"`
	// Moving are shards of objects that are on their way to another owner.
	Moving int `json:"moving"`
	// Placed counts placed objects; nil: the app has none, or it is not known yet.
	Placed *AllocatorPlaced `json:"placed,omitempty"`
	// Policy is PolicyOwn, or the built-in one that decides. Of an own one Refused says why it
	// does not decide, empty if it does, and Instead which one then does.
	Policy  string `json:"policy,omitempty"`
	Refused string `json:"refused,omitempty"`
	Instead string `json:"instead,omitempty"`
	// Rebalance is what was asked for with AllocatorRequest.Rebalance, or by ObjectRebalance;
	// Rebalancing how far the last one is that this allocator has done; nil: it has done none.
	Rebalance   *Rebalance   `json:"rebalance,omitempty"`
	Rebalancing *Rebalancing `json:"rebalancing,omitempty"`
}

// Rebalancing is how far a rebalance is.
type Rebalancing struct {
	// Epoch and Number tell it from those of other allocators, and from later ones.
	Epoch  uint64 `json:"epoch"`
	Number int    `json:"number"`
	// Left are the shards that are not where they are to be yet; Dropped those that stay
	// elsewhere, as their place is gone, an operator has moved them, or it took too long.
	Left    int `json:"left"`
	Dropped int `json:"dropped"`
}

// Rebalance is what the policy of an app moves where it is to have loads even, whatever has to
// move for that; placed objects stay.
type Rebalance struct {
	// Owners are those that may own shards, by name; Moves by their work, those of most first.
	Owners []RebalanceOwner `json:"owners"`
	Moves  []RebalanceMove  `json:"moves"`
}

// RebalanceOwner is what an instance owns now, and would own then.
type RebalanceOwner struct {
	Instance InstanceID     `json:"instance"`
	Host     HostID         `json:"host"`
	Now      RebalanceShare `json:"now"`
	Then     RebalanceShare `json:"then"`
}

// RebalanceShare is what the shards of an instance have to do; see ShardLoad.
type RebalanceShare struct {
	Shards    int     `json:"shards"`
	TurnsPerS float64 `json:"turns_per_s"`
	Work      float64 `json:"work"`
	BytesPerS float64 `json:"bytes_per_s"`
}

// RebalanceMove is a shard that has another owner then, with its load, an average of the last
// half minute or so.
type RebalanceMove struct {
	ShardLoad
	From Incarnation `json:"from,omitempty"` // empty: nobody owns it
	To   Incarnation `json:"to"`
}

// AllocatorPlaced counts the placed objects of an app.
type AllocatorPlaced struct {
	Objects int `json:"objects"` // that have a place
	// Waiting are those that need one: new ones, and those whose owner is lost or leaves.
	Waiting int `json:"waiting"`
	Moving  int `json:"moving"` // on their way to another owner
}

// AllocatorRoom is what placed objects take of an instance; of Has 0 is not counted.
type AllocatorRoom struct {
	Objects int      `json:"objects"` // on it, or on their way to it
	Used    Demanded `json:"used"`
	Has     Demanded `json:"has"`
}

// AllocatorNeed is what it decides of a service.
type AllocatorNeed struct {
	Service   ServiceName `json:"service"`
	Min       int         `json:"min"`
	Max       int         `json:"max"`
	Instances int         `json:"instances"` // that are to run, those that leave not counted
	Ready     int         `json:"ready"`
	Wanted    int         `json:"wanted"`
	Why       string      `json:"why,omitempty"`
}

// AllocatorLoad is what it knows of an instance, averages of the last two seconds or so.
type AllocatorLoad struct {
	Instance InstanceID  `json:"instance"`
	Service  ServiceName `json:"service"`
	Host     HostID      `json:"host"`
	Ready    bool        `json:"ready"`
	Leaving  bool        `json:"leaving,omitempty"`
	Shards   int         `json:"shards"` // that it owns, or that are on their way to it
	// Placed is nil where an instance has no room for placed objects.
	Placed *AllocatorRoom `json:"placed,omitempty"`
	// Null where it has not said so lately: what it says itself, and what its agent measures.
	Busy         *float64 `json:"busy"`
	RequestsPerS *float64 `json:"requests_per_s"`
	RefusedPerS  *float64 `json:"refused_per_s"`
	Waiting      *int     `json:"waiting"`
	Objects      *int     `json:"objects"`
	TurnsPerS    *float64 `json:"turns_per_s"`
	CPUCores     *float64 `json:"cpu_cores"`
}
