package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/creack/pty"
	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// topNow is when the fake core has answered.
var topNow = time.Date(2026, 1, 2, 12, 34, 56, 0, time.UTC)

func topOf(width, height int, msgs ...tea.Msg) topModel {
	m := tea.Model(newTopModel(topNow, false, nil))
	all := append([]tea.Msg{tea.WindowSizeMsg{Width: width, Height: height}, topAnswer{reply: fakeFigures(), at: topNow}}, msgs...)
	for _, msg := range all {
		m, _ = m.Update(msg)
	}
	return m.(topModel)
}

// keys are what a person types.
func keys(names ...string) (all []tea.Msg) {
	special := map[string]tea.KeyPressMsg{
		"down": {Code: tea.KeyDown}, "up": {Code: tea.KeyUp}, "pgdown": {Code: tea.KeyPgDown}, "end": {Code: tea.KeyEnd}, "home": {Code: tea.KeyHome},
		"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "backspace": {Code: tea.KeyBackspace}, "ctrl+c": {Code: 'c', Mod: tea.ModCtrl},
	}
	for _, name := range names {
		if k, ok := special[name]; ok {
			all = append(all, k)
		} else {
			all = append(all, tea.KeyPressMsg{Text: name, Code: []rune(name)[0]})
		}
	}
	return all
}

func TestTopLooksLikeThis(t *testing.T) {
	lost := topAnswer{err: errors.New("no core answered"), at: topNow.Add(12 * time.Second)}
	for name, m := range map[string]topModel{
		"top-80x24":         topOf(80, 24),
		"top-120x40":        topOf(120, 40),
		"top-hosts-80x24":   topOf(80, 24, keys("h")...),
		"top-scrolled":      topOf(80, 24, keys("m", "end")...),
		"top-filter":        topOf(120, 24, keys("/", "w", "e", "b", "-", "2")...),
		"top-not-connected": topOf(120, 40, lost, topTick(topNow.Add(13*time.Second))),
	} {
		golden(t, filepath.Join("testdata", "golden", name+".txt"), []byte(m.screen()+"\n"))
	}
}

// shownIn are the instances that are shown, in that order.
func shownIn(m topModel) (names []string) {
	for _, line := range strings.Split(m.screen(), "\n") {
		if name, _, _ := strings.Cut(line, " "); strings.HasPrefix(name, "shop-web-") {
			names = append(names, strings.TrimPrefix(name, "shop-web-"))
		}
	}
	return names
}

func TestTopSortsScrollsAndFilters(t *testing.T) {
	for name, c := range map[string]struct {
		keys []string
		want string // the first instances
	}{
		"by cpu at first":                       {nil, "5 30 29 28 26"},
		"by memory":                             {[]string{"m"}, "1 2 3 4 6"},
		"by requests, then by name":             {[]string{"r"}, "7 14 21 28 6"},
		"by name":                               {[]string{"n"}, "1 2 3 4 5"},
		"a line down":                           {[]string{"n", "down"}, "2 3 4 5 6"},
		"never above the first":                 {[]string{"n", "down", "up", "up"}, "1 2 3 4 5"},
		"never below the last":                  {[]string{"n", "end", "down", "up"}, "19 20 21 22 23"},
		"what is typed is no command":           {[]string{"n", "/", "q", "esc"}, "1 2 3 4 5"},
		"a filter by name":                      {[]string{"n", "/", "-", "2", "enter"}, "2 20 21 22 23"},
		"a filter is changed":                   {[]string{"n", "/", "-", "2", "9", "backspace", "enter"}, "2 20 21 22 23"},
		"a filter by host, then sort":           {[]string{"/", "h", "2", "enter", "c"}, "29 20 11 2"},
		"what nobody knows is last":             {[]string{"/", "8", "enter"}, "28 26 17 8 18"},
		"hosts only, and back to the instances": {[]string{"h", "h", "n"}, "1 2 3 4 5"},
	} {
		t.Run(name, func(t *testing.T) {
			got := shownIn(topOf(80, 24, keys(c.keys...)...))
			if text := strings.Join(got[:min(len(got), 5)], " "); text != c.want {
				t.Errorf("shown first: %s, want %s", text, c.want)
			}
		})
	}
}

func TestTopQuits(t *testing.T) {
	for _, typed := range [][]string{{"q"}, {"ctrl+c"}, {"/", "ctrl+c"}} {
		m, cmd := tea.Model(topOf(80, 24)), tea.Cmd(nil)
		for _, msg := range keys(typed...) {
			m, cmd = m.Update(msg)
		}
		if cmd == nil || cmd() != tea.Quit() {
			t.Errorf("%q does not quit", typed)
		}
	}
}

// A core that is lost and back again.
func TestTopSaysThatItIsNotConnected(t *testing.T) {
	failed := errors.New("no core answered")
	m := tea.Model(topOf(120, 40))
	see := func(msg tea.Msg, want, not string) {
		t.Helper()
		m, _ = m.Update(msg)
		if v := m.(topModel).screen(); !strings.Contains(v, want) || not != "" && strings.Contains(v, not) {
			t.Errorf("after %v: want %q and not %q in:\n%s", msg, want, not, v)
		}
	}
	at := func(s int) time.Time { return topNow.Add(time.Duration(s) * time.Second) }
	see(topAnswer{err: failed, at: at(3)}, "not connected since 12:34:56: no core answered", "connecting")
	see(topAnswer{err: failed, at: at(6)}, "not connected since 12:34:56", "")
	if v := m.(topModel).screen(); !strings.Contains(v, "1.50") {
		t.Errorf("figures of 6 s ago are shown no more:\n%s", v)
	}
	see(topTick(at(10)), "not connected since 12:34:56", "1.50") // old now
	see(topAnswer{reply: fakeFigures(), at: at(11)}, "1.50", "not connected")
	fresh := newTopModel(topNow, false, nil)
	if v := fresh.screen(); !strings.Contains(v, "connecting") {
		t.Errorf("before the first answer:\n%s", v)
	}
}

// One question at a time, and one tick: however slow the core is.
func TestTopAsksOneQuestionAtATime(t *testing.T) {
	asked := 0
	m := tea.Model(newTopModel(topNow, false, func() (kbroker.FiguresReply, error) { asked++; return kbroker.FiguresReply{}, nil }))
	if m, _ = m.Update(topTick(topNow)); !m.(topModel).asking {
		t.Fatal("the first question is not under way")
	}
	m, _ = m.Update(topAnswer{at: topNow})
	if m.(topModel).asking {
		t.Error("an answered question is still under way")
	}
	m, cmd := m.Update(topTick(topNow.Add(time.Second)))
	if !m.(topModel).asking || cmd == nil {
		t.Error("a tick does not ask")
	}
	if _, ok := m.(topModel).question()().(topAnswer); !ok || asked != 1 {
		t.Errorf("a question was asked %d times", asked)
	}
}

// Whatever the size and whatever is pressed, a screen is no larger than the terminal.
func TestTopFitsIntoTheTerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		width, height := rapid.IntRange(1, 200).Draw(t, "width"), rapid.IntRange(2, 60).Draw(t, "height")
		typed := rapid.SliceOf(rapid.SampledFrom([]string{"c", "m", "r", "n", "h", "/", "up", "down", "pgdown", "end", "home", "enter", "esc", "backspace", "ü"})).Draw(t, "keys")
		m := topOf(width, height, keys(typed...)...)
		lines := strings.Split(m.screen(), "\n")
		if len(lines) > height {
			t.Fatalf("%d lines on a terminal of %d", len(lines), height)
		}
		for _, l := range lines {
			if n := utf8.RuneCountInString(l); n > width || strings.ContainsAny(l, "\x1b\t\r") {
				t.Fatalf("a line of %d columns on a terminal of %d: %q", n, width, l)
			}
		}
	})
}

// terminal runs a command on a terminal of its own.
type terminal struct {
	t    *testing.T
	cmd  *exec.Cmd
	file *os.File

	mu   sync.Mutex
	seen strings.Builder
}

func onTerminal(t *testing.T, url string, args ...string) *terminal {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "kbroker")
	if err := os.Symlink(exe, program); err != nil {
		t.Fatal(err)
	}
	x := &terminal{t: t, cmd: exec.Command(program, args...)}
	x.cmd.Env = []string{"TERM=xterm-256color", "PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "NATS_URL=" + url}
	if x.file, err = pty.StartWithSize(x.cmd, &pty.Winsize{Cols: 80, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for b := make([]byte, 4096); ; {
			n, err := x.file.Read(b)
			x.mu.Lock()
			x.seen.Write(b[:n])
			x.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = x.cmd.Process.Kill(); x.file.Close(); <-read })
	return x
}

func (x *terminal) text() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.seen.String()
}

func (x *terminal) await(want string) {
	x.t.Helper()
	wait.Until(x.t, 10*time.Second, func() error {
		if got := x.text(); !strings.Contains(got, want) {
			return fmt.Errorf("no %q on the terminal: %q", want, got)
		}
		return nil
	})
}

// ends waits for the end of the program: exit code 0, and the terminal as it was.
func (x *terminal) ends() {
	x.t.Helper()
	if err := x.cmd.Wait(); err != nil {
		x.t.Errorf("top ended with %v", err)
	}
	// The last of each that was sent leaves the other screen and shows the cursor.
	wait.Until(x.t, 5*time.Second, func() error {
		got := x.text()
		if strings.LastIndex(got, "\x1b[?1049l") < strings.LastIndex(got, "\x1b[?1049h") || strings.LastIndex(got, "\x1b[?25h") < strings.LastIndex(got, "\x1b[?25l") {
			return fmt.Errorf("the terminal is left in another state: %q", got[max(0, len(got)-200):])
		}
		return nil
	})
}

func TestTopOnATerminal(t *testing.T) {
	f := newFakeCore(t)
	for name, leave := range map[string]func(x *terminal) error{
		"q":       func(x *terminal) error { _, err := x.file.WriteString("q"); return err },
		"ctrl+c":  func(x *terminal) error { _, err := x.file.WriteString("\x03"); return err },
		"SIGTERM": func(x *terminal) error { return x.cmd.Process.Signal(syscall.SIGTERM) },
		"SIGINT":  func(x *terminal) error { return x.cmd.Process.Signal(syscall.SIGINT) },
	} {
		t.Run(name, func(t *testing.T) {
			x := onTerminal(t, f.url, "top")
			x.await("shop-web-30")
			x.await("1-12 of 31") // of its line only what has changed may be written
			if err := pty.Setsize(x.file, &pty.Winsize{Cols: 120, Rows: 40}); err != nil {
				t.Fatal(err)
			}
			x.await("1-25 of 31")
			if _, err := x.file.WriteString("n"); err != nil {
				t.Fatal(err)
			}
			x.await("name)")
			if err := leave(x); err != nil {
				t.Fatal(err)
			}
			x.ends()
		})
	}
}
