// Package subjects spells every subject, stream, bucket, key, queue group and
// header name of the system once. Nothing else in the project contains a
// literal subject.
//
//	svc.<app>.<service>.<method>            application requests (queue group svc)
//	svc.<app>.<service>.<method>.<process>.<stream>.<n>  how much of a stream was taken, to who serves it
//	evt.<app>.<topic>                       events of an app: who may hears them
//	obj.<app>.<shard>.<kind>.<method>       requests to objects: the shard's owner hears them
//	kb.super.<verb>.<tenant>.<key>          writes, with the key of who asks: only the leader answers
//	kb.join                                 a host asks to be admitted, likewise
//	kb.demand.<tenant>.<app>                what an app's allocator wants, likewise
//	kb.core.<verb>.<tenant>                 reads and artifacts: any core answers (queue group core)
//	kb.view.<host>  kb.report.<host>        an agent asks, reports (queue group core)
//	kb.sign.<host>                          an agent has a credential signed (queue group core)
//	kb.lease.<tenant>.<app>                 an app's allocator reads and writes its lease (queue group core)
//	kb.placing.<tenant>.<app>.<verb>        an app's active allocator is asked about placed objects
//	kb.placed.<tenant>.<app>.<incarnation>  an allocator tells a start which placed objects are on it
//	kb.load.<tenant>.<app>.<incarnation>    a start tells its app's allocators its load
//	kb.own.<tenant>.<app>.<verb>.<incarnation>  a start reads, writes who owns objects, and objects (queue group core)
//	kb.topic.<tenant>.<app>.<topic>.<verb>.<incarnation>  a start has an event stored, reads those that are (queue group core)
//	kb.renew.<key>                          a process has its own signed again (queue group core)
//	kb.endpoints.<tenant>.<app>.<service>   where the instances of a service listen (queue group core)
//	kb.beat.<host>                          heartbeats: every core hears and answers
//	kb.figures.<host>                       what an agent has measured: every core hears it
//	kb.revoked.<host>                       a core that starts asks which credentials were taken back
//	kb.heard                                the leader asks every core whom it has heard
//	kb.artifact.<core>.<tenant>.<session>   chunks of one upload, to the core that took it
//	kb.host.<host>.<verb>.<tenant>          one host's agent answers (logs, checkup; exec, signal: cores alone; session)
//	kb.ping.<tenant>.<incarnation>          an agent asks one process
//	kb.pong.<tenant>.<host>.<question>      where it answers
//	kb.keeper.<tenant>.<incarnation>        a core asks a start of the objects that it owns
//	kb.kept.<tenant>.<incarnation>.<core>.<question>  where it answers
//	kb.changed.<key>                        every change of the control store, republished
//	kb.reported.<key>                       every change of the status store, republished
//	kb.owned.<tenant>.<app>.<key>           every change of who owns an app's objects, republished
//	kb.reaped.<tenant>.<app>                starts of an app that have ended, as a core has heard of their agents
//	own.<tenant>.<app>.<key>                where who owns them is stored; an incarnation is two tokens, an id is escaped:
//	    lease.alloc  lease.<incarnation>  assign.<shard>  assign.o.<kind>.<id>  release.<shard>  wishes  head
//	obj.<tenant>.<app>.<n>.<key>            where objects are stored, in the n-th stream:
//	    <shard>.state.<kind>.<id>  <shard>.out.<kind>.<id>.<number>  <shard>.due.<kind>.<id>.<name>
//	evs.<tenant>.<app>.<topic>.<from>       where events of an app's topics are stored, those of one sender in their order
//	event.<tenant>.<app>.<instance>         one event in the event stream; _ for what it is not about
//	audit.record                            one record of the audit trail
//
// Every name in a subject has passed kbroker.CheckName (or is made of such
// names), so a builder never has to escape, but for the ids of objects and the
// names of their reminders: EscapeID.
package subjects

import (
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// Queue groups.
const (
	// QueueService is the group that all instances of a service join.
	QueueService = "svc"
	// QueueCore is the group of the core agents.
	QueueCore = "core"
)

// Verbs of kb.super, and VerbJoin: writes, answered by the leader only.
const (
	VerbDeploy     = "deploy"
	VerbScale      = "scale"
	VerbStop       = "stop"
	VerbRollback   = "rollback"
	VerbRestart    = "restart"
	VerbJoin       = "join"
	VerbDrain      = "drain"
	VerbRemove     = "remove"
	VerbMaintain   = "maintain"
	VerbToken      = "token"
	VerbRevoke     = "revoke"
	VerbUser       = "user"
	VerbUserRevoke = "userrevoke"
)

// Verbs of kb.core: answered by any core.
const (
	VerbApps          = "apps"
	VerbInstances     = "ps"
	VerbHosts         = "hosts"
	VerbStatus        = "status"
	VerbVersion       = "appversion"
	VerbPlacement     = "placement"
	VerbArtifactBegin = "put"
	VerbArtifactGet   = "get"
	VerbHistory       = "history"
	VerbPlan          = "plan"
	VerbEvents        = "events"
	VerbWhy           = "why"
	VerbDevelop       = "develop"
	VerbTokens        = "tokens"
	VerbUsers         = "users"
	VerbAudit         = "audit"
	VerbFigures       = "figures"
	VerbAllocator     = "allocator"
	// VerbObjects lists objects of an app, VerbObjectOwners says who owns them, VerbObject
	// what is known of one, VerbObjectState with its state; VerbObjectAct does something with
	// one, or moves shards.
	VerbObjects      = "objects"
	VerbObjectOwners = "objectowners"
	VerbObject       = "object"
	VerbObjectState  = "objectstate"
	VerbObjectAct    = "objectact"
)

// Super is where a write is asked for by who has a key: the server lets nobody ask with
// that of another.
func Super(verb string, tenant kbroker.TenantID, key string) string {
	return "kb.super." + verb + "." + string(tenant) + "." + key
}

// KeyOf is the key of who asks, in a subject of Super; false: it has none.
func KeyOf(subject string) (key string, ok bool) {
	t := strings.Split(subject, ".")
	if len(t) != 5 || t[0] != "kb" || t[1] != "super" || t[4] == "" || t[4] == NoKey {
		return "", false
	}
	return t[4], true
}

// NoKey is the key of who shows no credential, where servers ask for none.
const NoKey = "_"

// SuperAll is what a leader subscribes to.
func SuperAll() string { return "kb.super.*.*.*" }

// Join is where a host asks to be admitted, also one that shows no credential; only the
// leader answers.
const Join = "kb.join"

// Core is where a read is asked for.
func Core(verb string, tenant kbroker.TenantID) string {
	return "kb.core." + verb + "." + string(tenant)
}

// CoreAll is what a core subscribes to, in QueueCore.
func CoreAll() string { return "kb.core.*.*" }

// ParseAPI splits a subject of Super, Core, Demand or Join into verb and tenant; a join
// is of the default one.
func ParseAPI(subject string) (verb string, tenant kbroker.TenantID, ok bool) {
	if subject == Join {
		return VerbJoin, kbroker.DefaultTenant, true
	}
	if tenant, _, ok := ParseDemand(subject); ok {
		return VerbDemand, tenant, true
	}
	t := strings.Split(subject, ".")
	if len(t) < 4 || slices.Contains(t, "") || t[0] != "kb" {
		return "", "", false
	}
	if super := t[1] == "super" && len(t) == 5; !super && (t[1] != "core" || len(t) != 4) {
		return "", "", false
	}
	return t[2], kbroker.TenantID(t[3]), true
}
