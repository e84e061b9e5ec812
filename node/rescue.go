package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/internal/connect"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// lostAsk bounds the question to a core that should be lost.
const lostAsk = time.Second

// Rescue makes a new cluster of one host out of the copies that the second core
// of two holds of the streams of a founder that is lost for good:
//
//	BeginRescue -> what was found -> Finish -> the next agent founds nothing, and joins nobody
//
// Until Finish has written its intent nothing of the host is changed; from then
// on the next Finish, or the next agent, ends it (swap.go).
type Rescue struct {
	Host      kbroker.HostID
	ClusterID string           // of the lost cluster
	Lost      []kbroker.HostID // its other cores
	Streams   []RescuedStream
	// Ended is set when an earlier rescue had only to be ended, and was.
	Ended *Rescued

	dir     *agent.Dir
	member  *membership
	mirrors *broker.Mirrors
	log     *slog.Logger
}

// RescuedStream is one that a copy was found of.
type RescuedStream struct {
	Name     string    `json:"name"`
	Messages uint64    `json:"messages"`
	Newest   time.Time `json:"newest,omitzero"` // when the newest was stored; zero: there is none
}

// Rescued is what a rescue has made.
type Rescued struct {
	ClusterID string // of the new cluster
	Old       string // the directory of the old broker
}

// BeginRescue takes the directory of a host whose agent does not run, and reads
// what its broker holds. The caller closes the Rescue. Errors: NotFound - it is
// not that of a host; Refused - an agent runs on it, there is nothing to rescue,
// or another core answers.
func BeginRescue(ctx context.Context, path string, log *slog.Logger) (_ *Rescue, err error) {
	if _, err := readMember(path); err != nil {
		return nil, err
	}
	if err := ownedByMe(path); err != nil {
		return nil, err
	}
	r := &Rescue{log: log}
	if r.dir, err = agent.Lock(path); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if r.Ended, err = endRescue(r.dir.Path); err != nil {
		return nil, err
	}
	if r.member, err = readMember(r.dir.Path); err != nil {
		return nil, err
	}
	r.Host, r.ClusterID = r.member.Host, r.member.ClusterID
	if r.Ended != nil {
		return r, nil
	}
	if err := r.member.rescuable(); err != nil {
		return nil, err
	}
	if err := r.othersAreLost(ctx); err != nil {
		return nil, err
	}
	if err := r.read(ctx); err != nil {
		return nil, err
	}
	_, _, err = loadRoot(r.member.identityDir())
	if errors.Is(err, fs.ErrNotExist) {
		err = kbroker.Errorf(kbroker.Refused, "%s is not in %s", rootKeyFile, r.member.identityDir()).
			WithHint("put it back for the rescue: the new cluster is known by the same root")
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// ownedByMe refuses who is not the owner of a data directory: its agent could
// not read what is written.
func ownedByMe(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("look at the data directory: %w", err)
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != os.Geteuid() {
		return kbroker.Errorf(kbroker.Refused, "%s belongs to user %d, and this runs as user %d", path, s.Uid, os.Geteuid()).
			WithHint("run it as the agent's user")
	}
	return nil
}

// rescuable refuses who has no copy of others.
func (m *membership) rescuable() error {
	refuse := func(hint, format string, args ...any) error {
		return kbroker.Errorf(kbroker.Refused, format, args...).WithHint("%s", hint)
	}
	switch {
	case m.Removed:
		return m.errRemoved()
	case m.ClusterID == "":
		return refuse("start its agent again when the cluster is back, or use an empty directory", "host %s has not joined a cluster yet", m.Host)
	case m.Role == kbroker.RoleWorker:
		return refuse("run it on the second core", "host %s is a worker: it stores nothing", m.Host)
	case m.RescuedFrom != "":
		return refuse("start its agent", "host %s was rescued already: it is cluster %s now", m.Host, m.ClusterID)
	case m.Founded:
		return refuse("start its agent", "host %s founded cluster %s: it has the data itself", m.Host, m.ClusterID)
	}
	return nil
}

// othersAreLost refuses while another core of the cluster takes connections: two
// clusters would give the same work to different hosts.
func (r *Rescue) othersAreLost(ctx context.Context) error {
	for _, c := range r.member.Cores {
		there, cluster, err := connect.Greeting(ctx, c.Client, lostAsk)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case there && cluster == r.ClusterID:
			return kbroker.Errorf(kbroker.Refused, "core %s of cluster %s is not lost: it answers at %s", c.Host, cluster, c.Client).
				WithHint("start this host's agent; if that core must go, end it for good first")
		case there && err != nil:
			return kbroker.Errorf(kbroker.Refused, "core %s may not be lost: something takes connections at %s and does not say what it is (%v)", c.Host, c.Client, err).
				WithHint("end what listens there, a core that hangs among it")
		}
	}
	return nil
}

// read opens the copies, and goes through the control store once: what refuses
// a rescue is to be known before anybody is asked.
func (r *Rescue) read(ctx context.Context) error {
	scratch := filepath.Join(r.dir.Path, scratchDir)
	for _, left := range []string{scratch, filepath.Join(r.dir.Path, freshDir)} { // by one that was cut off
		if err := os.RemoveAll(left); err != nil {
			return fmt.Errorf("delete what an earlier rescue left: %w", err)
		}
	}
	old := filepath.Join(r.dir.Path, oldDir(r.ClusterID))
	if _, err := os.Lstat(old); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(kbroker.Errorf(kbroker.Refused, "%s is there, which a rescue would make", old).
			WithHint("move it out of the data directory"), err)
	}
	g, err := r.member.grants()
	if err != nil {
		return err
	}
	if r.mirrors, err = broker.ReadMirrors(ctx, brokerDir(r.dir.Path), scratch, g, r.log); err != nil {
		return err
	}
	records := state.NewRescue(r.Host, time.Now())
	change := func(m *nats.Msg) error {
		_, err := records.Change(subjects.ControlStream, m)
		return err
	}
	for _, s := range r.mirrors.Streams() {
		r.Streams = append(r.Streams, RescuedStream{Name: s.Name, Messages: s.Messages, Newest: s.Newest})
		if s.Name == subjects.ControlStream {
			err := r.mirrors.Each(ctx, s, change)
			if err == nil {
				err = change(nil) // the end of the stream
			}
			if err != nil {
				return err
			}
		}
	}
	r.Lost = records.Lost()
	return nil
}

// Newest is when the newest message of all streams was stored; zero if there is
// none.
func (r *Rescue) Newest() time.Time {
	var newest time.Time
	for _, s := range r.Streams {
		if s.Newest.After(newest) {
			newest = s.Newest
		}
	}
	return newest
}

// Finish founds the new cluster, and puts it in the place of the old one, which
// stays beside it. An error before the intent was written leaves the host as it
// was.
func (r *Rescue) Finish(ctx context.Context) (Rescued, error) {
	fresh := filepath.Join(r.dir.Path, freshDir)
	next := r.member.rescued(newClusterID())
	records := state.NewRescue(r.Host, time.Now())
	g, err := r.member.grants()
	if err != nil {
		return Rescued{}, err
	}
	err = broker.Restore(ctx, broker.RestoreConfig{
		Host: r.Host, Dir: fresh, ClusterID: next.ClusterID, Grants: g, Change: records.Change, Log: r.log,
	}, r.mirrors)
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = syncTree(fresh)
	}
	if err != nil {
		// The next one deletes what could not be deleted now.
		return Rescued{}, errors.Join(err, os.RemoveAll(fresh))
	}
	if err := writeIntent(r.dir.Path, intent{Old: oldDir(r.ClusterID), Membership: next}); err != nil {
		return Rescued{}, err // it may be there all the same: the next one looks
	}
	done, err := endRescue(r.dir.Path)
	if err != nil {
		return Rescued{}, fmt.Errorf("the rescue is not ended, its next run or the next start of the agent ends it: %w", err)
	}
	return *done, nil
}

// Close deletes what the reading took, and gives the directory up.
func (r *Rescue) Close() error {
	var err error
	if r.mirrors != nil {
		err = r.mirrors.Close()
	}
	return errors.Join(err, r.dir.Close())
}

// syncTree makes all under a directory durable, itself included.
func syncTree(dir string) error {
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return durable.Sync(path)
	})
	if err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
