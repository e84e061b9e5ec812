package subjects

import (
	"strconv"
	"strings"

	"github.com/kbroker/kbroker"
)

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

// LeaderRead is the server's API for a read that only the leader of a stream
// answers.
func LeaderRead(stream string) string { return "$JS.API.STREAM.MSG.GET." + stream }

// AnyRead is the server's API for a read that any server which has a stream answers: it may be
// behind the leader.
func AnyRead(stream string) string { return "$JS.API.DIRECT.GET." + stream }
