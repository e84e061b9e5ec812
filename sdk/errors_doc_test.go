package sdk

import (
	"context"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// tables are those of a document: their rows, without the heads, in cells.
func tables(t *testing.T, path string) (all [][][]string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	within := false
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		switch row := strings.HasPrefix(line, "|"); {
		case row && !within:
			all = append(all, nil)
		case row && !strings.HasPrefix(line, "|---"):
			var cells []string
			for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			all[len(all)-1] = append(all[len(all)-1], cells)
		}
		within = strings.HasPrefix(line, "|")
	}
	return all
}

// codes are all that there are.
func codes(t *testing.T) (all []kbroker.Code) {
	t.Helper()
	b, err := os.ReadFile("../error.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\t[A-Z]\w* Code = "(\w+)"$`).FindAllStringSubmatch(string(b), -1) {
		all = append(all, kbroker.Code(m[1]))
	}
	if len(all) < 10 {
		t.Fatalf("error.go has the codes %v", all)
	}
	return all
}

// final: it is not sent again.
const final verdict = -1

// said are the verdicts, as docs/errors.md has them.
var said = map[string]verdict{
	"no": final, "after a pause": backOff, "after a pause, within the budget": backOffPaid,
	"at once, within the budget": resendPaid, "it is waited for": keepWaiting,
}

// columns are what the table's columns are about.
var columns = []*call{
	{to: Target{app: "echo", service: "echo"}, repeat: notIdempotent},
	{to: Target{app: "echo", service: "echo"}, repeat: isIdempotent},
	{to: Target{app: "bank", object: acc("1")}, repeat: isIdempotent},
}

// judged is what a call does about an answer.
func judged(of *call, code kbroker.Code, ex kbroker.Executed, crossing bool) verdict {
	c := &call{client: &Client{}, to: of.to, repeat: of.repeat, id: "a:1", header: nats.Header{}}
	e := kbroker.Errorf(code, "no")
	e.Executed = ex
	m := errorReply("_INBOX.x", nil, e)
	if crossing {
		m.Header[subjects.HeaderCrossing] = []string{"1"}
	}
	reply, event, err := c.receive(context.Background(), m)
	if reply != nil || err != nil {
		return final
	}
	return decide(event, c.idempotence(), 0)
}

func TestTheRetryTableOfTheDocsHolds(t *testing.T) {
	row := regexp.MustCompile("^`(\\w+)`, executed (\\w+)(, of a crossing)?$")
	type answer struct {
		code     kbroker.Code
		executed kbroker.Executed
		crossing bool
	}
	want := map[answer][]string{}
	var other []string
	events := map[string][]event{
		"nobody is there (no responders)":                               {nobodyThere},
		"not sent: no connection":                                       {notSent},
		"no answer in its time, or the connection was lost and is back": {timedOut, reconnected},
	}
	for _, cells := range tables(t, "../docs/errors.md")[0] {
		first, rest := cells[0], cells[1:]
		if len(rest) != len(columns) {
			t.Fatalf("the row %q has %d columns, want %d", first, len(rest), len(columns))
		}
		if m := row.FindStringSubmatch(first); m != nil {
			want[answer{kbroker.Code(m[1]), kbroker.Executed(m[2]), m[3] != ""}] = rest
			continue
		}
		if first == "any other answer" {
			other = rest
			continue
		}
		all := events[first]
		if all == nil {
			t.Fatalf("the row %q is about nothing that is known", first)
		}
		delete(events, first)
		for n, of := range columns {
			for _, e := range all {
				unanswered := 0
				if e == timedOut || e == reconnected {
					unanswered = 1
				}
				if got, w := decide(e, of.repeat, unanswered), said[rest[n]]; got != w {
					t.Errorf("%q, column %d: %d is done, the docs say %q (%d)", first, n, got, rest[n], w)
				}
			}
		}
	}
	if len(events) > 0 || other == nil {
		t.Fatalf("the docs say nothing of %v, or of all other answers", events)
	}
	for _, code := range append(codes(t), "of_the_app") {
		for _, ex := range []kbroker.Executed{kbroker.ExecutedYes, kbroker.ExecutedNo, kbroker.ExecutedUnknown} {
			for _, crossing := range []bool{false, true} {
				if crossing && (code != kbroker.Deadlock || ex == kbroker.ExecutedUnknown) {
					continue // there is none
				}
				a := answer{code, ex, crossing}
				rest := want[a]
				if delete(want, a); rest == nil {
					rest = other
				}
				for n, of := range columns {
					w, ok := said[rest[n]]
					if got := judged(of, code, ex, crossing); got != w || !ok {
						t.Errorf("%s, executed %s (crossing: %t), column %d: %d is done, the docs say %q", code, ex, crossing, n, got, rest[n])
					}
				}
			}
		}
	}
	for a := range want {
		t.Errorf("the docs have a row of %+v, which no code is", a)
	}
}

func TestEveryCodeIsInTheDocs(t *testing.T) {
	all := tables(t, "../docs/errors.md")
	if len(all) != 2 {
		t.Fatalf("docs/errors.md has %d tables", len(all))
	}
	known := codes(t)
	found := map[kbroker.Code]bool{}
	for _, cells := range all[1] {
		if len(cells) != 4 || cells[2] == "" || cells[3] == "" {
			t.Errorf("the row %q is not complete", cells)
		}
		for ex := range strings.SplitSeq(cells[1], ", ") {
			if !slices.Contains([]string{"yes", "no", "unknown"}, ex) {
				t.Errorf("%s: executed %q", cells[0], ex)
			}
		}
		code := kbroker.Code(strings.Trim(cells[0], "`"))
		if found[code] = true; cells[0] != "any other" && !slices.Contains(known, code) {
			t.Errorf("there is no code %s", code)
		}
	}
	for _, code := range known {
		if !found[code] {
			t.Errorf("docs/errors.md says nothing of %s", code)
		}
	}
}
