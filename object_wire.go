package kbroker

import (
	"bytes"
	"encoding/json"
	"strings"
)

// What an app's allocators and instances ask cores for on subjects.Own: their requests and
// answers are JSON, but for those that carry values. These are one line of JSON, in which
// each record has the size of its value, and then the values, one after another: state
// is not made a third larger on its way.

// Bounds of a record and of a message.
const (
	// MaxKeyBytes bounds a key: the longest is that of a reminder of an object whose id and
	// whose reminder's name are escaped to three times their lengths.
	MaxKeyBytes = 2048
	// MaxOwnershipBytes bounds a record of the ownership of objects: everybody who watches
	// the app hears it.
	MaxOwnershipBytes = 16 << 10
	// maxWireBytes is more than any message that is allowed.
	maxWireBytes = 1 << 20
	// maxWireCommas bounds what is decoded of a first line, before it is: some for the
	// fields of each record, also those of later builds.
	maxWireCommas = 16 * max(MaxBatchWrites, MaxReadKeys)
)

// OwnReadRequest reads records through the leader of their stream: those of Keys, which
// are all of one stream, or those below Match.
type OwnReadRequest struct {
	Keys []string `json:"keys,omitempty"`
	// Match is the beginning of keys, in whole tokens, as assign or 12.out: the records
	// below it are wanted that exist, in the order of their keys, behind the key After.
	Match string `json:"match,omitempty"`
	After string `json:"after,omitempty"`
	// Since, of a match: the records are wanted only if one below it was written after this
	// revision, the OwnReadReply.At of a read of all of them; 0: always. A core of an earlier
	// build takes it for 0.
	Since Revision `json:"since,omitempty"`
}

// Check reports why it cannot be answered, or nil. The error has code Invalid.
func (r OwnReadRequest) Check() error {
	switch {
	case len(r.Keys) == 0 && r.Match == "":
		return Errorf(Invalid, "nothing is to be read")
	case len(r.Keys) > 0 && (r.Match != "" || r.After != ""):
		return Errorf(Invalid, "keys are to be read, and what is below %.80q", r.Match)
	case r.Since > 0 && (r.Match == "" || r.After != ""):
		return Errorf(Invalid, "what was written since revision %d is asked of the whole of a match alone", r.Since)
	case len(r.Keys) > MaxReadKeys:
		return Errorf(Invalid, "%d records are to be read, at most %d are at once", len(r.Keys), MaxReadKeys)
	}
	for _, k := range r.Keys {
		if err := checkKey(k); err != nil {
			return err
		}
	}
	if r.Match == "" {
		return nil
	}
	if r.After != "" && !strings.HasPrefix(r.After, r.Match+".") {
		return Errorf(Invalid, "%.80q is not below %.80q", r.After, r.Match)
	}
	return checkKey(r.Match)
}

// OwnReadReply has the records of the keys that were asked for, in their order, or of
// those below Match. With More they are the first of them: ask for the rest, or, of a
// match, for what is after the last.
type OwnReadReply struct {
	Records []Stored
	More    bool
	// Same says, without records, that none below Match was written since OwnReadRequest.Since.
	Same bool
	// At, of a match: what was written until this revision is among them, and in the pages
	// behind this one. 0: a core of an earlier build does not say.
	At Revision
}

// OwnWriteRequest is a batch of records of one stream: all of them are written, or none.
//
// Errors: Conflict - nothing was written and nothing will be, as a record is not where the
// batch expects it. Overloaded - nothing was written, as another write of one of the
// records is under way, or too many are; the same batch may be taken now. Unavailable - it
// may have been written, or may yet be: read, or send the same batch again. Without a
// second copy (one core) the server's end may leave the first records of the batch alone;
// they are written in the order in which they are here.
type OwnWriteRequest struct {
	Writes []Write
}

// Check reports why it is no batch, or nil. The error has code Invalid.
func (r OwnWriteRequest) Check() error {
	if len(r.Writes) == 0 || len(r.Writes) > MaxBatchWrites {
		return Errorf(Invalid, "a batch of %d records, want 1 to %d", len(r.Writes), MaxBatchWrites)
	}
	written, size := map[string]bool{}, 0
	for _, w := range r.Writes {
		if err := checkKey(w.Key); err != nil {
			return err
		}
		if written[w.Key] {
			return Errorf(Invalid, "%s is written twice in one batch", w.Key)
		}
		written[w.Key] = true
		if len(w.Value) > MaxObjectBytes {
			return Errorf(Invalid, "%s has %d bytes, at most %d are allowed", w.Key, len(w.Value), MaxObjectBytes)
		}
		size += len(w.Key) + len(w.Guard) + len(w.Value)
	}
	if size > MaxBatchBytes {
		return Errorf(Invalid, "a batch of %d bytes, at most %d are allowed", size, MaxBatchBytes)
	}
	for _, w := range r.Writes {
		switch {
		case w.Guard == "" && w.GuardAt != 0:
			return Errorf(Invalid, "%s has the revision of a guard and no guard", w.Key)
		case w.Guard == "":
			continue
		case w.Expected != 0:
			return Errorf(Invalid, "%s has an expected revision and the guard %s, want one of them", w.Key, w.Guard)
		case written[w.Guard]:
			return Errorf(Invalid, "%s is guarded by %s, which is written in the same batch", w.Key, w.Guard)
		}
		if err := checkKey(w.Guard); err != nil {
			return err
		}
	}
	return nil
}

// OwnWriteReply says where the records of a batch are: one behind another.
type OwnWriteReply struct {
	First Revision `json:"first"`
}

// At is the revision of the i-th record of the batch, from 0.
func (r OwnWriteReply) At(i int) Revision { return r.First + Revision(i) }

const keyBytes = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_%"

// checkKey refuses what is not made of tokens as package subjects makes them.
func checkKey(key string) error {
	if len(key) > MaxKeyBytes {
		return Errorf(Invalid, "the key %.40q... has %d bytes, at most %d are allowed", key, len(key), MaxKeyBytes)
	}
	for token := range strings.SplitSeq(key, ".") {
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return !strings.ContainsRune(keyBytes, r) }) {
			return Errorf(Invalid, "%.80q is not a key", key)
		}
	}
	return nil
}

// The heads of what carries values.
type (
	sizedWrite struct {
		Write
		Size int `json:"size,omitempty"`
	}
	sizedStored struct {
		Stored
		Size int `json:"size,omitempty"`
	}
	writeHead struct {
		Writes []sizedWrite `json:"writes"`
	}
	readHead struct {
		Records []sizedStored `json:"records"`
		More    bool          `json:"more,omitempty"`
		Same    bool          `json:"same,omitempty"`
		At      Revision      `json:"at,omitempty"`
	}
)

// MarshalBinary encodes the request as it is sent. The error is that of Check.
func (r OwnWriteRequest) MarshalBinary() ([]byte, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	head, values := writeHead{Writes: make([]sizedWrite, len(r.Writes))}, make([][]byte, len(r.Writes))
	for i, w := range r.Writes {
		head.Writes[i], values[i] = sizedWrite{w, len(w.Value)}, w.Value
	}
	return joined(head, values)
}

// UnmarshalBinary decodes and checks what MarshalBinary has made: Invalid otherwise. The
// values are parts of data.
func (r *OwnWriteRequest) UnmarshalBinary(data []byte) error {
	var head writeHead
	rest, err := cut(data, &head)
	if err != nil {
		return err
	}
	if len(head.Writes) > MaxBatchWrites {
		return Errorf(Invalid, "a batch of %d records, want 1 to %d", len(head.Writes), MaxBatchWrites)
	}
	writes := make([]Write, len(head.Writes))
	for i, w := range head.Writes {
		writes[i] = w.Write
		if writes[i].Value, rest, err = valueOf(rest, w.Size); err != nil {
			return err
		}
	}
	if len(rest) > 0 {
		return Errorf(Invalid, "%d bytes too many", len(rest))
	}
	r.Writes = writes
	return r.Check()
}

// MarshalBinary encodes the reply as it is sent.
func (r OwnReadReply) MarshalBinary() ([]byte, error) {
	head, values := readHead{Records: make([]sizedStored, len(r.Records)), More: r.More, Same: r.Same, At: r.At}, make([][]byte, len(r.Records))
	for i, s := range r.Records {
		head.Records[i], values[i] = sizedStored{s, len(s.Value)}, s.Value
	}
	return joined(head, values)
}

// UnmarshalBinary decodes what MarshalBinary has made: Invalid otherwise. The values are
// parts of data.
func (r *OwnReadReply) UnmarshalBinary(data []byte) error {
	var head readHead
	rest, err := cut(data, &head)
	if err != nil {
		return err
	}
	if len(head.Records) > MaxReadKeys {
		return Errorf(Invalid, "%d records, at most %d are read at once", len(head.Records), MaxReadKeys)
	}
	records := make([]Stored, len(head.Records))
	for i, s := range head.Records {
		if err := checkKey(s.Key); err != nil {
			return err
		}
		records[i] = s.Stored
		if records[i].Value, rest, err = valueOf(rest, s.Size); err != nil {
			return err
		}
	}
	if len(rest) > 0 {
		return Errorf(Invalid, "%d bytes too many", len(rest))
	}
	r.Records, r.More, r.Same, r.At = records, head.More, head.Same, head.At
	return nil
}

func joined(head any, values [][]byte) ([]byte, error) {
	line, err := json.Marshal(head)
	if err != nil {
		return nil, Errorf(Invalid, "encode: %v", err)
	}
	size := len(line) + 1
	for _, v := range values {
		size += len(v)
	}
	if size > maxWireBytes {
		return nil, Errorf(Invalid, "a message of %d bytes, at most %d are sent", size, maxWireBytes)
	}
	out := append(append(make([]byte, 0, size), line...), '\n')
	for _, v := range values {
		out = append(out, v...)
	}
	return out, nil
}

// cut decodes the line of JSON and returns what is behind it.
func cut(data []byte, head any) (rest []byte, err error) {
	if len(data) > maxWireBytes {
		return nil, Errorf(Invalid, "a message of %d bytes, at most %d are sent", len(data), maxWireBytes)
	}
	line, rest, ok := bytes.Cut(data, []byte("\n"))
	if !ok {
		return nil, Errorf(Invalid, "a message without an end of its first line")
	}
	if n := bytes.Count(line, []byte(",")); n > maxWireCommas {
		return nil, Errorf(Invalid, "a first line with %d commas, at most %d are allowed", n, maxWireCommas)
	}
	if err := json.Unmarshal(line, head); err != nil {
		return nil, Errorf(Invalid, "unreadable first line: %v", err)
	}
	return rest, nil
}

// valueOf takes a value off the front of what is left; nil: it is empty.
func valueOf(rest []byte, size int) (value, left []byte, err error) {
	if size < 0 || size > MaxObjectBytes || size > len(rest) {
		return nil, nil, Errorf(Invalid, "a value of %d bytes, %d are left", size, len(rest))
	}
	if size == 0 {
		return nil, rest, nil
	}
	return rest[:size:size], rest[size:], nil
}
