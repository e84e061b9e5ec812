package subjects

import "strconv"

// The stream of the audit trail.
const (
	AuditStream = "audit"
	AuditAll    = auditPrefix + ">"
	// AuditRecord is where every record is stored: their order is the stream's.
	AuditRecord = auditPrefix + "record"

	auditPrefix = "audit."
)

// KeyAudit is a change that the audit trail is to tell, one of a fixed number of slots.
func KeyAudit(slot int) string { return tableAudit + "." + strconv.Itoa(slot) }
