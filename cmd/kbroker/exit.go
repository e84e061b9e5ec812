package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/spec"
)

// Exit codes. They are part of the command line's contract.
const (
	exitDone        = 0
	exitFailed      = 1 // it ran and failed
	exitUsage       = 2 // bad usage or input
	exitUnreachable = 3 // cluster unreachable or without a leader
	exitRefused     = 4
	exitNotFound    = 5
	exitDeadline    = 6
)

// exitCode is what the process ends with after err.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	e := kbroker.AsError(err)
	if e.Executed == kbroker.ExecutedUnknown && errors.Is(err, context.DeadlineExceeded) {
		return exitDeadline // a call that somebody took and nobody answered
	}
	switch e.Code {
	case kbroker.Invalid:
		return exitUsage
	case kbroker.Unavailable, kbroker.NoLeader:
		return exitUnreachable
	case kbroker.Refused, kbroker.Conflict:
		return exitRefused
	case kbroker.NotFound:
		return exitNotFound
	case kbroker.DeadlineExceeded:
		return exitDeadline
	}
	return exitFailed
}

// printedError is how an error looks with -o json. Findings are those of a
// spec, one by one.
type printedError struct {
	Code     kbroker.Code     `json:"code"`
	Message  string           `json:"message"`
	Hint     string           `json:"hint"`
	Executed kbroker.Executed `json:"executed,omitempty"`
	Findings []finding        `json:"findings,omitempty"`
	Output   []string         `json:"output,omitempty"` // last lines of whoever failed
}

type finding struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
	Excerpt string `json:"excerpt,omitempty"`
}

// printError writes err for people, or as JSON for programs.
func (c *cli) printError(err error) {
	e := describe(err)
	if c.output != formatTable {
		if err := encodeJSON(c.err, e, ""); err != nil {
			panic(err) // strings and numbers
		}
		return
	}
	if o, ok := errors.AsType[*outputError](err); ok {
		o.show(c.err)
	}
	red := c.paint(c.err, colorRed)
	if len(e.Findings) == 0 {
		fmt.Fprintf(c.err, "%s %s\n", red("error:"), e.Message)
	}
	for _, f := range e.Findings {
		where := ""
		if f.Line > 0 {
			where = fmt.Sprintf("%s:%d:%d: ", f.File, f.Line, f.Column)
		}
		fmt.Fprintf(c.err, "%s%s %s\n", where, red("error:"), f.Message)
		if f.Excerpt != "" {
			fmt.Fprintln(c.err, f.Excerpt)
		}
		if f.Hint != "" {
			fmt.Fprintf(c.err, "  hint: %s\n", f.Hint)
		}
	}
	if e.Executed != "" && e.Executed != kbroker.ExecutedYes {
		fmt.Fprintf(c.err, "  executed: %s\n", e.Executed)
	}
	if e.Hint != "" && len(e.Findings) == 0 {
		fmt.Fprintf(c.err, "  hint: %s\n", e.Hint)
	}
}

// describe finds what there is to say about an error. What was added around
// an error on its way here belongs to the message.
func describe(err error) printedError {
	if _, ok := errors.AsType[*kbroker.Error](err); !ok && errors.Is(err, context.Canceled) {
		return printedError{Code: kbroker.Failed, Message: "interrupted"}
	}
	e := kbroker.AsError(err)
	p := printedError{Code: e.Code, Message: err.Error(), Hint: e.Hint, Executed: e.Executed}
	if o, ok := errors.AsType[*outputError](err); ok {
		p.Output = o.lines
	}
	var all spec.Errors
	if one, ok := errors.AsType[spec.Error](err); ok {
		all = spec.Errors{one}
	} else if !errors.As(err, &all) {
		return p
	}
	var messages []string
	for _, f := range all {
		p.Findings = append(p.Findings, finding{File: f.File, Line: f.Line, Column: f.Column, Message: f.Message, Hint: f.Hint, Excerpt: f.Excerpt})
		messages = append(messages, fmt.Sprintf("%s:%d:%d: %s", f.File, f.Line, f.Column, f.Message))
	}
	p.Message = strings.Join(messages, "\n")
	if len(all) == 1 {
		p.Hint = all[0].Hint
	}
	return p
}

// outputError is an error with the last output of the process that caused it.
type outputError struct {
	error
	title string
	lines []string
}

func (e *outputError) Unwrap() error { return e.error }

func (e *outputError) show(w io.Writer) {
	fmt.Fprintln(w, e.title)
	for _, line := range e.lines {
		fmt.Fprintf(w, "  | %s\n", line)
	}
}
