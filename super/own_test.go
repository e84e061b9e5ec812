package super

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

// Starts of the app shop.
const (
	webStart  kbroker.Incarnation = "shop-web-1.a"
	mailStart kbroker.Incarnation = "shop-mail-2.b"
	allocates kbroker.Incarnation = "shop-allocator-3.c"
)

var anObject = kbroker.Object{Kind: "account", ID: "alice"}

func allocatorLease(holder kbroker.Incarnation, expected kbroker.Revision) kbroker.Write {
	value, err := json.Marshal(kbroker.AllocatorLease{Holder: holder, Epoch: 1})
	if err != nil {
		panic(err)
	}
	return kbroker.Write{Key: subjects.KeyAllocatorLease, Expected: expected, Value: value}
}

func TestWhoMayOwn(t *testing.T) {
	of := func(keys ...string) (writes []kbroker.Write) {
		for _, k := range keys {
			writes = append(writes, kbroker.Write{Key: k, Value: []byte("x")})
		}
		return writes
	}
	led := func(keys ...string) []kbroker.Write {
		return append([]kbroker.Write{allocatorLease(allocates, 7)}, of(keys...)...)
	}
	state, out, due := subjects.KeyState(anObject), subjects.KeyOut(anObject, 1), subjects.KeyDue(anObject, "tick")
	assign, placed, release := subjects.KeyAssign(3), subjects.KeyAssign(kbroker.Object{Kind: "room", ID: "1", Placed: true}.Shard()), subjects.KeyRelease(3)
	guarded := allocatorLease(allocates, 0)
	guarded.Guard, guarded.GuardAt = assign, 3
	for name, c := range map[string]struct {
		who    kbroker.Incarnation
		writes []kbroker.Write
		code   kbroker.Code // empty: allowed
	}{
		"its own lease": {webStart, of(subjects.KeyLease(webStart)), ""},
		"the lease of another start of the instance":     {webStart, of(subjects.KeyLease("shop-web-1.b")), kbroker.Refused},
		"the lease of another instance":                  {webStart, of(subjects.KeyLease(mailStart)), kbroker.Refused},
		"the lease of the allocators":                    {webStart, []kbroker.Write{allocatorLease(webStart, 7)}, kbroker.Refused},
		"an object, a message and a reminder":            {webStart, of(state, out, due), ""},
		"a release":                                      {webStart, of(release), ""},
		"an assignment":                                  {webStart, of(assign), kbroker.Refused},
		"that of an object":                              {webStart, of(placed), kbroker.Refused},
		"the head":                                       {webStart, of(subjects.KeyOwnershipHead), kbroker.Refused},
		"what it may and what not":                       {webStart, of(release, subjects.KeyLease(webStart), assign), kbroker.Refused},
		"no key":                                         {webStart, of("x"), kbroker.Invalid},
		"an allocator's batch":                           {allocates, led(assign, placed, release, subjects.KeyOwnershipHead, subjects.KeyLease(webStart)), ""},
		"an allocator's lease alone":                     {allocates, led(), ""},
		"an allocator's, not behind its lease":           {allocates, of(assign), kbroker.Refused},
		"an allocator's, its lease last":                 {allocates, append(of(assign), led()...), kbroker.Refused},
		"an allocator's, behind the lease of another":    {allocates, []kbroker.Write{allocatorLease("shop-allocator-4.d", 7)}, kbroker.Refused},
		"an allocator's, behind a lease without a check": {allocates, []kbroker.Write{guarded}, kbroker.Refused},
		"an allocator's, behind no lease":                {allocates, of(subjects.KeyAllocatorLease), kbroker.Invalid},
		"an allocator's object":                          {allocates, led(state), kbroker.Refused},
		"an allocator of another app":                    {"bank-allocator-1.a", led(assign), kbroker.Refused},
	} {
		err := mayOwn("shop", c.who, c.writes)
		if c.code == "" && err != nil || c.code != "" && !errors.Is(err, c.code) {
			t.Errorf("%s: %v, want %q", name, err, c.code)
		}
	}
}

// ownWrite asks as a start of an app.
func (d *desktop) ownWrite(subject string, writes ...kbroker.Write) (reply kbroker.OwnWriteReply, err error) {
	body, err := kbroker.OwnWriteRequest{Writes: writes}.MarshalBinary()
	if err != nil {
		return reply, err
	}
	return reply, d.send(&nats.Msg{Subject: subject, Data: body}, &reply)
}

func (d *desktop) ownRead(subject string, r kbroker.OwnReadRequest) (reply kbroker.OwnReadReply, err error) {
	body, err := json.Marshal(r)
	if err != nil {
		return reply, err
	}
	m, err := d.nc.RequestMsg(&nats.Msg{Subject: subject, Data: body}, 5*time.Second)
	if err != nil {
		return reply, err
	}
	if m.Header.Get(subjects.HeaderCode) != "" {
		var e kbroker.Error
		return reply, errors.Join(json.Unmarshal(m.Data, &e), &e)
	}
	return reply, reply.UnmarshalBinary(m.Data)
}

func TestACoreWritesWhoOwnsWhat(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	wait.Until(t, 10*time.Second, func() error {
		store := d.Super.store.Load()
		if store == nil {
			return errors.New("the store is not open")
		}
		return store.EnsureApp(t.Context(), state.AppKey{Tenant: tenant, App: "shop"})
	})
	mine, read := subjects.Own(tenant, "shop", subjects.VerbOwnWrite, webStart), subjects.Own(tenant, "shop", subjects.VerbOwnRead, mailStart)
	allocator := subjects.Own(tenant, "shop", subjects.VerbOwnWrite, allocates)
	var seeded kbroker.OwnReadReply
	wait.Until(t, 10*time.Second, func() (err error) {
		seeded, err = d.ownRead(read, kbroker.OwnReadRequest{Keys: []string{subjects.KeyAllocatorLease}})
		return err
	})
	heard, err := d.nc.SubscribeSync(subjects.OwnedOf(tenant, "shop") + ">")
	if err != nil {
		t.Fatal(err)
	}
	lease := kbroker.Write{Key: subjects.KeyLease(webStart), Value: []byte("mine")}
	assign := kbroker.Write{Key: subjects.KeyAssign(3), Value: []byte("web")}
	for name, c := range map[string]struct {
		subject string
		writes  []kbroker.Write
		code    kbroker.Code
	}{
		"an instance's assignment": {mine, []kbroker.Write{assign}, kbroker.Refused},
		"another's lease":          {subjects.Own(tenant, "shop", subjects.VerbOwnWrite, mailStart), []kbroker.Write{lease}, kbroker.Refused},
		"what is elsewhere":        {mine, []kbroker.Write{{Key: lease.Key, Expected: 9, Value: lease.Value}}, kbroker.Conflict},
		"behind an old lease":      {allocator, []kbroker.Write{allocatorLease(allocates, seeded.Records[0].Revision+5), assign}, kbroker.Conflict},
		"of another tenant":        {subjects.Own("other", "shop", subjects.VerbOwnWrite, webStart), []kbroker.Write{lease}, kbroker.NotFound},
		"of a name that is none":   {subjects.Own(tenant, "SHOP", subjects.VerbOwnWrite, webStart), []kbroker.Write{lease}, kbroker.Invalid},
		"of an app that is none":   {subjects.Own(tenant, "bank", subjects.VerbOwnWrite, webStart), []kbroker.Write{lease}, kbroker.Unavailable},
		"objects that are not yet": {mine, []kbroker.Write{{Key: subjects.KeyState(anObject), Value: []byte("x")}}, kbroker.Unavailable},
	} {
		if _, err := d.ownWrite(c.subject, c.writes...); !errors.Is(err, c.code) {
			t.Errorf("%s: %v, want %s", name, err, c.code)
		}
	}
	if err := d.send(&nats.Msg{Subject: mine, Data: []byte("x")}, &kbroker.OwnWriteReply{}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("no request: %v, want invalid", err)
	}
	if err := d.send(&nats.Msg{Subject: read, Data: []byte(strings.Repeat(" ", maxOwnRead+1))}, &kbroker.OwnReadReply{}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a request to read that is too large: %v, want invalid", err)
	}
	steal := subjects.Own(tenant, "shop", "steal", webStart)
	if _, err := d.ownWrite(steal, lease); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("what a core does not do: %v, want that none is asked that does not know it", err)
	}
	// Nobody would hear of it: nothing is written.
	body, err := kbroker.OwnWriteRequest{Writes: []kbroker.Write{lease}}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	direct := newDesk(d.Super, d.Super.store.Load())
	for _, reply := range []string{"", subjects.Owned(tenant, "shop", "x"), subjects.Control("x")} {
		if _, err := direct.ownership(direct.ownWrite)(t.Context(), &nats.Msg{Subject: mine, Reply: reply, Data: body}); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("the answer is to go to %q: %v, want invalid", reply, err)
		}
	}
	if m, err := heard.NextMsg(50 * time.Millisecond); err == nil {
		t.Fatalf("after all that was refused %s is %q", m.Subject, m.Data)
	}
	d.awaitTrail("the refused assignment", func(r kbroker.AuditRecord) bool {
		return r.Action == "own" && r.Object == "app shop" && r.Actor.Instance == "shop-web-1" && r.Outcome == kbroker.AuditRefused && r.Code == kbroker.Refused
	})
	owned, err := d.ownWrite(mine, lease)
	if err != nil {
		t.Fatal(err)
	}
	assigned, err := d.ownWrite(allocator, allocatorLease(allocates, seeded.Records[0].Revision), assign)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{subjects.Owned(tenant, "shop", lease.Key), subjects.Owned(tenant, "shop", subjects.KeyAllocatorLease), subjects.Owned(tenant, "shop", assign.Key)} {
		if m, err := heard.NextMsg(5 * time.Second); err != nil || m.Subject != want {
			t.Fatalf("heard %+v (%v), want %s", m, err, want)
		}
	}
	got, err := d.ownRead(read, kbroker.OwnReadRequest{Keys: []string{lease.Key, assign.Key, subjects.KeyRelease(3)}})
	if err != nil || len(got.Records) != 3 || got.Records[0].Revision != owned.First || got.Records[1].Revision != assigned.At(1) || string(got.Records[1].Value) != "web" || got.Records[2].Revision != 0 {
		t.Fatalf("read %+v (%v)", got, err)
	}
}

// Who is deployed with objects has the streams for them, as soon as it is.
func TestADeployMakesTheStreamsOfObjects(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	app := shop(t, func(s *kbroker.Service) {
		s.Artifact, s.Objects = kbroker.Artifact{Builtin: kbroker.BuiltinHello}, []kbroker.KindName{"account"}
	})
	app.ObjectStreams = 1
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbDeploy, tenant, subjects.NoKey), kbroker.DeployRequest{App: app}, &kbroker.DeployReply{})
	})
	mine := subjects.Own(tenant, "shop", subjects.VerbOwnWrite, webStart)
	record := kbroker.Write{Key: subjects.KeyState(anObject), Value: []byte("\x00\xff")}
	var first kbroker.OwnWriteReply
	wait.Until(t, 5*time.Second, func() (err error) { // a core may be behind
		first, err = d.ownWrite(mine, record, kbroker.Write{Key: subjects.KeyOut(anObject, 1), Value: []byte("tell")})
		return err
	})
	if _, err := d.ownWrite(mine, record); !errors.Is(err, kbroker.Conflict) {
		t.Errorf("the object is made a second time: %v", err)
	}
	got, err := d.ownRead(subjects.Own(tenant, "shop", subjects.VerbOwnRead, allocates), kbroker.OwnReadRequest{Match: subjects.MatchStates(anObject.Shard())})
	if err != nil || len(got.Records) != 1 || got.Records[0].Revision != first.First || string(got.Records[0].Value) != "\x00\xff" {
		t.Errorf("read %+v (%v)", got, err)
	}
}

// A store that does not answer those who own objects keeps no agent waiting; and however much
// they read, their leases are renewed.
func TestOwnersHaveARoomOfTheirOwn(t *testing.T) {
	t.Parallel()
	d := startSuper(t)
	wait.Until(t, 10*time.Second, func() error {
		if d.Super.store.Load() == nil {
			return errors.New("the store is not open")
		}
		return nil
	})
	d.stop() // another desk takes the place of its own
	full := newDesk(d.Super, d.Super.store.Load())
	for range maxDesk {
		full.readers <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- full.run(ctx) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the desk ended: %v", err)
		}
	}()
	wait.Until(t, 10*time.Second, func() error {
		_, err := d.ownRead(subjects.Own(tenant, "shop", subjects.VerbOwnRead, webStart), kbroker.OwnReadRequest{Match: subjects.MatchAssigns})
		if !errors.Is(err, kbroker.Overloaded) {
			return fmt.Errorf("a full room of owners who read: %w, want overloaded", err)
		}
		return nil
	})
	write := subjects.Own(tenant, "SHOP", subjects.VerbOwnWrite, webStart) // no name of an app: that is what it is told
	lease := kbroker.Write{Key: subjects.KeyLease(webStart), Value: []byte("{}")}
	if _, err := d.ownWrite(write, lease); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a lease, beside a full room of those who read: %v, want its answer", err)
	}
	for range maxDesk {
		full.owners <- struct{}{}
	}
	if _, err := d.ownWrite(write, lease); !errors.Is(err, kbroker.Overloaded) {
		t.Errorf("a full room of owners who write: %v, want overloaded", err)
	}
	if err := d.ask(subjects.Lease(tenant, "SHOP"), kbroker.LeaseRequest{}, &kbroker.LeaseReply{}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("an allocator, beside a full room of owners: %v, want its answer", err)
	}
}
