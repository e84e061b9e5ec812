package node

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	neturl "net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/kbroker/kbroker"
)

// Validate refuses values that no host takes, whatever its directory holds:
// Invalid. Pure.
func (cfg Config) Validate() error {
	if cfg.Dir == "" {
		return kbroker.Errorf(kbroker.Invalid, "dir is empty").WithHint("it is the data directory of the host, for example /var/lib/kbroker")
	}
	if cfg.Name != "" {
		if err := kbroker.CheckName("host", string(cfg.Name)); err != nil {
			return err
		}
	}
	if cfg.Role != "" && cfg.Role != kbroker.RoleCore && cfg.Role != kbroker.RoleWorker {
		return errRole(cfg.Role)
	}
	if cfg.Advertise != "" {
		if err := checkAdvertise(cfg.Advertise); err != nil {
			return err
		}
	}
	for _, addr := range cfg.Join {
		if u, err := neturl.Parse(url(addr)); err != nil || u.Hostname() == "" {
			return kbroker.Errorf(kbroker.Invalid, "join is %q, want HOST:PORT", addr).WithHint("name the client address of a core, as kbroker hosts shows it")
		}
	}
	for _, p := range []struct {
		name string
		port int
	}{{"client port", cfg.ClientPort}, {"route port", cfg.RoutePort}} {
		if p.port < 0 || p.port > 65535 {
			return kbroker.Errorf(kbroker.Invalid, "%s is %d, want 1 to 65535, or 0 for any", p.name, p.port)
		}
	}
	if cfg.ClientPort != 0 && cfg.ClientPort == cfg.RoutePort {
		return kbroker.Errorf(kbroker.Invalid, "client port and route port are both %d", cfg.ClientPort).WithHint("leave one of them out, and it is picked")
	}
	if life := cfg.CredentialLife; life != 0 && (life < kbroker.MinCredentialLife || life > kbroker.MaxCredentialLife) {
		return kbroker.Errorf(kbroker.Invalid, "credential life is not a duration between %v and %v", kbroker.MinCredentialLife, kbroker.MaxCredentialLife).WithHint("for example 15m")
	}
	for _, k := range slices.Sorted(maps.Keys(cfg.Labels)) {
		if k == "" || cfg.Labels[k] == "" {
			return kbroker.Errorf(kbroker.Invalid, "label %s=%s has an empty part", k, cfg.Labels[k]).WithHint("a label is KEY=VALUE")
		}
	}
	return nil
}

// Check tells whether a host of this configuration would start: its values, and
// whether the data directory, as it is now, goes with them. It changes nothing.
// Invalid, or Refused when the directory's host was removed, is what Run would
// end with. Who holds the directory does not matter; a token on standard input is
// left there.
func (cfg Config) Check() error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	m, err := loadMembership(cfg.Dir)
	if err != nil {
		return err
	}
	if _, err = m.accepts(cfg); err != nil || m.ClusterID != "" || cfg.Found || cfg.TokenFile == stdinFile {
		return err
	}
	_, err = readToken(cfg.TokenFile)
	return err
}

// loadMembership reads who the host of a directory is; of a directory without,
// or that is not there, it is nobody yet.
func loadMembership(dir string) (*membership, error) {
	m := &membership{path: filepath.Join(dir, membershipFile)}
	err := m.read()
	switch unread, ok := errors.AsType[*fs.PathError](err); {
	case errors.Is(err, fs.ErrNotExist):
		return m, nil
	case ok:
		return nil, fmt.Errorf("read membership: %w", unread)
	case err != nil:
		return nil, kbroker.Errorf(kbroker.Refused, "%s is damaged: %v", m.path, err).
			WithHint("restore the file, or start with an empty data directory under another name")
	}
	return m, nil
}

// accepts refuses a configuration that this host cannot start with. begins: it
// makes a new host of the directory, which belongs to no cluster.
func (m *membership) accepts(cfg Config) (begins bool, err error) {
	differs := m.agrees(cfg)
	switch {
	case m.Removed:
		return false, m.errRemoved()
	case m.ClusterID != "":
		return false, differs
	case m.Host != "" && differs == nil: // its name and its ports are kept
		cfg.Name, cfg.Role, cfg.Advertise = m.Host, m.Role, ""
		return false, cfg.checkNew(m.Client)
	}
	return true, cfg.checkNew("")
}

// checkNew refuses a configuration that no new host can begin with. client is
// the address that it has picked, if it has.
func (cfg Config) checkNew(client string) error {
	switch {
	case cfg.Found && len(cfg.Join) > 0:
		return kbroker.Errorf(kbroker.Invalid, "a host founds a cluster or joins one, not both").
			WithHint("give --found=false to join, or --join= to found")
	case !cfg.Found && len(cfg.Join) == 0:
		return kbroker.Errorf(kbroker.Invalid, "this data directory belongs to no cluster yet").
			WithHint("found one with --found, or join one with --join ADDR --token-file FILE")
	}
	if _, err := cfg.hostName(); err != nil {
		return err
	}
	switch {
	case cfg.Role == kbroker.RoleWorker && cfg.Found:
		return kbroker.Errorf(kbroker.Invalid, "a worker cannot found a cluster: it stores nothing").WithHint("found it with a core, then join workers")
	case cfg.Role == kbroker.RoleWorker && (cfg.ClientPort != 0 || cfg.RoutePort != 0):
		return kbroker.Errorf(kbroker.Invalid, "a worker listens on no port").WithHint("leave the client port and the route port out")
	case cfg.Role == kbroker.RoleWorker || client != "": // it needs no address, or has it
	case cfg.Role != "" && cfg.Role != kbroker.RoleCore:
		return errRole(cfg.Role)
	default:
		if err := checkAdvertise(cfg.Advertise); err != nil {
			return err
		}
	}
	if !cfg.Found && cfg.TokenFile == "" {
		return errNoToken()
	}
	return nil
}

// hostName is the name of a new host.
func (cfg Config) hostName() (kbroker.HostID, error) {
	if cfg.Name != "" {
		return cfg.Name, kbroker.CheckName("host", string(cfg.Name))
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("find the host's name: %w", err)
	}
	if err := kbroker.CheckName("host", name); err != nil {
		return "", kbroker.Errorf(kbroker.Invalid, "the machine's name does not do: %v", err).WithHint("give the host a name with --name")
	}
	return kbroker.HostID(name), nil
}

func errRole(r kbroker.Role) error {
	return kbroker.Errorf(kbroker.Invalid, "role is %q, want core or worker", r).WithHint("a core has a copy of the cluster's data; a worker only runs applications")
}

// checkAdvertise refuses what is not the address of one host.
func checkAdvertise(ip string) error {
	if addr := net.ParseIP(ip); addr == nil || addr.IsUnspecified() {
		return kbroker.Errorf(kbroker.Invalid, "advertise is %q, want the IP that other hosts reach this one at", ip).WithHint("--advertise IP")
	}
	return nil
}
