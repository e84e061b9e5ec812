package main

import (
	"encoding/json"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// allocator answers what an app's allocator decides; false: it is something else. The bank has
// none at the moment, and that of duo has nothing to decide.
func (f *fakeCore) allocator(verb string, m *nats.Msg) (any, bool, error) {
	if verb != subjects.VerbAllocator {
		return nil, false, nil
	}
	var r kbroker.AllocatorRequest
	if err := json.Unmarshal(m.Data, &r); err != nil {
		return nil, true, err
	}
	if _, ok := f.deployed[r.App]; !ok {
		return nil, true, kbroker.Errorf(kbroker.NotFound, "there is no app %q", r.App).WithHint("`kbroker apps` lists them")
	}
	switch {
	case f.stopped[r.App]:
		return nil, true, kbroker.Errorf(kbroker.NotFound, "app %q is stopped: nobody decides for it", r.App).WithHint("kbroker restart %s", r.App)
	case r.Rebalance:
		return kbroker.AllocatorReply{App: r.App, Allocator: "bank-allocator-1", AllocatorSeen: kbroker.AllocatorSeen{
			Policy: kbroker.PolicyBalanced, Rebalance: fakeRebalance(),
		}}, true, nil
	case r.App == "bank" && f.rebalancing > 0:
		f.rebalancing--
		return kbroker.AllocatorReply{App: r.App, AllocatorSeen: kbroker.AllocatorSeen{Rebalancing: &kbroker.Rebalancing{Epoch: 4, Number: 1, Left: f.rebalancing}}}, true, nil
	case r.App == "bank":
		return nil, true, kbroker.Errorf(kbroker.Unavailable, "no allocator of app %q is active", r.App)
	case r.App == "duo":
		return kbroker.AllocatorReply{App: r.App, Allocator: "duo-allocator-1", AllocatorSeen: kbroker.AllocatorSeen{
			Epoch: 1, Version: 2, Moving: 1, Policy: kbroker.PolicyPack,
			Services:  []kbroker.AllocatorNeed{{Service: "one", Min: 1, Max: 1, Instances: 1, Ready: 1, Wanted: 1}, {Service: "two", Min: 2, Max: 2, Wanted: 2}},
			Instances: []kbroker.AllocatorLoad{{Instance: "duo-one-1", Service: "one", Host: "h1", Ready: true}},
		}}, true, nil
	}
	busy, requests, refused, cpu, objects, waiting, turns := 0.874, 351.2, 4.25, 0.41, 1200, 3, 87.5
	return kbroker.AllocatorReply{App: r.App, Allocator: "hello-allocator-3", AllocatorSeen: kbroker.AllocatorSeen{
		Epoch: 4, Version: 2, Moving: 12, Placed: &kbroker.AllocatorPlaced{Objects: 25, Waiting: 2, Moving: 1}, Policy: kbroker.PolicyOwn, Instead: kbroker.PolicySpread,
		Refused: "it wants 21 of service hello, more than the 20 of its count",
		Services: []kbroker.AllocatorNeed{
			{Service: "hello", Min: 2, Max: 20, Instances: 3, Ready: 2, Wanted: 4, Why: "busy is 0.87 of 0.70 on each of 2"},
			{Service: "mail", Min: 1, Max: 1, Wanted: 1},
		},
		Instances: []kbroker.AllocatorLoad{
			{
				Instance: "hello-hello-1", Service: "hello", Host: "h1", Ready: true, Shards: 1024, Placed: &kbroker.AllocatorRoom{Objects: 25, Used: kbroker.Demanded{Slots: 30}, Has: kbroker.Demanded{Slots: 32}},
				Busy: &busy, RequestsPerS: &requests, RefusedPerS: &refused, CPUCores: &cpu, Objects: &objects, Waiting: &waiting, TurnsPerS: &turns,
			},
			{Instance: "hello-hello-2", Service: "hello", Host: "h2", Ready: true, Leaving: true},
			{Instance: "hello-hello-3", Service: "hello"},
		},
	}}, true, nil
}

// fakeRebalance moves more shards than are listed for people.
func fakeRebalance() *kbroker.Rebalance {
	r := &kbroker.Rebalance{Owners: []kbroker.RebalanceOwner{
		{Instance: "bank-ledger-1", Host: "h1", Now: kbroker.RebalanceShare{Shards: 523, TurnsPerS: 120.4, Work: 0.534}, Then: kbroker.RebalanceShare{Shards: 501, TurnsPerS: 101, Work: 0.4}},
		{Instance: "bank-ledger-2", Now: kbroker.RebalanceShare{Shards: 501, TurnsPerS: 82, Work: 0.3}, Then: kbroker.RebalanceShare{Shards: 523, TurnsPerS: 101.4, Work: 0.434}},
	}}
	for n := range kbroker.Shard(22) {
		r.Moves = append(r.Moves, kbroker.RebalanceMove{From: "bank-ledger-1.a", To: "bank-ledger-2.b", ShardLoad: kbroker.ShardLoad{Shard: 7 + n, TurnsPerS: 22 - float64(n), Work: 0.0061}})
	}
	return r
}
