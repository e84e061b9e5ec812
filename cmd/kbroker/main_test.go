package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

func TestEveryCommandHasAnExampleAndACompletion(t *testing.T) {
	c := &cli{}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Example == "" || !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s: the example is %q, want one that shows the command", cmd.CommandPath(), cmd.Example)
		}
		if cmd.Short == "" {
			t.Errorf("%s has no description", cmd.CommandPath())
		}
		if !cmd.HasSubCommands() && cmd.ValidArgsFunction == nil {
			t.Errorf("%s completes nothing, not even that there is nothing", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	root := c.root()
	root.Example += "\n  kbroker"
	walk(root)
}

func TestExitCodes(t *testing.T) {
	unanswered := kbroker.Errorf(kbroker.Unavailable, "no answer")
	unanswered.Executed = kbroker.ExecutedUnknown
	for _, tc := range []struct {
		name string
		err  error
		want int
	}{
		{"nothing failed", nil, exitDone},
		{"it ran and failed", kbroker.Errorf(kbroker.Failed, "x"), exitFailed},
		{"a code of an application", kbroker.Errorf("out_of_stock", "x"), exitFailed},
		{"an error of the system", errors.New("disk full"), exitFailed},
		{"an interrupt", context.Canceled, exitFailed},
		{"bad input", fmt.Errorf("upload: %w", kbroker.Errorf(kbroker.Invalid, "x")), exitUsage},
		{"a bad spec", spec.Errors{{Message: "x"}}, exitUsage},
		{"a finding", spec.Error{Message: "x"}, exitUsage},
		{"nobody there", kbroker.Errorf(kbroker.Unavailable, "x"), exitUnreachable},
		{"no leader", kbroker.Errorf(kbroker.NoLeader, "x"), exitUnreachable},
		{"refused", kbroker.Errorf(kbroker.Refused, "x"), exitRefused},
		{"overtaken", kbroker.Errorf(kbroker.Conflict, "x"), exitRefused},
		{"not there", kbroker.Errorf(kbroker.NotFound, "x"), exitNotFound},
		{"too late", kbroker.Errorf(kbroker.DeadlineExceeded, "x"), exitDeadline},
		{"a call that nobody answered in time", fmt.Errorf("%w: %w", unanswered, context.DeadlineExceeded), exitDeadline},
		{"a call that nobody took in time", fmt.Errorf("%w: %w", kbroker.Errorf(kbroker.Unavailable, "x"), context.DeadlineExceeded), exitUnreachable},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%s: exit code %d, want %d", tc.name, got, tc.want)
		}
	}
}

func TestATableLeavesEmptyColumnsOutAndKeepsItsWidths(t *testing.T) {
	c := &cli{}
	tab := table{header: []string{"NAME", "NOTE", "STATE"}, states: 3}
	tab.add("größer", "", "ready")
	tab.add("b", "", "lost")
	var out bytes.Buffer
	tab.write(c, &out)
	if want := "NAME    STATE\ngrößer  ready\nb       lost\n"; out.String() != want {
		t.Fatalf("table is\n%s\nwant\n%s", out.String(), want)
	}
}

func TestSince(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for ago, want := range map[time.Duration]string{
		-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 90 * time.Minute: "1h30m", 50 * time.Hour: "2d",
	} {
		at := now.Add(-ago)
		if got := since(&at, now); got != want {
			t.Errorf("since %v ago is %q, want %q", ago, got, want)
		}
	}
	if got := since(nil, now); got != "-" {
		t.Errorf("since nil is %q, want a dash", got)
	}
}

func TestGreetIsWhatTheExampleDoes(t *testing.T) {
	got, err := greet(greetRequest{Name: "Ann"}, "i")
	if err != nil || got.Text != "Hello, Ann!" {
		t.Fatalf("greet is %+v, %v", got, err)
	}
	if _, err := greet(greetRequest{}, "i"); !errors.Is(err, kbroker.Invalid) {
		t.Fatalf("greet without a name: %v, want code invalid", err)
	}
}

func TestTheDemonstrationIsAValidSpec(t *testing.T) {
	app := helloApp()
	if err := spec.Validate(&app); err != nil {
		t.Fatal(err)
	}
}

func TestTheInstanceToBlameHasCrashedInTheNewVersion(t *testing.T) {
	id := func(s string) *kbroker.InstanceID { i := kbroker.InstanceID(s); return &i }
	rows := []kbroker.InstanceRow{
		{Instance: id("ready"), State: kbroker.StateReady, Version: 2},
		{Instance: id("old"), State: kbroker.StateBackoff, Version: 1},
		{Instance: id("allocator"), Service: kbroker.AllocatorService, State: kbroker.StateBackoff, Version: 2, Exit: &kbroker.Exit{}},
		{Instance: id("slow"), State: kbroker.StateStarting, Version: 2},
		{Instance: id("crashed"), State: kbroker.StateBackoff, Version: 2, Exit: &kbroker.Exit{}},
		{State: kbroker.StatePending, Version: 2},
	}
	got, ok := troubled(rows, 2)
	if !ok || *got.Instance != "crashed" {
		t.Fatalf("blamed %v, want crashed", got.Instance)
	}
	if _, ok := troubled(rows[:1], 2); ok {
		t.Fatal("blamed one that is ready")
	}
}

func TestOnlyTheEndOfABuildsOutputIsKept(t *testing.T) {
	l := lastBytes{limit: 5}
	for _, s := range []string{"abc", "defg", "h"} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatalf("write %q: %d, %v", s, n, err)
		}
	}
	if string(l.kept) != "defgh" {
		t.Fatalf("kept %q, want defgh", l.kept)
	}
}

func TestAnAnswerIsPrintedInTheChosenForm(t *testing.T) {
	for _, tc := range []struct {
		name   string
		output outputFormat
		answer string
		want   string
	}{
		{"JSON as it is", formatTable, `{"a":"<b>"}`, `{"a":"<b>"}` + "\n"},
		{"JSON indented", formatJSON, `{"a":"<b>"}`, "{\n  \"a\": \"<b>\"\n}\n"},
		{"JSON as YAML", formatYAML, `{"a":1}`, "a: 1\n"},
		{"text as it is", formatTable, "one\ntwo", "one\ntwo"},
		{"text as JSON", formatJSON, "one\ntwo", `"one\ntwo"` + "\n"},
		{"bytes as they are", formatTable, "\xff\x00", "\xff\x00"},
		{"bytes as JSON", formatJSON, "\xff\x00", `"/wA="` + "\n"},
		{"nothing as JSON", formatJSON, "", `""` + "\n"},
	} {
		var out bytes.Buffer
		c := &cli{out: &out, output: tc.output}
		if err := c.printAnswer([]byte(tc.answer)); err != nil || out.String() != tc.want {
			t.Errorf("%s: printed %q, %v, want %q", tc.name, out.String(), err, tc.want)
		}
	}
}

func TestATableSaysWhatIsWrongAndNothingElse(t *testing.T) {
	zero, one := 0, 1
	for _, tc := range []struct {
		name string
		row  kbroker.InstanceRow
		want string
	}{
		{"a ready one needs no remark", kbroker.InstanceRow{State: kbroker.StateReady, Message: "exit code 1"}, ""},
		{"one that was killed a moment before does", kbroker.InstanceRow{State: kbroker.StateReady, Message: "killed: hung"}, "killed: hung"},
		{"one that left in order needs none", kbroker.InstanceRow{State: kbroker.StateDraining, Message: "exit code 0: bye", Exit: &kbroker.Exit{Code: &zero}}, ""},
		{"one that crashed while leaving does", kbroker.InstanceRow{State: kbroker.StateDraining, Message: "exit code 1", Exit: &kbroker.Exit{Code: &one}}, "exit code 1"},
		{"a long one is cut", kbroker.InstanceRow{State: kbroker.StateBackoff, Message: strings.Repeat("ä", maxRemark+1)}, strings.Repeat("ä", maxRemark) + "..."},
	} {
		if got := remark(tc.row); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}
