package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
)

// PreviousSuffix is added to the name of a program that was replaced.
const PreviousSuffix = ".previous"

// Member is the host of a data directory, as its files tell.
type Member struct {
	Host kbroker.HostID
	Role kbroker.Role
	// Servers are the cores' client URLs, those of other hosts first.
	Servers []string
	// CA are the cluster's roots, in PEM.
	CA string
	// Credential is that of an admin, as the content of a .creds file; empty on a worker.
	Credential string
	// Source is the file that says so.
	Source string
	// Process and Program are of the agent that runs on it now.
	Process, Program string
}

// MemberOf tells which host's agent runs on a data directory. NotFound when none
// runs, or the directory belongs to no cluster.
func MemberOf(dir string) (Member, error) {
	m, err := readMember(dir)
	if err != nil {
		return Member{}, err
	}
	if m.Removed {
		return Member{}, m.errRemoved()
	}
	holder, alive, err := agent.HolderOf(dir)
	if err != nil {
		return Member{}, err
	}
	if m.ClusterID == "" || !alive {
		return Member{}, kbroker.Errorf(kbroker.NotFound, "no agent runs on %s", dir).
			WithHint("there is nothing to restart: start it with kbroker agent --dir %s, or systemctl start kbroker", dir)
	}
	out := Member{Host: m.Host, Role: m.Role, Source: m.path, Process: holder.Process, Program: holder.Executable}
	if out.CA, err = m.roots(); err != nil {
		return Member{}, err
	}
	if m.Role == kbroker.RoleCore {
		if out.Credential, err = Credential(dir, AdminRole); err != nil {
			return Member{}, err
		}
	}
	own := ""
	if m.Client != "" {
		own = url(m.Client)
	}
	for _, s := range m.servers() {
		if s != own {
			out.Servers = append(out.Servers, s)
		}
	}
	if m.Role == kbroker.RoleCore {
		out.Servers = append(out.Servers, own)
	}
	return out, nil
}

// readMember reads who the host of a data directory is. NotFound: it is not one.
func readMember(dir string) (*membership, error) {
	m := &membership{path: filepath.Join(dir, membershipFile)}
	err := m.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, kbroker.Errorf(kbroker.NotFound, "%s is not the data directory of a host", dir).
			WithHint("name it with --dir; a cluster of kbroker up has one for each host, such as .kbroker/h1")
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", m.path, err)
	}
	return m, nil
}

// CheckProgram tells the version of a program that is to run on this machine.
// Refused when it does not run, is no kbroker, or is for other machines.
func CheckProgram(ctx context.Context, path string) (BuildVersion, error) {
	v, err := ProgramVersion(ctx, path)
	if err == nil && (v.OS != runtime.GOOS || v.Arch != runtime.GOARCH) {
		err = kbroker.Errorf(kbroker.Refused, "%s is for %s/%s, this machine is %s/%s", path, v.OS, v.Arch, runtime.GOOS, runtime.GOARCH)
	}
	return v, err
}

// keepPrevious gives a file its second name; that of one before it goes.
func keepPrevious(path string) error {
	previous := path + PreviousSuffix
	if err := os.Remove(previous); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("keep the old program: %w", err)
	}
	if err := os.Link(path, previous); err != nil {
		return fmt.Errorf("keep the old program: %w", err)
	}
	return nil
}

// copyBeside writes a program's copy into the directory of to, synced.
func copyBeside(from, to string) (path string, err error) {
	in, err := os.Open(from)
	if err != nil {
		return "", fmt.Errorf("copy the program: %w", err)
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), filepath.Base(to)+"-*")
	if err != nil {
		return "", fmt.Errorf("copy the program: %w", err)
	}
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Sync(), out.Close()); err != nil {
		return "", errors.Join(fmt.Errorf("copy the program: %w", err), os.Remove(out.Name()))
	}
	return out.Name(), nil
}

func digest(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("read the program %s: %w", path, err)
	}
	return h.Sum(nil), nil
}
