package allocator

import (
	"cmp"
	"encoding/json"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// onAsked answers a core that asks what is decided, and why. What somebody else asks is not
// answered.
func (a *Allocator) onAsked(m *nats.Msg) {
	if !subjects.IsKept(m.Reply, a.own.Tenant, a.own.Incarnation) {
		return
	}
	reply := &nats.Msg{Subject: m.Reply}
	var answer any
	if d := a.demanding.Load(); d != nil {
		answer = kbroker.KeeperReply{Allocator: d.seen()}
	} else {
		e := kbroker.Errorf(kbroker.Moved, "%s is not the active allocator of app %s", a.own.Instance, a.own.App)
		reply.Header, answer = nats.Header{subjects.HeaderCode: {string(e.Code)}}, e
	}
	var err error
	if reply.Data, err = json.Marshal(answer); err == nil {
		err = a.cfg.Conn.PublishMsg(reply)
	}
	if err != nil {
		a.log.Debug("a core is not answered", "err", err)
	}
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
			Instance: i.Name, Service: i.Service, Host: i.Host, Ready: i.Ready, Leaving: i.Leaving, Shards: shards[i.Name],
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
		name, _, _ := strings.Cut(string(i), ".")
		of[kbroker.InstanceID(name)]++
	}
	return of, len(s.assigner.Moving())
}
