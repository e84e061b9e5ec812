package ownership

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/kbroker/kbroker"
)

// Reminder is a call that an object makes to itself at a time, as it is stored: the record
// due.<name> of an object, written by its owner with the state. It decides nothing here.
type Reminder struct {
	Method string        `json:"method"`
	Due    int64         `json:"due"` // milliseconds of Unix
	Every  time.Duration `json:"every,omitempty"`
	// Of is the request of the turn that has set it: set again, also for a time that was before,
	// it is another one.
	Of string `json:"of,omitempty"`
	// CatchUp is what becomes of the times that were missed: one, none or all.
	CatchUp string `json:"catch_up"`
	// Data is the argument, as its caller has encoded it.
	Data []byte `json:"-"`
}

// Encode makes the stored form: a line of JSON, then the argument as it is.
func (r Reminder) Encode() []byte { return append(append(encode(r), '\n'), r.Data...) }

// DecodeReminder reads what Encode made; the argument shares the memory of b.
func DecodeReminder(b []byte) (Reminder, error) {
	head, data, ok := bytes.Cut(b, []byte("\n"))
	r := Reminder{Data: data}
	if !ok {
		return r, kbroker.Errorf(kbroker.Internal, "a reminder of %d bytes has no first line", len(b))
	}
	if err := json.Unmarshal(head, &r); err != nil {
		return r, kbroker.Errorf(kbroker.Internal, "the record of a reminder is not readable: %v", err)
	}
	return r, nil
}
