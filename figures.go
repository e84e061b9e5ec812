package kbroker

import "time"

const (
	// FiguresEvery is how often an agent measures and publishes.
	FiguresEvery = 2 * time.Second
	// FiguresFor is how long what was measured is shown; then nobody knows.
	FiguresFor = 10 * time.Second
)

// Figures are what an agent has measured of its host and of what runs there. They
// travel over plain NATS and are never stored: who has missed them waits for the next.
type Figures struct {
	Host      HostID            `json:"host"`
	Machine   HostFigures       `json:"machine"`
	Instances []InstanceMeasure `json:"instances,omitempty"`
}

// InstanceMeasure is one instance in Figures.
type InstanceMeasure struct {
	Tenant      TenantID    `json:"tenant"`
	Instance    InstanceID  `json:"instance"`
	Incarnation Incarnation `json:"incarnation"`
	InstanceFigures
}

// HostFigures are of the whole machine, whoever uses it. null: not known.
type HostFigures struct {
	CPUCores        *float64 `json:"cpu_cores"` // used
	MemoryBytes     *int64   `json:"memory_bytes"`
	MemoryFreeBytes *int64   `json:"memory_available_bytes"`
	Load            *float64 `json:"load_1m"`
	AgentCPUCores   *float64 `json:"agent_cpu_cores"`
	AgentBytes      *int64   `json:"agent_memory_bytes"`
	AgeS            float64  `json:"age_s"` // since a core has heard them
}

// InstanceFigures are of all processes of an instance: as its control group counts
// them, or where it has none, those that descend from its own. null: not known.
type InstanceFigures struct {
	CPUCores         *float64 `json:"cpu_cores"`
	CPUSeconds       *float64 `json:"cpu_s"` // since the process started
	MemoryBytes      *int64   `json:"memory_bytes"`
	MemoryLimitBytes *int64   `json:"memory_limit_bytes"` // one that is enforced
	// OpenFiles are those of its own process, of which a limit is; OpenFilesAll those of
	// all, where they are few.
	OpenFiles    *int     `json:"open_files"`
	OpenFilesAll *int     `json:"open_files_all"`
	PIDs         *int64   `json:"pids"` // processes and threads, as a limit counts them
	Requests     *uint64  `json:"requests"`
	Errors       *uint64  `json:"errors"`
	RequestsPerS *float64 `json:"requests_per_s"`
	ErrorsPerS   *float64 `json:"errors_per_s"`
	// ReadyForS is for how long it has been ready; ChecksFailing how many checks in a
	// row have not said that it is well, CheckFailing why.
	ReadyForS     *float64 `json:"ready_for_s"`
	ChecksFailing *int     `json:"checks_failing"`
	CheckFailing  string   `json:"check_failing,omitempty"`
	AgeS          float64  `json:"age_s"` // since a core has heard them
}

// FiguresReply is what a core knows of hosts and instances now: its own copy of the
// records, behind no barrier, and the newest figures.
type FiguresReply struct {
	Core      HostID        `json:"core"`
	Hosts     []HostRow     `json:"hosts"`
	Instances []InstanceRow `json:"instances"`
}
