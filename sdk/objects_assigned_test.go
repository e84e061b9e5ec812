package sdk

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// TestWhatWasAnnouncedToNobodyIsRead: of a shard that it was given an owner hears by its next
// look, also where that is written behind a page which was read already. While nothing is written
// nothing is read; behind a new connection all is, as that may be to another store.
func TestWhatWasAnnouncedToNobodyIsRead(t *testing.T) {
	s := natstest.Start(t)
	core := newCore(t, s)
	others := map[string]any{}
	for n := range kbroker.Shard(2 * page) { // of two pages
		others[subjects.KeyAssign(n)] = ownership.Assignment{Owner: "ledger-b.1", Epoch: 1}
	}
	core.put(others)
	o := acc("1")
	for n := 2; subjects.KeyAssign(o.Shard()) >= subjects.KeyAssign(150); n++ { // of the first page
		o = acc(fmt.Sprint(n))
	}
	var looks []kbroker.Revision // what each asks for, by its first page
	late := false
	core.hears(func(r kbroker.OwnReadRequest) {
		switch {
		case r.Match != subjects.MatchAssigns:
		case r.After == "":
			looks = append(looks, r.Since)
		case late:
			late, core.quiet = false, true
			if err := core.assign(o, incarnation("a")); err != nil {
				t.Error(err)
			}
		}
	})
	locked := func(do func()) {
		core.mu.Lock()
		defer core.mu.Unlock()
		do()
	}
	a := bank(s.URL, "a", nil)
	start(t, a)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.keeper.follow(ctx, 50*time.Millisecond) }()
	defer func() { stop(); <-done }()
	wait.Until(t, patience, func() (err error) {
		locked(func() {
			if n := len(looks); n < 4 || looks[n-1] == 0 {
				err = fmt.Errorf("looks since %v, want the last since a revision", looks)
			}
		})
		return err
	})
	locked(func() { late = true })
	core.put(map[string]any{subjects.KeyAssign(150): ownership.Assignment{Owner: "ledger-b.1", Epoch: 2}})
	c := dial(t, s.URL)
	c.deposit(t, o.ID, 5)
	before := 0
	locked(func() { before = len(looks) })
	a.client.back.fire()
	wait.Until(t, patience, func() (err error) {
		locked(func() {
			if !slices.Contains(looks[before:], 0) {
				err = fmt.Errorf("behind a new connection looks since %v, want one at all", looks[before:])
			}
		})
		return err
	})
}
