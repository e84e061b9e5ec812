package subjects

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/kbroker/kbroker"
)

// Verbs of Own.
const (
	VerbOwnRead  = "read"
	VerbOwnWrite = "write"
)

// Own is where a start of an instance or of an allocator reads and writes the ownership
// and the objects of its app; any core answers. Servers let nobody ask as another.
func Own(t kbroker.TenantID, a kbroker.AppName, verb string, i kbroker.Incarnation) string {
	return "kb.own." + string(t) + "." + string(a) + "." + verb + "." + string(i)
}

// AllOwn are the subjects of Own.
const AllOwn = "kb.own.*.*.*.*.*"

// AllOwnOf are those with a verb.
func AllOwnOf(verb string) string { return "kb.own.*.*." + verb + ".*.*" }

// ParseOwn splits a subject of Own.
func ParseOwn(subject string) (t kbroker.TenantID, a kbroker.AppName, verb string, i kbroker.Incarnation, ok bool) {
	s := strings.Split(subject, ".")
	if len(s) != 7 || s[0] != "kb" || s[1] != "own" || s[2] == "" || s[3] == "" || s[4] == "" || s[5] == "" || s[6] == "" {
		return "", "", "", "", false
	}
	return kbroker.TenantID(s[2]), kbroker.AppName(s[3]), s[4], kbroker.Incarnation(s[5] + "." + s[6]), true
}

// Owned is where the changes of a key of an app's ownership stream are republished.
func Owned(t kbroker.TenantID, a kbroker.AppName, key string) string { return OwnedOf(t, a) + key }

// OwnedOf is the prefix of Owned of an app.
func OwnedOf(t kbroker.TenantID, a kbroker.AppName) string {
	return ownedPrefix + string(t) + "." + string(a) + "."
}

// AllOwned are the subjects of Owned of a tenant.
func AllOwned(t kbroker.TenantID) string { return ownedPrefix + string(t) + ".>" }

const ownedPrefix = "kb.owned."

// Reaped is where a core says which starts of an app have ended, as their agents have: it
// may be lost.
func Reaped(t kbroker.TenantID, a kbroker.AppName) string {
	return "kb.reaped." + string(t) + "." + string(a)
}

// Load is where a start of an app says what its load is, LoadOf the prefix of all of an app.
func Load(t kbroker.TenantID, a kbroker.AppName, i kbroker.Incarnation) string {
	return LoadOf(t, a) + string(i)
}

// LoadOf is the prefix of Load of an app.
func LoadOf(t kbroker.TenantID, a kbroker.AppName) string {
	return "kb.load." + string(t) + "." + string(a) + "."
}

// Verbs of Placing.
const (
	VerbAllocate = "allocate"
	VerbRelease  = "release"
	VerbFind     = "find"
)

// Placing is where the active allocator of an app is asked about its placed objects.
func Placing(t kbroker.TenantID, a kbroker.AppName, verb string) string {
	return placingPrefix + string(t) + "." + string(a) + "." + verb
}

// ParsePlacing splits a subject of Placing.
func ParsePlacing(subject string) (verb string, ok bool) {
	s := strings.Split(subject, ".")
	return s[len(s)-1], len(s) == 5 && strings.HasPrefix(subject, placingPrefix)
}

const placingPrefix = "kb.placing."

// PlacedOn is where the allocator of an app tells a start which placed objects are on it, as
// the records that say so: a kbroker.OwnReadReply.
func PlacedOn(t kbroker.TenantID, a kbroker.AppName, i kbroker.Incarnation) string {
	return "kb.placed." + string(t) + "." + string(a) + "." + string(i)
}

// OwnershipKey splits a subject of an app's ownership stream, or one that it was
// republished to.
func OwnershipKey(subject string) (t kbroker.TenantID, a kbroker.AppName, key string, ok bool) {
	rest, ok := cutEither(subject, "own.", ownedPrefix)
	tenant, rest, one := strings.Cut(rest, ".")
	app, key, two := strings.Cut(rest, ".")
	if !ok || !one || !two || tenant == "" || app == "" || key == "" {
		return "", "", "", false
	}
	return kbroker.TenantID(tenant), kbroker.AppName(app), key, true
}

// Objects is the n-th of the streams in which an app's objects are, from 0: shard s is in
// stream s modulo their number.
func Objects(t kbroker.TenantID, a kbroker.AppName, n int) (stream, all string) {
	return "OBJ_" + string(t) + "_" + string(a) + "_" + strconv.Itoa(n), objectsPrefix(t, a, n) + ">"
}

func objectsPrefix(t kbroker.TenantID, a kbroker.AppName, n int) string {
	return "obj." + string(t) + "." + string(a) + "." + strconv.Itoa(n) + "."
}

// Keys of an app's ownership stream.
const (
	KeyAllocatorLease = tableOwnLease + ".alloc"
	KeyOwnershipHead  = "head"
	// KeyWishes says where operators want shards.
	KeyWishes     = "wishes"
	tableOwnLease = "lease"
	tableAssign   = "assign"
	tableRelease  = "release"
	// Those of placed objects are apart: who watches the shards does not hear of them all.
	tablePlaced = "placed"
	tableLeft   = "left"
	// placedBuckets is how many parts those of placed objects are in: they are read part by
	// part, as a listing of many is one of all.
	placedBuckets = 256
)

// KeyLease is the lease of a start of an instance.
func KeyLease(i kbroker.Incarnation) string { return tableOwnLease + "." + string(i) }

// KeyAssign says who owns a shard.
func KeyAssign(s kbroker.Shard) string { return keyOfShard(tableAssign, tablePlaced, s) }

// KeyRelease says that an owner has let a shard go.
func KeyRelease(s kbroker.Shard) string { return keyOfShard(tableRelease, tableLeft, s) }

func keyOfShard(table, placed string, s kbroker.Shard) string {
	if s.OfOne() {
		return placed + "." + strconv.Itoa(int(s%placedBuckets)) + "." + shardToken(s)
	}
	return table + "." + shardToken(s)
}

// MatchPlaced are what the keys of the assignments of placed objects begin with, for one
// kbroker.OwnReadRequest each; MatchPlacedReleases those of their releases.
func MatchPlaced() []string         { return buckets(tablePlaced) }
func MatchPlacedReleases() []string { return buckets(tableLeft) }

func buckets(table string) []string {
	var all []string
	for n := range placedBuckets {
		all = append(all, table+"."+strconv.Itoa(n))
	}
	return all
}

// Keys of an app's objects.
const (
	tableState = "state"
	tableOut   = "out"
	tableDue   = "due"
)

// KeyState is the record of an object.
func KeyState(o kbroker.Object) string { return keyOfObject(tableState, o) }

// KeyOut is the n-th message that an object is to send, KeyDue one of its reminders: its
// name is as free as an id.
func KeyOut(o kbroker.Object, n uint64) string {
	return keyOfObject(tableOut, o) + "." + strconv.FormatUint(n, 10)
}

func KeyDue(o kbroker.Object, name string) string {
	return keyOfObject(tableDue, o) + "." + EscapeID(name)
}

func keyOfObject(table string, o kbroker.Object) string {
	return shardToken(o.Shard()) + "." + table + "." + objectTokens(o)
}

func objectTokens(o kbroker.Object) string { return string(o.Kind) + "." + EscapeID(o.ID) }

func shardToken(s kbroker.Shard) string { return strconv.Itoa(int(s)) }

// MatchShard is what the keys of all records of a shard begin with, MatchStates, MatchOuts and
// MatchDues those of one table of it; MatchLeases, MatchAssigns and MatchReleases those of an
// app's ownership: for kbroker.OwnReadRequest, all but the first.
func MatchShard(s kbroker.Shard) string  { return shardToken(s) }
func MatchStates(s kbroker.Shard) string { return shardToken(s) + "." + tableState }
func MatchOuts(s kbroker.Shard) string   { return shardToken(s) + "." + tableOut }
func MatchDues(s kbroker.Shard) string   { return shardToken(s) + "." + tableDue }

// MatchOutsOf and MatchDuesOf are what those of one object begin with.
func MatchOutsOf(o kbroker.Object) string { return keyOfObject(tableOut, o) }
func MatchDuesOf(o kbroker.Object) string { return keyOfObject(tableDue, o) }

// FilterStates are the keys of the records of all objects, FilterKind of those of a kind,
// in whichever shard: as a server filters them.
const FilterStates = "*." + tableState + ".>"

func FilterKind(k kbroker.KindName) string { return "*." + tableState + "." + string(k) + ".*" }

// MatchKind is what the keys of the records of a shard's objects of a kind begin with.
func MatchKind(s kbroker.Shard, k kbroker.KindName) string { return MatchStates(s) + "." + string(k) }

const (
	MatchLeases   = tableOwnLease
	MatchAssigns  = tableAssign
	MatchReleases = tableRelease
)

// OwnTable names a kind of key of an app's ownership or of its objects.
type OwnTable int

// The tables of an app's ownership, and from OwnState on of its objects.
const (
	OwnUnknown OwnTable = iota
	OwnAllocatorLease
	OwnLease
	OwnAssign
	OwnRelease
	OwnHead
	OwnWishes
	OwnState
	OwnOut
	OwnDue
)

// OwnKey is a parsed key: the fields that its table has are set.
type OwnKey struct {
	Table       OwnTable
	Incarnation kbroker.Incarnation
	Shard       kbroker.Shard // of an object as well
	Object      kbroker.Object
	Number      uint64 // of OwnOut
	Name        string // of OwnDue
}

// OfObject reports whether the key is in one of the streams of objects.
func (k OwnKey) OfObject() bool { return k.Table >= OwnState }

// ParseOwnKey parses a key of an app's ownership or of its objects. There is one spelling
// of each, and the shard of an object's is that of the object; all else is OwnUnknown.
func ParseOwnKey(key string) OwnKey {
	t := strings.Split(key, ".")
	if shard, ok := parseShard(t[0]); ok {
		return parseObjectKey(shard, t[1:])
	}
	switch {
	case key == KeyAllocatorLease:
		return OwnKey{Table: OwnAllocatorLease}
	case key == KeyOwnershipHead:
		return OwnKey{Table: OwnHead}
	case key == KeyWishes:
		return OwnKey{Table: OwnWishes}
	case len(t) == 3 && t[0] == tableOwnLease && isName(t[1]) && isName(t[2]):
		return OwnKey{Table: OwnLease, Incarnation: kbroker.Incarnation(t[1] + "." + t[2])}
	case isShardTable(t[0]):
		s, ok := parseShard(t[len(t)-1])
		switch {
		case ok && key == KeyAssign(s):
			return OwnKey{Table: OwnAssign, Shard: s}
		case ok && key == KeyRelease(s):
			return OwnKey{Table: OwnRelease, Shard: s}
		}
	}
	return OwnKey{}
}

func isShardTable(t string) bool {
	return t == tableAssign || t == tableRelease || t == tablePlaced || t == tableLeft
}

// parseObjectKey parses what is behind the shard.
func parseObjectKey(shard kbroker.Shard, t []string) OwnKey {
	if len(t) < 3 {
		return OwnKey{}
	}
	o, ok := parseObject(t[1], t[2])
	if o.Placed = shard.OfOne(); !ok || o.Shard() != shard {
		return OwnKey{}
	}
	k := OwnKey{Shard: shard, Object: o}
	switch {
	case len(t) == 3 && t[0] == tableState:
		k.Table = OwnState
		return k
	case len(t) == 4 && t[0] == tableOut:
		n, err := strconv.ParseUint(t[3], 10, 64)
		if k.Table, k.Number = OwnOut, n; err == nil && strconv.FormatUint(n, 10) == t[3] {
			return k
		}
	case len(t) == 4 && t[0] == tableDue:
		name, ok := UnescapeID(t[3])
		if k.Table, k.Name = OwnDue, name; ok {
			return k
		}
	}
	return OwnKey{}
}

func parseObject(kind, id string) (kbroker.Object, bool) {
	plain, ok := UnescapeID(id)
	o := kbroker.Object{Kind: kbroker.KindName(kind), ID: plain}
	return o, ok && o.Check() == nil
}

func parseShard(token string) (kbroker.Shard, bool) {
	n, err := strconv.Atoi(token)
	return kbroker.Shard(n), err == nil && n >= 0 && kbroker.Shard(n) < kbroker.MaxShard && strconv.Itoa(n) == token
}

// isName reports whether s is a part of an incarnation.
func isName(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_') })
}

// StoredAt is where the record of a key is stored: in one of so many streams of objects,
// or in the ownership stream, by the subject that is prefix and key. The key may be the
// beginning of one, in whole tokens. false: it is none.
func StoredAt(t kbroker.TenantID, a kbroker.AppName, streams int, key string) (stream, prefix string, ok bool) {
	first, _, _ := strings.Cut(key, ".")
	shard, ofObject := parseShard(first)
	switch {
	case ofObject && streams < 1:
		return "", "", false
	case ofObject:
		n := int(shard) % streams
		stream, _ = Objects(t, a, n)
		return stream, objectsPrefix(t, a, n), true
	}
	stream, _ = Ownership(t, a)
	return stream, ownershipPrefix(t, a), first == tableOwnLease || isShardTable(first) || key == KeyOwnershipHead || key == KeyWishes
}

// EscapeID makes one token of a subject of any id: all but letters and digits of ASCII,
// - and _ is written as %XX, byte by byte.
func EscapeID(id string) string {
	if !strings.ContainsFunc(id, func(r rune) bool { return r > '~' || !plainByte(byte(r)) }) {
		return id
	}
	var b strings.Builder
	for i := range len(id) {
		if c := id[i]; plainByte(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

// UnescapeID is the id that EscapeID has made a token of; false: of none of 1 to
// kbroker.MaxObjectIDBytes bytes of UTF-8.
func UnescapeID(token string) (id string, ok bool) {
	var b strings.Builder
	for i := 0; i < len(token); i++ {
		c := token[i]
		if c != '%' {
			b.WriteByte(c)
			continue
		}
		if i+2 >= len(token) {
			return "", false
		}
		n, err := strconv.ParseUint(token[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(n))
		i += 2
	}
	id = b.String()
	if id == "" || len(id) > kbroker.MaxObjectIDBytes || !utf8.ValidString(id) || EscapeID(id) != token {
		return "", false // there is one spelling of each id
	}
	return id, true
}

func plainByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// LeaderInfo is the server's API for the subjects of a stream: the leader answers.
func LeaderInfo(stream string) string { return "$JS.API.STREAM.INFO." + stream }
