package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// The ways to look at an instance.
var (
	readyChecks = []string{kbroker.HealthSDK, kbroker.HealthHTTP, kbroker.HealthTCP, kbroker.HealthExec, kbroker.HealthAlive}
	liveChecks  = []string{kbroker.HealthHTTP, kbroker.HealthTCP, kbroker.HealthExec, kbroker.HealthOff}
)

func (c *checker) health(path string, s *kbroker.Service) {
	h := s.Health
	c.check(path, h.Check, s.Ports, readyChecks)
	c.threshold(path+".successes", h.Successes)
	if h.Start != 0 {
		c.duration(path+".start", h.Start, MinStart, MaxStart)
	}
	if h.Live != nil {
		c.check(path+".live", *h.Live, s.Ports, liveChecks)
	}
}

func (c *checker) check(path string, k kbroker.Check, ports []kbroker.Port, ways []string) {
	if k.Ready == "" {
		c.add(path, "ready: "+strings.Join(ways, ", "), "%s does not say how to look", label(path))
	} else if !slices.Contains(ways, k.Ready) {
		c.oneOf(path+".ready", k.Ready, ways)
	}
	network := k.Ready == kbroker.HealthHTTP || k.Ready == kbroker.HealthTCP
	for _, of := range []struct {
		key  string
		set  bool
		fits bool
		want string
	}{
		{"port", k.Port != "", network, "http or tcp"},
		{"path", k.Path != "", k.Ready == kbroker.HealthHTTP, "http"},
		{"command", len(k.Command) > 0, k.Ready == kbroker.HealthExec, "exec"},
	} {
		if of.set && !of.fits && slices.Contains(ways, k.Ready) {
			c.add(path+"."+of.key, "", "%s.%s is only for the check %s, this one is %s", label(path), of.key, of.want, k.Ready)
		}
	}
	switch {
	case network && k.Port == "" && len(ports) != 1:
		c.add(path+".port", "name one of ports", "%s does not say which port to look at, the service has %d", label(path), len(ports))
	case network && k.Port != "" && !slices.ContainsFunc(ports, func(p kbroker.Port) bool { return p.Name == k.Port }):
		c.add(path+".port", "name one of ports", "%s.port is %s, the service has no port of this name", label(path), quote(k.Port))
	case k.Ready == kbroker.HealthExec && len(k.Command) == 0:
		c.add(path+".command", "a list: the program and its arguments", "%s has no command to run", label(path))
	}
	if k.Path != "" && (!strings.HasPrefix(k.Path, "/") || strings.ContainsAny(k.Path, " \r\n")) {
		c.add(path+".path", "", "%s.path is %s, want a path that begins with / and has no blanks", label(path), quote(k.Path))
	}
	if len(k.Command) > MaxArgs {
		c.add(path+".command", "", "%s.command has %d arguments, at most %d are allowed", label(path), len(k.Command), MaxArgs)
	}
	c.str(path+".path", k.Path)
	for i, a := range k.Command {
		c.str(fmt.Sprintf("%s.command[%d]", path, i), a)
	}
	c.duration(path+".interval", k.Interval, MinInterval, MaxInterval)
	if k.Timeout != 0 {
		c.duration(path+".timeout", k.Timeout, MinTimeout, MaxTimeout)
	}
	c.threshold(path+".failures", k.Failures)
}

// threshold checks a number of checks in a row; 0 stands for the default.
func (c *checker) threshold(path string, n int) {
	if n < 0 || n > MaxThreshold {
		c.add(path, "", "%s is %d, want 1 to %d", label(path), n, MaxThreshold)
	}
}

func (c *checker) ports(path string, ports []kbroker.Port) {
	if len(ports) > MaxPorts {
		c.add(path, "", "%s has %d ports, at most %d are allowed", label(path), len(ports), MaxPorts)
		return
	}
	numbers := map[int]string{}
	for i, p := range ports {
		at := path + "." + p.Name
		c.name(finding{path: at}, "port", p.Name)
		if i > 0 && ports[i-1].Name >= p.Name {
			c.add(path, "", "ports are not sorted by name, or %s appears twice", quote(p.Name))
		}
		if p.Number < 0 || p.Number > 65535 {
			c.add(at, portsHint, "%s is %d, want a number from 1 to 65535", label(at), p.Number)
		}
		if other, ok := numbers[p.Number]; ok && p.Number != 0 {
			c.add(at, "", "%s and %s have the same number %d", label(at), quote(other), p.Number)
		}
		numbers[p.Number] = p.Name
	}
}

func (c *checker) limits(path string, r kbroker.Resources) {
	if l := r.CPULimit; l != 0 && !(l >= MinCPU && l <= MaxCPU) {
		c.add(path+".cpu_limit", "cpu_limit is in cores, e.g. 1.5", "%s.cpu_limit is %v, want %v to %v", label(path), l, MinCPU, MaxCPU)
	} else if l != 0 && l < r.CPU {
		c.add(path+".cpu_limit", "cpu is what is reserved", "%s.cpu_limit %v is below cpu %v", label(path), l, r.CPU)
	}
	if l := r.MemoryLimitBytes; l != 0 && (l < MinMemoryBytes || l > MaxMemoryBytes) {
		c.add(path+".memory_limit", sizeHint, "%s.memory_limit is %s, want %s to %s", label(path), formatSize(l), formatSize(MinMemoryBytes), formatSize(MaxMemoryBytes))
	} else if l != 0 && l < r.MemoryBytes {
		c.add(path+".memory_limit", "memory is what is reserved", "%s.memory_limit %s is below memory %s", label(path), formatSize(l), formatSize(r.MemoryBytes))
	}
	if n := r.PIDs; n != 0 && (n < MinPIDs || n > MaxPIDs) {
		c.add(path+".pids", "", "%s.pids is %d, want %d to %d", label(path), n, MinPIDs, MaxPIDs)
	}
	if n := r.Files; n != 0 && (n < MinFiles || n > MaxFiles) {
		c.add(path+".fds", "", "%s.fds is %d, want %d to %d", label(path), n, MinFiles, MaxFiles)
	}
}
