//go:build !mutate

package ownership

// The rules of the protocol that a build with the tag mutate can take away, one at a
// time, to see whether the simulator finds what each prevents (TestEachRuleIsNeeded).
const (
	ruleClaim         = true // a load claims the object
	ruleTurnLease     = true // the lease is looked at before a turn or a read
	ruleReplyLease    = true // and before a reply
	ruleRevoke        = true // who acts on a lease revokes it in the same batch: whose clock stood still then serves for a term at most
	ruleTermFromSend  = true // a term counts from the sending of the renewal
	ruleMargin        = true // an observer waits longer than a holder counts
	ruleQuietCommit   = true // no turn and no read while a commit is outstanding
	ruleQuietRead     = true // no read while a commit is outstanding
	ruleGate          = true // no turn while calls that read are in
	ruleCancelGuard   = true // a cancel is refused by a release that came first
	ruleUndoGuard     = true // a move whose next is out is taken back by the same guard
	ruleAssignCAS     = true // an assignment takes the place of the one that was seen, by who is active
	ruleReleaseGuard  = true // a release holds only for the assignment that asked for it
	ruleReleaseNames  = true // a release names its successor, and the epoch
	ruleForward       = true // in a move a lost owner's shard goes to the next
	ruleEpochLoad     = true // a load that reads a higher epoch does not claim
	ruleRing          = true // what was answered is stored with the state
	ruleMark          = true // what is confirmed stays known
	ruleWindowMark    = true // what is dropped by age stays known
	ruleCallExecuted  = true // "executed no" is said of the call, not of an attempt
	ruleIncarnation   = true // a start has a name of its own
	ruleUnchangedTerm = true // a lease is judged by its revision, not by a wall clock
	ruleTooLate       = true // a call that begins where it runs is too late before it is too old to tell
	ruleNewEpochs     = true // the epochs of a placed object do not begin again when it is allocated again
	ruleOutboxSent    = true // a message behind the record's number was never sent
	ruleOutboxMark    = true // a message that was taken, or refused, is known
)
