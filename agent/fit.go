package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
)

// silentFor is how long no core may have answered a heartbeat.
const silentFor = 5 * time.Second

// Missing says what this agent lacks to be in order by what lies with its own
// host, empty if nothing: it hears the cores, has its view, knows every process
// that was started for its directory, and on a core the broker has a leader, is
// caught up and takes writes. It takes 2 s at most. Safe for concurrent use,
// once Run has begun; before it waits for ctx.
func (a *Agent) Missing(ctx context.Context) string {
	got := kbroker.Checkup{Host: a.cfg.Host}
	var parts sync.WaitGroup
	parts.Go(func() { a.checker.processes(ctx, &got) })
	if a.cfg.Core != nil {
		parts.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, coreWait)
			defer cancel()
			core := a.cfg.Core(ctx)
			got.Core = &core
		})
	}
	parts.Wait()
	silent := silentFor
	if len(a.Cores()) > 0 {
		_, _, silent = a.heart.counted()
	}
	return missing(got, silent)
}

// missing is Missing. Pure. That other cores are there, and streams have all
// their copies, does not lie with this host.
func missing(got kbroker.Checkup, silent time.Duration) string {
	core := got.Core
	switch {
	case got.Stuck:
		return "the agent's loop does not answer"
	case silent >= silentFor:
		return "no core answers its heartbeats"
	case !got.Proven && got.Instances > 0:
		return "the agent has not received its view"
	case len(got.Orphans) > 0:
		return fmt.Sprintf("%d processes of the host are not adopted, the first is %d", len(got.Orphans), got.Orphans[0].PID)
	case core == nil:
		return ""
	case !core.Leader:
		return "the core sees no leader of the broker"
	case !core.Current[got.Host]:
		return "the core has not caught up"
	case !core.Writable:
		return "the control store takes no writes from the core"
	}
	return ""
}
