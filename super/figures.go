package super

import (
	"encoding/json"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// maxFigureHosts bounds the hosts whose figures are kept: there are that many names at
// most that a server lets publish here.
const maxFigureHosts = 10_000

// figures are what this core has heard last of each host: of thousands of messages
// hardly any is ever looked at, so that they are kept as they came, and read when
// somebody asks. Safe for concurrent use.
type figures struct {
	clock state.Clock

	mu sync.Mutex
	of map[kbroker.HostID]*measured
}

// measured is one message, and when it came; boottime.
type measured struct {
	at   time.Duration
	body []byte

	once      sync.Once
	machine   kbroker.HostFigures
	instances map[kbroker.StatusKey]kbroker.InstanceFigures
}

func newFigures(clock state.Clock) *figures {
	return &figures{clock: clock, of: map[kbroker.HostID]*measured{}}
}

// take keeps a message in place of the host's last one.
func (f *figures) take(m *nats.Msg) {
	host, ok := subjects.HostOf(m.Subject)
	if !ok {
		return
	}
	now := f.clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.of[host]; !known {
		for h, old := range f.of {
			if now-old.at >= kbroker.FiguresFor {
				delete(f.of, h)
			}
		}
		if len(f.of) >= maxFigureHosts {
			return
		}
	}
	f.of[host] = &measured{at: now, body: m.Data}
}

// newest is what a host has published last, and how long ago; nil if that is no news
// any more.
func (f *figures) newest(host kbroker.HostID) (*measured, time.Duration) {
	now := f.clock()
	f.mu.Lock()
	m := f.of[host]
	f.mu.Unlock()
	if m == nil || now-m.at >= kbroker.FiguresFor || !m.read(host) {
		return nil, 0
	}
	return m, now - m.at
}

// read makes sense of a message. One that is of another version may make none.
func (m *measured) read(host kbroker.HostID) bool {
	m.once.Do(func() {
		var f kbroker.Figures
		if err := json.Unmarshal(m.body, &f); err == nil && f.Host == host {
			m.machine, m.instances = f.Machine, make(map[kbroker.StatusKey]kbroker.InstanceFigures, len(f.Instances))
			for _, i := range f.Instances {
				m.instances[kbroker.StatusKey{Tenant: i.Tenant, Instance: i.Instance}] = i.InstanceFigures
			}
		}
		m.body = nil
	})
	return m.instances != nil
}

// addTo adds figures to the rows of what has a process, whose agent is heard.
func (f *figures) addTo(rows []kbroker.InstanceRow) {
	for i := range rows {
		r := &rows[i]
		if r.Host == nil || r.PID == nil || r.State == kbroker.StateUnmanaged {
			continue
		}
		m, age := f.newest(*r.Host)
		if m == nil {
			continue
		}
		if of, ok := m.instances[kbroker.StatusKey{Tenant: r.Tenant, Instance: *r.Instance}]; ok {
			of.AgeS = age.Seconds()
			r.Figures = &of
		}
	}
}

func (f *figures) addToHosts(rows []kbroker.HostRow) {
	for i := range rows {
		if m, age := f.newest(rows[i].Name); m != nil && rows[i].PID != nil {
			of := m.machine
			of.AgeS = age.Seconds()
			rows[i].Figures = &of
		}
	}
}

// measuredInstances are the rows of `ps`, with figures where they are asked for.
func (d *desk) measuredInstances(v *state.View, r kbroker.ListRequest) []kbroker.InstanceRow {
	rows := instanceRows(v, r, d.gone)
	if r.Wide && !d.heard.deaf() {
		d.figures.addTo(rows)
	}
	return rows
}

// measuredHosts are the rows of `hosts`, with figures.
func (d *desk) measuredHosts(v *state.View, all bool) []kbroker.HostRow {
	rows := hostRows(v, all, d.sight())
	if !d.heard.deaf() {
		d.figures.addToHosts(rows)
	}
	return rows
}

// look is what this core knows now, for who asks each second: a barrier would have the
// cluster write each time.
func (d *desk) look(r kbroker.ListRequest) kbroker.FiguresReply {
	v := d.store.Peek()
	r.Wide = true
	return kbroker.FiguresReply{
		Core: d.cfg.Host, Hosts: d.measuredHosts(v, false),
		Instances: d.measuredInstances(v, r),
	}
}
