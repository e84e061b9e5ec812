package ownership

import (
	"reflect"
	"testing"
	"time"
)

func TestAReminderIsReadAsItWasWritten(t *testing.T) {
	for name, r := range map[string]Reminder{
		"once":                 {Method: "tick", Due: 1_700_000_000_000, CatchUp: "one", Data: []byte(`{"cents":1}`)},
		"again and again":      {Method: "tick", Due: 1, Every: time.Minute, CatchUp: "all", Data: []byte("1\n2\n")},
		"without an argument":  {Method: "tick", CatchUp: "none", Data: []byte{}},
		"argument of any kind": {Method: "tick", CatchUp: "one", Data: []byte{0, 0xff, '\n'}},
	} {
		if got, err := DecodeReminder(r.Encode()); err != nil || !reflect.DeepEqual(got, r) {
			t.Errorf("%s: %+v is read as %+v (%v)", name, r, got, err)
		}
	}
	// What builds before this one have written.
	got, err := DecodeReminder([]byte(`{"method":"tick","due":1700000000000,"every":60000000000,"catch_up":"all"}` + "\n7"))
	if want := (Reminder{"tick", 1_700_000_000_000, time.Minute, "", "all", []byte("7")}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("a stored reminder is read as %+v (%v), want %+v", got, err, want)
	}
}

// FuzzDecodeReminder: what anybody has written is read or refused.
func FuzzDecodeReminder(f *testing.F) {
	f.Add(Reminder{Method: "tick", Due: 1, CatchUp: "one", Data: []byte("7")}.Encode())
	f.Add([]byte("due"))
	f.Add([]byte("{\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := DecodeReminder(b)
		if err != nil {
			return
		}
		if again, err := DecodeReminder(r.Encode()); err != nil || !reflect.DeepEqual(again, r) {
			t.Errorf("%q is %+v, and read again %+v (%v)", b, r, again, err)
		}
	})
}
