//go:build mutate

package ownership

import (
	"strings"
	"testing"
	"time"
)

// mutation takes a rule away, and says what breaks: one of the properties of
// TestNothingBreaksInAnyWorld. What is wrong in the worlds in which it is looked for is
// what the rule is against.
type mutation struct {
	name   string
	rules  []*bool
	breaks string // the first of these that is found will do
	only   faults
	worlds int
}

var mutations = []mutation{
	{"a load without a claim", []*bool{&ruleClaim, &ruleReplyLease}, "P4", faults{late: true, lost: true, slowNet: true, pause: true}, 10000},
	{"no look at the lease", []*bool{&ruleTurnLease, &ruleReplyLease}, "P4", faults{pause: true, lost: true, slowNet: true}, 4000},
	{"a takeover that does not revoke", []*bool{&ruleRevoke}, "P4", faults{late: true, lost: true, pause: true}, 20000},
	{"a term from the answer", []*bool{&ruleTermFromSend}, "P4", faults{late: true, lost: true, pause: true}, 20000},
	{"no margin", []*bool{&ruleMargin}, "P4", faults{drift: true, pause: true, late: true, lost: true}, 20000},
	{"a judgement by a wall clock", []*bool{&ruleUnchangedTerm}, "P4", faults{lost: true, slowNet: true}, 4000},
	{"turns beside a commit", []*bool{&ruleQuietCommit, &ruleQuietRead}, "P4 P2 P1 P3", faults{late: true, lost: true, crash: true}, 4000},
	{"reads beside a commit", []*bool{&ruleQuietRead}, "P4", faults{late: true, lost: true, crash: true}, 4000},
	{"a cancel without the release", []*bool{&ruleCancelGuard}, "P0 P4", faults{moves: true, slowNet: true, late: true}, 20000},
	{"a move to who is out taken back without the release", []*bool{&ruleUndoGuard}, "P5", faults{moves: true, crash: true, lost: true, duel: true, pause: true}, 20000},
	{"an allocator without compare-and-set", []*bool{&ruleAssignCAS}, "P0 P4", faults{moves: true, duel: true, late: true, pause: true}, 20000},
	{"a release for whatever is assigned", []*bool{&ruleReleaseGuard}, "P0 P4 P5", faults{moves: true, late: true, lost: true, duel: true}, 20000},
	{"a release that names nobody", []*bool{&ruleReleaseNames}, "P0 P4", faults{moves: true, late: true, lost: true}, 20000},
	{"a lost owner's shard for anybody", []*bool{&ruleForward}, "P0 P4", faults{moves: true, crash: true, late: true}, 20000},
	{"a load that claims over a later epoch", []*bool{&ruleEpochLoad}, "P0", faults{pause: true, crash: true, late: true}, 20000},
	{"answers that are not stored", []*bool{&ruleRing}, "P1", faults{crash: true, lost: true}, 4000},
	{"no mark of what is confirmed", []*bool{&ruleMark}, "P1", faults{dup: true}, 4000},
	{"no mark of what is old", []*bool{&ruleWindowMark}, "P1", faults{dup: true}, 4000},
	{"executed no, of an attempt", []*bool{&ruleCallExecuted}, "P2", faults{dup: true, moves: true, lost: true}, 4000},
	{"a start without a name of its own", []*bool{&ruleIncarnation}, "P0 P4", faults{crash: true, slowNet: true}, 20000},
}

// TestEachRuleIsNeeded: without any one of the rules the simulator finds a world that
// breaks.
func TestEachRuleIsNeeded(t *testing.T) {
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			for _, r := range m.rules {
				*r = false
				defer func() { *r = true }()
			}
			began := time.Now()
			broken := search(*simSeed+1, m.worlds, &m.only, func(*world) {})
			switch {
			case broken == nil:
				t.Errorf("%d worlds without it hold", m.worlds)
			case !strings.Contains(m.breaks, broken.failed[:2]):
				t.Errorf("seed %d: %s, want one of %s", broken.seed, broken.failed, m.breaks)
			default:
				t.Logf("seed %d after %v: %s\n%s", broken.seed, time.Since(began).Round(time.Millisecond), broken.failed, strings.Join(broken.last(25), "\n"))
			}
		})
	}
}
