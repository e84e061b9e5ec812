package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// settle is how long the cluster comes to rest before it is looked at: collectors run, and
// what is behind is caught up with.
const settle = 5 * time.Second

const mebi = 1 << 20

// sample is what the cluster uses at a moment.
type sample struct {
	name          string
	processes     []used // in the order of their names
	subscriptions int    // that the cores know of, together
	diskBytes     int64  // below the folders of all hosts
}

// used is the memory of a process.
type used struct {
	name                string
	residentBytes, peak int64 // peak: since it started
}

// look takes a sample.
func (m *million) look(ctx context.Context, name string) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settle):
	}
	s := sample{name: name}
	hosts, err := m.hosts(ctx)
	if err != nil {
		return err
	}
	instances, err := m.instances(ctx)
	if err != nil {
		return err
	}
	for _, i := range instances {
		if i.PID != nil && i.Instance != nil {
			if err := s.process(string(*i.Instance), *i.PID); err != nil {
				return err
			}
		}
	}
	for _, h := range hosts {
		if h.PID == nil {
			continue
		}
		if err := s.process("host "+string(h.Name), *h.PID); err != nil {
			return err
		}
		dir := filepath.Join(m.dir, string(h.Name))
		n, err := m.subscriptions(ctx, dir)
		if err != nil {
			return err
		}
		s.subscriptions += n
		s.diskBytes += below(dir)
	}
	m.seen = append(m.seen, s)
	return nil
}

func (s *sample) process(name string, pid int) error {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return fmt.Errorf("memory of %s: %w", name, err)
	}
	s.processes = append(s.processes, used{name, statusKiB(status, "VmRSS:"), statusKiB(status, "VmHWM:")})
	return nil
}

// statusKiB reads a line of /proc/PID/status, as bytes.
func statusKiB(status []byte, name string) int64 {
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == name {
			n, _ := strconv.ParseInt(f[1], 10, 64) // of the kernel
			return n << 10
		}
	}
	return 0
}

// subscriptions are those that a core knows of.
func (m *million) subscriptions(ctx context.Context, dir string) (int, error) {
	out, err := m.run(ctx, "metrics", "--dir", dir)
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(out, []byte("\nkbroker_broker_subscriptions "))
	value, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.ParseFloat(string(value), 64)
	if err != nil {
		return 0, fmt.Errorf("subscriptions of the host in %s: %q", dir, value)
	}
	return int(n), nil
}

// below is the size of the files below a folder; those that go meanwhile do not count.
func below(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if info, err := d.Info(); err == nil {
				bytes += info.Size()
			}
		}
		return nil
	})
	return bytes
}

// print writes what was measured, and as the last line one JSON object.
func (m *million) print(w io.Writer) error {
	keys := map[string]float64{}
	if err := m.printDone(w, keys); err != nil {
		return err
	}
	if err := m.printSeen(w, keys); err != nil {
		return err
	}
	b, err := json.Marshal(keys)
	if err == nil {
		_, err = fmt.Fprintf(w, "%s\n", b)
	}
	return err
}

func (m *million) printDone(w io.Writer, keys map[string]float64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "%d objects, %d active\tdone\tfailed\ttook\tper second\tp50\tp99\tlongest\t\n", m.objects, m.active)
	for _, p := range m.done {
		r := p.round
		fmt.Fprintf(t, "%s\t%d\t%d\t%.2f s\t", p.name, r.Requests, r.Failed, r.Elapsed.Seconds())
		key := whatMillion + "/" + p.name
		if r.Requests == 1 {
			keys[key+"/s"] = thousandths(r.Elapsed.Seconds())
			fmt.Fprint(t, "\t\t\t\t\n")
			continue
		}
		keys[key+"/per_s"], keys[key+"/failed"] = thousandths(r.PerSecond()), float64(r.Failed)
		keys[key+"/p50_ms"], keys[key+"/p99_ms"], keys[key+"/longest_ms"] = millis(r.P50), millis(r.P99), millis(r.Max)
		fmt.Fprintf(t, "%.0f\t%.1f ms\t%.1f ms\t%.1f ms\t\n", r.PerSecond(), millis(r.P50), millis(r.P99), millis(r.Max))
	}
	return t.Flush()
}

func millis(d time.Duration) float64 {
	return thousandths(float64(d) / float64(time.Millisecond))
}

// printSeen writes a column for each sample.
func (m *million) printSeen(w io.Writer, keys map[string]float64) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(name string, cell func(s sample) string) {
		fmt.Fprint(t, name, "\t")
		for _, s := range m.seen {
			fmt.Fprint(t, cell(s), "\t")
		}
		fmt.Fprintln(t)
	}
	row("MiB resident, and at most", func(s sample) string { return s.name })
	for _, name := range m.names() {
		row(name, func(s sample) string {
			for _, p := range s.processes {
				if p.name == name {
					keys[whatMillion+"/"+s.name+"/"+name+"/mib"] = thousandths(float64(p.residentBytes) / mebi)
					return fmt.Sprintf("%d %d", p.residentBytes/mebi, p.peak/mebi)
				}
			}
			return "-"
		})
	}
	row("subscriptions", func(s sample) string {
		keys[whatMillion+"/"+s.name+"/subscriptions"] = float64(s.subscriptions)
		return strconv.Itoa(s.subscriptions)
	})
	row("MiB on disk, all hosts", func(s sample) string {
		keys[whatMillion+"/"+s.name+"/disk_mib"] = thousandths(float64(s.diskBytes) / mebi)
		return strconv.FormatInt(s.diskBytes/mebi, 10)
	})
	return t.Flush()
}

// names are those of all processes that were seen.
func (m *million) names() []string {
	var names []string
	known := map[string]bool{}
	for _, s := range m.seen {
		for _, p := range s.processes {
			if !known[p.name] {
				known[p.name] = true
				names = append(names, p.name)
			}
		}
	}
	return names
}
