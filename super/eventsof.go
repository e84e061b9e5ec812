package super

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// eventsOf says what the changes of an accepted batch mean, in the order in
// which they are to be read: versions, apps, hosts, instances. Pure; who decided,
// and when, is added by whoever records them.
func eventsOf(v *state.View, changes []state.Change) []kbroker.Event {
	e := eventDraft{view: v, hosts: map[kbroker.HostID]kbroker.HostState{}}
	sorted := slices.Clone(changes)
	state.SortChanges(sorted)
	var placements []state.PutPlacement
	for _, change := range sorted {
		switch c := change.(type) {
		case state.PutVersion:
			e.version(c.Version)
		case state.PutApp:
			e.app(c.Record)
		case state.PutDemand:
			e.demand(c.Demand)
		case state.PutUser:
			e.user(c.User)
		case state.PutHost:
			e.host(c.Host)
		case state.DropHost:
			e.add(kbroker.Event{Kind: kbroker.EventHostRemoved, Host: c.Host, Message: fmt.Sprintf("host %s is not a member any more", c.Host)})
		case state.PutPlacement:
			placements = append(placements, c)
		}
	}
	e.placements(placements)
	return e.out
}

// eventDraft collects the events of a batch.
type eventDraft struct {
	view  *state.View
	hosts map[kbroker.HostID]kbroker.HostState // as the batch leaves them
	out   []kbroker.Event
}

func (e *eventDraft) add(event kbroker.Event) {
	event.Revision = e.view.Sequence
	e.out = append(e.out, event)
}

func (e *eventDraft) version(version kbroker.AppVersion) {
	k := state.AppKey{Tenant: version.Tenant, App: version.App.Name}
	was := e.view.Apps[k].Version
	words := strings.Join(differences(e.view.Versions[k][was].App, version.App), "; ")
	e.add(kbroker.Event{
		Kind: kbroker.EventVersionStored, Tenant: k.Tenant, App: k.App, OldVersion: was, Version: version.Version,
		Message: fmt.Sprintf("version %d, by %s: %s", version.Version, version.Cause, cmp.Or(words, "nothing differs")),
	})
}

// app compares an app's record with the one before.
func (e *eventDraft) app(now kbroker.AppRecord) {
	was, known := e.view.Apps[state.AppKey{Tenant: now.Tenant, App: now.App}]
	event := kbroker.Event{Tenant: now.Tenant, App: now.App, OldVersion: was.Version, Version: now.Version}
	say := func(kind kbroker.EventKind, format string, args ...any) {
		event.Kind, event.Message = kind, fmt.Sprintf(format, args...)
		e.add(event)
	}
	switch {
	case known && now.Stopped && !was.Stopped:
		say(kbroker.EventAppStopped, "stop was asked for; its spec and versions stay")
	case known && !now.Stopped && was.Stopped:
		say(kbroker.EventAppStarted, "version %d is wanted again", now.Version)
	}
	same := was.Version == now.Version && was.Rollout.Started.Equal(now.Rollout.Started)
	switch {
	case now.Version < was.Version:
		say(kbroker.EventRolledBack, "%s; version %d is wanted again", now.Rollout.Reason, now.Version)
	case now.Rollout.State == kbroker.RolloutDone && (!same || was.Rollout.State != kbroker.RolloutDone):
		say(kbroker.EventRolloutDone, "every instance runs as version %d wants it", now.Version)
	case now.Rollout.State == kbroker.RolloutFailed && (!same || was.Rollout.State != kbroker.RolloutFailed):
		say(kbroker.EventRolloutFailed, "version %d: %s", now.Version, now.Rollout.Reason)
	}
	if !reflect.DeepEqual(was.Unplaced, now.Unplaced) {
		for _, u := range now.Unplaced {
			event.Service = u.Service
			say(kbroker.EventUnplaced, "no host can take %d more of %s: %s", u.Count, u.Service, u.Reason)
		}
	}
}

func (e *eventDraft) demand(now kbroker.Demand) {
	was := e.view.Demands[state.AppKey{Tenant: now.Tenant, App: now.App}]
	e.policy(was, now)
	if maps.Equal(was.Wanted, now.Wanted) {
		return // its allocator is another one, and has its own reason for the same
	}
	var words []string
	for _, s := range slices.Sorted(maps.Keys(now.Wanted)) {
		words = append(words, fmt.Sprintf("%s %d", s, now.Wanted[s]))
	}
	text := "the allocator wants " + strings.Join(words, ", ")
	if now.Reason != "" {
		text += ": " + now.Reason
	}
	e.add(kbroker.Event{
		Kind: kbroker.EventDemand, Tenant: now.Tenant, App: now.App, OldEpoch: was.Epoch, Epoch: now.Epoch, Message: text,
	})
}

// policy says that an app's own policy is refused, or not any more.
func (e *eventDraft) policy(was, now kbroker.Demand) {
	if was.Refused == now.Refused {
		return
	}
	k := state.AppKey{Tenant: now.Tenant, App: now.App}
	app := e.view.Versions[k][e.view.Apps[k].Version].App
	instead := cmp.Or(app.Policy, kbroker.PolicySpread)
	text := fmt.Sprintf("the app's own policy is refused: %s; %s decides", now.Refused, instead)
	switch {
	case now.Refused == "" && app.Own == nil:
		text = fmt.Sprintf("%s decides; the app's own policy, which was refused, is gone", instead)
	case now.Refused == "":
		text = "the app's own policy decides again"
	}
	e.add(kbroker.Event{Kind: kbroker.EventPolicy, Tenant: now.Tenant, App: now.App, OldEpoch: was.Epoch, Epoch: now.Epoch, Message: text})
}

// user says who was let in, or is out.
func (e *eventDraft) user(now kbroker.User) {
	event := kbroker.Event{Kind: kbroker.EventUserCreated, Tenant: now.Tenant, Message: fmt.Sprintf("user %s was let in as %s", now.Name, now.Role)}
	switch {
	case !now.Revoked.IsZero():
		event.Kind, event.Message = kbroker.EventUserRevoked, fmt.Sprintf("user %s is out: the credential was taken back", now.Name)
	case !now.Expires.IsZero():
		event.Message += ", until " + now.Expires.Format(time.RFC3339)
	}
	if now.Revoked.IsZero() && now.By != "" {
		event.Message += "; by " + now.By
	}
	e.add(event)
}

// host compares a host's record with the one before. What of it is no state, a
// drain for example, is an event of its own kind.
func (e *eventDraft) host(now kbroker.Host) {
	e.hosts[now.Name] = now.State
	was, known := e.view.Hosts[now.Name]
	say := func(kind kbroker.EventKind, format string, args ...any) {
		e.add(kbroker.Event{Kind: kind, Host: now.Name, Message: fmt.Sprintf(format, args...)})
	}
	if now.State != kbroker.HostRemoved { // which ends both
		for _, text := range []string{drainText(now.Name, was.Drain, now.Drain), leaveText(now.Name, was.Maintenance, now.Maintenance)} {
			if text != "" {
				say(kbroker.EventHostChanged, "%s", text)
			}
		}
	}
	switch {
	case now.State == was.State:
		if words := hostWords(was, now); len(words) > 0 {
			say(kbroker.EventHostChanged, "host %s %s", now.Name, strings.Join(words, "; "))
		}
	case now.State == kbroker.HostJoining:
		say(kbroker.EventHostJoined, "host %s was admitted as %s", now.Name, now.Role)
	case now.State == kbroker.HostRemoved:
		say(kbroker.EventHostRemoved, "host %s was removed; what it ran is placed elsewhere", now.Name)
	case now.State == kbroker.HostLost:
		say(kbroker.EventHostLost, "no core of a majority has heard host %s; what it ran is placed elsewhere", now.Name)
	case now.State == kbroker.HostReady && was.State == kbroker.HostLost:
		say(kbroker.EventHostReady, "host %s is back", now.Name)
	case now.State == kbroker.HostReady && known:
		say(kbroker.EventHostReady, "host %s has joined and is ready", now.Name)
	case now.State == kbroker.HostReady:
		say(kbroker.EventHostReady, "host %s is ready", now.Name)
	default:
		say(kbroker.EventHostChanged, "host %s is %s", now.Name, now.State)
	}
}

// drainText says what became of a drain; empty: nothing.
func drainText(host kbroker.HostID, was, now *kbroker.Drain) string {
	switch {
	case was == nil && now != nil && now.Force:
		return fmt.Sprintf("host %s is draining: what it runs is placed elsewhere, and stopped where no other host has room", host)
	case was == nil && now != nil:
		return fmt.Sprintf("host %s is draining: what it runs is placed elsewhere", host)
	case was != nil && now == nil:
		return fmt.Sprintf("host %s takes instances again", host)
	case was != nil && now.Force && !was.Force:
		return fmt.Sprintf("the drain of host %s is by force now: what no other host has room for is stopped", host)
	}
	return ""
}

// leaveText says what became of a leave to go down; empty: nothing.
func leaveText(host kbroker.HostID, was, now *kbroker.Maintenance) string {
	switch {
	case was == nil && now != nil:
		return fmt.Sprintf("host %s has leave to go down: it is silent for a moment", host)
	case was != nil && now == nil:
		return fmt.Sprintf("the leave of host %s to go down has ended", host)
	case was != nil && was.Holder != now.Holder:
		return fmt.Sprintf("the leave of host %s to go down is another one's", host)
	}
	return ""
}

// hostWords says what differs of a host besides its state, its drain and its leave.
func hostWords(was, now kbroker.Host) (words []string) {
	say := func(differs bool, format string, args ...any) {
		if differs {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	say(was.Role != now.Role, "is a %s, before a %s", now.Role, was.Role)
	say(!maps.Equal(was.Labels, now.Labels), "has %s", labelText(now.Labels))
	say(was.Capacity != now.Capacity, "has %s, before %s", capacityText(now.Capacity), capacityText(was.Capacity))
	say(was.Client != now.Client, "takes clients at %s", now.Client)
	say(was.Route != now.Route, "takes other cores at %s", now.Route)
	say(was.Address != now.Address, "is reached at %s", now.Address)
	say(was.CredentialLife != now.CredentialLife, "signs for instances for %v", now.CredentialLife)
	say(was.Fingerprint != now.Fingerprint, "has another data directory")
	say(was.User != now.User, "has another credential")
	say(!slices.Equal(was.Revoked, now.Revoked), "has %d earlier credentials that are taken back", len(now.Revoked))
	say(was.Generation != now.Generation, "was admitted anew, as number %d of its name", now.Generation)
	return words
}

func labelText(labels map[string]string) string {
	if len(labels) == 0 {
		return "no labels"
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		out = append(out, k+"="+labels[k])
	}
	return "the labels " + strings.Join(out, ", ")
}

func capacityText(r kbroker.Resources) string {
	return fmt.Sprintf("%g cpu and %d MiB of memory", r.CPU, r.MemoryBytes>>20)
}

// lostOn reports whether a host is lost after the batch.
func (e *eventDraft) lostOn(host kbroker.HostID) bool {
	if s, ok := e.hosts[host]; ok {
		return s == kbroker.HostLost
	}
	return e.view.Hosts[host].State == kbroker.HostLost
}

// placements are the events of instances. One that was stopped because its host
// is lost, or because it fails there, has moved, if the same batch places another of
// its service: Plan replaces them in the order of their age.
func (e *eventDraft) placements(changes []state.PutPlacement) {
	type service struct {
		app  state.AppKey
		name kbroker.ServiceName
	}
	of := func(p kbroker.Placement) service {
		return service{state.AppKey{Tenant: p.Tenant, App: p.App}, p.Service}
	}
	fresh := map[service][]kbroker.Placement{}
	slices.SortFunc(changes, func(a, b state.PutPlacement) int { return byAge(a.Placement, b.Placement) })
	for _, c := range changes {
		if _, placed := e.view.Placements[keyOf(c.Placement)]; !placed && !c.Placement.Stop {
			fresh[of(c.Placement)] = append(fresh[of(c.Placement)], c.Placement)
		}
	}
	replaces := map[state.PlacementKey]kbroker.Placement{}
	for _, c := range changes {
		p := c.Placement
		was, placed := e.view.Placements[keyOf(p)]
		event := kbroker.Event{
			Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: p.Host,
			OldVersion: was.Version, Version: p.Version, OldEpoch: was.Epoch, Epoch: p.Epoch,
		}
		switch {
		case p.Stop && !was.Stop:
			event.Kind, event.Message = kbroker.EventStopped, "stopped: "+p.StopReason
			if next := fresh[of(p)]; (e.lostOn(p.Host) || p.StopReason == failedReason) && len(next) > 0 {
				event.Kind = kbroker.EventMoved
				event.Message += fmt.Sprintf(", replaced by %s on %s", next[0].Instance, next[0].Host)
				replaces[keyOf(next[0])] = p
				fresh[of(p)] = next[1:]
			}
		case placed && !p.Stop && p.Replace != was.Replace && p.Replace != "":
			event.Kind, event.Message = kbroker.EventReplacing, p.Replace+": a new instance comes first, then it leaves"
		case placed && !p.Stop && was.Replace != "" && p.Replace == "":
			event.Kind, event.Message = kbroker.EventReplacing, "it stays: it is not to be replaced any more"
		default:
			continue // placed: below; a new version of what runs on is no news
		}
		e.add(event)
	}
	for _, c := range changes {
		p := c.Placement
		if _, placed := e.view.Placements[keyOf(p)]; placed || p.Stop {
			continue
		}
		text := fmt.Sprintf("placed on %s, version %d", p.Host, p.Version)
		if old, ok := replaces[keyOf(p)]; ok {
			text += fmt.Sprintf(", for %s of host %s", old.Instance, old.Host)
		}
		e.add(kbroker.Event{
			Kind: kbroker.EventPlaced, Tenant: p.Tenant, App: p.App, Service: p.Service, Instance: p.Instance, Host: p.Host,
			Version: p.Version, Epoch: p.Epoch, Message: text,
		})
	}
}
