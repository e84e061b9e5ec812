package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// aCore is one without a broker.
func aCore(t *testing.T) *core {
	t.Helper()
	i := newFounder(t, "kb-one")
	i.life = time.Hour
	return &core{
		cfg: Config{Log: discard()}, id: i, m: &membership{Host: "h1", Out: []kbroker.HostID{"h7"}},
		revoked: openRevoked(t, filepath.Join(t.TempDir(), revokedFile), time.Now),
	}
}

// signed is a credential of an instance on a host.
func (c *core) signed(t *testing.T, host kbroker.HostID, at time.Time, life time.Duration) credential.Credential {
	t.Helper()
	own, err := credential.New()
	if err != nil {
		t.Fatal(err)
	}
	jwt, err := c.id.grants.Sign(grants.User{Role: grants.Instance, Name: "shop-web-1.1", Key: own.Key(), Life: life, Tags: map[string][]string{
		grants.TagTenant: {string(kbroker.DefaultTenant)}, grants.TagHost: {string(host)}, grants.TagApp: {"shop"}, grants.TagService: {"web"},
		grants.TagInstance: {"shop-web-1"}, grants.TagIncarnation: {"shop-web-1.1"}, grants.TagCall: {"*.*"}, grants.TagObjects: {"*"}, grants.TagTopic: {"*.*"},
	}}, at)
	if err != nil {
		t.Fatal(err)
	}
	return own.Signed(jwt)
}

// TestACredentialSaysOfWhichStartItIs, to the program that has it.
func TestACredentialSaysOfWhichStartItIs(t *testing.T) {
	c := aCore(t)
	want := kbroker.InstanceFile{Tenant: kbroker.DefaultTenant, App: "shop", Service: "web", Instance: "shop-web-1", Incarnation: "shop-web-1.1"}
	own := c.signed(t, "h2", time.Now(), time.Minute)
	if got, ok := own.Start(); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("of an instance: %+v, %t; want %+v", got, ok, want)
	}
	admin, err := c.id.grants.Sign(grants.User{Role: grants.Admin, Name: "ann", Key: own.Key(), Tags: map[string][]string{grants.TagTenant: {string(kbroker.DefaultTenant)}}}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := own.Signed(admin).Start(); ok {
		t.Errorf("of a person: %+v, want none", got)
	}
}

func TestACredentialIsRenewedForItsHolderAlone(t *testing.T) {
	c, now := aCore(t), time.Now()
	good, other := c.signed(t, "h2", now, time.Minute), c.signed(t, "h2", now, time.Minute)
	out, forEver := c.signed(t, "h2", now, time.Minute), c.signed(t, "h2", now, 0)
	addRevoked(t, c.revoked, map[string]time.Time{out.Key(): time.Now().Add(time.Hour)})
	for name, q := range map[string]struct {
		shows credential.Credential
		asks  string
		want  string // in the refusal; empty: it is renewed
	}{
		"its holder":                          {good, good.Key(), ""},
		"somebody else":                       {good, other.Key(), "was asked for on"},
		"nobody":                              {good, "*", "was asked for on"},
		"one whose credential was taken back": {out, out.Key(), "it was taken back"},
		"one on a host that was removed":      {c.signed(t, "h7", now, time.Minute), "", "its host h7 was removed"},
		"one that has ended":                  {c.signed(t, "h2", now.Add(-time.Hour), time.Minute), "", "it ended at"},
		"one that does not end":               {forEver, forEver.Key(), "is not renewed"},
		"one of another cluster":              {good.Signed("eyJ"), good.Key(), "not a credential"},
	} {
		t.Run(name, func(t *testing.T) {
			if q.asks == "" {
				q.asks = q.shows.Key()
			}
			body, err := json.Marshal(kbroker.RenewRequest{Credential: q.shows.JWT()})
			if err != nil {
				t.Fatal(err)
			}
			signed, err := c.renewed(&nats.Msg{Subject: subjects.Renew(q.asks), Data: body})
			if q.want != "" {
				if err == nil || !strings.Contains(err.Error(), q.want) {
					t.Fatalf("renewed: %v, want an error with %q", err, q.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			again := q.shows.Signed(signed)
			if _, until := again.Holds(); again.Check(time.Now()) != nil || time.Until(until) < 55*time.Minute {
				t.Errorf("it holds until %v (%v), want for another hour", until, again.Check(time.Now()))
			}
		})
	}
}

// TestTheBrokerIsToldOfWhoIsNew, and not of what has ended.
func TestTheBrokerIsToldOfWhoIsNew(t *testing.T) {
	now := time.Now()
	at := func(d time.Duration) time.Time { return now.Add(d) }
	type users = map[string]time.Time
	for name, c := range map[string]struct {
		told, all users
		want      bool
	}{
		"nobody":                         {nil, users{}, false},
		"the same":                       {users{"a": at(time.Hour)}, users{"a": at(time.Hour)}, false},
		"one that is new":                {users{"a": at(time.Hour)}, users{"a": at(time.Hour), "b": at(time.Hour)}, true},
		"one that has ended":             {users{"a": at(time.Hour), "b": at(-time.Hour)}, users{"a": at(time.Hour)}, false},
		"a later end of one":             {users{"a": at(time.Hour)}, users{"a": at(2 * time.Hour)}, false},
		"a later end, the other is near": {users{"a": at(revokeAhead - time.Second)}, users{"a": at(2 * time.Hour)}, true},
		"an earlier end":                 {users{"a": at(time.Second)}, users{"a": at(0)}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := (told{until: c.told}).behind(c.all, now); got != c.want {
				t.Errorf("is behind: %t, want %t", got, c.want)
			}
		})
	}
}

// TestACoreTellsEverythingInPages that a message can carry.
func TestACoreTellsEverythingInPages(t *testing.T) {
	srv := natstest.Start(t)
	conn := srv.Connect(t)
	for _, n := range []int{0, 1, revokedPage, revokedPage + 1, 3*revokedPage + 7} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			c := aCore(t)
			c.m.Host = kbroker.HostID(fmt.Sprintf("h%d", n))
			all := map[string]time.Time{}
			for i := range n {
				all[fmt.Sprintf("U%055d", i)] = time.Date(9999, 1, 1, 0, 0, i%60, 0, time.UTC)
			}
			addRevoked(t, c.revoked, all)
			largest := 0
			sub, err := conn.Subscribe(subjects.Revoked(c.m.Host), c.tellRevoked)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sub.Unsubscribe() }()
			seen, err := conn.Subscribe("_INBOX.>", func(m *nats.Msg) { largest = max(largest, len(m.Data)) })
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if got := askRevoked(ctx, conn, c.m.Host); !maps.Equal(got, all) || ctx.Err() != nil {
				t.Errorf("told of %d users (%v), want %d", len(got), ctx.Err(), len(all))
			}
			if err := errors.Join(seen.Drain(), conn.Flush()); err != nil {
				t.Fatal(err)
			}
			wait.Until(t, 5*time.Second, func() error {
				if seen.IsValid() {
					return errors.New("answers are still being looked at")
				}
				return nil
			})
			if largest == 0 || largest > 512<<10 {
				t.Errorf("the largest answer has %d bytes, want at most half of what a message may have", largest)
			}
		})
	}
}

// TestACoreWaitsForOthersUntilItsTimeIsOver, and goes on with what it was told.
func TestACoreWaitsForOthersUntilItsTimeIsOver(t *testing.T) {
	srv := natstest.Start(t)
	conn := srv.Connect(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if got := askRevoked(ctx, conn, "h9"); len(got) != 0 || ctx.Err() == nil {
		t.Errorf("told %v by a core that is not there, before its time was over", got)
	}
	// It comes late.
	c := aCore(t)
	addRevoked(t, c.revoked, map[string]time.Time{"a": time.Now().Add(time.Hour)})
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	answer := make(chan map[string]time.Time, 1)
	go func() { answer <- askRevoked(ctx, conn, c.m.Host) }()
	wait.Until(t, 5*time.Second, func() error {
		if m := conn.Stats(); m.InMsgs < 2 { // no responders, twice
			return errors.New("it was not asked yet")
		}
		return nil
	})
	if _, err := conn.Subscribe(subjects.Revoked(c.m.Host), c.tellRevoked); err != nil {
		t.Fatal(err)
	}
	if got := <-answer; len(got) != 1 {
		t.Errorf("told %v by a core that came late, want one user", got)
	}
}

// aViewer is a credential of a viewer, and its public key.
func aViewer(t *testing.T, by *membership) (creds, key string) {
	t.Helper()
	creds, err := by.sign(grants.User{Role: grants.Viewer, Name: "viewer", Tags: map[string][]string{grants.TagTenant: {string(kbroker.DefaultTenant)}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := credential.Parse([]byte(creds))
	if err != nil {
		t.Fatal(err)
	}
	return creds, c.Key()
}

// connectTo connects to a core with a credential, for a moment.
func connectTo(m *membership, creds string) error {
	target, err := m.target()
	if err != nil {
		return err
	}
	target.Credential = creds
	secure, err := target.Secure()
	if err != nil {
		return err
	}
	nc, err := nats.Connect(url(m.Client), append(secure, nats.Timeout(time.Second), nats.NoReconnect(), nats.IgnoreDiscoveredServers())...)
	if err == nil {
		nc.Close()
	}
	return err
}

// listenLog notes when a host's broker has said that it listens.
type listenLog struct {
	slog.Handler
	mu sync.Mutex
	at time.Time
}

func (l *listenLog) Enabled(context.Context, slog.Level) bool { return true }
func (l *listenLog) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *listenLog) WithGroup(string) slog.Handler            { return l }
func (l *listenLog) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "broker listens" {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.at = r.Time
	}
	return nil
}

// TestCoresThatStartTogetherTellEachOther who is out, over their routes, before either
// takes clients, and neither waits for its time to be over.
func TestCoresThatStartTogetherTellEachOther(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	dir := func(host string) string { return filepath.Join(work, host) }
	cfg := map[string]Config{"h1": {Dir: dir("h1"), Name: "h1", Found: true, Advertise: "127.0.0.1"}}
	stop := map[string]func() error{"h1": start(t, cfg["h1"])}
	first := awaitLeader(t, dir("h1"))
	cfg["h2"] = Config{Dir: dir("h2"), Name: "h2", Join: []string{first.Client}, TokenFile: newToken(t, first, kbroker.RoleCore), Advertise: "127.0.0.1"}
	stop["h2"] = start(t, cfg["h2"])
	awaitCopies(t, first, "h2")
	members := map[string]*membership{}
	wait.Until(t, 20*time.Second, func() (err error) {
		for host := range cfg {
			if members[host], err = readMembership(dir(host)); err != nil {
				return err
			}
			if len(members[host].Cores) != 1 {
				return fmt.Errorf("%s knows of cores %v", host, members[host].Cores)
			}
		}
		return nil
	})
	thief, out := aViewer(t, first)
	connect := func(host, credential string) error { return connectTo(members[host], credential) }
	for host := range cfg {
		if err := connect(host, thief); err != nil {
			t.Fatalf("before it is taken back, on %s: %v", host, err)
		}
	}
	for _, host := range []string{"h2", "h1"} {
		if err := stop[host](); err != nil {
			t.Fatal(err)
		}
	}
	// One of them alone has heard of it, a moment before all went down.
	addRevoked(t, openRevoked(t, filepath.Join(dir("h2"), revokedFile), time.Now), map[string]time.Time{out: time.Now().Add(time.Hour)})
	logs := map[string]*listenLog{}
	const catchUp = 10 * time.Second // they do not start at the same moment
	for host, c := range cfg {
		logs[host] = &listenLog{Handler: slog.DiscardHandler}
		c.Log, c.catchUp = slog.New(logs[host]), catchUp
		start(t, c)
	}
	for host := range cfg {
		wait.Until(t, 20*time.Second, func() error {
			if err := connect(host, thief); err == nil {
				t.Fatalf("%s, which started with one that knows, takes who is out", host)
			}
			admin, err := members[host].person(AdminRole)
			if err != nil {
				return err
			}
			return connect(host, admin)
		})
	}
	admitted := time.Now()
	for host := range cfg {
		if err := connect(host, thief); err == nil {
			t.Errorf("%s takes who is out", host)
		}
	}
	var listen time.Time // both
	for host, l := range logs {
		l.mu.Lock()
		if l.at.IsZero() {
			t.Errorf("the broker of %s did not say that it listens", host)
		}
		if l.at.After(listen) {
			listen = l.at
		}
		l.mu.Unlock()
	}
	if took := admitted.Sub(listen); took > catchUp/2 {
		t.Errorf("clients were taken %v after both brokers listened, want them not to wait for %v", took, catchUp)
	}
}
