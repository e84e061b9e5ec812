package super

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
)

// TestNobodyVouchesForWhatAnAbsentHostRan: whatever was reported of an instance,
// placed or not, on a host that is lost, removed or forgotten, neither ps nor why
// show it as if it were so now; an end that was reported stays one.
func TestNobodyVouchesForWhatAnAbsentHostRan(t *testing.T) {
	states := []kbroker.InstanceState{
		kbroker.StatePending, kbroker.StateStarting, kbroker.StateRunning, kbroker.StateReady,
		kbroker.StateDraining, kbroker.StateBackoff, kbroker.StateExited,
	}
	rapid.Check(t, func(r *rapid.T) {
		c := newCluster(t, 3)
		c.deploy(service(3))
		c.settle()
		k := slices.MinFunc(slices.Collect(func(yield func(state.PlacementKey) bool) {
			for k, p := range c.view.Placements {
				if p.Service == "web" && k.Host == "h2" && !yield(k) {
					return
				}
			}
		}), comparePlacements)
		s := c.view.Statuses[k]
		s.State = rapid.SampledFrom(states).Draw(r, "reported")
		s.PID = rapid.SampledFrom([]int{0, 7}).Draw(r, "pid")
		c.view.Statuses[k] = s
		p := c.view.Placements[k]
		switch rapid.SampledFrom([]string{"placed", "stopped", "dropped"}).Draw(r, "placement") {
		case "stopped":
			p.Stop, p.Epoch = true, rapid.SampledFrom([]uint64{p.Epoch, p.Epoch + 1}).Draw(r, "epoch")
			c.view.Placements[k] = p
		case "dropped":
			delete(c.view.Placements, k)
		}
		want := ""
		switch rapid.SampledFrom([]string{"lost", "removed", "forgotten"}).Draw(r, "host") {
		case "lost":
			h := c.view.Hosts["h2"]
			h.State = kbroker.HostLost
			c.view.Hosts["h2"], want = h, "host h2 is lost"
		case "removed":
			c.removed("h2")
			want = "host h2 was removed"
		case "forgotten":
			delete(c.view.Hosts, "h2")
			want = "host h2 is not a member any more"
		}
		silent := rapid.Bool().Draw(r, "silent")
		w := c.world()
		i := whyInstance(w.View, w.Verdict, webKey, k.Instance)
		rows := instanceRows(w.View, kbroker.ListRequest{Tenant: tenant, All: true}, func(kbroker.HostID) bool { return silent })
		at := slices.IndexFunc(rows, func(row kbroker.InstanceRow) bool { return row.Instance != nil && *row.Instance == k.Instance })
		if i == nil || at < 0 {
			r.Fatalf("%s is not shown: why %+v, ps %+v", k.Instance, i, rows)
		}
		row := rows[at]
		for what, shown := range map[string]kbroker.InstanceState{"ps": row.State, "why": i.State} {
			switch shown {
			case kbroker.StateUnknown, kbroker.StateUnmanaged:
			case kbroker.StateExited, kbroker.StatePending:
				if s.State != kbroker.StateExited {
					r.Errorf("%s shows %s of an instance that was %s on a host of which nothing is known", what, shown, s.State)
				}
			default:
				r.Errorf("%s shows %s of an instance on a host of which nothing is known", what, shown)
			}
		}
		if row.State == kbroker.StateUnknown && (!strings.HasPrefix(row.Message, want) || !strings.HasSuffix(row.Message, "last known: "+string(s.State)) || row.PID != nil) {
			r.Errorf("ps says %q (pid %v), want %q and what it was, without a pid", row.Message, row.PID, want)
		}
	})
}

// TestAStatusThatWasLeftBehindIsNoNews, also when its host is well.
func TestAStatusThatWasLeftBehindIsNoNews(t *testing.T) {
	for _, tc := range []struct {
		name     string
		reported kbroker.InstanceState
		gone     bool
		want     kbroker.InstanceState
		says     string
	}{
		{"ready, its host is there, perhaps admitted anew", kbroker.StateReady, false, kbroker.StateUnknown, "it is not placed on host h1 any more; last known: ready"},
		{"its agent is not there", kbroker.StateReady, true, kbroker.StateUnknown, "the agent of host h1 is not there; last known: ready"},
		{"it leaves", kbroker.StateDraining, false, kbroker.StateDraining, ""},
		{"it has ended", kbroker.StateExited, true, kbroker.StateExited, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t, 1)
			row := leftRow(&c.view, kbroker.Status{Host: "h1", State: tc.reported, PID: 7}, tc.gone)
			if row.State != tc.want || row.Message != tc.says {
				t.Errorf("%s (%s), want %s (%s)", row.State, row.Message, tc.want, tc.says)
			}
		})
	}
}
