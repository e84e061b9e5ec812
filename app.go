package kbroker

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// App is an application spec with every default filled in: what package spec
// parses out of an app.yaml and what super stores as a version.
type App struct {
	Name     AppName   `json:"name"`
	Services []Service `json:"services"` // sorted by name, without the allocator
	// ObjectStreams is how many streams its objects are stored in: 1, 4 or 16, fixed by its
	// first version with objects. 0 in a spec: as it is, DefaultObjectStreams at first; in
	// a stored version: it has no objects.
	ObjectStreams int `json:"object_streams,omitempty"`
	// Policy is how its allocator decides: PolicySpread, PolicyPack, PolicyBalanced; empty is
	// PolicySpread.
	Policy string `json:"policy,omitempty"`
	// Own is the program whose policy its allocator decides by; where that is refused Policy
	// takes over. nil: Policy decides.
	Own *OwnPolicy `json:"own_policy,omitempty"`
	// Topics bounds the events of its topics that are stored.
	Topics TopicLimits `json:"topics,omitzero"`
}

// TopicLimits bounds what is stored of the events of an app: what is beyond one of them
// leaves, the oldest first. 0 stands for the default, as specs of older builds have none.
type TopicLimits struct {
	Keep     time.Duration `json:"keep,omitempty"`      // from when it was stored
	MaxBytes int64         `json:"max_bytes,omitempty"` // of all topics, with what they are stored with
}

// The limits of an app that does not say.
const (
	DefaultTopicKeep     = 7 * 24 * time.Hour
	DefaultTopicMaxBytes = 1 << 30
)

// Filled is l with the defaults for what it does not say.
func (l TopicLimits) Filled() TopicLimits {
	return TopicLimits{Keep: cmp.Or(l.Keep, DefaultTopicKeep), MaxBytes: cmp.Or(l.MaxBytes, DefaultTopicMaxBytes)}
}

// How an allocator decides which instances own the shards of objects.
const (
	PolicySpread   = "spread"   // each about as many shards
	PolicyPack     = "pack"     // as few instances as the load needs
	PolicyBalanced = "balanced" // each about the same load
)

// PolicyOwn is what the policy of an app's own program is called where one is named.
const PolicyOwn = "own"

// OwnPolicy is the program of an app's own policy.
type OwnPolicy struct {
	Build    string   `json:"build,omitempty"` // run by the deploying machine, never by hosts
	Run      string   `json:"run,omitempty"`   // the local file that was uploaded, for display
	Artifact Artifact `json:"artifact"`
}

// DefaultObjectStreams are those of an app whose first spec with objects does not say.
const DefaultObjectStreams = 4

// HasObjects reports whether a service of the app has objects.
func (a *App) HasObjects() bool {
	return slices.ContainsFunc(a.Services, func(s Service) bool { return len(s.Objects) > 0 })
}

// CheckKind reports that the app has no objects of a kind, or nil. The error has code
// NotFound, and the kinds that it has as hint.
func (a *App) CheckKind(kind KindName) error {
	var kinds []string
	for _, s := range a.Services {
		for _, k := range s.Objects {
			if k == kind {
				return nil
			}
			kinds = append(kinds, string(k))
		}
	}
	if len(kinds) == 0 {
		return Errorf(NotFound, "app %q has no objects", a.Name).WithHint("a service of its spec names the kinds that it owns, as in objects: [account]")
	}
	return Errorf(NotFound, "app %q has no objects of kind %s", a.Name, kind).WithHint("its kinds: %s", strings.Join(kinds, ", "))
}

// Object is one by its kind and id; Placed, if its kind is.
func (a *App) Object(kind KindName, id string) Object {
	o := Object{Kind: kind, ID: id}
	for _, s := range a.Services {
		if _, is := s.Placed[kind]; is {
			o.Placed = true
		}
	}
	return o
}

// Service is one program of an app.
type Service struct {
	Name     ServiceName       `json:"name"`
	Build    string            `json:"build,omitempty"` // run by the deploying machine, never by hosts
	Run      string            `json:"run,omitempty"`   // the local file that was uploaded, for display
	Artifact Artifact          `json:"artifact"`
	Args     []string          `json:"args,omitempty"`
	Env      map[string]string `json:"env,omitempty"`
	// Calls are the services of other apps that it may call: "app/service", "app/*" or
	// "*". Those of its own app it may call without.
	Calls []string `json:"calls,omitempty"`
	// Subscribes are the topics of other apps that it may hear: "app/topic", "app/*" or
	// "*". Those of its own app it may hear without.
	Subscribes []string `json:"subscribes,omitempty"`
	Count      Count    `json:"count"`
	// Scale says how many there are within Count; nil: as of the zero Scale.
	Scale     *Scale    `json:"scale,omitempty"`
	Resources Resources `json:"resources"`
	// Objects are the kinds of objects that its instances own. One service of an app has
	// objects.
	Objects []KindName `json:"objects,omitempty"`
	// Placed are those of the kinds whose objects are allocated, each to an instance that has
	// room for what it takes; the others are spread by their names.
	Placed map[KindName]Demanded `json:"placed,omitempty"`
	// Slots are those of an instance for placed objects; 0: they are not counted.
	Slots int `json:"slots,omitempty"`
	// Schemas are those of the kinds whose state has another than the first one.
	Schemas map[KindName]Schema `json:"schemas,omitempty"`
	// Ports are those that an instance listens on, sorted by name.
	Ports  []Port `json:"ports,omitempty"`
	Health Health `json:"health"`
	// Sandbox is SandboxStrict, or empty: what the instance's user may do.
	Sandbox string   `json:"sandbox,omitempty"`
	Update  Update   `json:"update"`
	Stop    Stop     `json:"stop"`
	Spread  string   `json:"spread"`            // "host" or "none": a preference
	Require []string `json:"require,omitempty"` // constraints on host labels: all must hold
	// Restart counts the restarts that were asked for: not a key of the spec,
	// kept from version to version by super.
	Restart int `json:"restart,omitempty"`
}

// Schema is what a program makes of the state of a kind of objects: it writes Number and
// all down to Lowest, and reads all up to Number. They count from 1.
type Schema struct {
	Number int `json:"number"`
	Lowest int `json:"lowest"`
}

// Schema is that of a kind; one that is not said is the first.
func (s *Service) Schema(kind KindName) Schema {
	if of, ok := s.Schemas[kind]; ok {
		return of
	}
	return Schema{1, 1}
}

// Artifact names the executable of a service, or the archive that it is in. Exactly
// one of SHA256 and Builtin is set once an app is deployed.
type Artifact struct {
	Path      string `json:"path,omitempty"`       // where the deploying machine found it
	Command   string `json:"command,omitempty"`    // of an archive: the path of the executable in it
	SHA256    string `json:"sha256,omitempty"`     // 64 hex digits of the file, before it is compressed for storage
	SizeBytes int64  `json:"size_bytes,omitempty"` // of the file
	Arch      string `json:"arch,omitempty"`       // GOARCH of the executable, if it is an ELF file; empty for a script
	Builtin   string `json:"builtin,omitempty"`    // a program carried by the kbroker binary itself
}

// Programs that the kbroker binary carries (Artifact.Builtin). An agent starts
// them as its own executable with the hidden command `builtin NAME`.
const (
	BuiltinAllocator = "allocator"
	BuiltinHello     = "hello"
)

// Count bounds the number of instances. `count: 3` is {3, 3}.
type Count struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// Resources is what one instance reserves on its host, and what it is held to. A
// limit that its host cannot enforce is not enforced, and its status says so; to
// be placed only where it is, a service requires the host's feature.
type Resources struct {
	CPU         float64 `json:"cpu"`          // cores; reserved, and its share when all want more than there is
	MemoryBytes int64   `json:"memory_bytes"` // reserved
	// CPULimit is how many cores it gets at most, MemoryLimitBytes how much memory,
	// PIDs how many processes and threads, Files how many open files each of its
	// processes. 0: no limit of its own.
	CPULimit         float64 `json:"cpu_limit,omitempty"`
	MemoryLimitBytes int64   `json:"memory_limit_bytes,omitempty"`
	PIDs             int     `json:"pids,omitempty"`
	Files            int     `json:"fds,omitempty"`
}

// Port is one that an instance listens on. Its number reaches the instance as
// PORT_<NAME> in the environment.
type Port struct {
	Name   string `json:"name"`
	Number int    `json:"number,omitempty"` // 0: one that is free on the host, the same over restarts
}

// SandboxStrict: the instance reads its program, libraries and system files,
// writes its own directories, and connects to the cluster's brokers alone.
const SandboxStrict = "strict"

// Features that a host has are labels of it with the value FeatureYes, so that a
// service can require them: `limits.memory == yes`.
const (
	FeatureYes         = "yes"
	FeatureLimitMemory = "limits.memory"
	FeatureLimitCPU    = "limits.cpu"
	FeatureLimitPIDs   = "limits.pids"
	FeatureOwnUser     = "isolation.user"    // each instance has a user of its own
	FeatureOwnGroup    = "isolation.cgroup"  // nothing of an instance outlives it
	FeatureSandbox     = "isolation.sandbox" // SandboxStrict is possible
)

// Health says when an instance counts as ready, and when it is to be killed.
//
// An instance is ready after Successes checks in a row that say so. It is not
// ready any more after Failures in a row that say no or are not answered. One
// that is not ready within Start of its start, or that does not live, is killed
// and started again.
type Health struct {
	Check
	Successes int           `json:"successes,omitempty"` // 0: 1
	Start     time.Duration `json:"start,omitempty"`     // 0: DefaultStart
	// Live says when it is hung. nil: the way of Ready, by what is not answered,
	// after DefaultLiveFailures.
	Live *Check `json:"live,omitempty"`
}

// Check is a way to look at an instance.
type Check struct {
	Ready    string        `json:"ready"`              // HealthSDK, HealthHTTP, HealthTCP, HealthExec, HealthAlive; of Live HealthOff, too
	Port     string        `json:"port,omitempty"`     // of HealthHTTP and HealthTCP: the name of a port; empty: the only one
	Path     string        `json:"path,omitempty"`     // of HealthHTTP; empty: /
	Command  []string      `json:"command,omitempty"`  // of HealthExec: run as the instance, in its working directory
	Interval time.Duration `json:"interval"`           // between the begins of two checks; nanoseconds in JSON
	Timeout  time.Duration `json:"timeout,omitempty"`  // of one check; 0: DefaultCheckTimeout
	Failures int           `json:"failures,omitempty"` // in a row; 0: DefaultFailures
}

const (
	// HealthSDK: ready when the SDK inside the process answers so; it lives while
	// the SDK says so.
	HealthSDK = "sdk"
	// HealthHTTP: ready when GET of Path on Port is answered with 200 to 399.
	HealthHTTP = "http"
	// HealthTCP: ready when Port takes a connection.
	HealthTCP = "tcp"
	// HealthExec: ready when Command exits with 0.
	HealthExec = "exec"
	// HealthAlive: ready as soon as the process runs.
	HealthAlive = "alive"
	// HealthOff, of Live alone: it is never killed for being hung.
	HealthOff = "off"
)

// KilledText begins the message of an instance that was killed for its health.
const KilledText = "killed: "

// What holds where a Health or a Check does not say.
const (
	DefaultStart        = 30 * time.Second
	DefaultCheckTimeout = time.Second
	DefaultFailures     = 3
	DefaultLiveFailures = 6
)

// Update governs changes of a running service.
type Update struct {
	Parallel     int           `json:"parallel"`      // instances replaced at a time
	MinHealthy   time.Duration `json:"min_healthy"`   // a new instance must stay ready this long before the next step
	Deadline     time.Duration `json:"deadline"`      // a rollout that makes no progress for this long has failed
	AutoRollback bool          `json:"auto_rollback"` // a failed rollout returns to the version before
}

// Stop says how an instance is asked to leave.
type Stop struct {
	Signal string        `json:"signal"` // e.g. SIGTERM
	Grace  time.Duration `json:"grace"`  // then the process group is killed
}

// Service returns the service of that name.
func (a *App) Service(name ServiceName) (*Service, bool) {
	for i := range a.Services {
		if a.Services[i].Name == name {
			return &a.Services[i], true
		}
	}
	return nil, false
}

// DefaultService is the service that is meant where only the app is named: the
// one of the same name, else its only one.
func (a *App) DefaultService() (*Service, bool) {
	if s, ok := a.Service(ServiceName(a.Name)); ok {
		return s, true
	}
	if len(a.Services) != 1 {
		return nil, false
	}
	return &a.Services[0], true
}
