package agent

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// A process that is not ready is asked every probeStarting, and when it has
	// not become ready in probePatience, every probeWaiting.
	probeStarting = 50 * time.Millisecond
	probePatience = 5 * time.Second
	probeWaiting  = 500 * time.Millisecond
	// probeInterval is for specs that do not say how often a ready process is
	// asked.
	probeInterval = time.Second
	// probeTimeout is how long an answer may take.
	probeTimeout = time.Second
	// maxMisses answers of a ready process may fail to come in a row.
	maxMisses = 3
)

// probe asks a process through its SDK whether it is ready, until ctx ends, and
// calls changed with true when it has become so and with false when it is no
// more: it says so, or maxMisses answers in a row are missing. No answer while
// this host's own connection is down says nothing.
func (a *Agent) probe(ctx context.Context, inc kbroker.Incarnation, interval time.Duration, changed func(ready bool)) {
	began, ready, misses := time.Now(), false, 0
	for ctx.Err() == nil {
		answer, err := a.ping(ctx, inc)
		switch {
		case err == nil:
			misses = 0
		case errors.Is(err, errNotTold):
		default:
			misses++
		}
		is := err == nil && answer.Ready
		switch {
		case is && !ready:
			ready = true
			changed(true)
		case ready && !is && (err == nil || misses >= maxMisses):
			ready, began = false, time.Now()
			changed(false)
		}
		pause(ctx, probePause(ready, time.Since(began), interval))
	}
}

// probePause is the time between two questions.
func probePause(ready bool, since, interval time.Duration) time.Duration {
	switch {
	case !ready && since < probePatience:
		return probeStarting
	case !ready:
		return probeWaiting
	case interval > 0:
		return interval
	}
	return probeInterval
}

// errNotTold: the connection of this host was down meanwhile.
var errNotTold = errors.New("not connected")

// ping asks once. errNotTold says nothing about the process.
func (a *Agent) ping(ctx context.Context, inc kbroker.Incarnation) (kbroker.PingReply, error) {
	var r kbroker.PingReply
	conn := a.cfg.Conn
	before := conn.Stats().Reconnects
	if !conn.IsConnected() {
		return r, errNotTold
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	reply, err := conn.RequestWithContext(ctx, subjects.Ping(inc), nil)
	if err != nil {
		if !conn.IsConnected() || conn.Stats().Reconnects != before {
			return r, errNotTold
		}
		return r, err
	}
	if err := json.Unmarshal(reply.Data, &r); err != nil {
		return r, err
	}
	if r.Incarnation != inc {
		return r, errors.New("another incarnation answers")
	}
	return r, nil
}
