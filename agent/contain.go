package agent

import (
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent/artifact"
	"github.com/kbroker/kbroker/agent/cgroup"
	"github.com/kbroker/kbroker/agent/spawn"
)

// defaultPIDs bounds the processes and threads of an instance whose spec does not: a
// fork bomb is to hurt nobody else.
const defaultPIDs = 4096

// containment is what this host can hold instances to.
type containment struct {
	groups  *cgroup.Root
	can     cgroup.Features
	users   *users // nil: none of their own
	sandbox bool
}

// newContainment looks what this process may do here.
func newContainment(dir, boot string, log *slog.Logger) (containment, error) {
	groups, err := cgroup.Open(dir, boot)
	if err != nil {
		return containment{}, err
	}
	c := containment{groups: groups, can: groups.Features(), sandbox: spawn.Sandboxes()}
	var why string
	if c.users, why = newUsers(dir); c.users == nil {
		log.Warn("instances run as the user of this agent", "err", why)
	}
	if !c.can.Group {
		log.Warn("instances have no control groups: what leaves its process group is looked for by its environment")
	}
	if !c.can.Memory || !c.can.CPU || !c.can.PIDs {
		log.Warn("not all limits can be enforced", "memory", c.can.Memory, "cpu", c.can.CPU, "pids", c.can.PIDs)
	}
	return c, nil
}

// labels are the features of the host, as a service may require them.
func (c containment) labels() map[string]string {
	all := map[string]string{}
	for label, has := range map[string]bool{
		kbroker.FeatureLimitMemory: c.can.Memory, kbroker.FeatureLimitCPU: c.can.CPU, kbroker.FeatureLimitPIDs: c.can.PIDs,
		kbroker.FeatureOwnGroup: c.can.Group, kbroker.FeatureOwnUser: c.users != nil, kbroker.FeatureSandbox: c.sandbox,
	} {
		if has {
			all[label] = kbroker.FeatureYes
		}
	}
	return all
}

// unenforcedMemory is a limit of memory that is not enforced, in words.
const unenforcedMemory = "memory limit"

// unenforced says what a service asks for and does not get here.
func (c containment) unenforced(s kbroker.Service) (all []string) {
	r := s.Resources
	for _, l := range []struct {
		asked, can bool
		what       string
	}{
		{r.MemoryLimitBytes > 0, c.can.Memory, unenforcedMemory},
		{r.CPULimit > 0, c.can.CPU, "cpu limit"},
		{r.PIDs > 0, c.can.PIDs, "pids limit"},
		{true, c.users != nil, "own user"},
		{true, c.can.Group, "control group"},
	} {
		if l.asked && !l.can {
			all = append(all, l.what)
		}
	}
	return all
}

// groupOf is the control group of an incarnation; nil: it has none.
func (a *Agent) groupOf(r record) *cgroup.Group {
	if r.Group == "" {
		return nil
	}
	return a.contain.groups.Group(r.Group)
}

// makeHome makes what the process of an instance owns.
func (a *Agent) makeHome(home string, user uint32) error {
	for _, dir := range []string{workDir, tempDir, runDir} {
		path := filepath.Join(home, dir)
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if a.contain.users == nil {
			continue
		}
		if err := belongs(path, user); err != nil {
			return fmt.Errorf("give it to user %d: %w", user, err)
		}
	}
	return nil
}

// makeGroup makes the control group of a start, with its limits.
func (a *Agent) makeGroup(r record) error {
	g, res := a.groupOf(r), r.Placement.Spec.Resources
	if g == nil {
		return nil
	}
	l := cgroup.Limits{CPU: res.CPULimit, Share: res.CPU, MemoryBytes: res.MemoryLimitBytes, PIDs: defaultPIDs}
	if res.PIDs > 0 {
		l.PIDs = res.PIDs
	}
	return g.Make(l)
}

// possible is nil if this host can give all that a service cannot do without.
func (c containment) possible(s kbroker.Service) error {
	if s.Sandbox == kbroker.SandboxStrict && !c.sandbox {
		return kbroker.Errorf(kbroker.Refused, "this host cannot give a sandbox").
			WithHint("Landlock of Linux 6.12 or later is needed; see the label %s of hosts", kbroker.FeatureSandbox)
	}
	return nil
}

// bounds is how the incarnation of r is started, and within what.
func (a *Agent) bounds(what artifact.Executable, args []string, home string, r record) spawn.Config {
	s := r.Placement.Spec
	work, temp, run := filepath.Join(home, workDir), filepath.Join(home, tempDir), filepath.Join(home, runDir)
	program := what.Path
	if what.Tree != "" {
		program = what.Tree
	}
	known := variables(home, a.cfg.Address, what.Tree, r)
	cfg := spawn.Config{
		Path: what.Path, Args: expandAll(args, known), Env: environment(home, a.cfg.Dir.Path, what.Tree, r, known), Dir: work,
		Files: uint64(s.Resources.Files),
	}
	cfg.Group = a.groupOf(r)
	if r.User != 0 {
		cfg.User = &spawn.User{UID: r.User, GID: r.User}
		cfg.View = &spawn.View{Read: []string{program}, Write: []string{work, temp, run}}
	}
	if s.Sandbox == kbroker.SandboxStrict {
		cfg.Sandbox = &spawn.Sandbox{
			Read: append([]string{program}, systemPaths...), Write: append([]string{work, temp, run}, systemDevices...),
			Connect: brokerPorts(a.servers()), Listen: slices.Collect(maps.Values(r.Ports)),
		}
	}
	return cfg
}

// What every program may read and run in a sandbox, and the devices that it may
// use.
var (
	systemPaths   = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/run/systemd/resolve", "/proc", "/sys/devices/system", "/sys/fs/cgroup", "/sys/kernel/mm"}
	systemDevices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"}
)

// servers are the URLs that instances connect to.
func (a *Agent) servers() []string {
	var own []string
	if a.cfg.Servers != nil {
		own = a.cfg.Servers()
	}
	return a.heart.servers(own)
}

// brokerPorts are the ports of URLs.
func brokerPorts(urls []string) (ports []int) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			continue
		}
		_, port, err := net.SplitHostPort(u.Host)
		if err != nil {
			continue
		}
		if n, err := strconv.Atoi(port); err == nil {
			ports = append(ports, n)
		}
	}
	return ports
}
