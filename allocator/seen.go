package allocator

import (
	"cmp"
	"encoding/json"
	"slices"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// onAsked answers a core that asks what is decided, and why. What somebody else asks is not
// answered.
func (a *Allocator) onAsked(m *nats.Msg) {
	if !subjects.IsKept(m.Reply, a.own.Tenant, a.own.Incarnation) {
		return
	}
	reply := &nats.Msg{Subject: m.Reply}
	answer, err := a.decided(m.Data)
	if err != nil {
		e := kbroker.AsError(err)
		reply.Header, answer = nats.Header{subjects.HeaderCode: {string(e.Code)}}, e
	}
	if reply.Data, err = json.Marshal(answer); err == nil {
		err = a.cfg.Conn.PublishMsg(reply)
	}
	if err != nil {
		a.log.Debug("a core is not answered", "err", err)
	}
}

// decided is what a core is answered. Errors: Moved - this one is not active; Invalid;
// Unavailable.
func (a *Allocator) decided(body []byte) (any, error) {
	d := a.demanding.Load()
	if d == nil {
		return nil, kbroker.Errorf(kbroker.Moved, "%s is not the active allocator of app %s", a.own.Instance, a.own.App)
	}
	var r kbroker.KeeperRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	switch r.Verb {
	case "":
		return kbroker.KeeperReply{Allocator: d.seen()}, nil
	case kbroker.ObjectRebalance:
		moves, err := a.answerRebalance(r.DryRun)
		if err != nil {
			return nil, err
		}
		out := d.seen()
		out.Rebalance = moves
		return kbroker.KeeperReply{Allocator: out}, nil
	}
	return nil, kbroker.Errorf(kbroker.Invalid, "an allocator does not know how to %.40q", r.Verb)
}

// seen is what is decided now.
func (d *demander) seen() *kbroker.AllocatorSeen {
	a := d.alloc
	view, _ := a.look()
	wants, known := d.decide()
	if was := d.told(); !known {
		wants = was
	}
	shards, moving := a.shards.owned()
	out := &kbroker.AllocatorSeen{Epoch: d.epoch, Version: view.Version, Moving: moving, Policy: cmp.Or(view.App.Policy, kbroker.PolicySpread)}
	if a.guard != nil {
		out.Policy, out.Instead, out.Refused = kbroker.PolicyOwn, out.Policy, a.guard.why()
	}
	rooms, placed := a.shards.rooms(view.App)
	out.Placed, out.Rebalancing = placed, a.shards.rebalancing(d.epoch)
	for _, s := range view.App.Services {
		row := kbroker.AllocatorNeed{Service: s.Name, Min: s.Count.Min, Max: s.Count.Max, Wanted: wants.Wanted[s.Name], Why: wants.Why[s.Name]}
		for _, i := range view.Of(s.Name) {
			if !i.Leaving {
				row.Instances++
			}
			if i.Ready {
				row.Ready++
			}
		}
		out.Services = append(out.Services, row)
	}
	for _, i := range view.Instances {
		l := i.Load
		row := kbroker.AllocatorLoad{
			Instance: i.Name, Service: i.Service, Host: i.Host, Ready: i.Ready, Leaving: i.Leaving, Shards: shards[i.Name], Placed: rooms(i),
		}
		if l.Measured {
			row.CPUCores, row.RequestsPerS = &l.CPU, &l.Requests
		}
		if l.Known {
			row.RequestsPerS, row.Busy, row.RefusedPerS, row.Waiting, row.Objects, row.TurnsPerS = &l.Requests, &l.Busy, &l.Refused, &l.Waiting, &l.Objects, &l.Turns
		}
		out.Instances = append(out.Instances, row)
	}
	return out
}

// owned is how many shards each instance owns, or is to own, and how many are on their way.
func (s *shards) owned() (of map[kbroker.InstanceID]int, moving int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	of = map[kbroker.InstanceID]int{}
	for _, i := range s.assigner.Owners() {
		of[i.Instance()]++
	}
	return of, len(s.assigner.Moving())
}

// rooms says what placed objects take of an instance, and counts them.
func (s *shards) rooms(app kbroker.App) (of func(Instance) *kbroker.AllocatorRoom, all *kbroker.AllocatorPlaced) {
	at := slices.IndexFunc(app.Services, places)
	s.mu.Lock()
	defer s.mu.Unlock()
	if at < 0 || !s.placing.read {
		return func(Instance) *kbroker.AllocatorRoom { return nil }, nil
	}
	service, rooms := app.Services[at], map[kbroker.InstanceID]kbroker.AllocatorRoom{}
	for i, used := range s.placing.used {
		room := rooms[i.Instance()]
		room.Objects, room.Used = room.Objects+s.assigner.CountOn(i), room.Used.Plus(used)
		rooms[i.Instance()] = room
	}
	all = &kbroker.AllocatorPlaced{Objects: s.placing.total, Waiting: len(s.placing.asked)}
	for _, n := range s.assigner.Unplaced(s.alloc.cfg.Judge()) {
		switch next := s.assigner.Placed(n).Next; {
		case next == "" && s.placing.leaving[n] == nil:
			all.Waiting++
		case next != "" && next != ownership.Nobody:
			all.Moving++
		}
	}
	return func(i Instance) *kbroker.AllocatorRoom {
		if i.Service != service.Name {
			return nil
		}
		room := rooms[i.Name]
		room.Has = roomOf(service)
		return &room
	}, all
}
