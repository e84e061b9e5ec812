package spec

import (
	"fmt"
	"strings"

	"github.com/kbroker/kbroker"
)

// Error is one finding. Line and Column count from 1, the column in
// characters; Line is 0 where no file is involved (Validate).
type Error struct {
	File         string
	Line, Column int
	Message      string
	Hint         string // what to do about it; may be empty
	Excerpt      string // the line and a mark under the column; may be empty
}

// Error is "file:line:column: message", then the excerpt and the hint on lines
// of their own.
func (e Error) Error() string {
	var b strings.Builder
	if e.Line > 0 {
		fmt.Fprintf(&b, "%s:%d:%d: ", e.File, e.Line, e.Column)
	}
	b.WriteString(e.Message)
	if e.Excerpt != "" {
		b.WriteString("\n" + e.Excerpt)
	}
	if e.Hint != "" {
		b.WriteString("\n  hint: " + e.Hint)
	}
	return b.String()
}

// Unwrap makes errors.Is(err, kbroker.Invalid) true.
func (e Error) Unwrap() error { return kbroker.Invalid }

// WithHint returns a copy of e that carries the hint.
func (e Error) WithHint(format string, args ...any) Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Errors are all findings of one spec, at least one.
type Errors []Error

// Error is the findings one after the other.
func (e Errors) Error() string {
	all := make([]string, len(e))
	for i := range e {
		all[i] = e[i].Error()
	}
	return strings.Join(all, "\n")
}

// Unwrap makes errors.Is(err, kbroker.Invalid) true.
func (e Errors) Unwrap() error { return kbroker.Invalid }

// excerptColumns bounds what an excerpt shows of a long line.
const excerptColumns = 100

// excerpt shows the line before p, p's line and a mark under p's column.
func excerpt(lines []string, p position) string {
	if p.line < 1 || p.line > len(lines) {
		return ""
	}
	var b strings.Builder
	from := max(0, p.column-1-excerptColumns*3/4)
	if p.line > 1 {
		fmt.Fprintf(&b, "  %4d | %s\n", p.line-1, window(lines[p.line-2], from))
	}
	fmt.Fprintf(&b, "> %4d | %s\n", p.line, window(lines[p.line-1], from))
	fmt.Fprintf(&b, "       | %s^", strings.Repeat(" ", max(0, p.column-1-from)))
	return b.String()
}

// window is excerptColumns characters of the line, each one column wide.
func window(line string, from int) string {
	runes := []rune(line)
	runes = runes[min(from, len(runes)):]
	runes = runes[:min(excerptColumns, len(runes))]
	for i, r := range runes {
		if r < ' ' || r == 0x7f {
			runes[i] = ' '
		}
	}
	return strings.TrimRight(string(runes), " ")
}
