package agent

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// reportDebounce collects changes that come together.
	reportDebounce = 20 * time.Millisecond
	// reportAllEvery repeats everything, whoever lost what; jittered by half.
	reportAllEvery = time.Minute
	// A report that was not accepted is sent again after reportRetryFirst,
	// doubling to reportRetryMax.
	reportRetryFirst = 50 * time.Millisecond
	reportRetryMax   = time.Second
	// maxReportStatuses bounds one report: with messages of maxMessageBytes, and
	// credentials of a kilobyte, it stays below the broker's payload limit.
	maxReportStatuses = 100
	// maxReportEnded likewise, of credentials of a kilobyte.
	maxReportEnded = 100
)

// reporter tells the cores how the instances are, until it was heard.
type reporter struct {
	host       kbroker.HostID
	generation int
	process    string
	conn       *nats.Conn
	log        *slog.Logger
	counters   *counters
	dirty      chan struct{} // capacity 1

	mu     sync.Mutex
	states map[kbroker.StatusKey]*reported
	// holds are the credentials of the last starts that were signed.
	holds map[kbroker.StatusKey]held
	// over are those of starts that have ended, by public key, until a core has taken
	// them back.
	over map[string]over
}

// over is what was signed for a start that has ended, and the file that has it.
type over struct{ signed, path string }

// held is what was signed first for a start.
type held struct {
	incarnation kbroker.Incarnation
	signed      string
}

// reported is what is to be said of one instance.
type reported struct {
	status  kbroker.Status
	gone    bool
	version int // grows with each change; heard when said == version
	said    int
}

func newReporter(cfg Config, counters *counters) *reporter {
	return &reporter{
		host: cfg.Host, generation: cfg.Generation, process: cfg.Dir.Process, conn: cfg.Conn, log: cfg.Log, counters: counters,
		dirty: make(chan struct{}, 1), states: make(map[kbroker.StatusKey]*reported),
		holds: map[kbroker.StatusKey]held{}, over: map[string]over{},
	}
}

// set notes an instance's status; what is already known costs nothing.
func (r *reporter) set(s kbroker.Status) {
	r.change(kbroker.StatusKey{Tenant: s.Tenant, Instance: s.Instance}, s, false)
}

// signed notes what was signed for a start: the core that hears of it knows whose
// credential to take back when this host is gone. Renewals change nothing of that.
func (r *reporter) signed(k kbroker.StatusKey, start kbroker.Incarnation, signed string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.holds[k].incarnation == start {
		return
	}
	r.holds[k] = held{start, signed}
	if e := r.states[k]; e != nil {
		e.version++
		r.stir()
	}
}

// signedFor is what was signed for a start, as far as this agent has seen; empty: nothing.
func (r *reporter) signedFor(k kbroker.StatusKey, start kbroker.Incarnation) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if h := r.holds[k]; h.incarnation == start {
		return h.signed
	}
	return ""
}

// ended has a credential taken back, which the start of an instance had: what was
// signed for a public key. The file that has it is deleted then.
func (r *reporter) ended(key, signed, path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over[key] = over{signed, path}
	r.stir()
}

// gone notes that nothing is left to say of an instance.
func (r *reporter) gone(k kbroker.StatusKey) { r.change(k, kbroker.Status{}, true) }

func (r *reporter) change(k kbroker.StatusKey, s kbroker.Status, gone bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.states[k]
	if e == nil {
		e = &reported{}
		r.states[k] = e
	} else if e.gone == gone && reflect.DeepEqual(e.status, s) {
		return
	}
	e.status, e.gone = s, gone
	e.version++
	r.stir()
}

// all has everything said once more.
func (r *reporter) all() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.states {
		e.said = 0
	}
	r.stir()
}

func (r *reporter) stir() {
	select {
	case r.dirty <- struct{}{}:
	default:
	}
}

// run reports until ctx ends. The first number of a process is 1; a core that
// knows a higher one says so.
func (r *reporter) run(ctx context.Context) error {
	number, retry := uint64(0), reportRetryFirst
	all := time.NewTimer(reportAllEvery)
	defer all.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-all.C:
			r.all()
			all.Reset(reportAllEvery/2 + rand.N(reportAllEvery/2))
			continue
		case <-r.dirty:
		}
		pause(ctx, reportDebounce)
		for ctx.Err() == nil {
			req, versions := r.next()
			if len(versions) == 0 && len(req.Ended) == 0 {
				break
			}
			number++
			req.Number = number
			var reply kbroker.ReportReply
			sent := time.Now()
			err := request(ctx, r.conn, subjects.Report(r.host), req, &reply)
			r.counters.reported(time.Since(sent), err)
			switch {
			case err != nil:
				r.log.Debug("report not heard; sending it again", "err", err)
				pause(ctx, retry)
				retry = min(2*retry, reportRetryMax)
			case !reply.Accepted:
				number = max(number, reply.Number)
				pause(ctx, reportDebounce)
			default:
				r.heard(versions, req.Ended)
				retry = reportRetryFirst
			}
		}
	}
}

// next is the next report, without its number, and the version of each entry
// in it; none when everything was heard.
func (r *reporter) next() (kbroker.ReportRequest, map[kbroker.StatusKey]int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var keys []kbroker.StatusKey
	for k, e := range r.states {
		if e.said != e.version {
			keys = append(keys, k)
		}
	}
	slices.SortFunc(keys, func(a, b kbroker.StatusKey) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Instance, b.Instance))
	})
	keys = keys[:min(len(keys), maxReportStatuses)]
	req := kbroker.ReportRequest{Host: r.host, Generation: r.generation, Process: r.process}
	for _, o := range r.over {
		if len(req.Ended) == maxReportEnded {
			break
		}
		req.Ended = append(req.Ended, o.signed)
	}
	versions := make(map[kbroker.StatusKey]int, len(keys))
	for _, k := range keys {
		e := r.states[k]
		versions[k] = e.version
		if e.gone {
			req.Gone = append(req.Gone, k)
			delete(r.holds, k)
			continue
		}
		st := e.status
		if h := r.holds[k]; st.PID != 0 && h.incarnation == st.Incarnation {
			st.Credential = h.signed
		}
		req.Statuses = append(req.Statuses, st)
	}
	return req, versions
}

// heard notes what a core has accepted; what changed meanwhile stays to be said.
func (r *reporter) heard(versions map[kbroker.StatusKey]int, ended []string) {
	var done []over
	r.mu.Lock()
	for key, o := range r.over {
		if slices.Contains(ended, o.signed) {
			delete(r.over, key)
			done = append(done, o)
		}
	}
	r.hear(versions)
	r.mu.Unlock()
	for _, o := range done {
		// After a power-off it may be there again, which is said once more then.
		if err := os.Remove(o.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			r.log.Warn("a credential that was taken back is left on disk", "err", err)
		}
	}
}

// hear is heard for statuses; the caller holds mu.
func (r *reporter) hear(versions map[kbroker.StatusKey]int) {
	for k, v := range versions {
		e := r.states[k]
		if e == nil || e.version != v {
			continue
		}
		e.said = v
		if e.gone {
			delete(r.states, k)
		}
	}
}
