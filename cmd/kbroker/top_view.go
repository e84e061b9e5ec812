package main

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/kbroker/kbroker"
)

// Attributes of a terminal, beside colours.
const (
	boldText    = "1"
	invertColor = "7"
)

func (m topModel) View() tea.View { return tea.View{Content: m.screen(), AltScreen: true} }

// screen is all that is shown.
func (m topModel) screen() string {
	lines := []string{m.cut(m.title(), boldText), m.cut(m.trouble(), colorRed)}
	hosts := m.hostTable()
	if m.hostsOnly {
		lines = append(lines, hosts.lines(m, m.offset, m.page())...)
	} else {
		shown := m.hostLines()
		if left := len(hosts.rows) - shown; left > 0 {
			shown--
			hosts.rows = append(hosts.rows[:shown:shown], []string{fmt.Sprintf("and %d more: h", left+1)})
		}
		lines = append(lines, hosts.lines(m, 0, m.hostLines())...)
		lines = append(lines, "")
		lines = append(lines, m.instanceTable().lines(m, m.offset, m.page())...)
	}
	last := max(1, m.height-1)
	for len(lines) < last {
		lines = append(lines, "")
	}
	return strings.Join(append(lines[:last], m.cut(m.help(), invertColor)), "\n")
}

func (m topModel) title() string {
	up, ready := 0, 0
	for _, h := range m.seen.Hosts {
		if h.State == kbroker.HostReady || h.State == kbroker.HostDraining {
			up++
		}
	}
	for _, i := range m.seen.Instances {
		if i.State == kbroker.StateReady {
			ready++
		}
	}
	return fmt.Sprintf("kbroker top  %s  core %s  hosts %d of %d up  instances %d of %d ready", m.now.Format(time.TimeOnly),
		textOr(string(m.seen.Core), "-"), up, len(m.seen.Hosts), ready, len(m.seen.Instances))
}

func textOr(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// trouble says since when no core has answered, and why.
func (m topModel) trouble() string {
	switch {
	case m.err != nil:
		return fmt.Sprintf("not connected since %s: %s", m.since.Format(time.TimeOnly), oneLine(m.err.Error()))
	case m.at.IsZero():
		return "connecting"
	}
	return ""
}

func (m topModel) help() string {
	if m.typing {
		return "filter: " + m.filter + "_   enter: keep  esc: all"
	}
	from, to, all := min(m.offset+1, m.scrollable()), min(m.offset+m.page(), m.scrollable()), m.scrollable()
	text := fmt.Sprintf("q quit  sort: c m r n (%s)  h hosts  / filter  %d-%d of %d", m.sort, from, to, all)
	if m.filter != "" {
		text += " with " + m.filter
	}
	return text
}

// topTable is a table of which a part is shown, as wide as the screen.
type topTable struct {
	header []string
	left   int // so many columns, and the last one, are text, which begins at the left
	state  int // the column of states
	rows   [][]string
}

func (m topModel) hostTable() topTable {
	t := topTable{header: []string{"HOST", "ROLE", "STATE", "CPU", "MEM", "LOAD", "INST", "AGENT", ""}, left: 3, state: 2}
	for _, r := range m.hosts() {
		f := hostFigures(r)
		agent := "-"
		if f.AgentBytes != nil {
			agent = coresText(f.AgentCPUCores) + " " + bytesText(*f.AgentBytes)
		}
		super := ""
		if r.Super {
			super = "super"
		}
		t.rows = append(t.rows, []string{
			string(r.Name), string(r.Role), string(r.State), fmt.Sprintf("%s/%.4g", coresText(f.CPUCores), r.Capacity.CPU),
			bytesOrDash(f.MemoryBytes) + "/" + bytesText(r.Capacity.MemoryBytes), coresText(f.Load), fmt.Sprint(r.Instances), agent, super,
		})
	}
	return t
}

func (m topModel) instanceTable() topTable {
	t := topTable{header: []string{"INSTANCE", "HOST", "STATE", "CPU", "MEM", "REQ/S", "ERR/S", "FDS", "PIDS", "RST", "HEALTH"}, left: 3, state: 2}
	for _, r := range m.instances() {
		f := figuresOf(r)
		health := healthText(f)
		if text := remark(r); text != "" {
			health = strings.TrimPrefix(health+"; "+text, "-; ")
		}
		t.rows = append(t.rows, []string{
			shownName(r), orDash(r.Host), string(r.State), coresText(f.CPUCores), memoryText(f), rateText(f.RequestsPerS), rateText(f.ErrorsPerS),
			orDash(f.OpenFiles), orDash(f.PIDs), fmt.Sprint(r.Restarts), oneLine(health),
		})
	}
	return t
}

// lines are the header and the rows from one on, a number of lines at most. Columns are
// as wide as all rows need, so that scrolling moves none.
func (t topTable) lines(m topModel, from, most int) []string {
	width := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		if len(row) < len(width) {
			continue // a remark
		}
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	out := []string{m.painted(t.fit(t.cells(t.header, width), m.width, nil), boldText)}
	for i := from; i < min(from+most, len(t.rows)); i++ {
		out = append(out, t.fit(t.cells(t.rows[i], width), m.width, m.painted))
	}
	return out
}

// cells are those of a row, each as wide as its column.
func (t topTable) cells(row []string, width []int) []string {
	out := make([]string, len(row))
	for i, cell := range row {
		pad := strings.Repeat(" ", max(0, width[i]-utf8.RuneCountInString(cell)))
		if i < t.left || i == len(t.header)-1 {
			out[i] = cell + pad
		} else {
			out[i] = pad + cell
		}
	}
	return out
}

// fit is a row, as much of it as there is room for: a number whole or not at all, which
// would be another one. paint, if any, colours its state.
func (t topTable) fit(cells []string, left int, paint func(text, color string) string) string {
	var out strings.Builder
	for i, cell := range cells {
		if i > 0 {
			cell = "  " + cell
		}
		text, number := firstRunes(cell, left), i >= t.left && i < len(t.header)-1
		if number && text != cell {
			break
		}
		left -= utf8.RuneCountInString(text)
		if i == t.state && paint != nil {
			text = paint(text, stateColor(strings.TrimSpace(cell)))
		}
		out.WriteString(text)
	}
	return strings.TrimRight(out.String(), " ")
}

// cut is a line that is no longer than the screen is wide.
func (m topModel) cut(line, color string) string { return m.painted(firstRunes(line, m.width), color) }

func (m topModel) painted(text, color string) string {
	if !m.color || color == "" || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func firstRunes(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:max(0, n)])
}
