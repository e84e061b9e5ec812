package main

import (
	"fmt"
	"time"

	"github.com/kbroker/kbroker"
)

// fakeFigures are what the fake core has heard: of some hosts and instances all is
// known, of the last ones nothing.
func fakeFigures() kbroker.FiguresReply {
	r := kbroker.FiguresReply{Core: "h1"}
	for i := range 9 {
		h := kbroker.HostRow{
			Name: kbroker.HostID(fmt.Sprintf("h%d", i+1)), Role: kbroker.RoleCore, State: kbroker.HostReady, Super: i == 0, Instances: 3,
			Capacity: kbroker.Resources{CPU: 4, MemoryBytes: 16 << 30},
		}
		if i < 8 {
			h.Figures = &kbroker.HostFigures{CPUCores: new(0.25 * float64(i)), MemoryBytes: new(int64(i+1) << 30), Load: new(0.5), AgentCPUCores: new(0.01), AgentBytes: new(int64(24 << 20))}
		} else {
			h.State = kbroker.HostLost
		}
		r.Hosts = append(r.Hosts, h)
	}
	start := fakeNow.Add(-time.Hour)
	for i := range 30 {
		id, host := kbroker.InstanceID(fmt.Sprintf("shop-web-%d", i+1)), r.Hosts[i%9].Name
		row := kbroker.InstanceRow{
			Tenant: kbroker.DefaultTenant, App: "shop", Service: "web", Instance: &id, Host: &host, State: kbroker.StateReady, PID: new(100 + i),
			Version: 1, StartedAt: &start, Restarts: i % 3,
		}
		switch {
		case i%9 == 8:
			row.State, row.PID, row.Message = kbroker.StateUnknown, nil, "host h9 is lost; last known: ready"
		case i == 4:
			row.State, row.Unenforced = kbroker.StateRunning, []string{"memory limit"}
			row.Figures = &kbroker.InstanceFigures{
				CPUCores: new(1.5), MemoryBytes: new(int64(60 << 20)), MemoryLimitBytes: new(int64(64 << 20)), OpenFiles: new(1000), PIDs: new(int64(12)),
				ChecksFailing: new(2), CheckFailing: "http: answered with \x1b[31m503",
			}
		default:
			row.Figures = &kbroker.InstanceFigures{
				CPUCores: new(0.01 * float64(i)), MemoryBytes: new(int64(100-i) << 20), OpenFiles: new(9), PIDs: new(int64(7)),
				RequestsPerS: new(float64(10 * (i % 7))), ErrorsPerS: new(0.5), ReadyForS: new(90.0), ChecksFailing: new(0),
			}
		}
		r.Instances = append(r.Instances, row)
	}
	r.Instances = append(r.Instances, kbroker.InstanceRow{Tenant: kbroker.DefaultTenant, App: "shop", Service: "web", State: kbroker.StatePending, Message: "no host has room"})
	return r
}

// measuredFake adds what is asked for to the instance whose host does not do all that its
// spec asks for.
func measuredFake(rows []kbroker.InstanceRow, wide bool) []kbroker.InstanceRow {
	for i := range rows {
		if r := &rows[i]; r.Instance != nil && *r.Instance == "hello-hello-1" {
			r.Unenforced, r.Ports = []string{"memory limit", "own user"}, map[string]int{"web": 8080}
			if wide {
				r.Figures = &kbroker.InstanceFigures{
					CPUCores: new(0.25), CPUSeconds: new(12.5), MemoryBytes: new(int64(20 << 20)), OpenFiles: new(9), OpenFilesAll: new(12), PIDs: new(int64(7)),
					RequestsPerS: new(1234.5), ErrorsPerS: new(0.0), ReadyForS: new(3700.0), ChecksFailing: new(0), AgeS: 0.5,
				}
			}
		}
	}
	return rows
}
