package kbroker

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// AuditForm is the form of the records that this build writes: which fields they have,
// and how they are hashed.
const AuditForm = 1

// AuditOutcome is what became of a request.
type AuditOutcome string

const (
	AuditDone    AuditOutcome = "done"
	AuditRefused AuditOutcome = "refused"
)

// What the trail tells of itself; all other actions are those of requests.
const (
	AuditFound   = "found"            // the cluster was founded, the trail begins
	AuditBegin   = "begin"            // the trail begins, the cluster is older
	AuditRescue  = "rescue"           // the cluster was made of copies; what follows counts its changes anew
	AuditLost    = "changes lost"     // so many changes are not told: the copy that a rescue used lacked them
	AuditDropped = "refusals dropped" // so many refusals are not told: too many came at once
)

const (
	// MaxAuditMessage, MaxAuditObject and MaxAuditName bound the fields of a record, in
	// bytes; what is longer is cut.
	MaxAuditMessage = 1 << 10
	MaxAuditObject  = 256
	MaxAuditName    = 128
	// MaxAuditPerRequest bounds the records that a core answers at once, of the newest.
	MaxAuditPerRequest = 50
)

// NoAuditHash is Prev of the first record of all.
var NoAuditHash = strings.Repeat("0", 2*sha256.Size)

// AuditRecord is one record of the audit trail: a change that was made, or requests that
// were refused. Records are chained: each has the hash of the one before. docs/audit.md
// says how to verify them with another program.
type AuditRecord struct {
	Form   int    `json:"form"`
	Number uint64 `json:"number"` // 1, 2, 3 ...; goes on in a cluster that was rescued
	// Changes is how many changes of the control store the trail has told, up to this
	// record.
	Changes uint64       `json:"changes"`
	ID      string       `json:"id"`
	Time    time.Time    `json:"time"` // wall clock of who decided; of refusals the first
	Actor   Caller       `json:"actor"`
	Action  string       `json:"action"`           // the verb
	Object  string       `json:"object,omitempty"` // app NAME, host NAME, token ID, subject NAME
	Outcome AuditOutcome `json:"outcome"`
	Code    Code         `json:"code,omitempty"` // of a refusal
	Message string       `json:"message,omitempty"`
	// Count is how many equal refusals this is the first of, itself among them; or how
	// many are not told; 0 is 1.
	Count int `json:"count,omitempty"`
	// OldRevision is that of the control store on which a change was decided, Revision
	// that with which it was written.
	OldRevision uint64 `json:"old_revision,omitempty"`
	Revision    uint64 `json:"revision,omitempty"`
	By          string `json:"by"` // the process that decided: `super h2 0b1f epoch 7`
	Prev        string `json:"prev"`
	Hash        string `json:"hash"`
	// Sequence is where the record is in its stream. It is not hashed: a rescue gives
	// records other ones.
	Sequence uint64 `json:"sequence,omitempty"`
}

// Sum is the hash of the record: SHA-256, in hex, over all fields but Hash and Sequence.
func (r AuditRecord) Sum() string {
	h := sha256.New()
	number := func(name string, n uint64) { auditField(h, name, strconv.FormatUint(n, 10)) }
	number("form", uint64(r.Form))
	number("number", r.Number)
	number("changes", r.Changes)
	auditField(h, "id", r.ID)
	auditField(h, "time", r.Time.UTC().Format(time.RFC3339Nano))
	auditField(h, "actor.name", r.Actor.Name)
	auditField(h, "actor.role", r.Actor.Role)
	auditField(h, "actor.key", r.Actor.Key)
	auditField(h, "actor.tenant", string(r.Actor.Tenant))
	auditField(h, "actor.app", string(r.Actor.App))
	auditField(h, "actor.instance", string(r.Actor.Instance))
	auditField(h, "actor.host", string(r.Actor.Host))
	auditField(h, "actor.address", r.Actor.Address)
	auditField(h, "action", r.Action)
	auditField(h, "object", r.Object)
	auditField(h, "outcome", string(r.Outcome))
	auditField(h, "code", string(r.Code))
	auditField(h, "message", r.Message)
	number("count", uint64(r.Count))
	number("old_revision", r.OldRevision)
	number("revision", r.Revision)
	auditField(h, "by", r.By)
	auditField(h, "prev", r.Prev)
	return hex.EncodeToString(h.Sum(nil))
}

// auditField writes one field: its length keeps it apart from the next, whatever it has.
func auditField(h hash.Hash, name, value string) {
	_, _ = io.WriteString(h, name+":"+strconv.Itoa(len(value))+":"+value+"\n")
}

// Cleaned is the record with fields that are within their bounds and survive being
// stored: valid UTF-8 on one line, and a time without a monotonic part.
func (r AuditRecord) Cleaned() AuditRecord {
	r.Form, r.Time, r.Sequence = AuditForm, r.Time.UTC().Round(0), 0
	for _, f := range []struct {
		s   *string
		max int
	}{
		{&r.ID, MaxAuditName},
		{&r.Actor.Name, MaxAuditName},
		{&r.Actor.Role, MaxAuditName},
		{&r.Actor.Key, MaxAuditName},
		{(*string)(&r.Actor.Tenant), MaxAuditName},
		{(*string)(&r.Actor.App), MaxAuditName},
		{(*string)(&r.Actor.Instance), MaxAuditName},
		{(*string)(&r.Actor.Host), MaxAuditName},
		{&r.Actor.Address, MaxAuditName},
		{&r.Action, MaxAuditName},
		{&r.Object, MaxAuditObject},
		{(*string)(&r.Outcome), MaxAuditName},
		{(*string)(&r.Code), MaxAuditName},
		{&r.Message, MaxAuditMessage},
		{&r.By, MaxAuditName},
	} {
		*f.s = plain(*f.s, f.max)
	}
	return r
}

// plain makes a text one line of valid UTF-8 of at most max bytes.
func plain(s string, max int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s[:min(len(s), 4*max)], "?"))
	if len(s) <= max {
		return s
	}
	return strings.ToValidUTF8(s[:max-3], "") + "..."
}

// After is the cleaned record as the one that follows last; the zero AuditRecord: as the
// first of all.
func (r AuditRecord) After(last AuditRecord) AuditRecord {
	r = r.Cleaned()
	r.Number, r.Prev = last.Number+1, last.Hash
	if last.Number == 0 {
		r.Prev = NoAuditHash
	}
	r.Hash = r.Sum()
	return r
}

// AuditChain verifies records in their order. The zero value is ready.
type AuditChain struct {
	First, Last AuditRecord // zero: there is none
	Records     int
	Rescues     []uint64 // the numbers of the records of rescues
}

// Add takes the next record. The error says at which number the chain is broken, and how;
// nothing may be added after it.
func (c *AuditChain) Add(r AuditRecord) error {
	broken := func(format string, args ...any) error {
		return Errorf(Failed, "broken at record %d: %s", r.Number, fmt.Sprintf(format, args...))
	}
	switch {
	case r.Form != AuditForm:
		return Errorf(Invalid, "record %d has form %d, and this kbroker knows form %d", r.Number, r.Form, AuditForm).
			WithHint("verify with the kbroker that wrote it")
	case r.Hash != r.Sum():
		return broken("it was altered: its hash is %s, and what it says hashes to %s", r.Hash, r.Sum())
	case c.Records == 0 && (r.Number == 1) != (r.Prev == NoAuditHash):
		return broken("only the first record of all has no hash of one before")
	case c.Records == 0 && r.Sequence > r.Number:
		return broken("it is at sequence %d of the stream: records before it were removed", r.Sequence)
	case c.Records == 0:
	case r.Number != c.Last.Number+1:
		return broken("it follows record %d: records are missing, or were swapped", c.Last.Number)
	case r.Prev != c.Last.Hash:
		return broken("it does not follow the record %d that is there: the hash before it is %s, not %s", c.Last.Number, c.Last.Hash, r.Prev)
	case r.Sequence != c.Last.Sequence+1:
		return broken("it is at sequence %d of the stream, and record %d is at %d: something between them was removed", r.Sequence, c.Last.Number, c.Last.Sequence)
	case r.Action == AuditRescue:
	case r.Action == AuditLost && r.Changes == c.Last.Changes+uint64(r.Count):
	case r.Changes != c.Last.Changes && r.Changes != c.Last.Changes+1:
		return broken("it is of change %d, and record %d was of change %d: changes are missing, or told twice", r.Changes, c.Last.Number, c.Last.Changes)
	}
	if c.Records == 0 {
		c.First = r
	}
	if r.Action == AuditRescue {
		c.Rescues = append(c.Rescues, r.Number)
	}
	c.Last = r
	c.Records++
	return nil
}

// AuditRequest asks a core for a page of the audit trail.
type AuditRequest struct {
	// After a sequence: the records that follow it, oldest first. Without it the newest.
	After *uint64 `json:"after,omitempty"`
	// Before a sequence: those next before it. Without After alone; 0: the newest.
	Before uint64 `json:"before,omitempty"`
	// Limit bounds the page, without After, MaxAuditPerRequest at most; 0: that.
	Limit int `json:"limit,omitempty"`
}

// AuditReply is a page, oldest first.
type AuditReply struct {
	Records []AuditRecord `json:"records"`
	// Next is what After has to be for the page that follows.
	Next uint64 `json:"next"`
	// More: the next page is there already; without After, there are older ones.
	More bool `json:"more,omitempty"`
	// Last is the sequence of the newest record, as the stream's leader says; 0: there
	// is none, or no leader, or More.
	Last uint64 `json:"last,omitempty"`
	// Missing: there is nothing after the page in the stream of its leader, though its
	// end is Last: the newest records were removed.
	Missing bool `json:"missing,omitempty"`
	// Unreadable is the first thing in the page's part of the stream that is no record; the
	// records around it are there.
	Unreadable string `json:"unreadable,omitempty"`
}
