package main

import "testing"

func TestTextIsRawUnlessItIsTheJSONForm(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"raw text", "one two", "one two"},
		{"the JSON form", `{"text":"one two"}`, "one two"},
		{"the JSON form with blanks around", " {\"text\": \"one\\ntwo\"}\n", "one\ntwo"},
		{"an empty text", `{"text":""}`, ""},
		{"nothing", "", ""},
		{"JSON of another form is text", `{"words":3}`, `{"words":3}`},
		{"more than the form is text", `{"text":"a","b":1}`, `{"text":"a","b":1}`},
		{"two values are text", `{"text":"a"} {"text":"b"}`, `{"text":"a"} {"text":"b"}`},
		{"source code is text", "{ return nil }", "{ return nil }"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(text([]byte(c.in))); got != c.want {
				t.Errorf("text(%q) = %q, want %q", c.in, got, c.want)
			}
		})
	}
}
