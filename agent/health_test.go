package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/stamp"
)

// saying makes looks of one letter each: y, n, u(nanswered), s(ilent over the bus), t
// (untold), one per step. p is a pause of the agent.
func saying(h *health, script string, from, step time.Duration) (states string, kill string) {
	letters := map[rune]outcome{'y': yes, 'n': no, 'u': unanswered, 's': unheard, 't': untold}
	for n, letter := range []rune(script) {
		at := from + time.Duration(n+1)*step
		if letter == 'p' {
			h.anew(at)
			states += "|"
			continue
		}
		v := h.sees(look{said: letters[letter], at: at})
		if states += "."; v.ready {
			states = states[:len(states)-1] + "R"
		}
		if v.kill != "" {
			return states + "X", v.kill
		}
	}
	return states, ""
}

func TestHealthFollowsTheAnswers(t *testing.T) {
	t.Parallel()
	sdk := kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK}}
	web := kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthHTTP}}
	twice := kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthTCP, Failures: 2}, Successes: 3, Start: 5 * time.Second}
	off := web
	off.Live = &kbroker.Check{Ready: kbroker.HealthOff}
	for name, c := range map[string]struct {
		health kbroker.Health
		script string // a look a second
		states string // R ready, X killed
		kill   string
	}{
		"one yes is enough":                               {web, "nuy", "..R", ""},
		"as many as asked for, in a row":                  {twice, "yynyyy", ".....X", "killed: not ready within 5s (tcp)"},
		"three of them in time":                           {twice, "yyyu", "..RR", ""},
		"three that do not say yes end readiness":         {web, "yununy", "RRR..R", ""},
		"a yes between them starts the count anew":        {web, "yuuyuu", "RRRRRR", ""},
		"the SDK's no ends it at once":                    {sdk, "yny", "R.R", ""},
		"silence of the SDK ends it after three":          {sdk, "yuuu", "RRR.", ""},
		"whose silence is that of the bus, too":           {sdk, "yssss", "RRR..", ""},
		"who cannot look learns nothing":                  {web, "yuutttttttttttttt", "RRRRRRRRRRRRRRRRR", ""},
		"six without an answer: hung":                     {web, "yuuuuuu", "RRR....X", "killed: hung, 6 checks in a row were not answered (http)"},
		"a no is an answer":                               {web, "yuuuuunuuuuu", "RRR.........", ""},
		"a pause of who looks is no silence":              {web, "yuuuuupuuuuu", "RRR...|.....", ""},
		"nor are looks that said nothing":                 {web, "yuuuuutu", "RRR.....X", "killed: hung, 6 checks in a row were not answered (http)"},
		"never for being hung when that is off":           {off, "yuuuuuuuuuuuuuuu", "RRR.............", ""},
		"never an SDK for what comes not over the bus":    {sdk, "y" + strings.Repeat("u", 40), "RRR" + strings.Repeat(".", 38), ""},
		"not ready in time":                               {sdk, strings.Repeat("u", 40), strings.Repeat(".", 30) + "X", "killed: not ready within 30s (sdk)"},
		"also if it answers, with no":                     {web, strings.Repeat("n", 40), strings.Repeat(".", 30) + "X", "killed: not ready within 30s (http)"},
		"an SDK that runs is not killed for its silence":  {sdk, strings.Repeat("s", 90), strings.Repeat(".", 90), ""},
		"time in which nobody could look does not count":  {sdk, strings.Repeat("u", 20) + "t" + strings.Repeat("u", 29), strings.Repeat(".", 50), ""},
		"nor time from before a pause of who looks":       {web, strings.Repeat("u", 20) + "p" + strings.Repeat("n", 29), strings.Repeat(".", 20) + "|" + strings.Repeat(".", 29), ""},
		"who was ready once may be not ready for an hour": {web, "y" + strings.Repeat("n", 3600), "RRR" + strings.Repeat(".", 3598), ""},
	} {
		t.Run(name, func(t *testing.T) {
			states, kill := saying(newHealth(c.health, time.Hour), c.script, time.Hour, time.Second)
			if states != c.states || kill != c.kill {
				t.Errorf("%s leads to %s %q, want %s %q", c.script, states, kill, c.states, c.kill)
			}
		})
	}
}

func TestAVerdictSaysWhatWasSeenLast(t *testing.T) {
	t.Parallel()
	h := newHealth(kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthHTTP}, Start: time.Second}, 0)
	v := h.sees(look{said: no, why: "answered with 503 Service Unavailable", at: time.Second})
	if want := "killed: not ready within 1s (http: answered with 503 Service Unavailable)"; v.kill != want {
		t.Errorf("the verdict is %q, want %q", v.kill, want)
	}
}

// TestNobodyIsKilledForWhatSaysNothing whatever else was seen: only answers, and
// what certainly was none, add to a verdict.
func TestNobodyIsKilledForWhatSaysNothing(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		way := rapid.SampledFrom([]string{kbroker.HealthSDK, kbroker.HealthHTTP, kbroker.HealthTCP, kbroker.HealthExec}).Draw(t, "way")
		spec := kbroker.Health{
			Check:     kbroker.Check{Ready: way, Failures: rapid.IntRange(0, 8).Draw(t, "failures")},
			Successes: rapid.IntRange(0, 3).Draw(t, "successes"), Start: time.Duration(rapid.IntRange(0, 20).Draw(t, "start")) * time.Second,
		}
		script := []rune(rapid.StringOfN(rapid.SampledFrom([]rune("ynustp")), 1, 120, -1).Draw(t, "script"))
		_, kill := saying(newHealth(spec, 0), string(script), 0, time.Second)
		if way == kbroker.HealthSDK && strings.Contains(kill, "hung") {
			t.Fatalf("an SDK was killed for %q", kill)
		}
		// The same without what says no and what is certainly not answered.
		mild := strings.NewReplacer("n", "t", "u", "s").Replace(string(script))
		if i := slices.Index(script, 'y'); i >= 0 && spec.Successes <= 1 || !slices.Contains(script, 'y') {
			if _, kill := saying(newHealth(spec, 0), mild, 0, time.Second); kill != "" {
				t.Fatalf("%s kills: %s", mild, kill)
			}
		}
	})
}

func TestALifeOfItsOwn(t *testing.T) {
	t.Parallel()
	h := kbroker.Health{Start: 10 * time.Second, Live: &kbroker.Check{Ready: kbroker.HealthExec, Failures: 2}}
	for name, c := range map[string]struct {
		script string
		at     int // the look that kills, from 1; 0: none does
	}{
		"any failure counts, in a row":           {"ynyuynu", 7},
		"not before it was well once":            {"nunununuy", 0},
		"or had to be ready":                     {strings.Repeat("n", 20), 12},
		"who cannot look learns nothing":         {"yn" + strings.Repeat("t", 90), 0},
		"a pause of who looks is no failure":     {"ynpnpupn", 0},
		"nor time to get ready":                  {strings.Repeat("n", 9) + "p" + strings.Repeat("n", 9), 0},
		"nor is time in which nobody could look": {strings.Repeat("n", 9) + "t" + strings.Repeat("n", 9), 0},
		"untold ones take nothing back":          {"ytttnn", 6},
	} {
		t.Run(name, func(t *testing.T) {
			l, at, kill := newLife(h, time.Hour), 0, ""
			for n, letter := range []rune(c.script) {
				if letter == 'p' {
					l.anew(time.Hour + time.Duration(n)*time.Second)
					continue
				}
				said := map[rune]outcome{'y': yes, 'n': no, 'u': unanswered, 't': untold}[letter]
				if kill = l.sees(look{said: said, at: time.Hour + time.Duration(n)*time.Second}); kill != "" {
					at = n + 1
					break
				}
			}
			want := ""
			if c.at > 0 {
				want = "killed: hung, 2 checks in a row failed (exec)"
			}
			if at != c.at || kill != want {
				t.Errorf("%s: killed at look %d for %q, want %d for %q", c.script, at, kill, c.at, want)
			}
		})
	}
}

func TestSignsOfLife(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		script string // a letter is the time that the file shows; -: no file; lower case: the look counts for nothing
		at     int
	}{
		"six looks without a change":               {"AAAAAAA", 7},
		"a change starts the count anew":           {"AAAAAABBBBBBC", 0},
		"a clock that goes back is a change":       {"BBBBBBABBBBBB", 0},
		"no file: an SDK that shows nothing":       {strings.Repeat("-", 50), 0},
		"who takes its file away has ended":        {"AAAAAA" + strings.Repeat("-", 50), 0},
		"a file that comes back begins anew":       {"AAAAAA-AAAAAA", 0},
		"and counts again":                         {"AAAAAA-AAAAAAA", 14},
		"whoever looks was paused, or has no disk": {"AAAAAAaAAAAA", 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, at := signs{}, 0
			for n, letter := range c.script {
				file := stamp.Stamp{MTime: time.Duration(strings.ToUpper(string(letter))[0])}
				kill := s.sees(file, letter != '-', letter < 'a')
				if kill == "" {
					continue
				}
				if at = n + 1; kill != "killed: hung, 6 looks in a row saw no sign of life (sdk)" {
					t.Errorf("killed: %q", kill)
				}
				break
			}
			if at != c.at {
				t.Errorf("%s: killed at look %d, want %d", c.script, at, c.at)
			}
		})
	}
}

func TestLooksAreQuickOnlyWhileAProcessStarts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		way         string
		ready, been bool
		since, want time.Duration
	}{
		{kbroker.HealthHTTP, false, false, 0, probeStarting},
		{kbroker.HealthHTTP, false, false, probePatience, probeWaiting},
		{kbroker.HealthExec, false, false, 0, probeWaiting},
		{kbroker.HealthHTTP, true, true, 0, 2 * time.Second},
		{kbroker.HealthHTTP, false, true, 0, 2 * time.Second}, // it counts towards its end
		{kbroker.HealthSDK, false, true, 0, probeStarting},
	} {
		h := newHealth(kbroker.Health{Check: kbroker.Check{Ready: c.way, Interval: 2 * time.Second}}, 0)
		h.ready, h.been = c.ready, c.been
		if d := h.pause(c.since); d != c.want {
			t.Errorf("%+v: the next look comes after %v", c, d)
		}
	}
}

func TestANumberOfAPort(t *testing.T) {
	t.Parallel()
	var r record
	r.Placement.Spec.Ports = []kbroker.Port{{Name: "admin"}, {Name: "web", Number: 8080}}
	r.Ports = map[string]int{"admin": 4711}
	for name, want := range map[string]int{"admin": 4711, "web": 8080, "other": 0, "": 4711} {
		if got := portOf(r, name); got != want {
			t.Errorf("port %q is %d, want %d", name, got, want)
		}
	}
	if got := fmt.Sprint(portOf(record{}, ""), portOf(record{}, "web")); got != "0 0" {
		t.Errorf("ports of a process without any: %s", got)
	}
}

// TestLooksShareTheirTimes and are as frequent as they should be all the same.
func TestLooksShareTheirTimes(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		begin := time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "begin"))
		d := time.Duration(rapid.Int64Range(int64(50*time.Millisecond), int64(time.Minute)).Draw(t, "interval"))
		due := aligned(begin+d, d)
		for n := range 100 {
			next := aligned(due+d, d)
			if off := (next - due - d).Abs(); off > lookGrid/2 || d < 2*lookGrid && off > 0 {
				t.Fatalf("look %d comes %v after the one before, want %v", n, next-due, d)
			}
			if d >= 2*lookGrid && next%lookGrid != 0 {
				t.Fatalf("look %d comes at %v by itself", n, next)
			}
			due = next
		}
	})
	if due := aligned(1100*time.Millisecond, time.Second); due != time.Second || aligned(due+time.Second, time.Second) != 2*time.Second {
		t.Errorf("looks each second come at %v, want each second", due)
	}
}
