package state

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/jetstreamext"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of a commit.
const (
	batchMessages = 900     // lease and heads included; the server takes 1000
	batchBytes    = 4 << 20 // of records
	batchAttempt  = 2 * time.Second
	batchOpened   = time.Second // for the server to take the first message
	commitRetries = 3           // of a batch refused for a reason of the moment
	commitPause   = 20 * time.Millisecond
	appliedWithin = 2 * time.Second // until this core's replica shows it
)

// write is one record of a commit.
type write struct {
	key      string
	msg      *nats.Msg // nil: only the host's head is written
	expected uint64
	host     kbroker.HostID // whose placements it changes, or empty
	then     func(on map[PlacementKey]kbroker.Placement)
}

// Commit writes all changes in one atomic batch behind the lease (more than a
// batch holds: in several, each behind the lease), each guarded by the
// revision that its record has in v, heads included. After it returned nil,
// Peek shows the changes. One at a time.
//
// Errors: Invalid - two changes of one record, or one that depends on an
// unreadable record. Conflict - a record changed since v, nothing of this batch
// was written, plan again. Refused - the lease is lost, ctx of lead ends.
// Unavailable - the outcome is not known; plan again from a new View. A store
// with one replica whose server died meanwhile may hold only the first of the
// changes, in the order of SortChanges.
func (l *Leader) Commit(ctx context.Context, v *View, changes []Change) error {
	if len(changes) == 0 {
		return nil
	}
	writes, err := l.writes(ctx, v, changes)
	if err != nil {
		return err
	}
	c := &commit{leader: l, view: v, hosts: map[kbroker.HostID]*hostState{}}
	var last uint64
	for len(writes) > 0 {
		n := c.fits(writes)
		if last, err = c.batch(ctx, writes[:n]); err != nil {
			return err
		}
		writes = writes[n:]
	}
	shown, cancel := context.WithTimeout(ctx, appliedWithin)
	defer cancel()
	if err := l.store.control.await(shown, last, false); err != nil {
		return unavailable(err, "committed, but this core's replica does not show it yet")
	}
	return nil
}

// writes turns changes into records, in the order of SortChanges.
func (l *Leader) writes(ctx context.Context, v *View, changes []Change) ([]write, error) {
	sorted := slices.Clone(changes)
	SortChanges(sorted)
	writes := make([]write, 0, len(sorted))
	for i, c := range sorted {
		w := writeOf(c)
		if i > 0 && writes[i-1].key == w.key {
			return nil, kbroker.Errorf(kbroker.Invalid, "two changes of %s in one commit: %s; %s", w.key, sorted[i-1], c)
		}
		if err := v.untouchable(w); err != nil {
			return nil, err
		}
		var err error
		if w.expected, err = l.store.revision(ctx, v, w.key); err != nil {
			return nil, err
		}
		if _, ok := c.(PutVersion); ok && w.expected != 0 && v.revisions[w.key] != 0 {
			return nil, kbroker.Errorf(kbroker.Conflict, "%s exists", w.key)
		}
		writes = append(writes, w)
	}
	return writes, nil
}

func writeOf(c Change) write {
	w := write{key: keyOf(c)}
	subject := subjects.Control(w.key)
	switch c := c.(type) {
	case PutApp:
		w.msg = newRecord(subject, c.Record)
	case PutVersion:
		w.msg = newRecord(subject, c.Version)
	case PutPlacement:
		p := c.Placement
		w.msg, w.host = newRecord(subject, p), p.Host
		w.then = func(on map[PlacementKey]kbroker.Placement) { on[PlacementKey{p.Host, p.Tenant, p.Instance}] = p }
	case DropPlacement:
		w.msg, w.host = newMarker(subject), c.Key.Host
		w.then = func(on map[PlacementKey]kbroker.Placement) { delete(on, c.Key) }
	case PutHost:
		w.msg = newRecord(subject, c.Host)
	case DropHost:
		w.msg = newMarker(subject)
	case PutDemand:
		w.msg = newRecord(subject, c.Demand)
	case PutToken:
		w.msg = newRecord(subject, c.Token)
	case DropToken:
		w.msg = newMarker(subject)
	case PutUser:
		w.msg = newRecord(subject, c.User)
	case DropUser:
		w.msg = newMarker(subject)
	case PutAudit:
		w.msg = newRecord(subject, c.Record)
	}
	return w
}

// untouchable refuses a write over an unreadable record, and any write of a
// host that has one: its head cannot be computed.
func (v *View) untouchable(w write) error {
	for key, cause := range v.Unreadable {
		k := subjects.ParseKey(key)
		of := k.Table == subjects.PlacementTable || k.Table == subjects.HeadTable
		if key == w.key || of && w.host != "" && k.Host == w.host {
			return kbroker.Errorf(kbroker.Invalid, "%s cannot be written: the record %s is not readable: %v", w.key, key, cause).
				WithHint("a newer kbroker may have written it; upgrade this host")
		}
	}
	return nil
}

// revision is what the key's last message must be for a write planned from v.
// The marker of a deleted key may have left the stream meanwhile: only the
// leader knows.
func (s *Store) revision(ctx context.Context, v *View, key string) (uint64, error) {
	if rev, ok := v.revisions[key]; ok {
		return rev, nil
	}
	gone, ok := v.gone[key]
	if !ok {
		return 0, nil
	}
	m, err := readLast(ctx, s.cfg.Conn, subjects.ControlStream, subjects.Control(key))
	switch {
	case err != nil:
		return 0, unavailable(err, "read %s", key)
	case m == nil:
		return 0, nil
	case deleted(m.header):
		return m.seq, nil
	}
	return 0, kbroker.Errorf(kbroker.Conflict, "%s was deleted at revision %d and exists again", key, gone.revision)
}

// commit is a Commit under way.
type commit struct {
	leader *Leader
	view   *View
	hosts  map[kbroker.HostID]*hostState
}

// hostState is a host as the batches so far left it.
type hostState struct {
	on       map[PlacementKey]kbroker.Placement
	head     kbroker.Head
	expected uint64 // revision of the head
}

// host returns the state of a host, from the view when it was not yet changed.
func (c *commit) host(ctx context.Context, host kbroker.HostID) (*hostState, error) {
	if h, ok := c.hosts[host]; ok {
		return h, nil
	}
	expected, err := c.leader.store.revision(ctx, c.view, subjects.KeyHead(host))
	if err != nil {
		return nil, err
	}
	h := &hostState{on: map[PlacementKey]kbroker.Placement{}, head: c.view.Heads[host], expected: expected}
	for _, p := range c.view.On(host) {
		h.on[PlacementKey{p.Host, p.Tenant, p.Instance}] = p
	}
	c.hosts[host] = h
	return h, nil
}

// fits returns how many of the writes one batch takes, heads and lease
// included. It is at least 1.
func (c *commit) fits(writes []write) int {
	messages, bytes := 1, 0
	heads := map[kbroker.HostID]bool{}
	for i, w := range writes {
		if w.msg != nil {
			messages++
			bytes += len(w.msg.Data)
		}
		if w.host != "" && !heads[w.host] {
			heads[w.host] = true
			messages++
		}
		if i > 0 && (messages > batchMessages || bytes > batchBytes) {
			return i
		}
	}
	return len(writes)
}

// batch writes one batch behind the lease and returns its last sequence.
func (c *commit) batch(ctx context.Context, writes []write) (uint64, error) {
	msgs, heads, err := c.messages(ctx, writes)
	if err != nil {
		return 0, err
	}
	last, err := c.leader.publish(ctx, msgs)
	if err != nil {
		return 0, err
	}
	for i, host := range heads { // they are the batch's last messages
		c.hosts[host].expected = last - uint64(len(heads)-1-i)
	}
	return last, nil
}

// messages are those of one batch without the lease: the records, then the
// heads of the hosts they change, in the order of the hosts returned.
func (c *commit) messages(ctx context.Context, writes []write) (msgs []*nats.Msg, heads []kbroker.HostID, err error) {
	for _, w := range writes {
		if w.msg != nil {
			expect(w.msg, w.expected)
			msgs = append(msgs, w.msg)
		}
		if w.host == "" {
			continue
		}
		h, err := c.host(ctx, w.host)
		if err != nil {
			return nil, nil, err
		}
		if w.then != nil {
			w.then(h.on)
		}
		if !slices.Contains(heads, w.host) {
			heads = append(heads, w.host)
		}
	}
	for _, host := range heads {
		h := c.hosts[host]
		h.head = kbroker.Head{
			Host: host, Revision: h.head.Revision + 1, Count: len(h.on),
			Hash: kbroker.PlacementsHash(slices.Collect(maps.Values(h.on))),
		}
		m := newRecord(subjects.Control(subjects.KeyHead(host)), h.head)
		expect(m, h.expected)
		msgs = append(msgs, m)
	}
	return msgs, heads, nil
}

// publish writes msgs in one atomic batch that the lease leads, and returns its
// last sequence. A batch that was refused for a reason of the moment is tried
// again: a refusal is whole.
func (l *Leader) publish(ctx context.Context, msgs []*nats.Msg) (uint64, error) {
	held := l.held
	for attempt := 1; ; attempt++ {
		var last uint64
		err := held.behind(ctx, func(ctx context.Context, rev uint64) (uint64, error) {
			first := newRecord(held.lease.subject, held.record)
			expect(first, rev)
			var err error
			last, err = publishBatch(ctx, l.store.js, append([]*nats.Msg{first}, msgs...))
			return last - uint64(len(msgs)), err
		})
		refused, isRefusal := errors.AsType[*refusal](err)
		switch {
		case err == nil:
			return last, nil
		case errors.Is(err, errDeposed):
			return 0, kbroker.Errorf(kbroker.Refused, "epoch %d of the super lease is over: %v", l.Epoch(), err)
		case isRefusal && refused.stale && attempt <= commitRetries:
			sleep(ctx, commitPause)
		case isRefusal:
			return 0, kbroker.Errorf(kbroker.Conflict, "a record changed since it was read: %v", err)
		default:
			select {
			case l.torn <- struct{}{}:
			default: // it is known already
			}
			return 0, unavailable(err, "commit of %d records", len(msgs))
		}
	}
}

// publishBatch writes msgs in one atomic batch and returns its last sequence. Its first
// message is acknowledged before the others are sent.
func publishBatch(ctx context.Context, js jetstream.JetStream, msgs []*nats.Msg) (uint64, error) {
	return publishBatchWith(ctx, js, msgs, jetstreamext.BatchFlowControl{AckFirst: true, AckTimeout: batchOpened})
}

// publishBatchAtOnce does so without that acknowledgement, in one round trip: what would be
// refused by it is an incomplete batch at its end.
func publishBatchAtOnce(ctx context.Context, js jetstream.JetStream, msgs []*nats.Msg) (uint64, error) {
	return publishBatchWith(ctx, js, msgs, jetstreamext.BatchFlowControl{})
}

func publishBatchWith(ctx context.Context, js jetstream.JetStream, msgs []*nats.Msg, flow jetstreamext.BatchFlowControl) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, batchAttempt)
	defer cancel()
	ack, err := jetstreamext.PublishMsgBatch(ctx, js, msgs, flow)
	if err != nil {
		return 0, fmt.Errorf("publish a batch of %d: %w", len(msgs), err)
	}
	return ack.Sequence, nil
}
