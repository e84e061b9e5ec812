package kbroker

import "time"

// Checkup is what a host's agent found when it looked at its host, at most a
// few seconds ago; the answer to the verb checkup of the host's subject.
// Durations are nanoseconds.
type Checkup struct {
	Host    HostID    `json:"host"`
	Role    Role      `json:"role"`
	Version string    `json:"version"`
	Process string    `json:"process"` // this start of the agent
	PID     int       `json:"pid"`
	Now     time.Time `json:"now"` // wall clock when it answered
	// Starts are the last starts of the host's agents, this one's last.
	Starts []time.Time `json:"starts,omitempty"`

	// Stuck: the agent's loop did not answer; what it knows is missing below.
	Stuck bool `json:"stuck,omitempty"`
	// Proven: it has a complete view, received since it last connected. A host
	// on which nothing was ever placed has none.
	Proven bool `json:"proven"`
	// Instances that it runs, and Unreported statuses that no core has
	// acknowledged.
	Instances  int `json:"instances"`
	Unreported int `json:"unreported"`
	// Orphans carry the host's data directory, and the agent knows no instance
	// of theirs; at most MaxOrphans.
	Orphans []Orphan `json:"orphans,omitempty"`

	Disk   DiskCheckup   `json:"disk"`
	Sync   SyncCheckup   `json:"sync"`
	Memory MemoryCheckup `json:"memory"`
	Files  FilesCheckup  `json:"files"`
	Core   *CoreCheckup  `json:"core,omitempty"` // nil: a worker
}

// MaxOrphans bounds the orphans that a Checkup names.
const MaxOrphans = 20

// Orphan is a process that nobody answers for.
type Orphan struct {
	PID         int         `json:"pid"`
	Incarnation Incarnation `json:"incarnation"`
}

// DiskCheckup is the file system of the data directory. Free is what may still
// be used without being root.
type DiskCheckup struct {
	Path        string `json:"path"`
	FreeBytes   int64  `json:"free_bytes"`
	TotalBytes  int64  `json:"total_bytes"`
	FreeInodes  int64  `json:"free_inodes"`
	TotalInodes int64  `json:"total_inodes"` // 0: it has no fixed number
	Error       string `json:"error,omitempty"`
}

// SyncCheckup is how long writing and syncing one small block took in the data
// directory, over Count times.
type SyncCheckup struct {
	Count  int           `json:"count"`
	Median time.Duration `json:"median"`
	Worst  time.Duration `json:"worst"`
	Error  string        `json:"error,omitempty"`
}

// MemoryCheckup is the memory of the machine. Pressure is the share of the last
// ten seconds in which every process waited for memory, percent; 0 where the
// kernel does not tell.
type MemoryCheckup struct {
	TotalBytes     int64   `json:"total_bytes"`
	AvailableBytes int64   `json:"available_bytes"`
	Pressure       float64 `json:"pressure"`
	Error          string  `json:"error,omitempty"`
}

// FilesCheckup is how many files the agent may have open, and has.
type FilesCheckup struct {
	Limit int64  `json:"limit"`
	Open  int64  `json:"open"`
	Error string `json:"error,omitempty"`
}

// CoreCheckup is what the broker of a core sees. Fresh: it looked for this
// answer; if not, what it saw last is told.
type CoreCheckup struct {
	Fresh    bool            `json:"fresh"`
	Leader   bool            `json:"leader"`   // the meta group has one; without, what follows up to Replicas is empty
	Current  map[HostID]bool `json:"current"`  // its cores; true: caught up
	Replicas int             `json:"replicas"` // of the stream with the fewest; 0: not known
	// Settled: every stream has all its replicas, there and current, and no core
	// is changing; Unsettled names what speaks against it.
	Settled   bool   `json:"settled"`
	Unsettled string `json:"unsettled,omitempty"`
	// Mirrored: there are two cores, and each stream has a copy that follows on
	// the other one.
	Mirrored bool            `json:"mirrored,omitempty"`
	Streams  []StreamCheckup `json:"streams,omitempty"`
	Writable bool            `json:"writable"` // this core's canary write was acknowledged lately
}

// StreamCheckup is a stream as its leader sees it.
type StreamCheckup struct {
	Name     string `json:"name"`
	Replicas int    `json:"replicas"` // wanted
	Current  int    `json:"current"`  // there and caught up
	Lag      uint64 `json:"lag"`      // entries that the replica furthest behind lacks
	Leader   HostID `json:"leader,omitempty"`
	// Mirror is the core that holds its copy, where there are two; MirrorLag the
	// messages that the copy lacks.
	Mirror    HostID `json:"mirror,omitempty"`
	MirrorLag uint64 `json:"mirror_lag,omitempty"`
}
