package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"golang.org/x/term"

	"github.com/kbroker/kbroker"
)

// outputFormat is the value of --output.
type outputFormat string

const (
	formatTable outputFormat = ""
	formatJSON  outputFormat = "json"
	formatYAML  outputFormat = "yaml"
)

var outputFormats = []string{"table", "json", "yaml"}

func (f *outputFormat) String() string {
	if *f == formatTable {
		return "table"
	}
	return string(*f)
}

func (f *outputFormat) Type() string { return "format" }

func (f *outputFormat) Set(s string) error {
	if !slices.Contains(outputFormats, s) {
		return fmt.Errorf("must be one of %s", strings.Join(outputFormats, ", "))
	}
	*f = outputFormat(s)
	if s == "table" {
		*f = formatTable
	}
	return nil
}

// timeoutFlag is the value of --timeout: a duration above zero.
type timeoutFlag time.Duration

func (t *timeoutFlag) String() string {
	if *t == 0 {
		return ""
	}
	return time.Duration(*t).String()
}

func (t *timeoutFlag) Type() string { return "duration" }

func (t *timeoutFlag) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return fmt.Errorf("must be a duration above zero, such as 30s or 2m")
	}
	*t = timeoutFlag(d)
	return nil
}

// print writes a result: v as JSON or YAML, or what human writes.
func (c *cli) print(v any, human func(w io.Writer)) error {
	if c.output == formatTable {
		human(c.out)
		return nil
	}
	var doc bytes.Buffer
	if err := encodeJSON(&doc, v, "  "); err != nil {
		return fmt.Errorf("print result: %w", err)
	}
	b := doc.Bytes()
	if c.output == formatYAML {
		var err error
		if b, err = yaml.JSONToYAML(b); err != nil {
			return fmt.Errorf("print result: %w", err)
		}
	}
	_, err := fmt.Fprintln(c.out, strings.TrimRight(string(b), "\n"))
	return err
}

// row prints one row of a list that comes row by row, where it is not a table: a JSON
// object in a line, or an item of YAML. false: it is, and the caller prints it.
func (c *cli) row(v any) (done bool, err error) {
	var doc bytes.Buffer
	switch c.output {
	case formatJSON:
		return true, encodeJSON(c.out, v, "")
	case formatYAML:
		b, err := []byte(nil), encodeJSON(&doc, []any{v}, "")
		if err == nil {
			b, err = yaml.JSONToYAML(doc.Bytes())
		}
		if err == nil {
			_, err = c.out.Write(b)
		}
		return true, err
	}
	return false, nil
}

// encodeJSON writes v on a line of its own, with < and > as they are: it is
// for terminals and programs, not for web pages.
func encodeJSON(w io.Writer, v any, indent string) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", indent)
	return e.Encode(v)
}

// say tells a person how the work goes; programs read results only.
func (c *cli) say(format string, args ...any) {
	if c.output == formatTable {
		fmt.Fprintf(c.err, format+"\n", args...)
	}
}

// Terminal colours.
const (
	colorRed    = "31"
	colorGreen  = "32"
	colorYellow = "33"
)

// lineColors tell instances apart in merged output.
var lineColors = []string{"36", "35", "34", "32", "33", "96", "95", "94"}

// paint returns what colours text that goes to w: nothing, unless w is a
// terminal and NO_COLOR is not set.
func (c *cli) paint(w io.Writer, color string) func(string) string {
	if color == "" || !isTerminal(w) || os.Getenv("NO_COLOR") != "" {
		return func(s string) string { return s }
	}
	return func(s string) string { return "\x1b[" + color + "m" + s + "\x1b[0m" }
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// stateColor is the colour of a state of a host, an instance or a rollout.
func stateColor(state string) string {
	switch state {
	case string(kbroker.StateReady), string(kbroker.RolloutDone):
		return colorGreen
	case string(kbroker.StateBackoff), string(kbroker.StateUnmanaged), string(kbroker.StateUnknown), string(kbroker.HostLost), string(kbroker.RolloutFailed):
		return colorRed
	case string(kbroker.StateExited):
		return ""
	}
	return colorYellow
}

// table is rows of text under a header, in columns as wide as they need.
// Columns with nothing in them are left out.
type table struct {
	header []string
	rows   [][]string
	states int // the column that is coloured by state, from 1; 0: none
}

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = oneLine(cells[i])
	}
	t.rows = append(t.rows, cells)
}

// oneLine is text that others wrote, made safe for one line of a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

func (t *table) write(c *cli, w io.Writer) {
	width := make([]int, len(t.header))
	for _, row := range t.rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for i, h := range t.header {
		if width[i] > 0 || len(t.rows) == 0 {
			width[i] = max(width[i], utf8.RuneCountInString(h))
		}
	}
	for r, row := range append([][]string{t.header}, t.rows...) {
		var line strings.Builder
		for i, cell := range row {
			if width[i] == 0 {
				continue
			}
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)+2)
			if r > 0 && i == t.states-1 {
				cell = c.paint(w, stateColor(cell))(cell)
			}
			line.WriteString(cell + pad)
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// orDash prints what may be missing.
func orDash[T any](v *T) string {
	if v == nil {
		return "-"
	}
	return fmt.Sprint(*v)
}

// since is a short form of how long ago t was.
func since(t *time.Time, now time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	d := max(0, now.Sub(*t))
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// bytesText is a size in the unit that suits it.
func bytesText(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%dGiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%dMiB", n>>20)
	case n >= 10<<10:
		return fmt.Sprintf("%dKiB", n>>10)
	}
	return fmt.Sprintf("%dB", n)
}
