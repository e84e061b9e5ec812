package kbroker

// Demanded is what a placed object takes of what an instance has. 0 is nothing.
type Demanded struct {
	Slots       int     `json:"slots,omitempty"` // of Service.Slots
	CPU         float64 `json:"cpu,omitempty"`   // cores, of those that an instance reserves
	MemoryBytes int64   `json:"memory_bytes,omitempty"`
}

// Plus is what both take together.
func (d Demanded) Plus(e Demanded) Demanded {
	return Demanded{d.Slots + e.Slots, d.CPU + e.CPU, d.MemoryBytes + e.MemoryBytes}
}

// Minus is what is left of d without e.
func (d Demanded) Minus(e Demanded) Demanded {
	return Demanded{d.Slots - e.Slots, d.CPU - e.CPU, d.MemoryBytes - e.MemoryBytes}
}

// MaxLabels bounds the labels of a placed object, MaxLabelBytes each name and value.
const (
	MaxLabels     = 16
	MaxLabelBytes = 128
)

// AllocateRequest asks the active allocator of an app, on subjects.Placing, for a place for a
// placed object. It is answered when the object has one, also if it had one before; the same
// request may be sent again.
type AllocateRequest struct {
	Kind KindName `json:"kind"`
	ID   string   `json:"id"`
	// Demand is what it takes; nil: what the spec says of its kind.
	Demand *Demanded `json:"demand,omitempty"`
	// Labels are for policies and people.
	Labels map[string]string `json:"labels,omitempty"`
	// Instance and Host are where it is to be, if there is room.
	Instance InstanceID `json:"instance,omitempty"`
	Host     HostID     `json:"host,omitempty"`
	// WaitMS is for how long it may wait for room, in milliseconds.
	WaitMS int64 `json:"wait_ms"`
}

// Check reports why it cannot be answered, or nil. The error has code Invalid and a hint.
func (r AllocateRequest) Check() error {
	if err := (Object{Kind: r.Kind, ID: r.ID}).Check(); err != nil {
		return err
	}
	if d := r.Demand; d != nil && (d.Slots < 0 || !(d.CPU >= 0) || d.MemoryBytes < 0) {
		return Errorf(Invalid, "%s:%s takes %d slots, %v cores and %d bytes", r.Kind, r.ID, d.Slots, d.CPU, d.MemoryBytes).WithHint("nothing, or more than nothing, of each")
	}
	if len(r.Labels) > MaxLabels {
		return Errorf(Invalid, "%s:%s has %d labels", r.Kind, r.ID, len(r.Labels)).WithHint("%d at most", MaxLabels)
	}
	for name, value := range r.Labels {
		if name == "" || len(name) > MaxLabelBytes || len(value) > MaxLabelBytes {
			return Errorf(Invalid, "the label %.40q of %s:%s is not valid", name, r.Kind, r.ID).WithHint("a name, and each at most %d bytes", MaxLabelBytes)
		}
	}
	return nil
}

// Allocation is where a placed object is.
type Allocation struct {
	Kind     KindName          `json:"kind"`
	ID       string            `json:"id"`
	Instance InstanceID        `json:"instance"`
	Labels   map[string]string `json:"labels,omitempty"`
	Existed  bool              `json:"existed,omitempty"` // it was allocated before
}

// PlacedRequest is about one placed object: to find it, or to release it.
type PlacedRequest struct {
	Kind KindName `json:"kind"`
	ID   string   `json:"id"`
}

// Object is the one that is meant.
func (r PlacedRequest) Object() Object { return Object{Kind: r.Kind, ID: r.ID, Placed: true} }

// ReleaseReply says what became of it.
type ReleaseReply struct {
	Released bool `json:"released"` // it was allocated
}
