//go:build linux

package netlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/wait"
)

// connected are three members, each with a connection to both others.
func connected(t *testing.T, l *Lab) []*member {
	t.Helper()
	var all []*member
	for _, h := range l.Hosts() {
		all = append(all, join(t, h.Namespace))
	}
	for _, a := range all {
		for _, b := range all {
			if a != b {
				a.want("ok", "dial", b.addr)
				a.want("ok", "echo", b.addr, "10")
			}
		}
	}
	return all
}

// healthy waits until the connection echoes again: TCP sends again when it
// likes.
func healthy(t *testing.T, a, b *member) {
	t.Helper()
	if err := within(20*time.Second, func() error {
		a.ask("dial", b.addr)
		if got := a.ask("echo", b.addr, "10"); got != "ok" {
			return fmt.Errorf("echo from %s to %s: %s", a.addr, b.addr, got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestACutIsSilentAndHeals(t *testing.T) {
	l := New(t, 3)
	m := connected(t, l)
	l.Host(2).Cut()
	for _, from := range []int{0, 2} {
		m[from].want("timeout", "echo", m[1].addr, "10")
		m[1].want("timeout", "echo", m[from].addr, "10")
	}
	m[0].want("ok", "echo", m[2].addr, "10")
	l.Host(2).Heal()
	healthy(t, m[0], m[1])
	healthy(t, m[1], m[2])
}

func TestAPairIsCutAloneAndHeals(t *testing.T) {
	l := New(t, 3)
	m := connected(t, l)
	l.CutPair(l.Host(1), l.Host(2))
	m[0].want("timeout", "echo", m[1].addr, "10")
	m[1].want("timeout", "echo", m[0].addr, "10")
	m[0].want("ok", "echo", m[2].addr, "10")
	m[2].want("ok", "echo", m[1].addr, "10")
	l.Heal()
	healthy(t, m[0], m[1])
}

func TestAOneWayCutIsOneWay(t *testing.T) {
	l := New(t, 3)
	m := connected(t, l)
	l.CutOneWay(l.Host(1), l.Host(2))
	if got := m[0].arrived(m[1], 200); got != 0 {
		t.Errorf("%d of 200 datagrams came through the cut", got)
	}
	if got := m[1].arrived(m[0], 200); got != 200 {
		t.Errorf("%d of 200 datagrams came the other way, want all", got)
	}
	if got := m[0].arrived(m[2], 200); got != 200 {
		t.Errorf("%d of 200 datagrams came to the third host, want all", got)
	}
	m[0].want("timeout", "echo", m[1].addr, "10") // TCP needs both ways
	l.Heal()
	healthy(t, m[0], m[1])
}

func TestLossIsAboutItsPercentage(t *testing.T) {
	const sent = 3000
	l := New(t, 3)
	m := connected(t, l)
	lost := func(from, to int) float64 { return 100 * float64(sent-m[from].arrived(m[to], sent)) / sent }
	for _, tc := range []struct {
		name     string
		set      func()
		from, to int
		low      float64 // 4 standard deviations of 20 % are 3 %
		high     float64
	}{
		{"none", func() {}, 0, 1, 0, 0},
		{"all", func() { l.Loss(20) }, 0, 1, 17, 23},
		{"all, the other way", func() {}, 1, 0, 17, 23},
		{"none again", func() { l.Loss(0) }, 0, 1, 0, 0},
		{"from a host", func() { l.Host(1).Loss(20) }, 0, 1, 17, 23},
		{"to that host", func() {}, 1, 0, 17, 23},
		{"between others", func() {}, 1, 2, 0, 0},
		{"healed", l.Heal, 0, 1, 0, 0},
	} {
		tc.set()
		if got := lost(tc.from, tc.to); got < tc.low || got > tc.high {
			t.Errorf("%s: %.1f %% lost, want %g to %g", tc.name, got, tc.low, tc.high)
		}
	}
}

// TestFramesAreShort: with segmentation offload a lost frame would be 40 lost
// segments, and loss nothing like that of a wire.
func TestFramesAreShort(t *testing.T) {
	l := New(t, 2)
	m := connected(t, l)
	m[0].want("ok", "echo", m[1].addr, "4000000")
	out, err := l.Operator().Command(t.Context(), "ip", "-n", l.switchNS(), "-s", "-j", "link", "show", "p1").Output()
	if err != nil {
		t.Fatal(err)
	}
	var links []struct {
		Stats struct {
			RX struct{ Bytes, Packets int } `json:"rx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal(out, &links); err != nil || len(links) != 1 {
		t.Fatalf("ip printed %s: %v", out, err)
	}
	rx := links[0].Stats.RX
	if rx.Bytes < 4000000 || rx.Bytes/rx.Packets > 1514 {
		t.Errorf("%d bytes in %d frames, want at most 1514 for each", rx.Bytes, rx.Packets)
	}
}

func TestPauseStopsAndResumeGoesOn(t *testing.T) {
	l := New(t, 3)
	m := connected(t, l)
	l.Host(2).Pause()
	m[0].want("timeout", "echo", m[1].addr, "10")
	m[0].want("ok", "echo", m[2].addr, "10")
	l.Host(2).Resume()
	healthy(t, m[0], m[1])
}

// TestKillIsNotSilent: the opposite of a power-off, so that a test can tell.
func TestKillIsNotSilent(t *testing.T) {
	l := New(t, 3)
	m := connected(t, l)
	l.Host(2).Kill()
	if got := m[0].ask("echo", m[1].addr, "10"); got != "eof" && got != "reset" {
		t.Errorf("a connection to killed processes: %s, want eof or reset", got)
	}
	// What it listened on is closed when its last thread has ended; until then who dials is
	// taken in, by the kernel.
	wait.Until(t, 2*time.Second, func() error {
		if got := m[0].ask("dial", m[1].addr); got != "refused" {
			return fmt.Errorf("dialling killed processes: %s, want refused", got)
		}
		return nil
	})
	if left := l.Host(2).Processes(); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
}

func TestPowerOffIsSilentAndLosesWhatWasNotSynced(t *testing.T) {
	l := New(t, 3)
	h := l.Host(2)
	m := connected(t, l)
	l.Host(2).Start("sleep", "1000")
	write := func(name string, sync bool) *os.File {
		f, err := os.Create(filepath.Join(h.Dir, name))
		if err == nil {
			_, err = f.WriteString(name)
		}
		if err == nil && sync {
			err = f.Sync()
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	write("synced", true).Close()
	write("unsynced", false).Close()
	began := time.Now()
	h.PowerOff()
	t.Logf("power off took %v", time.Since(began).Round(time.Millisecond))
	m[0].want("timeout", "echo", m[1].addr, "10")
	m[2].want("timeout", "dial", m[1].addr)
	m[0].want("ok", "echo", m[2].addr, "10")
	if h.On() {
		t.Error("the host is still on")
	}

	h.PowerOn()
	if b, err := os.ReadFile(filepath.Join(h.Dir, "synced")); err != nil || string(b) != "synced" {
		t.Errorf("what was synced is %q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(h.Dir, "unsynced")); err == nil && string(b) == "unsynced" {
		t.Error("what was not synced is still there: the power-off proves nothing")
	}
	if left := h.Processes(); len(left) > 0 {
		t.Errorf("processes outlived the power-off: %v", left)
	}
	if err := within(5*time.Second, func() error { // it needs the route to the host again
		if got := m[0].ask("dial", m[1].addr); got != "refused" {
			return fmt.Errorf("dial to the empty host: %s, want refused", got)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	healthy(t, m[0], join(t, h.Namespace))
}

func TestAllLosePowerAtOnce(t *testing.T) {
	l := New(t, 3)
	for _, h := range l.Hosts() {
		if err := os.WriteFile(filepath.Join(h.Dir, "unsynced"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.PowerOff()
	for _, h := range l.Hosts() {
		if _, err := os.Stat(h.image); err != nil {
			t.Error(err)
		}
		h.PowerOn()
		if b, err := os.ReadFile(filepath.Join(h.Dir, "unsynced")); len(b) > 0 {
			t.Errorf("%s has what was not synced: %q, %v", h.Name, b, err)
		}
	}
	m := connected(t, l)
	healthy(t, m[0], m[2])
}

// TestADeadDiskIsAnError: processes that live through a power-off for a moment
// must not be able to write.
func TestADeadDiskIsAnError(t *testing.T) {
	l := New(t, 1)
	h := l.Host(1)
	if err := h.losePower(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.Dir, "late"), []byte("x"), 0o600); !errors.Is(err, syscall.EIO) {
		t.Errorf("a write after the loss of power: %v, want %v", err, syscall.EIO)
	}
}

func TestLossRules(t *testing.T) {
	got := lossRules(map[string]float64{"": 12.5, "p1": 20, "p2": 0})
	want := `flush chain bridge netlab loss
add rule bridge netlab loss numgen random mod 10000 < 1250 drop
add rule bridge netlab loss iifname "p1" numgen random mod 10000 < 2000 drop
add rule bridge netlab loss oifname "p1" numgen random mod 10000 < 2000 drop
`
	if got != want {
		t.Errorf("rules\n%swant\n%s", got, want)
	}
}

func TestCapable(t *testing.T) {
	for status, want := range map[string]string{
		"Name:\tx\nCapEff:\t000001ffffffffff\n": "",
		"CapEff:\t00000000a80425fb\n":           "NET_ADMIN", // a container's
		"CapEff:\tx\n":                          "invalid syntax",
		"Name:\tx\n":                            "does not say",
	} {
		err := capable(status)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", status, err, want)
		}
	}
}
