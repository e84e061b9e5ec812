package main

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/kbroker/kbroker"
)

// topModel is what top shows, and how. Update and View are pure: whoever asks the
// cluster, and the clock, is outside.
type topModel struct {
	ask           func() (kbroker.FiguresReply, error)
	color         bool
	width, height int

	now    time.Time
	asking bool
	seen   kbroker.FiguresReply
	at     time.Time // when it was answered; zero: never
	err    error     // of the last question; nil: it was answered
	since  time.Time // of err: the first one in a row

	sort      topSort
	hostsOnly bool
	filter    string
	typing    bool
	offset    int // the first instance, or host, that is shown
}

// topSort is a key by which instances are sorted.
type topSort string

const (
	topByCPU      topSort = "cpu"
	topByMemory   topSort = "memory"
	topByRequests topSort = "requests"
	topByName     topSort = "name"
)

// maxFilter bounds what is typed.
const maxFilter = 64

type (
	topTick   time.Time
	topAnswer struct {
		reply kbroker.FiguresReply
		err   error
		at    time.Time
	}
)

func newTopModel(now time.Time, color bool, ask func() (kbroker.FiguresReply, error)) topModel {
	return topModel{ask: ask, color: color, now: now, sort: topByCPU, width: 80, height: 24, asking: true}
}

func (m topModel) Init() tea.Cmd { return tea.Batch(m.question(), topNext()) }

func topNext() tea.Cmd {
	return tea.Tick(topEvery, func(t time.Time) tea.Msg { return topTick(t) })
}

func (m topModel) question() tea.Cmd {
	return func() tea.Msg {
		reply, err := m.ask()
		return topAnswer{reply, err, time.Now()}
	}
}

func (m topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case topTick:
		m.now = time.Time(msg)
		if m.asking {
			return m, topNext()
		}
		m.asking = true
		return m, tea.Batch(m.question(), topNext())
	case topAnswer:
		m = m.answered(msg)
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+c" {
			return m, tea.Quit
		}
		if m.typing {
			m = m.typed(msg)
		} else if msg.String() == "q" {
			return m, tea.Quit
		} else {
			m = m.pressed(msg.String())
		}
	}
	m.offset = max(0, min(m.offset, m.scrollable()-m.page()))
	return m, nil
}

func (m topModel) answered(a topAnswer) topModel {
	m.asking, m.now = false, a.at
	switch {
	case a.err == nil:
		m.seen, m.at, m.err = a.reply, a.at, nil
	case m.err == nil:
		m.err, m.since = a.err, a.at
		if !m.at.IsZero() {
			m.since = m.at
		}
	default:
		m.err = a.err
	}
	return m
}

func (m topModel) pressed(key string) topModel {
	switch key {
	case "c":
		m.sort = topByCPU
	case "m":
		m.sort = topByMemory
	case "r":
		m.sort = topByRequests
	case "n":
		m.sort = topByName
	case "h":
		m.hostsOnly, m.offset = !m.hostsOnly, 0
	case "/":
		m.typing = true
	case "esc":
		m.filter = ""
	case "up", "k":
		m.offset--
	case "down", "j":
		m.offset++
	case "pgup":
		m.offset -= m.page()
	case "pgdown", "space":
		m.offset += m.page()
	case "home", "g":
		m.offset = 0
	case "end", "G":
		m.offset = m.scrollable()
	}
	return m
}

// typed changes the filter.
func (m topModel) typed(key tea.KeyPressMsg) topModel {
	switch text := m.filter + key.Text; {
	case key.Code == tea.KeyEnter:
		m.typing = false
	case key.Code == tea.KeyEscape:
		m.typing, m.filter = false, ""
	case key.Code == tea.KeyBackspace:
		_, last := utf8.DecodeLastRuneInString(m.filter)
		m.filter = m.filter[:len(m.filter)-last]
	case len(text) <= maxFilter:
		m.filter = oneLine(text)
	}
	m.offset = 0
	return m
}

// hosts and instances are those that the filter lets through, as they are shown.
func (m topModel) hosts() []kbroker.HostRow {
	rows := slices.Clone(m.seen.Hosts)
	for i := range rows {
		if f := rows[i].Figures; f != nil && m.old(f.AgeS) {
			rows[i].Figures = nil
		}
	}
	if !m.hostsOnly {
		return rows // an instance is looked for
	}
	return slices.DeleteFunc(rows, func(r kbroker.HostRow) bool { return !strings.Contains(string(r.Name), m.filter) })
}

func (m topModel) instances() []kbroker.InstanceRow {
	rows := slices.DeleteFunc(slices.Clone(m.seen.Instances), func(r kbroker.InstanceRow) bool {
		return !strings.Contains(shownName(r)+" "+orDash(r.Host)+" "+string(r.State), m.filter)
	})
	for i := range rows {
		if f := rows[i].Figures; f != nil && m.old(f.AgeS) {
			rows[i].Figures = nil
		}
	}
	// In the order that they came in, by name, where nothing else tells them apart.
	slices.SortStableFunc(rows, func(a, b kbroker.InstanceRow) int { return cmp.Compare(m.weight(b), m.weight(a)) })
	return rows
}

// old reports whether figures that were so old when they came are no news any more.
func (m topModel) old(ageS float64) bool {
	return m.now.Sub(m.at)+time.Duration(ageS*float64(time.Second)) >= kbroker.FiguresFor
}

// weight is by what an instance is sorted; what nobody knows is below all.
func (m topModel) weight(r kbroker.InstanceRow) float64 {
	f, v := figuresOf(r), (*float64)(nil)
	switch m.sort {
	case topByCPU:
		v = f.CPUCores
	case topByRequests:
		v = f.RequestsPerS
	case topByMemory:
		if f.MemoryBytes != nil {
			return float64(*f.MemoryBytes)
		}
	}
	if v == nil {
		return -1
	}
	return *v
}

// scrollable is how many lines there are to scroll, page how many of them fit.
func (m topModel) scrollable() int {
	if m.hostsOnly {
		return len(m.hosts())
	}
	return len(m.instances())
}

// Lines beside those of hosts and instances: two above, two headers with a blank line
// between, one below.
func (m topModel) page() int {
	if m.hostsOnly {
		return max(1, m.height-4)
	}
	return max(1, m.height-6-m.hostLines())
}

// hostLines is how many lines the hosts have above the instances: no more than a
// quarter of the screen.
func (m topModel) hostLines() int { return min(len(m.seen.Hosts), max(3, m.height/4)) }
