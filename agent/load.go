package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// load reads what earlier agents of the directory have left: it adopts the
// processes that run, before anything is started, and takes note of the rest.
// An unreadable file of one instance is never a reason to leave the others
// alone.
func (a *Agent) load() error {
	keys, err := a.cfg.Dir.homes()
	if err != nil {
		return err
	}
	all, err := scan()
	if err != nil {
		return err
	}
	placed := make(map[kbroker.StatusKey]kbroker.Placement)
	for _, p := range a.view.Placements {
		placed[keyOf(p)] = p
	}
	for _, k := range keys {
		a.healHome(a.cfg.Dir.home(k))
		inst, err := a.restore(k, all, placed[k])
		if err != nil {
			return fmt.Errorf("restore instance %s: %w", k.Instance, err)
		}
		if inst == nil {
			continue
		}
		a.instances[k] = inst
		a.ports.hold(k, inst.record.Ports)
		running := inst.record.Incarnation
		if inst.process == nil {
			running = ""
		}
		a.endCredentials(a.cfg.Dir.home(k), running)
	}
	return a.loadOver()
}

// restore is load for one instance.
func (a *Agent) restore(k kbroker.StatusKey, all []marked, placed kbroker.Placement) (*instance, error) {
	home := a.cfg.Dir.home(k)
	var r record
	err := loadSealed(filepath.Join(home, recordFile), &r)
	if err == nil && keyOf(r.Placement) != k {
		err = fmt.Errorf("%w: it is the record of %s", errDamaged, r.Placement.Instance)
	}
	if errors.Is(err, errDamaged) {
		a.log.Warn("a start record is damaged; looking for the process itself", "instance", k.Instance, "err", err)
	}
	found, id := err == nil, procID{}
	switch {
	case err == nil:
		if id = a.identify(r, all); id.PID == 0 && !r.Stopped {
			// An agent that was killed while it forked has put nothing on record.
			if later, its, ok := a.rebuild(home, all, placed); ok && later.Incarnation != r.Incarnation {
				later.Restarts, later.Crashes, later.Loop = r.Restarts, r.Crashes, r.Loop
				if later.Placement.Epoch == r.Placement.Epoch {
					later.Placement = r.Placement
				}
				r, id = later, its
			}
		}
	case errors.Is(err, errDamaged), errors.Is(err, os.ErrNotExist):
		damaged := err != nil && !errors.Is(err, os.ErrNotExist)
		if r, id, found = a.rebuild(home, all, placed); !found && damaged && keyOf(placed) == k && !placed.Stop {
			r, found = record{Placement: placed}, true // it was started once, and its last placement is known
		}
	default:
		return nil, err
	}
	if !found {
		return a.restoreEnded(k, home)
	}
	if a.contain.users != nil && r.User != 0 {
		a.contain.users.taken[r.User] = k
	}
	inst := &instance{
		key: k, placement: r.Placement, record: r, phase: phaseIdle,
		restarts: r.Restarts, crashes: r.Crashes, loop: r.Loop.in(a.boot), exit: r.Exit, message: r.Message, startedAt: r.StartedAt,
		unenforced: a.contain.unenforced(r.Placement.Spec),
	}
	if id.PID == 0 {
		if g := a.groupOf(r); g != nil && r.BootID == a.boot {
			// Before anything is started again; who is left is waited for by the janitor.
			if err := g.Kill(); err != nil {
				a.log.Warn("what an ended process has left is not killed", "instance", k.Instance, "err", err)
			}
		}
		if r.Stopped {
			inst.phase = phaseStopped
		} else {
			inst.lapsed = r.Exit == nil
		}
		if inst.lapsed {
			inst.exit = a.missedExit(r, all)
		}
		if r.Exit != nil { // it was waiting to be started again
			inst.nextStart = state.Boottime() + restartDelay(r.Crashes, rand.Float64())
		}
		return inst, nil
	}
	inst.record.procID = id
	p, err := newProcess(inst.record, nil, a.groupOf(r), &a.scanner, a.log.With("instance", k.Instance))
	if errors.Is(err, errGone) {
		inst.lapsed = true
		return inst, nil
	}
	if err != nil {
		return nil, err
	}
	if inst.record.procID != r.procID {
		if err := saveRecord(home, inst.record); err != nil {
			a.log.Warn("an adopted process is not on record", "instance", k.Instance, "pid", id.PID, "err", err)
		}
	}
	inst.phase, inst.process = phaseUp, p
	a.log.Info("adopted a running process", "app", r.Placement.App, "service", r.Placement.Service, "instance", k.Instance, "pid", id.PID)
	return inst, nil
}

// identify finds the process of a record: the pid, if it is still the same
// process of the same boot. For a record from before the fork, or one whose pid is
// another process, it is the one that carries the incarnation. The zero procID: it does
// not run; what it has forked into sessions of their own is not it.
func (a *Agent) identify(r record, all []marked) procID {
	if r.Exit != nil {
		return procID{}
	}
	other := false // the number is somebody else's
	for _, m := range all {
		if other = other || m.PID == r.PID && !m.ended(); m.ended() || r.BootID != a.boot || r.PID <= 0 || m.procID != r.procID {
			continue
		}
		if !isForeign(m, a.cfg.Dir.Path, a.cfg.Dir.home(keyOf(r.Placement)), r.Incarnation) {
			return m.procID
		}
		a.log.Error("a record names a process that is not of its instance; it is left alone", "instance", r.Placement.Instance, "pid", m.PID)
	}
	if r.PID > 0 && r.BootID == a.boot && !other {
		return procID{}
	}
	for _, m := range all {
		if !m.ended() && m.leads() && m.HostDir == a.cfg.Dir.Path && m.Incarnation == r.Incarnation && (r.User == 0 || m.User == r.User) {
			return m.procID
		}
	}
	return procID{}
}

// rebuild makes a record of what a process says about itself: its environment,
// and the file that it was given. The youngest counts; the janitor ends others.
func (a *Agent) rebuild(home string, all []marked, placed kbroker.Placement) (record, procID, bool) {
	var youngest marked
	for _, m := range all {
		if !m.ended() && m.leads() && m.HostDir == a.cfg.Dir.Path && m.InstanceFile == instancePath(home) && m.Start >= youngest.Start && a.mayBe(m, keyOfHome(home)) {
			youngest = m
		}
	}
	if youngest.PID == 0 {
		return record{}, procID{}, false
	}
	r := record{Incarnation: youngest.Incarnation, BootID: a.boot, procID: youngest.procID, Ports: portsOf(youngest.PID)}
	if a.contain.users != nil && a.contain.users.has(youngest.User) {
		r.User = youngest.User
	}
	if g := string(r.Incarnation); a.contain.can.Group && a.contain.groups.Group(g).There() {
		r.Group = g
	}
	var f kbroker.InstanceFile
	b, err := readOwn(instancePath(home))
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil || f.Incarnation != youngest.Incarnation {
		a.log.Warn("a running process has no readable instance file", "pid", youngest.PID, "err", err)
		f = kbroker.InstanceFile{}
	}
	// A bit of the file may be another one; the path and the environment are not.
	f.Instance, f.Tenant = kbroker.InstanceID(filepath.Base(home)), kbroker.TenantID(filepath.Base(filepath.Dir(home)))
	if youngest.Epoch > 0 {
		f.Epoch = youngest.Epoch
	}
	if !placed.Stop && placed.Epoch == f.Epoch && placed.Instance == f.Instance {
		r.Placement = placed
	} else {
		r.Placement = kbroker.Placement{
			Tenant: f.Tenant, App: f.App, Service: f.Service, Instance: f.Instance, Host: a.cfg.Host, Version: f.Version, Epoch: f.Epoch,
			Spec: kbroker.Service{Health: kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK}}},
		}
	}
	return r, youngest.procID, true
}

// mayBe reports whether a process is of the user of an instance: what it says of itself it
// may say of anybody.
func (a *Agent) mayBe(m marked, k kbroker.StatusKey) bool {
	return a.contain.users == nil || m.User == a.contain.users.of(k)
}

// keyOfHome is the instance that has a directory.
func keyOfHome(home string) kbroker.StatusKey {
	return kbroker.StatusKey{Tenant: kbroker.TenantID(filepath.Base(filepath.Dir(home))), Instance: kbroker.InstanceID(filepath.Base(home))}
}

// maxOwnBytes bounds a file of an instance's directory that the agent reads.
const maxOwnBytes = 64 << 10

// readOwn reads a file that an instance may have put there: nothing that is there instead
// has the agent wait, or leads elsewhere.
func readOwn(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s is not a file", path), err)
	}
	return io.ReadAll(io.LimitReader(f, maxOwnBytes))
}

// restoreEnded takes note of a directory in which nothing is started any more.
func (a *Agent) restoreEnded(k kbroker.StatusKey, home string) (*instance, error) {
	path := filepath.Join(home, endedFile)
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		// An earlier agent died while it created or cleared the directory.
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			return nil, err
		}
		info, err = os.Stat(path)
	}
	if err != nil {
		return nil, err
	}
	age := max(0, time.Since(info.ModTime()))
	return &instance{key: k, phase: phaseEnded, endedAt: state.Boottime() - age}, nil
}
