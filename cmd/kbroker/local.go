package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/freeport"
	"github.com/kbroker/kbroker/node"
)

const (
	localFile = "up.json"
	lockFile  = "up.lock"
	// lockPoll is the pause between attempts to take the lock.
	lockPoll = 50 * time.Millisecond
	// loopback is where the hosts of a local cluster are.
	loopback = "127.0.0.1"
)

// localCluster is a cluster of `up`: real agents on this machine, each with a
// data directory DIR/<host>. What is picked once is kept in DIR/up.json.
type localCluster struct {
	dir   string      // absolute
	ca    string      // the roots that the context names
	Hosts []localHost `json:"hosts"`
}

// localHost is one host of it. A worker has no ports.
type localHost struct {
	Name       kbroker.HostID `json:"name"`
	Role       kbroker.Role   `json:"role,omitempty"` // empty: core
	ClientPort int            `json:"client_port,omitempty"`
	RoutePort  int            `json:"route_port,omitempty"`
	// Removed: the cluster has removed it, or it has no part in it any more. It
	// keeps its name, which is not used again.
	Removed bool `json:"removed,omitempty"`
}

func (h localHost) worker() bool { return h.Role == kbroker.RoleWorker }

// members are the hosts that were not removed, cores those of them that take
// clients.
func (l *localCluster) members() []localHost {
	return slices.DeleteFunc(slices.Clone(l.Hosts), func(h localHost) bool { return h.Removed })
}

func (l *localCluster) cores() []localHost {
	return slices.DeleteFunc(l.members(), localHost.worker)
}

func (h localHost) client() string { return net.JoinHostPort(loopback, strconv.Itoa(h.ClientPort)) }

// hostDir is the data directory of a host.
func (l *localCluster) hostDir(h kbroker.HostID) string { return filepath.Join(l.dir, string(h)) }

// localDir is the directory of the local cluster: the flag, KBROKER_DIR, or
// .kbroker in the working directory.
func localDir(flag string) (string, error) {
	dir := flag
	if dir == "" {
		dir = os.Getenv(client.EnvDir)
	}
	if dir == "" {
		dir = client.LocalDir
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("directory %s: %w", dir, err)
	}
	return abs, nil
}

// onThisMachine refuses commands for a cluster of this machine on another
// system, and with a flag that names a cluster in another way than they do.
func (c *cli) onThisMachine() error {
	if c.server != "" {
		return kbroker.Errorf(kbroker.Invalid, "up and down work on a directory of this machine, not on --context %s", c.server).
			WithHint("name the directory with --dir")
	}
	return needLinux()
}

// loadLocal reads what an earlier `up` kept. A directory without is a cluster
// without hosts.
func loadLocal(dir string) (*localCluster, error) {
	l := &localCluster{dir: dir}
	b, err := os.ReadFile(filepath.Join(dir, localFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return l, nil
	case err != nil:
		return nil, fmt.Errorf("read cluster: %w", err)
	}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "%s is damaged: %v", filepath.Join(dir, localFile), err).
			WithHint("kbroker down --dir %s --delete ends what runs and removes it", dir)
	}
	return l, nil
}

// grow adds hosts up to n: cores until there are that many, then workers. A core
// has ports that are free now. They are on disk before anything uses them.
func (l *localCluster) grow(n, cores int) error {
	// One of a host that is down is not free.
	taken := func(port int) bool {
		return slices.ContainsFunc(l.Hosts, func(h localHost) bool { return port == h.ClientPort || port == h.RoutePort })
	}
	for len(l.members()) < n {
		h := localHost{Name: kbroker.HostID("h" + strconv.Itoa(len(l.Hosts)+1)), Role: kbroker.RoleCore}
		if len(l.cores()) >= cores {
			h.Role = kbroker.RoleWorker
			l.Hosts = append(l.Hosts, h)
			continue
		}
		ports, err := freeport.Pick(loopback, 2, taken)
		if err != nil {
			return err
		}
		h.ClientPort, h.RoutePort = ports[0], ports[1]
		l.Hosts = append(l.Hosts, h)
	}
	return l.save()
}

// save replaces up.json and the context of the cluster.
func (l *localCluster) save() error {
	b, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return fmt.Errorf("encode cluster: %w", err)
	}
	if err := durable.Replace(filepath.Join(l.dir, localFile), append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write cluster: %w", err)
	}
	l.ca = l.roots()
	c := client.Context{Tenant: kbroker.DefaultTenant, CA: l.ca, Credential: l.admin()}
	for _, h := range l.cores() {
		c.Servers = append(c.Servers, "nats://"+h.client())
	}
	return client.WriteContext(l.dir, c)
}

// trust has the context name the cluster's roots, once there are any.
func (l *localCluster) trust() error {
	if l.ca == l.roots() {
		return nil
	}
	return l.save()
}

// roots are those of the cluster, in PEM; empty until a host is of one.
func (l *localCluster) roots() string {
	for _, h := range l.members() {
		if roots, err := node.Roots(l.hostDir(h.Name)); err == nil {
			return roots
		}
	}
	return ""
}

// admin is the credential of an admin of the cluster, made anew; empty until a host is
// of one.
func (l *localCluster) admin() string {
	for _, h := range l.members() {
		if admin, err := node.Credential(l.hostDir(h.Name), node.AdminRole); err == nil {
			return admin
		}
	}
	return ""
}

// found adds the hosts whose data directories are there although up.json does
// not name them: it was lost or damaged.
func (l *localCluster) found() error {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for hosts: %w", err)
	}
	for _, e := range entries {
		number, ok := strings.CutPrefix(e.Name(), "h")
		n, err := strconv.Atoi(number)
		name := kbroker.HostID(e.Name())
		known := slices.ContainsFunc(l.Hosts, func(h localHost) bool { return h.Name == name })
		if ok && err == nil && n > 0 && e.IsDir() && !known {
			l.Hosts = append(l.Hosts, localHost{Name: name})
		}
	}
	return nil
}

// remove deletes what `up` and its agents have put into the directory, and the
// directory unless something else is in it.
func (l *localCluster) remove() error {
	for _, h := range l.Hosts {
		if err := os.RemoveAll(l.hostDir(h.Name)); err != nil {
			return fmt.Errorf("remove host %s: %w", h.Name, err)
		}
	}
	for _, name := range []string{client.ContextFile, localFile, lockFile} {
		if err := os.Remove(filepath.Join(l.dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove cluster: %w", err)
		}
	}
	if err := os.Remove(l.dir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("remove cluster: %w", err)
	}
	return nil
}

// lockLocal keeps other `up` and `down` away from the directory until the
// returned function is called, or the process ends.
func (c *cli) lockLocal(ctx context.Context, dir string) (unlock func(), err error) {
	path := filepath.Join(dir, lockFile)
	for told := false; ; {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, kbroker.Errorf(kbroker.Invalid, "cannot use %s as the directory of a cluster: %v", dir, reason(err))
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil && sameFile(f, path) {
			return func() { _ = f.Close() }, nil // closing is unlocking
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		if err != nil && !told {
			told = true
			c.say("another up or down works on %s; waiting for it", dir)
		}
		select {
		case <-ctx.Done():
			return nil, ctxError(ctx, "the wait for another up or down in "+dir)
		case <-time.After(lockPoll):
		}
	}
}

// sameFile reports whether path is still the open file: `down --delete` may
// have removed it meanwhile.
func sameFile(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(open, named)
}
