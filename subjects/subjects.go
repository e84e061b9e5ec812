// Package subjects spells every subject, stream, bucket, key, queue group and
// header name of the system once. Nothing else in the project contains a
// literal subject.
//
//	svc.<app>.<service>.<method>            application requests (queue group svc)
//	kb.super.<verb>.<tenant>.<key>          writes, with the key of who asks: only the leader answers
//	kb.join                                 a host asks to be admitted, likewise
//	kb.demand.<tenant>.<app>                what an app's allocator wants, likewise
//	kb.core.<verb>.<tenant>                 reads and artifacts: any core answers (queue group core)
//	kb.view.<host>  kb.report.<host>        an agent asks, reports (queue group core)
//	kb.sign.<host>                          an agent has a credential signed (queue group core)
//	kb.lease.<tenant>.<app>                 an app's allocator reads and writes its lease (queue group core)
//	kb.renew.<key>                          a process has its own signed again (queue group core)
//	kb.beat.<host>                          heartbeats: every core hears and answers
//	kb.revoked.<host>                       a core that starts asks which credentials were taken back
//	kb.heard                                the leader asks every core whom it has heard
//	kb.artifact.<core>.<tenant>.<session>   chunks of one upload, to the core that took it
//	kb.host.<host>.<verb>.<tenant>          one host's agent answers (logs, checkup)
//	kb.ping.<tenant>.<incarnation>          an agent asks one process
//	kb.pong.<tenant>.<host>.<question>      where it answers
//	kb.changed.<key>                        every change of the control store, republished
//	kb.reported.<key>                       every change of the status store, republished
//	event.<tenant>.<app>.<instance>         one event in the event stream; _ for what it is not about
//	audit.record                            one record of the audit trail
//
// Every name in a subject has passed kbroker.CheckName (or is made of such
// names), so a builder never has to escape.
package subjects

import (
	"slices"
	"strconv"
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
	VerbDeploy = "deploy"
	VerbScale  = "scale"
	VerbStop   = "stop"
	VerbJoin   = "join"
	VerbDrain  = "drain"
	VerbRemove = "remove"

	VerbRollback = "rollback"
	VerbRestart  = "restart"
	VerbMaintain = "maintain"
	VerbToken    = "token"
	VerbRevoke   = "revoke"

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
)

// Verbs of kb.host: answered by the host's agent.
const (
	VerbLogs    = "logs"
	VerbCheckup = "checkup"
)

// Method is where requests to a method of a service go.
func Method(app kbroker.AppName, service kbroker.ServiceName, method string) string {
	return "svc." + string(app) + "." + string(service) + "." + method
}

// Methods are the subjects of all methods of a service, <app>.<service>; AllMethods
// those of all services.
func Methods(service string) string { return "svc." + service + ".>" }

// AllMethods are the subjects of Method.
const AllMethods = "svc.>"

// CheckMethod reports why a method name is not one subject token, or nil.
func CheckMethod(method string) error {
	if method == "" || len(method) > 64 || strings.ContainsAny(method, ".*> \t\r\n") {
		return kbroker.Errorf(kbroker.Invalid, "method name %q is not valid", method).
			WithHint("1 to 64 bytes without a dot, a blank, * or >")
	}
	return nil
}

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

// View is where an agent asks for its host's placements.
func View(host kbroker.HostID) string { return "kb.view." + string(host) }

// Report is where an agent reports its instances.
func Report(host kbroker.HostID) string { return "kb.report." + string(host) }

// Heartbeat is where an agent says that it is there.
func Heartbeat(host kbroker.HostID) string { return "kb.beat." + string(host) }

// Subscriptions of a core to what all hosts send.
const (
	AllViews      = "kb.view.*"
	AllReports    = "kb.report.*"
	AllHeartbeats = "kb.beat.*"
)

// Heard is where the leader asks every core whom it has heard.
const Heard = "kb.heard"

// HostOf returns the host in a subject of View, Report or Heartbeat.
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

// Upload is where the chunks of one upload go.
func Upload(core kbroker.HostID, tenant kbroker.TenantID, session string) string {
	return "kb.artifact." + string(core) + "." + string(tenant) + "." + session
}

// UploadTenant is the tenant in a subject of Upload.
func UploadTenant(subject string) (kbroker.TenantID, bool) {
	t := strings.Split(subject, ".")
	if len(t) != 5 || t[0] != "kb" || t[1] != "artifact" || t[3] == "" {
		return "", false
	}
	return kbroker.TenantID(t[3]), true
}

// Sign is where a host's agent has credentials signed for what it starts, by any core
// alone; AllSigns are those of all hosts.
func Sign(host kbroker.HostID) string { return "kb.sign." + string(host) }

// AllSigns are the subjects of Sign.
const AllSigns = "kb.sign.*"

// Renew is where the process whose credential has this public key has it signed again,
// by any core alone; AllRenews are those of all.
func Renew(key string) string { return renewPrefix + key }

const (
	renewPrefix = "kb.renew."
	AllRenews   = renewPrefix + "*"
)

// RenewKey is the key in a subject of Renew.
func RenewKey(subject string) (key string, ok bool) {
	key, ok = strings.CutPrefix(subject, renewPrefix)
	return key, ok && key != "" && !strings.Contains(key, ".")
}

// Revoked is where a core tells another which credentials were taken back.
func Revoked(host kbroker.HostID) string { return "kb.revoked." + string(host) }

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

// Discovery is the prefix of NATS micro discovery, Discoveries its questions.
const Discovery = "$SRV"

// Discoveries are the questions of NATS micro discovery.
var Discoveries = []string{Discovery + ".PING", Discovery + ".INFO", Discovery + ".STATS"}

// VerbDemand is that of subjects of Demand.
const VerbDemand = "demand"

// Demand is where the allocator of an app asks for instances; only the leader answers.
func Demand(t kbroker.TenantID, a kbroker.AppName) string {
	return "kb.demand." + string(t) + "." + string(a)
}

// AllDemands are the subjects of Demand.
const AllDemands = "kb.demand.*.*"

// ParseDemand splits a subject of Demand.
func ParseDemand(subject string) (t kbroker.TenantID, a kbroker.AppName, ok bool) {
	return parseOfApp(subject, VerbDemand)
}

// parseOfApp splits kb.<kind>.<tenant>.<app>.
func parseOfApp(subject, kind string) (t kbroker.TenantID, a kbroker.AppName, ok bool) {
	s := strings.Split(subject, ".")
	if len(s) != 4 || s[0] != "kb" || s[1] != kind || s[2] == "" || s[3] == "" {
		return "", "", false
	}
	return kbroker.TenantID(s[2]), kbroker.AppName(s[3]), true
}

// Lease is where the allocators of an app read and write the lease of the active one;
// any core answers.
func Lease(t kbroker.TenantID, a kbroker.AppName) string {
	return "kb.lease." + string(t) + "." + string(a)
}

// AllLeases are the subjects of Lease.
const AllLeases = "kb.lease.*.*"

// ParseLease splits a subject of Lease.
func ParseLease(subject string) (t kbroker.TenantID, a kbroker.AppName, ok bool) {
	return parseOfApp(subject, "lease")
}

// MicroName is the name under which a service is found by NATS micro discovery.
// The underscore is in no name, so two services never share one.
func MicroName(app kbroker.AppName, service kbroker.ServiceName) string {
	return string(app) + "_" + string(service)
}

// MicroID is the id of a process in NATS micro discovery: its incarnation as
// one token.
func MicroID(i kbroker.Incarnation) string { return strings.ReplaceAll(string(i), ".", "_") }

// The control store: a KV bucket, so that `nats kv` can read it.
const (
	ControlBucket = "kbroker"
	ControlStream = "KV_" + ControlBucket
	controlPrefix = "$KV." + ControlBucket + "."
	// ControlAll are the subjects of the control stream, ControlChanged where
	// they are republished.
	ControlAll     = controlPrefix + ">"
	changedPrefix  = "kb.changed."
	ControlChanged = changedPrefix + ">"

	StatusBucket   = "kbroker_status"
	StatusStream   = "KV_" + StatusBucket
	statusPrefix   = "$KV." + StatusBucket + "."
	StatusAll      = statusPrefix + ">"
	reportedPrefix = "kb.reported."
	StatusChanged  = reportedPrefix + ">"
)

// Control is the subject of a key of the control bucket.
func Control(key string) string { return controlPrefix + key }

// ControlKey is the key in a subject of the control stream, or in one that it
// was republished to.
func ControlKey(subject string) (string, bool) {
	return cutEither(subject, controlPrefix, changedPrefix)
}

// Changed is where a key's changes are republished.
func Changed(key string) string { return changedPrefix + key }

// Status is the subject of a key of the status bucket.
func Status(key string) string { return statusPrefix + key }

// StatusKey is the key in a subject of the status stream, or in one that it
// was republished to.
func StatusKey(subject string) (string, bool) {
	return cutEither(subject, statusPrefix, reportedPrefix)
}

func cutEither(s, a, b string) (string, bool) {
	if k, ok := strings.CutPrefix(s, a); ok && k != "" {
		return k, true
	}
	k, ok := strings.CutPrefix(s, b)
	return k, ok && k != ""
}

// Keys of the control bucket.
const (
	KeySuperLease = "lease.super"
	tableApp      = "app"
	tablePlace    = "place"
	tableHead     = "head"
	tableHost     = "host"
	tableDemand   = "demand"
	tableToken    = "token"
	tableUser     = "user"
	tableNonce    = "nonce"
	tableCanary   = "canary"
	tableStatus   = "status"
	tableReport   = "report"
	tableRevoked  = "revoked"
	tableAudit    = "audit"
)

// KeyApp is the head of an app.
func KeyApp(t kbroker.TenantID, a kbroker.AppName) string {
	return tableApp + "." + string(t) + "." + string(a)
}

// KeyVersion is one version of an app.
func KeyVersion(t kbroker.TenantID, a kbroker.AppName, version int) string {
	return KeyApp(t, a) + ".v" + strconv.Itoa(version)
}

// KeyPlacement is an instance on a host.
func KeyPlacement(h kbroker.HostID, t kbroker.TenantID, i kbroker.InstanceID) string {
	return tablePlace + "." + string(h) + "." + string(t) + "." + string(i)
}

// KeyPlacements matches all placements of a host.
func KeyPlacements(h kbroker.HostID) string { return tablePlace + "." + string(h) + ".>" }

// KeyHead is the head of a host's placements.
func KeyHead(h kbroker.HostID) string { return tableHead + "." + string(h) }

// KeyHost is a host.
func KeyHost(h kbroker.HostID) string { return tableHost + "." + string(h) }

// KeyDemand is what an app's allocator wants.
func KeyDemand(t kbroker.TenantID, a kbroker.AppName) string {
	return tableDemand + "." + string(t) + "." + string(a)
}

// KeyToken is a join token; its id has passed kbroker.CheckTokenID.
func KeyToken(id string) string { return tableToken + "." + id }

// KeyUser is a user of a tenant.
func KeyUser(t kbroker.TenantID, name kbroker.UserName) string {
	return tableUser + "." + string(t) + "." + string(name)
}

// KeyNonce is written by one core as the barrier of its views.
func KeyNonce(h kbroker.HostID) string { return tableNonce + "." + string(h) }

// KeyCanary is written by one core to know that writes work.
func KeyCanary(h kbroker.HostID) string { return tableCanary + "." + string(h) }

// KeyStatus is an instance's status, in the status bucket.
func KeyStatus(h kbroker.HostID, t kbroker.TenantID, i kbroker.InstanceID) string {
	return tableStatus + "." + string(h) + "." + string(t) + "." + string(i)
}

// KeyReport is the number of a host's last report, in the status bucket.
func KeyReport(h kbroker.HostID) string { return tableReport + "." + string(h) }

// KeyRevoked is a credential that was taken back, in the status bucket, by the public
// key of its user.
func KeyRevoked(user string) string { return tableRevoked + "." + user }

// Table names a kind of key.
type Table int

// The tables of the control and status buckets.
const (
	UnknownTable Table = iota
	LeaseTable
	AppTable
	VersionTable
	PlacementTable
	HeadTable
	HostTable
	DemandTable
	TokenTable
	UserTable
	NonceTable
	CanaryTable
	StatusTable
	ReportTable
	RevokedTable
	AuditTable
)

// Key is a parsed key: the fields that its table has are set.
type Key struct {
	Table    Table
	Tenant   kbroker.TenantID
	App      kbroker.AppName
	Version  int
	Host     kbroker.HostID
	Instance kbroker.InstanceID
	User     string // its public key
	Token    string
	Name     kbroker.UserName
	Slot     int
}

// ParseKey parses a key of the control or the status bucket. Keys that this
// build does not know have UnknownTable: a newer build may have written them.
func ParseKey(key string) Key {
	t := strings.Split(key, ".")
	for _, s := range t {
		if s == "" {
			return Key{}
		}
	}
	switch {
	case key == KeySuperLease:
		return Key{Table: LeaseTable}
	case len(t) == 3 && t[0] == tableApp:
		return Key{Table: AppTable, Tenant: kbroker.TenantID(t[1]), App: kbroker.AppName(t[2])}
	case len(t) == 4 && t[0] == tableApp:
		n, ok := strings.CutPrefix(t[3], "v")
		v, err := strconv.Atoi(n)
		if !ok || err != nil || v < 1 || strconv.Itoa(v) != n {
			return Key{}
		}
		return Key{Table: VersionTable, Tenant: kbroker.TenantID(t[1]), App: kbroker.AppName(t[2]), Version: v}
	case len(t) == 4 && (t[0] == tablePlace || t[0] == tableStatus):
		k := Key{Table: PlacementTable, Host: kbroker.HostID(t[1]), Tenant: kbroker.TenantID(t[2]), Instance: kbroker.InstanceID(t[3])}
		if t[0] == tableStatus {
			k.Table = StatusTable
		}
		return k
	case len(t) == 3 && t[0] == tableDemand:
		return Key{Table: DemandTable, Tenant: kbroker.TenantID(t[1]), App: kbroker.AppName(t[2])}
	case len(t) == 3 && t[0] == tableUser:
		return Key{Table: UserTable, Tenant: kbroker.TenantID(t[1]), Name: kbroker.UserName(t[2])}
	case len(t) == 2 && t[0] == tableRevoked:
		return Key{Table: RevokedTable, User: t[1]}
	case len(t) == 2 && t[0] == tableAudit:
		slot, err := strconv.Atoi(t[1])
		if err != nil || slot < 0 || strconv.Itoa(slot) != t[1] {
			return Key{}
		}
		return Key{Table: AuditTable, Slot: slot}
	case len(t) == 2 && t[0] == tableToken:
		return Key{Table: TokenTable, Token: t[1]}
	case len(t) == 2:
		if table, ok := map[string]Table{tableHead: HeadTable, tableHost: HostTable, tableNonce: NonceTable, tableCanary: CanaryTable, tableReport: ReportTable}[t[0]]; ok {
			return Key{Table: table, Host: kbroker.HostID(t[1])}
		}
	}
	return Key{}
}

// Ownership is the stream of an app's leases; the names
// it is made of contain no underscore.
func Ownership(t kbroker.TenantID, a kbroker.AppName) (stream, all string) {
	return "OWN_" + string(t) + "_" + string(a), ownershipPrefix(t, a) + ">"
}

// AllocatorLease is the subject of the lease of an app's active allocator.
func AllocatorLease(t kbroker.TenantID, a kbroker.AppName) string {
	return ownershipPrefix(t, a) + "lease.alloc"
}

// IsAllocatorLease reports whether a subject is that of an app's AllocatorLease.
func IsAllocatorLease(subject string) bool {
	t := strings.Split(subject, ".")
	return len(t) == 5 && AllocatorLease(kbroker.TenantID(t[1]), kbroker.AppName(t[2])) == subject
}

func ownershipPrefix(t kbroker.TenantID, a kbroker.AppName) string {
	return "own." + string(t) + "." + string(a) + "."
}

// Artifacts is the stream of a tenant's artifacts.
func Artifacts(t kbroker.TenantID) string { return "artifacts_" + string(t) }

// ArtifactAll are the subjects of Artifacts.
func ArtifactAll(t kbroker.TenantID) string { return "art." + string(t) + ".>" }

// ArtifactMeta is where an artifact's record is stored once it is whole.
func ArtifactMeta(t kbroker.TenantID, sha256 string) string {
	return "art." + string(t) + ".meta." + sha256
}

// ArtifactChunk is where the n-th chunk of one upload is stored.
func ArtifactChunk(t kbroker.TenantID, upload string, n int) string {
	return "art." + string(t) + ".chunk." + upload + "." + strconv.Itoa(n)
}

// ArtifactChunks matches all chunks of one upload.
func ArtifactChunks(t kbroker.TenantID, upload string) string {
	return "art." + string(t) + ".chunk." + upload + ".>"
}

// LeaderRead is the server's API for a read that only the leader of a stream
// answers.
func LeaderRead(stream string) string { return "$JS.API.STREAM.MSG.GET." + stream }

// Headers of requests and replies. They are part of the wire protocol that
// docs/protocol.md describes.
const (
	// HeaderRequestID identifies a call over all its attempts.
	HeaderRequestID = "Kb-Request-Id"
	// HeaderTimeout is how long the caller will still wait, in milliseconds.
	HeaderTimeout = "Kb-Timeout-Ms"
	// HeaderCode marks a reply as an error: the body is a kbroker.Error.
	HeaderCode = "Kb-Code"
	// HeaderInstance names the incarnation that answered.
	HeaderInstance = "Kb-Instance"
	// HeaderIdempotent is "1" on replies of methods that may be sent again.
	HeaderIdempotent = "Kb-Idempotent"
	// HeaderOffset is on a chunk of an upload: where in the file it begins. A
	// chunk without payload only asks how much was received.
	HeaderOffset = "Kb-Offset"
	// HeaderCommit is "1" on the message that ends an upload.
	HeaderCommit = "Kb-Commit"
	// HeaderSize is on a piece of an artifact: the length of the whole.
	HeaderSize = "Kb-Size"
	// HeaderMicroError and HeaderMicroErrorCode are those of NATS micro.
	HeaderMicroError     = "Nats-Service-Error"
	HeaderMicroErrorCode = "Nats-Service-Error-Code"
)
