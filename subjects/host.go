package subjects

import (
	"strings"

	"github.com/kbroker/kbroker"
)

// Verbs of kb.host: answered by the host's agent.
const (
	VerbLogs    = "logs"
	VerbCheckup = "checkup"
	// VerbExec and VerbSignal are asked of a core, who asks the agent; VerbSession is where
	// the frames of who has a session go.
	VerbExec    = "exec"
	VerbSignal  = "signal"
	VerbSession = "session"
)

// View is where an agent asks for its host's placements.
func View(host kbroker.HostID) string { return "kb.view." + string(host) }

// Report is where an agent reports its instances.
func Report(host kbroker.HostID) string { return "kb.report." + string(host) }

// Heartbeat is where an agent says that it is there.
func Heartbeat(host kbroker.HostID) string { return "kb.beat." + string(host) }

// Figures is where an agent publishes what it has measured.
func Figures(host kbroker.HostID) string { return "kb.figures." + string(host) }

// Subscriptions of a core to what all hosts send.
const (
	AllViews      = "kb.view.*"
	AllReports    = "kb.report.*"
	AllHeartbeats = "kb.beat.*"
	AllFigures    = "kb.figures.*"
)

// Heard is where the leader asks every core whom it has heard.
const Heard = "kb.heard"

// HostOf returns the host in a subject of View, Report, Heartbeat or Figures.
func HostOf(subject string) (kbroker.HostID, bool) {
	t := strings.Split(subject, ".")
	if len(t) != 3 || t[0] != "kb" || t[2] == "" {
		return "", false
	}
	return kbroker.HostID(t[2]), true
}

// AgentVerb is what an agent asks for with a subject of View, Report, Heartbeat or Sign;
// empty: it is none of them.
func AgentVerb(subject string) string {
	if _, ok := HostOf(subject); !ok {
		return ""
	}
	return strings.Split(subject, ".")[1]
}

// Host is where one host's agent answers those of a tenant.
func Host(host kbroker.HostID, verb string, tenant kbroker.TenantID) string {
	return "kb.host." + string(host) + "." + verb + "." + string(tenant)
}

// TenantOf is the tenant in a subject of Host.
func TenantOf(subject string) (kbroker.TenantID, bool) {
	t := strings.Split(subject, ".")
	if len(t) != 5 || t[0] != "kb" || t[1] != "host" || t[4] == "" {
		return "", false
	}
	return kbroker.TenantID(t[4]), true
}

// Ping is where an agent asks one process whether it is ready.
func Ping(t kbroker.TenantID, i kbroker.Incarnation) string {
	return "kb.ping." + string(t) + "." + string(i)
}

// AllPings are the subjects of Ping.
const AllPings = "kb.ping.>"

// Pong is where a process answers a question of its agent: inboxes do not reach from
// applications to agents.
func Pong(t kbroker.TenantID, host kbroker.HostID, question string) string {
	return "kb.pong." + string(t) + "." + string(host) + "." + question
}

// IsPong reports whether an answer goes to the agent of a host.
func IsPong(subject string, t kbroker.TenantID, host kbroker.HostID) bool {
	question, ok := strings.CutPrefix(subject, Pong(t, host, ""))
	return ok && question != "" && !strings.Contains(question, ".")
}

// HostVerb is the verb in a subject of Host; empty: it is none.
func HostVerb(subject string) string {
	if _, ok := TenantOf(subject); !ok {
		return ""
	}
	return strings.Split(subject, ".")[3]
}
