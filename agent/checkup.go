package agent

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/shirou/gopsutil/v4/mem"
	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxCheckups may wait; the broker drops further ones, and who asked asks
	// again.
	maxCheckups = 64
	// loopWait bounds the question to the agent's loop, coreWait the look of
	// the broker.
	loopWait = time.Second
	coreWait = 1500 * time.Millisecond
)

// checker answers checkups, one after the other, beside the agent's loop: it
// asks the loop for what it knows, and never makes it wait.
type checker struct {
	cfg     Config
	log     *slog.Logger
	scanner *scanner
	census  func(context.Context) (census, bool)
	unsaid  func() int
	syncs   syncProbe
}

// run answers until ctx ends.
func (c *checker) run(ctx context.Context) error {
	asked := make(chan *nats.Msg, maxCheckups)
	sub, err := c.cfg.Conn.ChanSubscribe(subjects.Host(c.cfg.Host, subjects.VerbCheckup, "*"), asked)
	if err != nil {
		return fmt.Errorf("subscribe to checkups: %w", err)
	}
	defer sub.Unsubscribe()
	defer c.syncs.wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-asked:
			if err := respond(m, c.look(ctx), nil); err != nil {
				c.log.Debug("checkup not answered", "err", err)
			}
		}
	}
}

// look is one checkup. What it needs the disk, the loop and the broker for it
// asks all at once; each is bounded.
func (c *checker) look(ctx context.Context) kbroker.Checkup {
	out := kbroker.Checkup{
		Host: c.cfg.Host, Role: c.cfg.Role, Version: c.cfg.Version, Process: c.cfg.Dir.Process, PID: os.Getpid(),
		Starts: c.cfg.Dir.Starts, Unreported: c.unsaid(),
		Disk: diskOf(c.cfg.Dir.Path), Memory: memory(), Files: openFiles(),
	}
	var parts sync.WaitGroup
	parts.Go(func() { out.Sync = c.syncs.look(ctx, c.cfg.Dir.Path, state.Boottime()) })
	parts.Go(func() { c.processes(ctx, &out) })
	if c.cfg.Core != nil {
		parts.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, coreWait)
			defer cancel()
			core := c.cfg.Core(ctx)
			out.Core = &core
		})
	}
	parts.Wait()
	out.Now = time.Now().UTC()
	return out
}

// processes compares what runs with what the loop knows. The scan comes first,
// as for the janitor: whoever was started before it is known.
func (c *checker) processes(ctx context.Context, out *kbroker.Checkup) {
	ctx, cancel := context.WithTimeout(ctx, loopWait)
	defer cancel()
	all, err := c.scanner.scan()
	known, ok := c.census(ctx)
	if !ok {
		out.Stuck = true
		return
	}
	out.Proven, out.Instances = known.proven, len(known.known)
	if err != nil {
		c.log.Warn("processes could not be listed", "err", err)
		return
	}
	for _, m := range strays(all, c.cfg.Dir.Path, known.known) {
		if len(out.Orphans) < kbroker.MaxOrphans {
			out.Orphans = append(out.Orphans, kbroker.Orphan{PID: m.PID, Incarnation: m.Incarnation})
		}
	}
}

// unsaid is how many statuses no core has acknowledged yet.
func (r *reporter) unsaid() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.states {
		if e.said != e.version {
			n++
		}
	}
	return n
}

func diskOf(path string) kbroker.DiskCheckup {
	d := kbroker.DiskCheckup{Path: path}
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		d.Error = err.Error()
		return d
	}
	block := int64(s.Bsize)
	d.FreeBytes = int64(s.Bavail) * block
	d.TotalBytes = d.FreeBytes + int64(s.Blocks-s.Bfree)*block // as df has it: what is kept for root is neither
	d.FreeInodes, d.TotalInodes = int64(s.Ffree), int64(s.Files)
	return d
}

func memory() kbroker.MemoryCheckup {
	m, err := mem.VirtualMemory()
	if err != nil {
		return kbroker.MemoryCheckup{Error: err.Error()}
	}
	out := kbroker.MemoryCheckup{TotalBytes: int64(m.Total), AvailableBytes: int64(m.Available)}
	if raw, err := os.ReadFile("/proc/pressure/memory"); err == nil { // older kernels have none
		out.Pressure = fullPressure(string(raw))
	}
	return out
}

// fullPressure reads the line "full avg10=0.00 ..." of a pressure file; 0 if it
// has none.
func fullPressure(text string) float64 {
	for line := range strings.Lines(text) {
		var share float64
		if n, _ := fmt.Sscanf(line, "full avg10=%f", &share); n == 1 {
			return share
		}
	}
	return 0
}

func openFiles() kbroker.FilesCheckup {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return kbroker.FilesCheckup{Error: err.Error()}
	}
	out := kbroker.FilesCheckup{Limit: int64(min(limit.Cur, 1<<62))}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		out.Error = err.Error()
	}
	out.Open = int64(len(open))
	return out
}
