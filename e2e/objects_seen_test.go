package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// into runs a command and decodes what it prints as JSON.
func (c *cluster) into(v any, args ...string) {
	c.t.Helper()
	out := c.must(append(args, "-o", "json")...)
	if at := strings.IndexAny(out, "[{"); at > 0 {
		out = out[at:] // behind a note
	}
	if err := json.NewDecoder(strings.NewReader(out)).Decode(v); err != nil {
		c.t.Fatalf("kbroker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestObjectsAreSeenAndMoved walks through the commands of objects under load: no call
// fails, whatever is moved by hand.
func TestObjectsAreSeenAndMoved(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	c.deployObjects(3)
	c.must("call", "bank/account:dora", "deposit", "cents:=100", "--request-id", "lunch:1")
	c.must("call", "bank/account:dora", "deposit", "cents:=100", "--request-id", "lunch:1")
	l := c.startObjects(fewCallers, counterPause)
	show := func() (d kbroker.ObjectDetail) {
		c.into(&d, "objects", "show", "bank/account:dora")
		return d
	}
	d := show()
	if !d.Stored || d.Seen == nil || !d.Seen.Active || d.Seen.Turns != 1 || strings.Join(strings.Fields(string(d.State)), "") != `{"cents":100}` || d.AssignedAt == nil {
		t.Errorf("dora after one deposit, made twice, is %+v, want 100 cents after 1 turn", d)
	}
	var rows []kbroker.ObjectRow
	c.into(&rows, "objects", "ls", "bank", "account", "--prefix", "dor")
	if len(rows) != 1 || rows[0].Object != "bank/account:dora" || rows[0].Owner != d.Owner {
		t.Errorf("those that begin with dor are %+v", rows)
	}
	c.into(&rows, "objects", "ls", "bank", "--limit", "0")
	if len(rows) < 900 || !slices.IsSortedFunc(rows, func(a, b kbroker.ObjectRow) int { return strings.Compare(a.ID, b.ID) }) {
		t.Errorf("%d objects are listed in whichever order, want the bank's thousand, in order", len(rows))
	}
	owners := func() (r kbroker.ObjectOwnersReply) {
		c.into(&r, "objects", "bank")
		return r
	}
	all := owners()
	if len(all.Owners) != 3 || all.Unowned != 0 || len(all.Hot) == 0 || all.Kinds[0].Stored < 900 || all.Kinds[0].Active == 0 {
		t.Errorf("the bank's objects are %+v", all)
	}
	// Moves, by hand, under load.
	for _, o := range all.Owners {
		c.must("objects", "move", "bank/account:dora", string(o.Instance))
		if is := show(); is.Owner != o.Instance || is.Wanted != o.Instance {
			t.Errorf("dora was moved to %s and is at %s, wanted at %s", o.Instance, is.Owner, is.Wanted)
		}
	}
	first := all.Owners[0].Instance
	began := time.Now()
	c.must("objects", "move", "bank", "--from", string(first))
	t.Logf("RESULT %s was emptied in %v", first, time.Since(began))
	for _, o := range owners().Owners {
		if empty := o.Instance == first; empty != (o.Shards == 0) {
			t.Errorf("after all of %s was moved away %s has %d shards", first, o.Instance, o.Shards)
		}
	}
	c.must("objects", "move", "bank", "--even")
	wait.Until(t, 20*time.Second, func() error {
		for _, o := range owners().Owners {
			if o.Shards < kbroker.Shards/3 || o.Shards > kbroker.Shards/3+1 {
				return fmt.Errorf("%s has %d shards, want an even share", o.Instance, o.Shards)
			}
		}
		return nil
	})
	if out := c.must("objects", "rebalance", "bank", "--dry-run"); !strings.Contains(out, "nothing would move") {
		t.Errorf("what is even would be moved: %s", out)
	}
	c.must("objects", "rebalance", "bank")
	c.must("objects", "deactivate", "bank/account:dora")
	if d := show(); d.Seen.Active {
		t.Errorf("dora was put away, and is %+v", d.Seen)
	}
	c.must("objects", "release", "bank/account:dora")
	if out, code := c.try("objects", "rm", "bank/account:dora"); code != 4 {
		t.Errorf("rm without --yes: %d %s, want 4", code, out)
	}
	c.must("objects", "rm", "bank/account:dora", "--yes")
	if out, code := c.try("objects", "show", "bank/account:nobody"); code != 5 {
		t.Errorf("show of what is not there: %d %s, want 5", code, out)
	}
	if out := c.must("call", "bank/account:dora", "balance"); !strings.Contains(out, `"cents":0`) {
		t.Errorf("after it was deleted dora's balance is %s, want 0", out)
	}
	if out := c.must("why", "bank/account:dora"); !strings.Contains(out, "owns at epoch") || !strings.Contains(out, "Nothing is stored of it") {
		t.Errorf("why says %s", out)
	}
	if out := c.must("audit", "--limit", "20"); !strings.Contains(out, "rm object bank/account:dora") {
		t.Errorf("the deletion is not in the audit trail: %s", out)
	}
	if out, code := c.try("objects", "move", "bank", "--shard", "1", "counter-counter-1"); code != 2 {
		t.Errorf("a move to an instance of another app: %d %s, want 2", code, out)
	}
	l.endWithoutFailure()
}

// TestObjectsAfterARestart: a deploy, and a restart of an app that was stopped, end when every
// shard has an owner, and its objects answer then.
func TestObjectsAfterARestart(t *testing.T) {
	needLong(t)
	c := up(t, 1)
	c.deployObjects(2)
	check := func(after string) {
		t.Helper()
		began := time.Now()
		var r kbroker.ObjectOwnersReply
		if c.into(&r, "objects", "bank"); r.Unowned != 0 || len(r.Owners) < 2 {
			t.Errorf("after %s %d shards have no owner, the owners are %+v", after, r.Unowned, r.Owners)
		}
		for i := range 8 {
			c.must("call", fmt.Sprintf("bank/account:%s-%d", strings.ReplaceAll(after, " ", "-"), i), "deposit", "cents:=1", "--timeout", "3s")
		}
		t.Logf("RESULT after %s: looked at and called 8 objects in %v", after, time.Since(began))
	}
	check("the deploy")
	for range 2 {
		began := time.Now()
		c.must("stop", "bank")
		stopped := time.Since(began)
		began = time.Now()
		c.must("restart", "bank")
		t.Logf("RESULT stopped in %v, restarted in %v", stopped, time.Since(began))
		check("a stop and a restart")
	}
	c.must("restart", "bank")
	check("a restart")
}
