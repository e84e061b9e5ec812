package node

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/internal/freeport"
	"github.com/kbroker/kbroker/internal/pki"
)

const (
	membershipFile = "membership.json"
	// askAgain is the pause before a host that was told to wait asks again.
	askAgain = 250 * time.Millisecond
	// followEvery is how often the list of cores is compared with what is known.
	followEvery = 2 * time.Second
)

// membership is what a host knows of itself and of its cluster for ever; it is
// on disk before the broker first starts.
type membership struct {
	path string

	ClusterID string         `json:"cluster_id"`
	Host      kbroker.HostID `json:"host"`
	Role      kbroker.Role   `json:"role"`
	Founded   bool           `json:"founded"`
	Client    string         `json:"client,omitempty"` // host:port; a worker takes none
	Route     string         `json:"route,omitempty"`
	// Fingerprint is that of the host's key, which tells this data directory from
	// any other that is given the same name.
	Fingerprint string `json:"fingerprint"`
	Generation  int    `json:"generation"` // of the admission
	// Removed: the cluster has removed this host; it never runs again.
	Removed bool `json:"removed,omitempty"`
	// RescuedFrom is the cluster whose second core this host was; see Rescue.
	RescuedFrom string `json:"rescued_from,omitempty"`

	saving sync.Mutex // held from what is written until it is on disk: what is newer is last

	mu    sync.Mutex         // guards what follows, and Removed once the host runs
	stale bool               // the last save failed
	Cores []kbroker.CoreAddr `json:"cores"` // the others
	// Out are cores that were removed and are no members of the broker's group any
	// more: they are not believed, from the first moment on.
	Out []kbroker.HostID `json:"out,omitempty"`
}

// outs are the cores that are out.
func (m *membership) outs() []kbroker.HostID {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.Out)
}

// noteOut remembers more cores that are out.
func (m *membership) noteOut(more []kbroker.HostID) error {
	m.mu.Lock()
	before := len(m.Out)
	for _, h := range more {
		if !slices.Contains(m.Out, h) {
			m.Out = append(m.Out, h)
		}
	}
	behind := len(m.Out) > before || m.stale
	m.mu.Unlock()
	if !behind {
		return nil
	}
	return m.save()
}

// errRemoved is what the agent of a removed host ends with.
func (m *membership) errRemoved() error {
	return kbroker.Errorf(kbroker.Refused, "host %s was removed from cluster %s", m.Host, m.ClusterID).
		WithHint("to join again, give it an empty data directory; the name of a core is used once")
}

// establish returns who this host is: from its directory, which may say that it
// was removed, or by founding a cluster, or by being admitted to one.
func establish(ctx context.Context, dir string, cfg Config, log *slog.Logger) (*membership, error) {
	m, err := loadMembership(dir)
	if err != nil {
		return nil, err
	}
	if m.Removed {
		return m, nil
	}
	begins, err := m.accepts(cfg)
	if err != nil {
		return nil, err
	}
	if m.ClusterID != "" {
		return m, m.joinAgain(ctx, dir, cfg, log)
	}
	if begins {
		if err := m.begin(dir, cfg); err != nil {
			return nil, err
		}
		// The name and the ports are asked for again after a crash: with others
		// it would be another host of the same name, and refused.
		if err := m.save(); err != nil {
			return nil, err
		}
	}
	if cfg.Found {
		m.ClusterID, m.Founded, m.Generation = newClusterID(), true, 1
	} else if err := m.join(ctx, cfg.Join, cfg, log); err != nil {
		return nil, err
	}
	return m, m.save()
}

func newClusterID() string { return "kb-" + strings.ToLower(rand.Text()[:12]) }

// joinAgain asks again for an admission that this host did not use: it may have
// been taken back, and another host be joining now.
func (m *membership) joinAgain(ctx context.Context, dir string, cfg Config, log *slog.Logger) error {
	joined, err := broker.Joined(brokerDir(dir))
	if m.Founded || m.Role == kbroker.RoleWorker || joined || err != nil {
		return err
	}
	through := cfg.Join
	for _, c := range m.Cores {
		through = append(through, c.Client)
	}
	if err := m.join(ctx, through, cfg, log); err != nil {
		return err
	}
	return m.save()
}

// brokerDir is the part of the data directory that belongs to the broker.
func brokerDir(dir string) string { return filepath.Join(dir, "broker") }

// agrees refuses a configuration that contradicts the directory.
func (m *membership) agrees(cfg Config) error {
	differs := func(what, want, have string) error {
		return kbroker.Errorf(kbroker.Invalid, "%s is %s, but this data directory belongs to %s %s", what, want, what, have).
			WithHint("leave the flag out, or use another data directory")
	}
	switch {
	case m.Host == "":
		return nil // it belongs to nobody yet
	case cfg.Name != "" && cfg.Name != m.Host:
		return differs("name", string(cfg.Name), string(m.Host))
	case cfg.Role != "" && cfg.Role != m.Role:
		return differs("role", string(cfg.Role), string(m.Role))
	case cfg.ClientPort != 0 && !strings.HasSuffix(m.Client, ":"+strconv.Itoa(cfg.ClientPort)):
		return differs("client address", strconv.Itoa(cfg.ClientPort), m.Client)
	case cfg.RoutePort != 0 && !strings.HasSuffix(m.Route, ":"+strconv.Itoa(cfg.RoutePort)):
		return differs("route address", strconv.Itoa(cfg.RoutePort), m.Route)
	}
	return nil
}

// begin names a new host and picks its ports. accepts has seen cfg.
func (m *membership) begin(dir string, cfg Config) error {
	name, err := cfg.hostName()
	if err != nil {
		return err
	}
	key, err := hostKey(dir)
	if err != nil {
		return err
	}
	m.Host, m.Role = name, cfg.Role
	if m.Fingerprint, err = pki.Fingerprint(key.Public()); err != nil {
		return err
	}
	if m.Role == "" {
		m.Role = kbroker.RoleCore
	}
	if m.Role == kbroker.RoleWorker {
		_, err := m.newKey() // what an earlier host of the directory had may have been taken back
		return err
	}
	ports := []int{cfg.ClientPort, cfg.RoutePort}
	free, err := freeport.Pick(cfg.Advertise, len(ports), func(p int) bool { return slices.Contains(ports, p) })
	if err != nil {
		return err
	}
	for i := range ports {
		if ports[i] == 0 {
			ports[i] = free[i]
		}
	}
	m.Client = net.JoinHostPort(cfg.Advertise, strconv.Itoa(ports[0]))
	m.Route = net.JoinHostPort(cfg.Advertise, strconv.Itoa(ports[1]))
	return nil
}

// join asks the cores at these addresses, in turn and again, until it is
// admitted. A refusal ends it. A host that is of no cluster yet shows its token; one
// that was admitted before is known by its key, and shows a token when it is refused.
func (m *membership) join(ctx context.Context, through []string, cfg Config, log *slog.Logger) error {
	if len(through) == 0 {
		return kbroker.Errorf(kbroker.Invalid, "this host has not joined its cluster yet and knows no core").
			WithHint("join through one with --join ADDR")
	}
	a := &admission{}
	if err := a.prepare(m, cfg); err != nil {
		return err
	}
	last := ""
	for i := 0; ; i++ {
		reply, err := a.ask(ctx, through[i%len(through)])
		if refused := kbroker.AsError(err); err != nil && (refused.Code == kbroker.Refused || refused.Code == kbroker.Invalid) {
			if a.request.Token != nil || cfg.TokenFile == "" {
				return err
			}
			if err := a.show(cfg.TokenFile); err != nil {
				return err
			}
			continue
		}
		if err == nil && reply.Admitted {
			m.ClusterID, m.Generation, m.Cores = reply.ClusterID, reply.Generation, reply.Cores
			return m.takeIdentity(reply, a.box, a.pin)
		}
		why := reply.Wait
		switch {
		case err != nil:
			why = err.Error()
		case reply.KeyRevoked:
			why = keyTakenBack
			if err := a.another(m); err != nil {
				return err
			}
		}
		if why != last {
			last = why
			log.Info("waiting to be admitted", "host", m.Host, "err", why)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not admitted: %s: %w", last, ctx.Err())
		case <-time.After(askAgain):
		}
	}
}

// save writes the file so that a crash leaves the old or the new one. What several
// goroutines save at once is on disk as the last of them has it.
func (m *membership) save() error {
	m.saving.Lock()
	defer m.saving.Unlock()
	m.mu.Lock()
	raw, err := json.MarshalIndent(m, "", "  ")
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("marshal membership: %w", err)
	}
	err = durable.ReplaceTwice(m.path, summed(raw), 0o600)
	m.mu.Lock()
	m.stale = err != nil
	m.mu.Unlock()
	return err
}

// sumOf finds the last field of the file, the digest of all without it.
var sumOf = regexp.MustCompile(`,\n  "sum": "([0-9a-f]{64})"\n}\n$`)

// summed is an indented object with its digest as a last field; whoever does not know
// that passes it over.
func summed(object []byte) []byte {
	return fmt.Appendf(nil, "%s,\n  \"sum\": \"%x\"\n}\n", bytes.TrimSuffix(object, []byte("\n}")), sha256.Sum256(object))
}

// read reads the file, or its copy.
func (m *membership) read() error {
	_, err := durable.ReadEither(m.path, func(raw []byte) error {
		if at := sumOf.FindSubmatchIndex(raw); at != nil {
			object := append(bytes.Clone(raw[:at[0]]), "\n}"...)
			if string(raw[at[2]:at[3]]) != fmt.Sprintf("%x", sha256.Sum256(object)) {
				return errors.New("the digest does not match")
			}
		}
		fresh := &membership{}
		if err := json.Unmarshal(raw, fresh); err != nil {
			return err
		}
		return json.Unmarshal(raw, m)
	})
	return err
}

// servers are the cores' client URLs: a core's own first, and those that a worker
// knows in a new order each time, so that its processes spread over them.
func (m *membership) servers() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, c := range m.Cores {
		out = append(out, url(c.Client))
	}
	if m.Role == kbroker.RoleWorker {
		mathrand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
		return out
	}
	return append([]string{url(m.Client)}, out...)
}

// follow keeps the list of others as the cluster has it, so that a restart, and who
// takes the context of a core, finds them all. removed are those that have gone for
// good. That a core is absent from an answer says nothing to a core, whose broker dials
// what it knows; a worker drops it.
func (m *membership) follow(ctx context.Context, cores func() []kbroker.CoreAddr, removed func() []kbroker.HostID, log *slog.Logger) error {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if !m.learn(cores(), removed()) {
			continue
		}
		if err := m.save(); err != nil {
			log.Warn("the list of cores is not stored; a restart will know fewer", "err", err)
		}
		if err := m.writeContext(); err != nil {
			log.Warn("the context of this host is not written; it names fewer cores than there are", "err", err)
		}
	}
}

// learn takes over what is new in a list of cores and drops who was removed, and
// reports whether there was anything.
func (m *membership) learn(cores []kbroker.CoreAddr, removed []kbroker.HostID) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := slices.Clone(m.Cores)
	if m.Role == kbroker.RoleWorker && len(cores) > 0 {
		m.Cores = nil
	}
	for _, c := range cores {
		i := slices.IndexFunc(m.Cores, func(k kbroker.CoreAddr) bool { return k.Host == c.Host })
		switch {
		case c.Host == m.Host:
		case i >= 0:
			m.Cores[i] = c
		default:
			m.Cores = append(m.Cores, c)
		}
	}
	m.Cores = slices.DeleteFunc(m.Cores, func(c kbroker.CoreAddr) bool { return slices.Contains(removed, c.Host) })
	return !slices.Equal(before, m.Cores)
}
