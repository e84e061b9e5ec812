package sdk

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// testStreams are those of the objects of the app of these tests.
const testStreams = 4

// core is a core's part of docs/protocol.md, Owning objects: it reads and writes who owns
// what, and objects, in memory. Batches are taken whole or not at all, by compare-and-set,
// and changes of the ownership are published.
type core struct {
	t  *testing.T
	nc *nats.Conn

	mu   sync.Mutex
	last map[string]kbroker.Revision // of each stream
	recs map[string]kbroker.Stored
	now  map[string]int // writes of objects by record, for who counts
	// mute is asked whether a batch is not answered: 1: written, 2: not even that.
	mute   func(writes []kbroker.Write) int
	quiet  bool                           // what is written is not published: all of it is lost
	onRead func(r kbroker.OwnReadRequest) // hears what is read; under mu
}

const (
	unanswered = 1
	lostBefore = 2
)

func newCore(t *testing.T, s *natstest.Server) *core { return newCoreOn(t, s.Connect(t)) }

func newCoreOn(t *testing.T, nc *nats.Conn) *core {
	t.Helper()
	c := &core{t: t, nc: nc, last: map[string]kbroker.Revision{}, recs: map[string]kbroker.Stored{}, now: map[string]int{}}
	if _, err := c.nc.QueueSubscribe(subjects.AllOwn, subjects.QueueCore, c.asked); err != nil {
		t.Fatal(err)
	}
	if err := c.nc.Flush(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *core) asked(m *nats.Msg) {
	tenant, app, verb, _, ok := subjects.ParseOwn(m.Subject)
	if !ok {
		c.t.Errorf("a request on %s", m.Subject)
		return
	}
	var data []byte
	var err error
	if verb == subjects.VerbOwnRead {
		data, err = c.read(m.Data)
	} else {
		var answered bool
		if data, answered, err = c.write(tenant, app, m.Data); !answered {
			return
		}
	}
	if err != nil {
		_ = c.nc.PublishMsg(errorReply(m.Reply, nil, kbroker.AsError(err)))
		return
	}
	_ = c.nc.Publish(m.Reply, data)
}

// page is how many records an answer has, so that there are more.
const page = 100

func (c *core) read(body []byte) ([]byte, error) {
	var r kbroker.OwnReadRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "%v", err)
	}
	if err := r.Check(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.onRead != nil {
		c.onRead(r)
	}
	var reply kbroker.OwnReadReply
	for _, k := range r.Keys {
		s := c.recs[k]
		s.Key = k
		reply.Records = append(reply.Records, s)
	}
	if r.Match != "" {
		of, _, _ := subjects.StoredAt(kbroker.DefaultTenant, "bank", testStreams, r.Match)
		newest := kbroker.Revision(0)
		for k, s := range c.recs {
			if !strings.HasPrefix(k, r.Match+".") {
				continue
			}
			if newest = max(newest, s.Revision); k > r.After && s.Exists() {
				reply.Records = append(reply.Records, s)
			}
		}
		if reply.At = c.last[of]; r.Since > 0 && newest <= r.Since {
			return kbroker.OwnReadReply{Same: true}.MarshalBinary()
		}
		slices.SortFunc(reply.Records, func(a, b kbroker.Stored) int { return strings.Compare(a.Key, b.Key) })
	}
	if len(reply.Records) > page {
		reply.Records, reply.More = reply.Records[:page], true
	}
	return reply.MarshalBinary()
}

func (c *core) write(tenant kbroker.TenantID, app kbroker.AppName, body []byte) (data []byte, answered bool, err error) {
	var r kbroker.OwnWriteRequest
	if err := r.UnmarshalBinary(body); err != nil {
		return nil, true, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	mute := 0
	if c.mute != nil {
		mute = c.mute(r.Writes)
	}
	if mute == lostBefore {
		return nil, false, nil
	}
	first, err := c.apply(tenant, app, r.Writes)
	if err != nil {
		return nil, mute == 0, err
	}
	if c.t.Context().Err() != nil {
		c.revokeLeaving(tenant, app, r.Writes)
	}
	data, err = json.Marshal(kbroker.OwnWriteReply{First: first})
	return data, mute == 0, err
}

// revokeLeaving ends the leases of who leaves when the test is over: there is no allocator that
// would take over from them, and each would wait for one. Under mu.
func (c *core) revokeLeaving(tenant kbroker.TenantID, app kbroker.AppName, writes []kbroker.Write) {
	for _, w := range writes {
		var l ownership.Lease
		if subjects.ParseOwnKey(w.Key).Table != subjects.OwnLease || json.Unmarshal(w.Value, &l) != nil || !l.Leaving {
			continue
		}
		l.Revoked = true
		if b, err := json.Marshal(l); err == nil {
			_, _ = c.apply(tenant, app, []kbroker.Write{{Key: w.Key, Expected: c.recs[w.Key].Revision, Value: b}})
		}
	}
}

// apply writes a batch. Under mu.
func (c *core) apply(tenant kbroker.TenantID, app kbroker.AppName, writes []kbroker.Write) (kbroker.Revision, error) {
	stream := ""
	for _, w := range writes {
		of, _, ok := subjects.StoredAt(tenant, app, testStreams, w.Key)
		if !ok || stream != "" && of != stream {
			return 0, kbroker.Errorf(kbroker.Invalid, "%s is not of the stream of the batch", w.Key)
		}
		stream = of
		key, at := w.Key, w.Expected
		if w.Guard != "" {
			key, at = w.Guard, w.GuardAt
		}
		if is := c.recs[key].Revision; is != at {
			return 0, kbroker.Errorf(kbroker.Conflict, "%s is at %d", key, is)
		}
	}
	first := c.last[stream] + 1
	for _, w := range writes {
		c.last[stream]++
		c.recs[w.Key] = kbroker.Stored{Key: w.Key, Revision: c.last[stream], Value: w.Value}
		c.now[w.Key]++
		if !subjects.ParseOwnKey(w.Key).OfObject() && !c.quiet {
			_ = c.nc.PublishMsg(&nats.Msg{
				Subject: subjects.Owned(tenant, app, w.Key), Data: w.Value,
				Header: nats.Header{subjects.HeaderSequence: {strconv.FormatUint(uint64(c.last[stream]), 10)}},
			})
		}
	}
	return first, nil
}

// put writes records as an allocator does.
func (c *core) put(values map[string]any) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var writes []kbroker.Write
	for key, v := range values {
		b, err := json.Marshal(v)
		if err != nil {
			c.t.Fatal(err)
		}
		writes = append(writes, kbroker.Write{Key: key, Expected: c.recs[key].Revision, Value: b})
	}
	if _, err := c.apply(kbroker.DefaultTenant, "bank", writes); err != nil {
		c.t.Fatalf("write %v: %v", values, err)
	}
}

// get reads a record.
func get[T any](c *core, key string) (v T) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.recs[key]; s.Exists() {
		if err := json.Unmarshal(s.Value, &v); err != nil {
			c.t.Fatalf("%s: %v", key, err)
		}
	}
	return v
}

// record is what is stored of an object.
func (c *core) record(o kbroker.Object) ownership.Record {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.recs[subjects.KeyState(o)]
	if !s.Exists() {
		return ownership.Record{}
	}
	r, err := ownership.Decode(s.Value)
	if err != nil {
		c.t.Fatalf("%s: %v", o, err)
	}
	return r
}

// writes is how often a record was written.
func (c *core) writes(key string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now[key]
}

// hears has what is read told, under mu, before it is.
func (c *core) hears(onRead func(r kbroker.OwnReadRequest)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.onRead = onRead
}

// assign has a start own the shard of an object, whoever did. Under mu.
func (c *core) assign(o kbroker.Object, to kbroker.Incarnation) error {
	key := subjects.KeyAssign(o.Shard())
	b, err := json.Marshal(ownership.Assignment{Owner: to, Epoch: 2})
	if err == nil {
		_, err = c.apply(kbroker.DefaultTenant, "bank", []kbroker.Write{{Key: key, Expected: c.recs[key].Revision, Value: b}})
	}
	return err
}

func (c *core) silently(mute func([]kbroker.Write) int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = mute
}

// give has a start own the shards of objects, with all others revoked that did.
func (c *core) give(to kbroker.Incarnation, objects ...kbroker.Object) {
	c.t.Helper()
	values := map[string]any{}
	for _, o := range objects {
		a := get[ownership.Assignment](c, subjects.KeyAssign(o.Shard()))
		if a.Owner != "" && a.Owner != to {
			l := get[ownership.Lease](c, subjects.KeyLease(a.Owner))
			l.Revoked = true
			values[subjects.KeyLease(a.Owner)] = l
		}
		values[subjects.KeyAssign(o.Shard())] = ownership.Assignment{Owner: to, Epoch: a.Epoch + 1}
	}
	c.put(values)
}

// move moves the shard of an object, and returns when the next one serves it.
func (c *core) move(to kbroker.Incarnation, o kbroker.Object) {
	c.t.Helper()
	key := subjects.KeyAssign(o.Shard())
	a := get[ownership.Assignment](c, key)
	if a.Owner == to {
		return
	}
	a.Next, a.NextEpoch = to, a.Epoch+1
	c.put(map[string]any{key: a})
	wait.Until(c.t, patience, func() error {
		if r := get[ownership.Release](c, subjects.KeyRelease(o.Shard())); r.ToEpoch != a.NextEpoch || r.To != to {
			return fmt.Errorf("the release of shard %d is %+v, want one to %s at %d", o.Shard(), r, to, a.NextEpoch)
		}
		return nil
	})
	c.put(map[string]any{key: ownership.Assignment{Owner: to, Epoch: a.NextEpoch}})
}

// quick are times with which a test is over soon.
var quick = ownership.Times{
	Renew: 100 * time.Millisecond, RenewAttempt: 100 * time.Millisecond, HolderStops: 2 * time.Second, ObserverActs: 2500 * time.Millisecond,
	OutageGrace: time.Second, Window: time.Minute, WindowMargin: 10 * time.Second, MoveDeadline: 5 * time.Second,
}
