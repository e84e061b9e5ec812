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
}

// everything is what most are looked for in.
var everything = faults{busy: true, crash: true, pause: true, late: true, lost: true, slowNet: true, often: true, patient: true, moves: true, drift: true}

// telling is what those are looked for in that objects send messages.
var telling = with(everything, func(f *faults) { f.tells, f.cut, f.dup, f.busy = true, true, true, false })

// reminding is what those are looked for in that objects are reminded, and not loaded for long.
var reminding = faults{reminds: true, outage: true, crash: true, moves: true, busy: true}

// parting is what those are looked for in that are about the ends of a move.
var parting = faults{moves: true, partings: true, eager: true, unheard: true, quiet: true}

func with(f faults, change func(*faults)) faults { change(&f); return f }

var mutations = []mutation{
	{"a load without a claim, where a lease is not looked at before the reply", []*bool{&ruleClaim, &ruleReplyLease}, "P4", faults{stall: true, reading: true}},
	{"no look at the lease", []*bool{&ruleTurnLease, &ruleReplyLease}, "P4 P2", faults{solo: true, reading: true, hasty: true, unheard: true}},
	{"a takeover that does not revoke", []*bool{&ruleRevoke}, "P4 P2", faults{frozen: true, reading: true}},
	{"a term from the answer", []*bool{&ruleTermFromSend}, "P4 P2", faults{apart: true, reading: true}},
	{"no margin", []*bool{&ruleMargin}, "P4 P2", faults{apart: true, drift: true, often: true, reading: true, hasty: true}},
	{"a judgement by a wall clock", []*bool{&ruleUnchangedTerm}, "P4 P2", faults{lost: true, often: true, busy: true}},
	{"turns and reads beside a commit", []*bool{&ruleQuietCommit, &ruleQuietRead}, "P4 P2 P1 P3", everything},
	{"reads beside a commit", []*bool{&ruleQuietRead}, "P4", everything},
	{"turns beside who has come to read", []*bool{&ruleGate}, "P4", everything},
	{"a cancel without the release", []*bool{&ruleCancelGuard}, "P0 P4 P5", with(everything, func(f *faults) { f.crash = false })},
	{"a move to who is out taken back without the release", []*bool{&ruleUndoGuard}, "P5", with(parting, func(f *faults) { f.crash, f.late, f.often = true, true, true })},
	{"an allocator without compare-and-set", []*bool{&ruleAssignCAS}, "P0 P4 P5", with(everything, func(f *faults) { f.duel = true })},
	{"a release for whatever is assigned", []*bool{&ruleReleaseGuard}, "P0 P4 P5", with(everything, func(f *faults) { f.duel = true })},
	{"a release that names nobody", []*bool{&ruleReleaseNames}, "P0", parting},
	{"a lost owner's shard for anybody", []*bool{&ruleForward}, "P0", parting},
	{"a load that claims over a later epoch", []*bool{&ruleEpochLoad}, "P0", faults{frozen: true, idle: true, busy: true}},
	{"answers that are not stored", []*bool{&ruleRing}, "P1", everything},
	{"no mark of what is confirmed", []*bool{&ruleMark}, "P1", faults{dup: true, crash: true, busy: true}},
	{"no mark of what is old", []*bool{&ruleWindowMark}, "P1", faults{dup: true, crash: true, busy: true}},
	{"an allocation whose epochs begin again", []*bool{&ruleNewEpochs}, "P0 P5", faults{placed: true, busy: true}},
	{"a message that a batch has left is sent", []*bool{&ruleOutboxSent}, "P1 P5", telling},
	{"a receiver that knows no message", []*bool{&ruleOutboxMark}, "P1", telling},
	{"a reminder that has waited is too old to tell", []*bool{&ruleTooLate}, "P1 P5", reminding},
	{"executed no, of an attempt", []*bool{&ruleCallExecuted}, "P2", with(everything, func(f *faults) { f.dup = true })},
	{"a start without a name of its own", []*bool{&ruleIncarnation}, "P0 P2 P4 P5", with(everything, func(f *faults) { f.pause = false })},
}

// TestEachRuleIsNeeded: without any one of the rules the simulator finds a world that
// breaks, and with it that one holds.
func TestEachRuleIsNeeded(t *testing.T) {
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			set := func(to bool) {
				for _, r := range m.rules {
					*r = to
				}
			}
			set(false)
			defer set(true)
			began := time.Now()
			broken := search(*simSeed+1, *simCount, &m.only, func(*world) {})
			set(true)
			if broken != nil {
				if with := newWorld(broken.seed, false, &m.only).run(); with != "" {
					t.Errorf("with it seed %d breaks too: %s", broken.seed, with)
				}
			}
			switch {
			case broken == nil:
				t.Errorf("%d worlds (-sim.count) without it hold, in %v", *simCount, time.Since(began).Round(time.Millisecond))
			case !strings.Contains(m.breaks, broken.failed[:2]):
				t.Errorf("seed %d: %s, want one of %s\n%s", broken.seed, broken.failed, m.breaks, strings.Join(broken.last(200), "\n"))
			default:
				t.Logf("seed %d after %v: %s\n%s", broken.seed, time.Since(began).Round(time.Millisecond), broken.failed, strings.Join(broken.last(25), "\n"))
			}
		})
	}
}
