package spec_test

import (
	"errors"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

func TestConstraint(t *testing.T) {
	host := map[string]string{"disk": "ssd", "zone": "rack 4", "arch": "amd64", "empty": ""}
	for _, c := range []struct {
		in, canonical string
		match         bool
	}{
		{"disk == ssd", "disk == ssd", true},
		{"disk==ssd", "disk == ssd", true},
		{"  disk  ==\tssd ", "disk == ssd", true},
		{"disk == hdd", "disk == hdd", false},
		{"disk != hdd", "disk != hdd", true},
		{"disk != ssd", "disk != ssd", false},
		{`zone == "rack 4"`, `zone == "rack 4"`, true},
		{`zone != 'rack 4'`, `zone != "rack 4"`, false},
		{`disk == "ssd"`, "disk == ssd", true},
		{"gpu == none", "gpu == none", false},    // no such label
		{"gpu != nvidia", "gpu != nvidia", true}, // no such label
		{`gpu == ""`, `gpu == ""`, false},
		{`empty == ""`, `empty == ""`, true},
		{`note == "a \"b\" == c"`, `note == "a \"b\" == c"`, false},
		{"Disk == ssd", "Disk == ssd", false},
		{"disk == SSD", "disk == SSD", false},
	} {
		got, err := spec.ParseConstraint(c.in)
		if err != nil {
			t.Errorf("%s: %v", c.in, err)
			continue
		}
		if got.String() != c.canonical {
			t.Errorf("%s: canonical form is %s, want %s", c.in, got, c.canonical)
		}
		if m := got.Match(host); m != c.match {
			t.Errorf("%s matches: %t, want %t", c.in, m, c.match)
		}
	}
}

func TestConstraintRefuses(t *testing.T) {
	for _, in := range []string{
		"", "disk", "disk ssd", "disk = ssd", "disk === ssd", "disk == ", "== ssd", "disk == ssd hdd", "disk < 5",
		"disk == ssd && zone == a", `disk == "ssd`, `disk == ssd"`, "disk == 'a'b'", "disk type == ssd", "-disk == ssd",
		`disk == "a` + "\n" + `"`, "disk == \"\\n\"", "a == " + string(make([]byte, 5)),
		"d" + string(make([]byte, 70)) + " == x",
	} {
		c, err := spec.ParseConstraint(in)
		var e *kbroker.Error
		if !errors.As(err, &e) || e.Code != kbroker.Invalid || e.Hint == "" {
			t.Errorf("%q gives %+v, %v, want an invalid error with a hint", in, c, err)
		}
	}
}

func FuzzParseConstraint(f *testing.F) {
	f.Add("disk == ssd", "disk", "ssd")
	f.Add(`zone != "rack 4"`, "zone", "rack 4")
	f.Add(`a == '"'`, "a", "")
	f.Fuzz(func(t *testing.T, s, label, value string) {
		c, err := spec.ParseConstraint(s)
		if err != nil {
			return
		}
		again, err := spec.ParseConstraint(c.String())
		if err != nil || again != c {
			t.Fatalf("%q is %+v, written %q, which is %+v, %v", s, c, c.String(), again, err)
		}
		labels := map[string]string{label: value}
		not := c
		not.Not = !c.Not
		if c.Match(labels) == not.Match(labels) {
			t.Fatalf("%v and its opposite agree on %v", c, labels)
		}
	})
}
