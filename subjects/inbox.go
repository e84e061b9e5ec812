package subjects

import "strings"

// Inboxes, where answers come: everybody has those under the public key of its own
// credential; who has none yet, those of the gate.
const (
	inboxPrefix = "_INBOX"
	AllInboxes  = inboxPrefix + ".>"
	GateInbox   = "_GATE"
)

// IsInbox reports whether an answer may go to a subject. A server asks whether somebody
// may publish to a subject, not where the answer is to go: who may publish everywhere
// has to look.
func IsInbox(subject string) bool {
	return strings.HasPrefix(subject, inboxPrefix+".") || strings.HasPrefix(subject, GateInbox+".")
}

// Inbox is the prefix of the inboxes of who has a key, without the last dot.
func Inbox(key string) string { return inboxPrefix + "." + key }

// InboxOwner is the key under which an inbox is: who hears an answer has the other half of
// it, whatever they say of themselves.
func InboxOwner(inbox string) (key string, ok bool) {
	t := strings.Split(inbox, ".")
	if len(t) < 3 || t[0] != inboxPrefix || t[1] == "" {
		return "", false
	}
	return t[1], true
}
