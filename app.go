package kbroker

import "time"

// App is an application spec with every default filled in: what package spec
// parses out of an app.yaml and what super stores as a version.
type App struct {
	Name     AppName   `json:"name"`
	Services []Service `json:"services"` // sorted by name, without the allocator
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
	Calls     []string  `json:"calls,omitempty"`
	Count     Count     `json:"count"`
	Resources Resources `json:"resources"`
	Health    Health    `json:"health"`
	Update    Update    `json:"update"`
	Stop      Stop      `json:"stop"`
	Spread    string    `json:"spread"`            // "host" or "none": a preference
	Require   []string  `json:"require,omitempty"` // constraints on host labels: all must hold
	// Restart counts the restarts that were asked for: not a key of the spec,
	// kept from version to version by super.
	Restart int `json:"restart,omitempty"`
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

// Resources is what one instance reserves on its host.
type Resources struct {
	CPU         float64 `json:"cpu"` // cores
	MemoryBytes int64   `json:"memory_bytes"`
}

// Health says when an instance counts as ready.
type Health struct {
	Ready    string        `json:"ready"`    // HealthSDK or HealthAlive
	Interval time.Duration `json:"interval"` // nanoseconds in JSON
}

const (
	// HealthSDK: ready when the SDK inside the process answers so.
	HealthSDK = "sdk"
	// HealthAlive: ready as soon as the process runs.
	HealthAlive = "alive"
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
