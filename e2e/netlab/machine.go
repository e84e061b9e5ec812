//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// tools are the programs that a lab runs, with the Debian packages that have
// them; tools/netlab-install.sh installs these.
var tools = []struct{ program, debian string }{
	{"ip", "iproute2"},
	{"nft", "nftables"},
	{"mkfs.ext4", "e2fsprogs"},
	{"mount", "mount"},
	{"umount", "mount"},
	{"nsenter", "util-linux"},
}

// Capabilities (capability.h) that namespaces and mounts need.
const (
	capNetAdmin = 12
	capSysAdmin = 21
)

// lacking says why no lab can be made here, nil when one can.
func lacking() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and mounts need root")
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("what may this process do? %w", err)
	}
	if err := capable(string(status)); err != nil {
		return err
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		return fmt.Errorf("the kernel has no loop devices: %w", err)
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool.program); err != nil {
			return fmt.Errorf("%s is missing: apt-get install %s, or run tools/netlab-install.sh", tool.program, tool.debian)
		}
	}
	return nil
}

// capable reads the capabilities in a process's status.
func capable(status string) error {
	for line := range strings.Lines(status) {
		hex, ok := strings.CutPrefix(line, "CapEff:")
		if !ok {
			continue
		}
		caps, err := strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		if err != nil {
			return fmt.Errorf("capabilities %q: %w", hex, err)
		}
		if caps&(1<<capNetAdmin) == 0 || caps&(1<<capSysAdmin) == 0 {
			return errors.New("root without the capabilities NET_ADMIN and SYS_ADMIN, as in a container")
		}
		return nil
	}
	return errors.New("the kernel does not say what this process may do")
}

// run runs a program to its end; its error has what the program said.
func run(stdin, program string, args ...string) error {
	cmd := exec.Command(program, args...)
	cmd.Stdin = strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s\n%s", program, strings.Join(args, " "), err, strings.TrimSpace(string(out)), stdin)
	}
	return nil
}
