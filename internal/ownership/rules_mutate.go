//go:build mutate

package ownership

// The rules, as variables: see rules.go.
var (
	ruleClaim         = true
	ruleTurnLease     = true
	ruleReplyLease    = true
	ruleRevoke        = true
	ruleTermFromSend  = true
	ruleMargin        = true
	ruleQuietCommit   = true
	ruleQuietRead     = true
	ruleGate          = true
	ruleCancelGuard   = true
	ruleUndoGuard     = true
	ruleAssignCAS     = true
	ruleReleaseGuard  = true
	ruleReleaseNames  = true
	ruleForward       = true
	ruleEpochLoad     = true
	ruleRing          = true
	ruleMark          = true
	ruleWindowMark    = true
	ruleCallExecuted  = true
	ruleIncarnation   = true
	ruleUnchangedTerm = true
	ruleTooLate       = true
	ruleNewEpochs     = true
	ruleOutboxSent    = true
	ruleOutboxMark    = true
)
