package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// Keeper is where a core asks a start of an instance what it knows of the objects that it
// owns, or has something done with one of them.
func Keeper(t kbroker.TenantID, i kbroker.Incarnation) string {
	return "kb.keeper." + string(t) + "." + string(i)
}

// Kept is where that start answers a question of a core: inboxes do not reach from
// applications to cores.
func Kept(t kbroker.TenantID, i kbroker.Incarnation, core kbroker.HostID, question string) string {
	return "kb.kept." + string(t) + "." + string(i) + "." + string(core) + "." + question
}

// AllKept are the subjects of Kept that go to a core.
func AllKept(core kbroker.HostID) string { return Kept("*", "*.*", core, "*") }

// IsKept reports whether an answer of a start goes to a core.
func IsKept(subject string, t kbroker.TenantID, i kbroker.Incarnation) bool {
	rest, ok := strings.CutPrefix(subject, "kb.kept."+string(t)+"."+string(i)+".")
	core, question, two := strings.Cut(rest, ".")
	return ok && two && core != "" && question != "" && !strings.Contains(question, ".")
}

// QuestionOf is the question in a subject of Kept; empty: it is none.
func QuestionOf(subject string) string {
	t := strings.Split(subject, ".")
	if len(t) != 7 || t[0] != "kb" || t[1] != "kept" {
		return ""
	}
	return t[6]
}
