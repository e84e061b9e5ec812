package kbroker_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestErrorMatchesItsCodeOnBothSidesOfTheWire(t *testing.T) {
	here := fmt.Errorf("deploy: %w", kbroker.Errorf(kbroker.NotFound, "no app %q", "bank").WithHint("see %s", "kbroker apps"))
	sent, err := json.Marshal(kbroker.AsError(here))
	if err != nil {
		t.Fatal(err)
	}
	there := new(kbroker.Error)
	if err := json.Unmarshal(sent, there); err != nil {
		t.Fatal(err)
	}
	for where, err := range map[string]error{"here": here, "there": there} {
		if !errors.Is(err, kbroker.NotFound) {
			t.Errorf("%s: %v is not NotFound", where, err)
		}
		if errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: %v is Invalid", where, err)
		}
	}
	want := kbroker.Error{Code: kbroker.NotFound, Message: `no app "bank"`, Hint: "see kbroker apps"}
	if *there != want {
		t.Errorf("received %+v, want %+v", *there, want)
	}
	if got := there.Error(); got != want.Message {
		t.Errorf("the text is %q, want the message alone", got)
	}
}

func TestErrorJSONHasTheKeysOfTheProtocol(t *testing.T) {
	b, err := json.Marshal(kbroker.Error{Code: kbroker.Overloaded, Message: "m", Hint: "h", Executed: kbroker.ExecutedNo})
	if want := `{"code":"overloaded","message":"m","hint":"h","executed":"no"}`; err != nil || string(b) != want {
		t.Errorf("%s, %v, want %s", b, err, want)
	}
}

func TestWithHintLeavesTheOriginalAlone(t *testing.T) {
	e := kbroker.Errorf(kbroker.Invalid, "m")
	if hinted := e.WithHint("h"); hinted.Hint != "h" || e.Hint != "" {
		t.Errorf("the copy has hint %q, the original %q, want h and none", hinted.Hint, e.Hint)
	}
}

func TestAsError(t *testing.T) {
	typed := &kbroker.Error{Code: kbroker.Conflict, Message: "m"}
	for _, c := range []struct {
		name string
		in   error
		want *kbroker.Error
	}{
		{"nothing stays nothing", nil, nil},
		{"an Error is found in the chain", fmt.Errorf("a: %w", fmt.Errorf("b: %w", typed)), typed},
		{"a code keeps the whole text", fmt.Errorf("place: %w", kbroker.Unavailable), &kbroker.Error{Code: kbroker.Unavailable, Message: "place: unavailable"}},
		{"a code is found among joined errors", errors.Join(io.EOF, kbroker.NoLeader), &kbroker.Error{Code: kbroker.NoLeader, Message: "EOF\nno_leader"}},
		{"anything else is internal", io.EOF, &kbroker.Error{Code: kbroker.Internal, Message: "EOF"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := kbroker.AsError(c.in)
			if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
				t.Errorf("AsError = %+v, want %+v", got, c.want)
			}
		})
	}
}
