package kbroker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// golden is a record with something in each field.
func golden() AuditRecord {
	return AuditRecord{
		Changes: 4, ID: "3.4", Time: time.Date(2026, 1, 2, 3, 4, 5, 60_000_000, time.UTC),
		Actor: Caller{
			Name: "ann", Role: "admin", Key: "UA", Tenant: "default", App: "shop", Instance: "shop-web-1", Host: "h1", Address: "10.0.0.9",
		},
		Action: "scale", Object: "app shop", Outcome: AuditRefused, Code: Refused, Message: "Grüße, \"x\"", Count: 2,
		OldRevision: 17, Revision: 19, By: "super h1 p1 epoch 3",
	}
}

// TestAuditHashIsAsDocumented: with this text another program makes the same hash
// (docs/audit.md). It never changes for a form.
func TestAuditHashIsAsDocumented(t *testing.T) {
	r := golden().After(AuditRecord{Number: 6, Hash: strings.Repeat("ab", 32)})
	const text = `form:1:1
number:1:7
changes:1:4
id:3:3.4
time:23:2026-01-02T03:04:05.06Z
actor.name:3:ann
actor.role:5:admin
actor.key:2:UA
actor.tenant:7:default
actor.app:4:shop
actor.instance:10:shop-web-1
actor.host:2:h1
actor.address:8:10.0.0.9
action:5:scale
object:8:app shop
outcome:7:refused
code:7:refused
message:12:Grüße, "x"
count:1:2
old_revision:2:17
revision:2:19
by:19:super h1 p1 epoch 3
prev:64:abababababababababababababababababababababababababababababababab
`
	sum := sha256.Sum256([]byte(text))
	if want := hex.EncodeToString(sum[:]); r.Hash != want {
		t.Errorf("the hash is %s, and that of the text %s", r.Hash, want)
	}
	const want = "9fda9fd184774691d65a148d96e01ca3c4b93969b083d8fb4d2149d1859eb67f"
	if r.Hash != want {
		t.Errorf("the hash is %s, want %s: a form that was given out hashes as it did", r.Hash, want)
	}
}

// TestAuditRecordsSurviveBeingStored: what a record says is what was hashed, whatever was
// put into it.
func TestAuditRecordsSurviveBeingStored(t *testing.T) {
	r := golden()
	r.Message = "a\nb\x00\xff<&>" + strings.Repeat("ü", MaxAuditMessage)
	r.Actor.Name = strings.Repeat("\xff", 10*MaxAuditName)
	r.Object = "x\x1b[31m"
	r.Time = time.Now()
	r = r.After(AuditRecord{})
	b, err := json.Marshal(r)
	var back AuditRecord
	if err == nil {
		err = json.Unmarshal(b, &back)
	}
	if err != nil || back.Sum() != r.Hash {
		t.Errorf("it hashes to %s and was %s: %v: %s", back.Sum(), r.Hash, err, b)
	}
	if len(r.Message) > MaxAuditMessage || len(r.Actor.Name) > MaxAuditName || strings.ContainsAny(r.Message+r.Object, "\n\x00\x1b") {
		t.Errorf("it is %+v: out of bounds, or not on one line", r)
	}
	if len(b) > 16<<10 {
		t.Errorf("a record takes %d bytes", len(b))
	}
}

// trail is n records as they follow each other, in a stream of their own.
func trail(n int) []AuditRecord {
	var all []AuditRecord
	last := AuditRecord{}
	for i := range n {
		r := AuditRecord{ID: fmt.Sprint(i), Action: "scale", Outcome: AuditDone, Message: fmt.Sprint(i), Changes: uint64(i), Time: time.Unix(int64(i), 0)}.After(last)
		last, r.Sequence = r, uint64(i+1)
		all = append(all, r)
	}
	return all
}

func verify(all []AuditRecord) (AuditChain, error) {
	var c AuditChain
	for _, r := range all {
		if err := c.Add(r); err != nil {
			return c, err
		}
	}
	return c, nil
}

func TestAnIntactChainVerifies(t *testing.T) {
	c, err := verify(trail(9))
	if err != nil || c.Records != 9 || c.First.Number != 1 || c.Last.Number != 9 {
		t.Errorf("%+v: %v", c, err)
	}
	if c, err = verify(trail(9)[4:]); err != nil || c.First.Number != 5 || c.Records != 5 {
		t.Errorf("without those that have left it: %+v: %v", c, err)
	}
	all := trail(5)
	r := AuditRecord{Action: AuditRescue, Changes: 2}.After(all[4])
	r.Sequence = 6
	lost := AuditRecord{Action: AuditLost, Changes: 7, Count: 5}.After(r)
	lost.Sequence = 7
	if c, err = verify(append(all, r, lost)); err != nil || len(c.Rescues) != 1 || c.Rescues[0] != 6 {
		t.Errorf("after a rescue: %+v: %v", c, err)
	}
}

func TestABrokenChainSaysWhereAndHow(t *testing.T) {
	again := func(r AuditRecord, change func(*AuditRecord)) AuditRecord { // as who can write would
		change(&r)
		r.Hash = r.Sum()
		return r
	}
	for _, tc := range []struct {
		name, want string
		change     func([]AuditRecord) []AuditRecord
	}{
		{"altered", "record 4: it was altered", func(a []AuditRecord) []AuditRecord { a[3].Message = "x"; return a }},
		{"altered, with its hash", "record 5: it does not follow the record 4", func(a []AuditRecord) []AuditRecord {
			a[3] = again(a[3], func(r *AuditRecord) { r.Actor.Name = "x" })
			return a
		}},
		{"removed", "record 4: it follows record 2", func(a []AuditRecord) []AuditRecord { return append(a[:2], a[3:]...) }},
		{"removed, with numbers and hashes made to fit", "sequence 4 of the stream, and record 2 is at 2", func(a []AuditRecord) []AuditRecord {
			out := a[:2]
			for _, r := range a[3:] {
				out = append(out, again(r, func(r *AuditRecord) { r.Number--; r.Prev = out[len(out)-1].Hash }))
			}
			return out
		}},
		{"swapped", "record 5: it follows record 3", func(a []AuditRecord) []AuditRecord { a[3], a[4] = a[4], a[3]; return a }},
		{"a change told twice", "is of change 5, and record 4 was of change 3", func(a []AuditRecord) []AuditRecord {
			for i := 4; i < len(a); i++ {
				a[i] = again(a[i], func(r *AuditRecord) { r.Changes++; r.Prev = a[i-1].Hash })
			}
			return a
		}},
		{"the beginning removed", "record 1: it is at sequence 3", func(a []AuditRecord) []AuditRecord {
			for i := range a {
				a[i].Sequence += 2
			}
			return a
		}},
		{"a first record that follows one", "record 1: only the first record", func(a []AuditRecord) []AuditRecord {
			a[0] = again(a[0], func(r *AuditRecord) { r.Prev = strings.Repeat("ab", 32) })
			return a
		}},
	} {
		_, err := verify(tc.change(trail(9)))
		if !errors.Is(err, Failed) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
	a := trail(2)
	a[1].Form++
	if _, err := verify(a); !errors.Is(err, Invalid) {
		t.Errorf("a record of another form: %v, want Invalid", err)
	}
}
