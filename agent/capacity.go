package agent

import (
	"fmt"
	"runtime"

	"github.com/shirou/gopsutil/v4/mem"

	"github.com/kbroker/kbroker"
)

// DetectCapacity returns the processors that this process may use, and the
// memory of the machine.
func DetectCapacity() (kbroker.Resources, error) {
	m, err := mem.VirtualMemory()
	if err != nil {
		return kbroker.Resources{}, fmt.Errorf("memory of this machine: %w", err)
	}
	return kbroker.Resources{CPU: float64(runtime.NumCPU()), MemoryBytes: int64(m.Total)}, nil
}

// DefaultLabels are the labels that every host has.
func DefaultLabels(host kbroker.HostID, role kbroker.Role) map[string]string {
	return map[string]string{"os": runtime.GOOS, "arch": runtime.GOARCH, "host": string(host), "role": string(role)}
}
