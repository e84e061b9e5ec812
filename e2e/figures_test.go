package e2e

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

const (
	// figuresWithin is how long it may take until figures tell the truth, figuresOff how
	// far from it they may be.
	figuresWithin = 5 * time.Second
	figuresOff    = 0.2
)

// isAbout is nil if what is said is as near to the truth as it has to be.
func isAbout(what string, said *float64, truth float64) error {
	if said == nil || math.Abs(*said-truth) > figuresOff*truth {
		text, _ := json.Marshal(said)
		return fmt.Errorf("%s: %s, the truth is %.3g", what, text, truth)
	}
	return nil
}

// TestFiguresTellWhatAChildUses: the child of an instance that knows nothing of kbroker
// works all the time, and holds 100 MB.
func TestFiguresTellWhatAChildUses(t *testing.T) {
	dir := t.TempDir()
	buildInto(t, dir, "busy", "./testdata/busy")
	c := up(t, 2, "--cores", "1")
	writeFile(t, filepath.Join(dir, "app.yaml"), "name: shop\nservices:\n  busy:\n    run: busy\n    health: {ready: alive}\n    require: [\"role == worker\"]\n", 0o600)
	c.must("deploy", filepath.Join(dir, "app.yaml"))
	row := c.waitReady(10*time.Second, "shop", "busy", 1, nil)[0]
	began := time.Now()
	var child int
	wait.Until(t, 5*time.Second, func() error {
		b, err := os.ReadFile(filepath.Join(c.workDir(row), "child"))
		if err == nil {
			child, err = strconv.Atoi(string(b))
		}
		return err
	})

	type look struct {
		at    time.Time
		clock float64
	}
	var looks []look
	wait.Until(t, figuresWithin, func() error {
		now := look{time.Now(), cpuSeconds(t, child)}
		looks = append(looks, now)
		for len(looks) > 2 && now.at.Sub(looks[1].at) >= kbroker.FiguresEvery {
			looks = looks[1:]
		}
		rows, err := list[kbroker.InstanceRow](c, "ps", "shop", "--wide")
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.Instance == nil || *r.Instance != *row.Instance {
				continue
			}
			if r.Figures == nil || r.Figures.MemoryBytes == nil {
				return fmt.Errorf("no figures of %s", *row.Instance)
			}
			held := float64(*r.Figures.MemoryBytes)
			if err := isAbout("memory in bytes", &held, 100e6); err != nil {
				return err
			}
			over := now.at.Sub(looks[0].at).Seconds()
			if over < 1 {
				return fmt.Errorf("looked for %.1f s", over)
			}
			return isAbout("cores", r.Figures.CPUCores, (now.clock-looks[0].clock)/over)
		}
		return fmt.Errorf("no row of %s in %d", *row.Instance, len(rows))
	})
	t.Logf("RESULT ps --wide told cores and memory of a child within %.0f %% after %v", figuresOff*100, time.Since(began).Round(100*time.Millisecond))
	c.says(5*time.Second, "CPU USED", []string{"hosts"})

	if !*long {
		return
	}
	// Of a host that is lost nobody knows anything: ten seconds later at the latest.
	c.kill(string(*row.Host), true)
	wait.Until(t, 15*time.Second, func() error {
		rows, err := list[kbroker.InstanceRow](c, "ps", "shop", "--wide")
		if err != nil {
			return err
		}
		for _, r := range rows {
			if r.Host != nil && *r.Host == *row.Host && r.Figures != nil {
				return fmt.Errorf("%s on a host without an agent has figures of %.1f s ago", *r.Instance, r.Figures.AgeS)
			}
		}
		return nil
	})
}
