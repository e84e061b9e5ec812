package super

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

const (
	// maxCores is the number of core hosts that a cluster grows to: more replicas
	// of the meta group only make each write slower.
	maxCores = 5
	// safeCores is the number of cores at which one can be lost.
	safeCores = 3
	// firstGeneration is that of a name that was never removed.
	firstGeneration = 1
	// maxRevoked bounds the keys of a name that were taken back.
	maxRevoked = 100
)

// join admits a host. What would admit a core is decided again after a look at
// the broker: those that wait ask four times a second, and need none.
func (t *term) join(ctx context.Context, v *state.View, r kbroker.JoinRequest, now time.Time) (decision, error) {
	if err := t.guesses.look(v, r); err != nil {
		return decision{}, err
	}
	d, err := decideJoin(v, r, t.facts(v), t.cfg.ClusterID, now)
	if err == nil && len(d.changes) > 0 && r.Role == kbroker.RoleCore {
		d, err = decideJoin(v, r, t.look(ctx, v), t.cfg.ClusterID, now)
	}
	if reply, ok := d.reply.(kbroker.JoinReply); err == nil && ok && reply.Wait == "" && t.cfg.Admit != nil {
		err = t.cfg.Admit(r, &reply)
		d.reply = reply
	}
	return d, err
}

// sameHost reports whether a host that asks to join is the one of a record: its proof
// is looked at before it is answered.
func sameHost(known kbroker.Host, r kbroker.JoinRequest) bool {
	return known.Member() && known.Fingerprint == r.Fingerprint && known.Route == r.Route && known.Role == r.Role
}

// wasRemoved reports whether a host that says what it was admitted as is no member any
// more. Of the last admission of a name the key is on record, and must be the host's.
func wasRemoved(known kbroker.Host, r kbroker.JoinRequest) bool {
	return r.Generation > 0 && known.Removed(r.Generation) && (r.Generation < known.Generation || known.Fingerprint == r.Fingerprint)
}

// keyTaken reports whether what is signed for a worker's key would be refused, or would
// be when another host is removed: the key was taken back, or is another host's.
func keyTaken(v *state.View, r kbroker.JoinRequest) bool {
	if _, ended := v.Revoked[r.User]; ended {
		return true
	}
	for name, h := range v.Hosts {
		if slices.Contains(h.Revoked, r.User) || r.User != "" && h.User == r.User && !(h.Member() && name == r.Host) {
			return true
		}
	}
	return false
}

// decideAgain answers a worker that is a member and asks again. What is signed is the
// key on record: a worker that has lost that has another one put there, and the lost one
// taken back, in the batch before the answer.
func decideAgain(known kbroker.Host, r kbroker.JoinRequest, admitted kbroker.JoinReply) (decision, error) {
	switch {
	case len(admitted.Cores) == 0:
		return decision{reply: kbroker.JoinReply{Wait: "no core has been heard yet"}}, nil
	case r.User == known.User:
		return decision{reply: admitted}, nil
	case len(known.Revoked) >= maxRevoked:
		return decision{}, kbroker.Errorf(kbroker.Refused, "%d credentials of host %s have been taken back", len(known.Revoked), r.Host).
			WithHint("kbroker remove %s, and join under another name with an empty data directory", r.Host)
	}
	known.Revoked = takenBack(known)
	known.User = r.User
	return decision{[]state.Change{state.PutHost{Host: known}}, admitted}, nil
}

// takenBack are the keys of a name when that on record is replaced.
func takenBack(h kbroker.Host) []string {
	if h.User == "" {
		return h.Revoked
	}
	return append(slices.Clone(h.Revoked), h.User)
}

// decideJoin admits a host, with a token that this uses up, or one that was admitted
// and asks again; one that asks what became of it hears when it was removed. Cores join
// one at a time and only while every core is current and nothing else changes: two fresh
// members at once could outvote the cluster that they join. Workers are clients of the
// cores: any number, at any time.
func decideJoin(v *state.View, r kbroker.JoinRequest, f facts, clusterID string, now time.Time) (decision, error) {
	if err := kbroker.CheckName("host", string(r.Host)); err != nil {
		return decision{}, err
	}
	if r.Role != kbroker.RoleCore && r.Role != kbroker.RoleWorker {
		return decision{}, kbroker.Errorf(kbroker.Invalid, "role is %q, want core or worker", r.Role)
	}
	known := v.Hosts[r.Host]
	if wasRemoved(known, r) {
		return decision{reply: kbroker.JoinReply{Removed: true, Host: r.Host, Generation: r.Generation}}, nil
	}
	same := sameHost(known, r)
	var token kbroker.Token
	if !same {
		var err error
		if token, err = tokenFor(v, r, known.Generation+1, now); err != nil {
			return decision{}, err
		}
	}
	if r.Role == kbroker.RoleWorker && keyTaken(v, r) {
		return decision{reply: kbroker.JoinReply{KeyRevoked: true}}, nil
	}
	admitted := kbroker.JoinReply{Admitted: true, ClusterID: clusterID, Generation: known.Generation}
	through, cores, joining, wait := coresFor(v, r, f)
	admitted.Cores = through
	switch {
	case r.Role == kbroker.RoleWorker:
		wait = ""
	case wait == "":
		wait = f.change(v, r.Host)
	}
	switch {
	case same && r.Role == kbroker.RoleWorker:
		return decideAgain(known, r, admitted)
	case same && r.ClusterID == clusterID:
		// It was admitted, and its record holds its place: the broker may even
		// wait for it to have a leader.
		return decision{reply: admitted}, nil
	case known.Member() && !(same && known.State == kbroker.HostJoining):
		return decision{}, kbroker.Errorf(kbroker.Refused, "a host named %s is a member already", r.Host).
			WithHint("start it with the data directory that it has, or join under another name; if it is gone for good: kbroker remove %s", r.Host)
	case r.Role == kbroker.RoleWorker && len(known.Revoked) >= maxRevoked:
		return decision{}, kbroker.Errorf(kbroker.Refused, "%d credentials of hosts named %s have been taken back", len(known.Revoked), r.Host).
			WithHint("join under another name")
	case known.State == kbroker.HostRemoved && known.Role == kbroker.RoleCore:
		return decision{}, kbroker.Errorf(kbroker.Refused, "%s was a core and has been removed; the name of a core is used once", r.Host).
			WithHint("join under another name, with an empty data directory")
	case r.Role == kbroker.RoleCore && cores >= maxCores && !joining:
		return decision{}, kbroker.Errorf(kbroker.Refused, "the cluster has %d cores, more make it slower and not safer", cores).
			WithHint("join as a worker: --role worker")
	case r.Role == kbroker.RoleCore && !f.Known:
		wait = "the broker has no leader"
	case len(admitted.Cores) == 0 && wait == "":
		wait = "the founding host has not been heard yet"
	}
	use := &kbroker.TokenUse{Host: r.Host, Fingerprint: r.Fingerprint, Generation: known.Generation + 1, At: now}
	if wait != "" {
		d := decision{reply: kbroker.JoinReply{Wait: wait}}
		if !same && token.Used == nil && token.Waits == nil && f.Known {
			token.Waits = use // it was shown in time; without a leader of the broker nothing can be written
			d.changes = []state.Change{state.PutToken{Token: token}}
		}
		return d, nil
	}
	if known.Member() {
		return decision{reply: admitted}, nil
	}
	admitted.Generation = use.Generation
	host := kbroker.Host{
		Name: r.Host, Role: r.Role, State: kbroker.HostJoining, Labels: r.Labels,
		Client: r.Client, Route: r.Route, Since: now, Fingerprint: r.Fingerprint, Generation: admitted.Generation,
		Revoked: takenBack(known),
	}
	if r.Role == kbroker.RoleWorker {
		host.User = r.User // which it has proved to have; a core signs for itself
	}
	d := decision{[]state.Change{state.PutHost{Host: host}}, admitted}
	if token.Used == nil {
		token.Used, token.Waits = use, nil
		d.changes = append(d.changes, state.PutToken{Token: token})
	}
	return d, nil
}

// coresFor are the cores that a host reaches when it has joined, how many there are
// besides it, whether one of them is joining, and what of them it has to wait for.
func coresFor(v *state.View, r kbroker.JoinRequest, f facts) (through []kbroker.CoreAddr, cores int, joining bool, wait string) {
	for _, h := range sortedHosts(v) {
		if !h.Member() || h.Role != kbroker.RoleCore || h.Name == r.Host {
			continue
		}
		cores++
		switch {
		case h.State == kbroker.HostJoining:
			joining, wait = true, fmt.Sprintf("host %s is joining", h.Name)
		case r.Role == kbroker.RoleCore && (f.verdict.States[h.Name] != kbroker.HostReady || !f.Current[h.Name]):
			wait = fmt.Sprintf("host %s is not current", h.Name)
		default:
			through = append(through, kbroker.CoreAddr{Host: h.Name, Client: h.Client, Route: h.Route})
		}
	}
	return through, cores, joining, wait
}

// member finds a host that was not removed.
func member(v *state.View, name kbroker.HostID) (kbroker.Host, error) {
	h := v.Hosts[name]
	if !h.Member() {
		return h, noHost(name)
	}
	return h, nil
}

func noHost(name kbroker.HostID) error {
	return kbroker.Errorf(kbroker.NotFound, "there is no host %q", name).WithHint("`kbroker hosts` lists them")
}

// decideDrain has a host emptied, or lets it take instances again.
func decideDrain(v *state.View, r kbroker.DrainRequest, now time.Time) (decision, error) {
	h, err := member(v, r.Host)
	if err != nil {
		return decision{}, err
	}
	switch {
	case r.Undrain:
		if h.Drain == nil {
			return decision{reply: kbroker.HostReply{Unchanged: true}}, nil
		}
		h.Drain = nil
	case h.State == kbroker.HostLost:
		return decision{}, kbroker.Errorf(kbroker.Refused, "host %s is lost; what it ran has been placed elsewhere", r.Host).
			WithHint("kbroker remove %s takes it out for good", r.Host)
	case h.Drain != nil && (h.Drain.Force || !r.Force):
		return decision{reply: kbroker.HostReply{Unchanged: true}}, nil
	default:
		since := now
		if h.Drain != nil {
			since = h.Drain.Since
		}
		h.Drain = &kbroker.Drain{Since: since, Force: r.Force}
	}
	return decision{[]state.Change{state.PutHost{Host: h}}, kbroker.HostReply{}}, nil
}

// remove takes a host out; for a core the broker is looked at first.
func (t *term) remove(ctx context.Context, v *state.View, r kbroker.RemoveRequest, now time.Time) (decision, error) {
	f := t.facts(v)
	if h := v.Hosts[r.Host]; h.Member() && h.Role == kbroker.RoleCore {
		f = t.look(ctx, v)
	}
	return decideRemove(v, r, f, now)
}

// decideRemove takes a host out of the cluster for good. One that is there must
// be empty; one that is gone must not be needed: what its store alone holds
// would be lost with it. A member of the broker without a record, whose
// admission was taken back before it appeared, is removed like one that joins.
func decideRemove(v *state.View, r kbroker.RemoveRequest, f facts, now time.Time) (decision, error) {
	h, known := v.Hosts[r.Host]
	if _, member := f.Current[r.Host]; member && !known {
		h = kbroker.Host{Name: r.Host, Role: kbroker.RoleCore, State: kbroker.HostJoining, Generation: firstGeneration}
	}
	switch left, gone := instancesOn(v, h.Name), f.gone(h); {
	case h.State == kbroker.HostRemoved:
		return decision{reply: kbroker.HostReply{Unchanged: true}}, nil
	case !h.Member():
		return decision{}, noHost(r.Host)
	case f.verdict.Blind:
		return decision{}, kbroker.Errorf(kbroker.Refused, "host %s cannot be removed now: too few cores answer to say which hosts are there", h.Name).
			WithHint("try again in a moment; kbroker status says how many answer")
	case h.State == kbroker.HostJoining || gone:
	case f.verdict.States[h.Name] != kbroker.HostReady:
		return decision{}, kbroker.Errorf(kbroker.Refused, "host %s is %s, neither there nor lost", h.Name, f.verdict.States[h.Name]).
			WithHint("try again in a moment; kbroker status says why it is not declared lost")
	case len(left) > 0:
		return decision{}, kbroker.Errorf(kbroker.Refused, "host %s still has %d instances", h.Name, len(left)).
			WithHint("kbroker drain %s first; there are %s", h.Name, strings.Join(left[:min(len(left), maxRefusals)], ", "))
	}
	if h.Role == kbroker.RoleCore {
		if err := coreNeeded(v, h, f); err != nil {
			return decision{}, err
		}
	}
	h.State, h.Since, h.Drain, h.Maintenance = kbroker.HostRemoved, now, nil, nil
	return decision{[]state.Change{state.PutHost{Host: h}}, kbroker.HostReply{}}, nil
}

// instancesOn names what runs or is on its way out on a host.
func instancesOn(v *state.View, host kbroker.HostID) []string {
	var left []string
	for _, p := range v.On(host) {
		left = append(left, string(p.Instance))
	}
	return left
}

// coreNeeded says why a core cannot be removed now, or nil. One that is there
// goes while all others are there and caught up, and nothing else changes; of three
// it stays, as two survive no loss, while of two, which survive none either, the
// one that holds no stream alone may go. Of others, one that is not there may be
// gone as well, or removed: where two are, the broker lets neither go before both
// are removed. Those that stay must be a majority of its members; of less than
// three, the witness is one, or there is no leader.
func coreNeeded(v *state.View, h kbroker.Host, f facts) error {
	there := h.State != kbroker.HostJoining && !f.gone(h)
	now := func(why string, args ...any) error {
		return kbroker.Errorf(kbroker.Refused, "core %s cannot be removed now: %s", h.Name, fmt.Sprintf(why, args...)).
			WithHint("cores change one at a time: try again when kbroker doctor finds nothing")
	}
	why := f.change(v, "")
	if !there {
		why = f.arrival(v, h.Name) // what happens to it ends with its removal
	}
	if why != "" {
		return now("%s", why)
	}
	others, well := 0, 0
	for _, o := range sortedHosts(v) {
		if o.Name == h.Name || !o.Member() || o.Role != kbroker.RoleCore {
			continue
		}
		others++
		switch {
		case f.verdict.States[o.Name] == kbroker.HostReady && f.Current[o.Name]:
			well++
		case there || !f.gone(o):
			return kbroker.Errorf(kbroker.Refused, "core %s cannot be removed while core %s is not current", h.Name, o.Name).
				WithHint("members change one at a time: bring %s back, or wait until it has caught up", o.Name)
		}
	}
	switch {
	case len(f.Current) >= safeCores && well < len(f.Current)/2+1:
		return now("%d of the broker's %d members would be there", well, len(f.Current))
	case h.State == kbroker.HostJoining:
		return nil
	case others == 0:
		return kbroker.Errorf(kbroker.Refused, "%s is the only core: it is the cluster", h.Name).
			WithHint("join another core first; a cluster of `up` is ended with kbroker down --delete")
	case f.Alone[h.Name] != "":
		return kbroker.Errorf(kbroker.Refused, "core %s alone holds stream %s", h.Name, f.Alone[h.Name]).
			WithHint("with a third core every stream gets three replicas; then it can be removed")
	case f.Replicas == 0:
		return now("a stream has no leader that answers; what it holds may be on %s", h.Name)
	case there && others < safeCores && others+1 >= safeCores:
		return kbroker.Errorf(kbroker.Refused, "without core %s the cluster has %d cores, and the loss of one more stops all changes", h.Name, others).
			WithHint("join another core first, then remove %s", h.Name)
	case there && f.Unsettled != "":
		return now("%s", f.Unsettled)
	}
	return nil
}

// removedError is what a host hears that is not a member any more.
func removedError(host kbroker.HostID) error {
	return kbroker.Errorf(kbroker.Refused, "host %s was removed from the cluster", host).
		WithHint("it can join again with an empty data directory; the name of a core is used once")
}
