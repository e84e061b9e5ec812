package kbroker_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "bank", "word-count", "a1", "a--b", strings.Repeat("a", kbroker.MaxNameBytes)} {
		if err := kbroker.CheckName("app", name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{
		"", "A", "1a", "-a", "a-", "a.b", "a_b", "a b", "a>", "*", "ä", "a\n", "a/b", "$a",
		strings.Repeat("a", kbroker.MaxNameBytes+1), strings.Repeat("a.", 1<<20),
	} {
		err := kbroker.CheckName("host", name)
		var e *kbroker.Error
		if !errors.As(err, &e) || e.Code != kbroker.Invalid || e.Hint == "" || !strings.HasPrefix(e.Message, "host name ") {
			t.Errorf("%.50q: %v, want an invalid error about the host name with a hint", name, err)
			continue
		}
		if len(e.Message) > 200 {
			t.Errorf("the message about a name of %d bytes has %d bytes itself", len(name), len(e.Message))
		}
	}
}

func TestServiceFindsByName(t *testing.T) {
	app := kbroker.App{Services: []kbroker.Service{{Name: "a"}, {Name: "b"}}}
	s, ok := app.Service("b")
	if !ok || s != &app.Services[1] {
		t.Errorf("Service(b) = %v, %t, want the app's own second service", s, ok)
	}
	if s, ok := app.Service("c"); ok || s != nil {
		t.Errorf("Service(c) = %v, %t, want nothing", s, ok)
	}
}
