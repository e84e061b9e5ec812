package client

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
)

// healthy are the facts of three cores and a worker, machines with units, with
// nothing wrong.
func healthy() Facts {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	leader := kbroker.HostID("h1")
	f := Facts{
		Version: "1.2.0", Now: now, Status: kbroker.StatusReply{Leader: &leader, Writable: true},
		Apps:     []kbroker.AppRow{{App: "shop", Version: 2, Rollout: kbroker.RolloutDone, Wanted: 4, Ready: 4}},
		Checkups: map[kbroker.HostID]HostCheckup{},
	}
	for i, role := range []kbroker.Role{kbroker.RoleCore, kbroker.RoleCore, kbroker.RoleCore, kbroker.RoleWorker} {
		name := kbroker.HostID(fmt.Sprintf("h%d", i+1))
		heard := 0.4
		row := kbroker.HostRow{Name: name, Role: role, State: kbroker.HostReady, Super: name == leader, Instances: 1, HeardAgo: &heard, Version: "1.2.0"}
		got := kbroker.Checkup{
			Host: name, Role: role, Version: "1.2.0", PID: 100 + i, Now: now, Proven: true, Starts: []time.Time{now.Add(-time.Minute)},
			Disk:   kbroker.DiskCheckup{Path: "/var/lib/kbroker", FreeBytes: 50 << 30, TotalBytes: 100 << 30, FreeInodes: 900, TotalInodes: 1000},
			Sync:   kbroker.SyncCheckup{Count: 20, Median: 2 * time.Millisecond, Worst: 9 * time.Millisecond},
			Memory: kbroker.MemoryCheckup{TotalBytes: 16 << 30, AvailableBytes: 8 << 30},
			Files:  kbroker.FilesCheckup{Limit: 1 << 20, Open: 100},
		}
		if role == kbroker.RoleCore {
			row.Client = fmt.Sprintf("10.0.0.%d:4222", i+1)
			got.Core = &kbroker.CoreCheckup{
				Fresh: true, Leader: true, Settled: true, Current: map[kbroker.HostID]bool{"h1": true, "h2": true, "h3": true},
				Streams: []kbroker.StreamCheckup{{Name: "KV_control", Leader: "h1", Replicas: 3, Current: 3}},
			}
		}
		f.Hosts = append(f.Hosts, row)
		f.Checkups[name] = HostCheckup{Checkup: got, Ahead: time.Duration(i) * 20 * time.Millisecond}
	}
	return f
}

// alone are the facts of the first n hosts.
func alone(n int) Facts {
	f := healthy()
	for _, h := range f.Hosts[n:] {
		delete(f.Checkups, h.Name)
	}
	f.Hosts = f.Hosts[:n]
	for _, c := range f.Checkups {
		c.Core.Mirrored = true
		c.Core.Streams[0] = kbroker.StreamCheckup{Name: "KV_control", Leader: "h1", Replicas: 1, Current: 1}
	}
	return f
}

// local has the facts look like those of `kbroker up`.
func local(f Facts) Facts {
	for i := range f.Hosts {
		f.Hosts[i].Client = fmt.Sprintf("127.0.0.1:%d", 4000+i)
	}
	return f
}

// of changes what one host said.
func (f Facts) of(host kbroker.HostID, change func(*HostCheckup)) {
	got := f.Checkups[host]
	change(&got)
	f.Checkups[host] = got
}

// gone has a host in a state of silence.
func (f Facts) gone(i int, state kbroker.HostState, ago float64) {
	f.Hosts[i].State, f.Hosts[i].HeardAgo = state, &ago
	f.Checkups[f.Hosts[i].Name] = HostCheckup{Err: errors.New("no answer")}
}

// leaderless has the cores without super and broker leader.
func (f *Facts) leaderless() {
	f.Status.Leader, f.Status.Writable = nil, false
	for _, c := range f.Checkups {
		if c.Core != nil {
			*c.Core = kbroker.CoreCheckup{Fresh: true}
		}
	}
}

func TestDiagnose(t *testing.T) {
	const sync = "kbroker drain h2 && kbroker remove h2   # then join it again with --dir on a faster disk"
	tests := map[string]struct {
		facts func() Facts
		want  []string // severity, check, place, command; with a part of the message
	}{
		"all well":  {healthy, nil},
		"one host":  {func() Facts { return alone(1) }, nil},
		"one local": {func() Facts { return local(alone(1)) }, nil},
		"small clocks": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Ahead = 900 * time.Millisecond })
			return f
		}, nil},
		"two cores": {func() Facts { return alone(2) }, []string{
			"warning cores @ $ kbroker agent install --join 10.0.0.1:4222 --token-file FILE --advertise IP   # on the new host, FILE from: kbroker token create --role core | without the first nothing can be changed",
		}},
		"two local cores": {func() Facts { return local(alone(2)) }, []string{"warning cores @ $ kbroker up --hosts 3 | have three"}},
		"two cores, a copy is behind": {func() Facts {
			f := alone(2)
			for _, c := range f.Checkups {
				c.Core.Mirrored = false
				c.Core.Streams[0].Mirror, c.Core.Streams[0].MirrorLag = "h2", 40
			}
			return f
		}, []string{"warning cores @ | have three", "warning mirrors @ $ kbroker doctor | KV_control lacks 40 messages on h2"}},
		"the first of two is gone": {func() Facts {
			f := alone(2)
			f.gone(0, kbroker.HostLost, 60)
			f.leaderless()
			return f
		}, []string{
			"error leader @h1 $ systemctl start kbroker | core h1, the first of two, is down; if its disk is lost, run on the other one: systemctl stop kbroker && kbroker agent rescue",
			"error host h1@h1 $ systemctl start kbroker | was last heard 60 s ago",
		}},
		"the first of two local ones is gone": {func() Facts {
			f := local(alone(2))
			f.gone(0, kbroker.HostLost, 60)
			f.leaderless()
			return f
		}, []string{"error leader @ $ kbroker up | core h1, the first of two, is down", "error host h1@ $ kbroker up"}},
		"two of three are gone": {func() Facts {
			f := healthy()
			f.gone(0, kbroker.HostSuspect, 60)
			f.gone(2, kbroker.HostSuspect, 60)
			f.leaderless()
			return f
		}, []string{
			"error leader @h1 $ systemctl start kbroker | 1 of 3 cores up, and it takes 2",
			"error host h1@h1 $ systemctl start kbroker", "error host h3@h3 $ systemctl start kbroker",
		}},
		"an election": {func() Facts { f := healthy(); f.leaderless(); return f }, []string{
			"error leader @ $ kbroker doctor | though all cores are heard", "error streams @ $ kbroker doctor | sees no leader of the broker",
		}},
		"no writes": {func() Facts { f := healthy(); f.Status.Writable = false; return f }, []string{
			"error write @h1 $ systemctl restart kbroker | takes no writes",
		}},
		"no writes, local": {func() Facts { f := local(healthy()); f.Status.Writable = false; return f }, []string{
			"error write @ $ kill -9 100; kbroker up | takes no writes",
		}},
		"four cores": {func() Facts {
			f := healthy()
			f.Hosts[3].Role, f.Hosts[3].Client = kbroker.RoleCore, "10.0.0.4:4222"
			return f
		}, []string{"warning cores @ $ kbroker agent install | the loss of no more than 3 do; have 5"}},
		"one core and workers": {func() Facts {
			f := alone(1)
			f.Hosts = append(f.Hosts, healthy().Hosts[3])
			f.Checkups["h4"] = healthy().Checkups["h4"]
			return f
		}, []string{"warning cores @ | there is one core: with its disk the whole cluster is lost"}},
		"a core joins": {func() Facts { f := healthy(); f.Hosts[2].State = kbroker.HostJoining; return f }, []string{"warning core h3@ $ kbroker doctor | is joining"}},
		"a core is lost": {func() Facts { f := healthy(); f.gone(1, kbroker.HostLost, 30); return f }, []string{
			"error host h2@h2 $ systemctl start kbroker | core h2 is lost, it was last heard 30 s ago; if it is gone for good: kbroker remove h2",
		}},
		"a core is lost with its replica": {func() Facts {
			f := healthy()
			f.gone(1, kbroker.HostLost, 30)
			for _, h := range []kbroker.HostID{"h1", "h3"} {
				f.Checkups[h].Core.Streams[0].Current, f.Checkups[h].Core.Streams[0].Lag = 2, 7
			}
			return f
		}, []string{"error host h2@h2", "warning streams @h2 $ systemctl start kbroker | KV_control has 2 of 3 (7 entries behind)"}},
		"a worker was never heard": {func() Facts { f := healthy(); f.gone(3, kbroker.HostLost, 0); f.Hosts[3].HeardAgo = nil; return f }, []string{
			"error host h4@h4 $ systemctl start kbroker | worker h4 is lost, it was not heard",
		}},
		"more are missing than are replaced": {func() Facts {
			f := healthy()
			f.gone(1, kbroker.HostSuspect, 60)
			f.gone(3, kbroker.HostSuspect, 60)
			f.Hosts[3].Instances = 2
			return f
		}, []string{"error host h2@h2 | what it ran, 1 instance, is not replaced", "error host h4@h4 | 2 instances, is not replaced: too many hosts are missing at once; if it is gone for good: kbroker remove h4"}},
		"an agent is gone, its instances run": {func() Facts {
			f := healthy()
			f.gone(3, kbroker.HostSuspect, 4)
			id, host := kbroker.InstanceID("shop-web-1"), kbroker.HostID("h4")
			f.Instances = []kbroker.InstanceRow{{App: "shop", Instance: &id, Host: &host, State: kbroker.StateUnmanaged}}
			return f
		}, []string{"error host h4@h4 | 1 instance there may run on without an agent"}},
		"in maintenance": {func() Facts {
			f := healthy()
			f.gone(1, kbroker.HostSuspect, 4)
			f.Hosts[1].Maintenance = &kbroker.Maintenance{Holder: "x"}
			return f
		}, []string{"warning host h2@ $ kbroker doctor | it is in maintenance"}},
		"no core tells": {func() Facts {
			f := healthy()
			for _, h := range f.Hosts {
				f.of(h.Name, func(c *HostCheckup) { *c = HostCheckup{Err: errors.New("no answer")} })
			}
			return f
		}, []string{
			"error streams @h1 $ systemctl restart kbroker | no core tells",
			"error agent h1@h1 $ systemctl restart kbroker | is heard, but: no answer", "error agent h2@h2", "error agent h3@h3", "error agent h4@h4",
		}},
		"a stream without a leader": {func() Facts {
			f := healthy()
			f.Checkups["h1"].Core.Streams[0].Leader = ""
			return f
		}, []string{"error streams @ $ kbroker doctor | nothing can be written to streams without a leader: KV_control"}},
		"a stream near its end": {func() Facts {
			f := healthy()
			f.Checkups["h1"].Core.Streams[0].Current = 1
			return f
		}, []string{"error streams @ | KV_control has 1 of 3"}},
		"many streams": {func() Facts {
			f := healthy()
			for range 5 {
				f.Checkups["h1"].Core.Streams = append(f.Checkups["h1"].Core.Streams, kbroker.StreamCheckup{Name: "S", Leader: "h1", Replicas: 3, Current: 2})
			}
			return f
		}, []string{"warning streams @ | want: S has 2 of 3, S has 2 of 3, S has 2 of 3, S has 2 of 3 and 1 more"}},
		"a core is behind": {func() Facts {
			f := healthy()
			f.Checkups["h1"].Core.Current["h3"] = false
			return f
		}, []string{"warning core h3@h3 $ systemctl restart kbroker | core h3 is behind"}},
		"unsettled": {func() Facts {
			f := healthy()
			f.Checkups["h1"].Core.Settled, f.Checkups["h1"].Core.Unsettled = false, "a stream moves"
			return f
		}, []string{"warning streams @ $ kbroker doctor | not settled: a stream moves"}},
		"the fresh look counts": {func() Facts {
			f := healthy()
			f.Checkups["h1"].Core.Fresh = false
			f.Checkups["h1"].Core.Streams[0].Leader = ""
			return f
		}, nil},
		"a forgotten drain": {func() Facts {
			f := healthy()
			f.Hosts[3].Drain, f.Hosts[3].Instances = &kbroker.Drain{Since: f.Now.Add(-3 * time.Hour)}, 0
			return f
		}, []string{"warning drain h4@ $ kbroker undrain h4 | is empty and takes nothing since 3h0m0s"}},
		"a drain that waits": {func() Facts {
			f := healthy()
			f.Hosts[3].Drain = &kbroker.Drain{Since: f.Now.Add(-3 * time.Hour)}
			return f
		}, []string{"warning drain h4@ | still runs 1 instance"}},
		"a stuck agent": {func() Facts { f := healthy(); f.of("h4", func(c *HostCheckup) { c.Stuck = true }); return f }, []string{
			"error agent h4@h4 $ systemctl restart kbroker | loop is stuck",
		}},
		"an agent that ends again and again": {func() Facts {
			f := healthy()
			f.of("h4", func(c *HostCheckup) {
				for i := range 4 {
					c.Starts = append(c.Starts, c.Now.Add(-time.Duration(i)*time.Minute))
				}
			})
			return f
		}, []string{"warning agent h4@h4 $ journalctl -u kbroker -n 100 | started 5 times within 10m0s"}},
		"a disk that fills": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Disk.FreeBytes = 6 << 30 })
			return f
		}, []string{"warning disk h2@h2 $ du -xh -d 2 /var/lib/kbroker | 6.0 % free, 6.0 GiB"}},
		"a full disk": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Disk.FreeBytes = 1 << 20 })
			return f
		}, []string{"error disk h2@h2 $ du | 0.0 % free"}},
		"a small disk with room": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Disk.FreeBytes, c.Disk.TotalBytes = 1<<30, 2<<30 })
			return f
		}, nil},
		"inodes": {func() Facts { f := healthy(); f.of("h2", func(c *HostCheckup) { c.Disk.FreeInodes = 3 }); return f }, []string{"warning disk h2@h2 $ du -x --inodes | room for 3 more files"}},
		"no disk": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Disk.Error = "stale handle" })
			return f
		}, []string{
			"error disk h2@h2 $ ls -ld /var/lib/kbroker | stale handle",
		}},
		"slow sync": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Sync.Median = 30 * time.Millisecond })
			return f
		}, []string{"warning sync h2@ $ " + sync + " | 30ms in the median of 20"}},
		"too slow sync": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Sync.Median = 300 * time.Millisecond })
			return f
		}, []string{"error sync h2@ $ " + sync}},
		"a sync stalled": {func() Facts {
			f := healthy()
			f.of("h2", func(c *HostCheckup) { c.Sync.Worst = time.Second })
			return f
		}, []string{"warning sync h2@ | slowest of 20 syncs took 1s"}},
		"a slow worker": {func() Facts {
			f := healthy()
			f.of("h4", func(c *HostCheckup) { c.Sync.Median = time.Second })
			return f
		}, nil},
		"read-only": {func() Facts {
			f := healthy()
			f.of("h4", func(c *HostCheckup) { c.Sync.Error = "read-only file system" })
			return f
		}, []string{"error sync h4@h4 $ findmnt -T /var/lib/kbroker | read-only"}},
		"orphans": {func() Facts {
			f := healthy()
			f.of("h4", func(c *HostCheckup) { c.Orphans = []kbroker.Orphan{{PID: 7}, {PID: 9}} })
			return f
		}, []string{"warning orphans h4@h4 $ kill -9 7 9 | 2 processes"}},
		"little memory": {func() Facts {
			f := healthy()
			f.of("h4", func(c *HostCheckup) { c.Memory.AvailableBytes = 100 << 20 })
			return f
		}, []string{"warning memory h4@ $ kbroker drain h4 | 1 % of the memory is left, 0.1 GiB"}},
		"pressure": {func() Facts { f := healthy(); f.of("h4", func(c *HostCheckup) { c.Memory.Pressure = 40 }); return f }, []string{"warning memory h4@ $ kbroker drain h4 | waited for memory in 40 %"}},
		"files":    {func() Facts { f := healthy(); f.of("h4", func(c *HostCheckup) { c.Files.Open = 1 << 20 }); return f }, []string{"warning files h4@h4 $ systemctl edit kbroker"}},
		"a clock": {func() Facts {
			f := healthy()
			f.of("h3", func(c *HostCheckup) { c.Ahead = -3 * time.Second })
			return f
		}, []string{"warning clock h3@h3 $ timedatectl set-ntp true | clock of host h3 is 3s behind the others"}},
		"the asker's clock": {func() Facts {
			f := healthy()
			for _, h := range f.Hosts {
				f.of(h.Name, func(c *HostCheckup) { c.Ahead = time.Hour })
			}
			return f
		}, []string{"warning clock @ $ timedatectl | clock of this machine is 1h0m0s behind"}},
		"two clocks": {func() Facts { f := alone(1); f.of("h1", func(c *HostCheckup) { c.Ahead = time.Minute }); return f }, []string{"warning clock h1@h1 | 1m0s apart"}},
		"versions": {func() Facts {
			f := healthy()
			f.of("h3", func(c *HostCheckup) { c.Version = "1.3.0" })
			return f
		}, []string{"warning version @ $ kbroker agent upgrade --binary FILE | 1.2.0 on h1, h2, h4; 1.3.0 on h3"}},
		"another command": {func() Facts { f := healthy(); f.Version = "1.1.0"; return f }, []string{"warning version @ $ kbroker version | this command is version 1.1.0, the agents run 1.2.0"}},
		"a failed rollout": {func() Facts {
			f := healthy()
			f.Apps[0].Rollout, f.Apps[0].Reason, f.Apps[0].Ready = kbroker.RolloutFailed, "no progress for 2m0s", 3
			return f
		}, []string{"error rollout @ $ kbroker rollback shop | version 2 failed: no progress for 2m0s; 3 of 4 instances ready"}},
		"no room": {func() Facts {
			f := healthy()
			f.Apps[0].Unplaced = []kbroker.Unplaced{{Service: "web", Count: 2, Reason: "no host has 900 cpu free"}}
			return f
		}, []string{"error placement @ $ kbroker why shop | 2 instances of service web find no host: no host has 900 cpu free"}},
		"a sick instance": {func() Facts {
			f := healthy()
			f.Apps[0].Ready = 3
			id := kbroker.InstanceID("shop-web-1")
			f.Instances = []kbroker.InstanceRow{{App: "shop", Instance: &id, State: kbroker.StateBackoff, Message: "exited with 3"}}
			return f
		}, []string{"warning instances @ $ kbroker logs shop | 3 of 4 instances ready; shop-web-1 is backoff: exited with 3"}},
		"a crash loop": {func() Facts {
			f := healthy()
			f.Apps[0].Ready, f.Apps[0].Rollout = 3, kbroker.RolloutRunning
			id, host := kbroker.InstanceID("shop-web-1"), kbroker.HostID("h2")
			f.Instances = []kbroker.InstanceRow{{App: "shop", Instance: &id, Host: &host, State: kbroker.StateBackoff, Failing: true, Message: "crash loop: exit code 3: boom\nat main.go"}}
			return f
		}, []string{"error crashes @ $ kbroker why shop | app shop: 1 instance in a crash loop, shop-web-1 on h2; the first: exit code 3: boom"}},
		"a crash loop of what is no app's any more": {func() Facts {
			f := healthy()
			id := kbroker.InstanceID("other-web-1")
			f.Instances = []kbroker.InstanceRow{{App: "other", Instance: &id, State: kbroker.StateDraining, Failing: true}}
			return f
		}, nil},
		"a rollout under way": {func() Facts { f := healthy(); f.Apps[0].Ready, f.Apps[0].Rollout = 1, kbroker.RolloutRunning; return f }, nil},
		"a stopped app":       {func() Facts { f := healthy(); f.Apps[0].Ready, f.Apps[0].Stopped = 0, true; return f }, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			found := Diagnose(test.facts())
			if found == nil {
				t.Error("nil, which is null in JSON")
			}
			for i, f := range found {
				got := fmt.Sprintf("%s %s %s@%s $ %s | %s", f.Severity, f.Check, f.Host, f.On, f.Command, f.Message)
				if f.Command == "" {
					t.Errorf("%s: no command mends it", got)
				}
				if i >= len(test.want) {
					t.Errorf("also found: %s", got)
					continue
				}
				for _, part := range strings.Split(test.want[i], " | ") {
					if !strings.Contains(got, part) {
						t.Errorf("found\n%s\nwithout\n%s", got, part)
					}
				}
			}
			for _, w := range test.want[min(len(found), len(test.want)):] {
				t.Errorf("not found: %s", w)
			}
		})
	}
}
