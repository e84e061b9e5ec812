package super

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

func TestCredentialsThatAreGivenUp(t *testing.T) {
	const life, longAgo = time.Hour, 30 * 24 * time.Hour
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	host := func(s kbroker.HostState, ago time.Duration) kbroker.Host {
		return kbroker.Host{Name: "w1", Role: kbroker.RoleWorker, State: s, Since: now.Add(-ago)}
	}
	runs := kbroker.Placement{Host: "w1", Tenant: tenant, Instance: "shop-web-1", Epoch: 3}
	runs.Spec.Stop.Grace = 10 * time.Second
	stopped := runs
	stopped.Stop, stopped.Epoch = true, 4
	patient := stopped
	patient.Spec.Stop.Grace = time.Hour
	owner := stopped
	owner.Spec.Objects = []kbroker.KindName{"account"}
	for name, c := range map[string]struct {
		host  kbroker.Host
		place *kbroker.Placement
		epoch uint64 // of the status
		user  string
		known bool // revoked before
		since time.Duration
		want  bool
	}{
		"one on a host that is there":                                       {host(kbroker.HostReady, 0), &runs, 3, "U", false, longAgo, false},
		"one that a host that is there is to stop: it drains":               {host(kbroker.HostReady, 0), &stopped, 3, "U", false, longAgo, false},
		"one of a lost host that is placed elsewhere":                       {host(kbroker.HostLost, 0), &stopped, 3, "U", false, longAgo, true},
		"one that was lost for long when its instance was placed elsewhere": {host(kbroker.HostLost, 30*24*time.Hour), &stopped, 3, "U", false, longAgo, true},
		"one of a lost host that may still be leaving":                      {host(kbroker.HostLost, 0), &stopped, 3, "U", false, 9 * time.Second, false},
		"one that has had its time to leave":                                {host(kbroker.HostLost, 0), &stopped, 3, "U", false, 10 * time.Second, true},
		"one whose time to leave is very long":                              {host(kbroker.HostLost, 0), &patient, 3, "U", false, maxLeave, true},
		"one that may own objects":                                          {host(kbroker.HostLost, 0), &owner, 3, "U", false, 119 * time.Second, false},
		"one that may have given them to others by now":                     {host(kbroker.HostLost, 0), &owner, 3, "U", false, 2 * time.Minute, true},
		"the same, taken back before":                                       {host(kbroker.HostLost, 0), &stopped, 3, "U", true, longAgo, false},
		"one of a lost host that is not: it works on when the host returns": {host(kbroker.HostLost, 0), &runs, 3, "U", false, longAgo, false},
		"one of a lost host whose placement is not known here":              {host(kbroker.HostLost, 0), nil, 3, "U", false, longAgo, false},
		"one that the host has stopped, and is not heard to have ended":     {host(kbroker.HostLost, 0), &stopped, 4, "U", false, longAgo, false},
		"one on a host that was removed":                                    {host(kbroker.HostRemoved, 0), nil, 3, "U", false, longAgo, true},
		"one on a host that was removed, not stopped yet":                   {host(kbroker.HostRemoved, 0), &runs, 3, "U", false, longAgo, true},
		"one that has ended by now, wherever it was renewed":                {host(kbroker.HostRemoved, life+clocksDiffer+time.Second), nil, 3, "U", false, longAgo, false},

		"what does not run":                    {host(kbroker.HostRemoved, 0), nil, 3, "", false, longAgo, false},
		"one on a host that is not known here": {kbroker.Host{Name: "w2", State: kbroker.HostRemoved, Since: now}, nil, 3, "U", false, longAgo, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := state.PlacementKey{Host: "w1", Tenant: tenant, Instance: "shop-web-1"}
			v := &state.View{
				Hosts:      map[kbroker.HostID]kbroker.Host{c.host.Name: c.host},
				Placements: map[state.PlacementKey]kbroker.Placement{},
				Statuses:   map[state.PlacementKey]kbroker.Status{k: {Host: "w1", Instance: "shop-web-1", Epoch: c.epoch, User: c.user}},
				Revoked:    map[string]time.Time{},
			}
			if c.place != nil {
				v.Placements[k] = *c.place
			}
			if c.known {
				v.Revoked[c.user] = now
			}
			if got := givenUp(v, map[state.PlacementKey]time.Duration{k: c.since}, life, now); len(got) == 1 != c.want || len(got) > 1 {
				t.Errorf("given up are %v, want one: %t", got, c.want)
			}
		})
	}
}

// TestALostHostsCredentialsAreGivenUpWithItsInstances: what the plan does with a lost
// host, and with one that returns.
func TestALostHostsCredentialsAreGivenUpWithItsInstances(t *testing.T) {
	c := newCluster(t, 3)
	web := service(3)
	web.Stop.Grace = 10 * time.Second
	c.deploy(web)
	c.settle()
	users := map[kbroker.HostID][]string{}
	for k, st := range c.view.Statuses {
		st.User = "U" + string(k.Instance)
		c.view.Statuses[k] = st
		users[k.Host] = append(users[k.Host], st.User)
	}
	if len(users["h3"]) == 0 {
		t.Fatalf("nothing runs on h3: %v", users)
	}
	h := c.view.Hosts["h3"]
	h.State = kbroker.HostLost
	c.view.Hosts["h3"] = h
	m := newMemory()
	gone := func(now time.Duration) []string {
		m.see(&c.view, now)
		return givenUp(&c.view, m.stopFor(now), time.Hour, time.Time{})
	}
	if got := gone(0); len(got) != 0 {
		t.Errorf("given up before anything was stopped: %v", got)
	}
	w := c.world()
	w.Verdict.States["h3"] = kbroker.HostLost
	delete(w.Verdict.Beats, "h3")
	c.apply(Plan(w))
	if got := gone(time.Hour); len(got) != 0 {
		t.Errorf("given up as they begin to leave: %v", got)
	}
	got, want := gone(time.Hour+maxLeave), slices.Sorted(slices.Values(users["h3"]))
	if !slices.Equal(got, want) {
		t.Errorf("given up with the lost host are %v, want %v", got, want)
	}
	h = c.view.Hosts["h3"]
	h.State = kbroker.HostReady
	c.view.Hosts["h3"] = h
	if got := gone(2 * time.Hour); len(got) != 0 {
		t.Errorf("given up of a host that is back, and stops them itself: %v", got)
	}
}

// signedAs reads "host user" as what was signed for a start of shop on a host, until a
// time.
func signedAs(until time.Time) func(string) (kbroker.InstanceFile, kbroker.Revocation, error) {
	return func(credential string) (kbroker.InstanceFile, kbroker.Revocation, error) {
		host, user, ok := strings.Cut(credential, " ")
		if !ok {
			return kbroker.InstanceFile{}, kbroker.Revocation{}, errors.New("not a credential")
		}
		of := kbroker.InstanceFile{Tenant: tenant, App: "shop", Host: kbroker.HostID(host), Incarnation: kbroker.Incarnation("shop-web-1." + strings.ToLower(user))}
		return of, kbroker.Revocation{User: user, Until: until}, nil
	}
}

// TestAReportNamesItsOwnCredentialsAlone: who could name another's would have it taken
// back, by its own removal too.
func TestAReportNamesItsOwnCredentialsAlone(t *testing.T) {
	ends := time.Date(2026, 1, 2, 3, 0, 0, 0, time.UTC)
	d := &desk{Super: &Super{cfg: Config{Signed: signedAs(ends)}, log: slog.New(slog.DiscardHandler)}}
	r := kbroker.ReportRequest{Host: "w1", Statuses: []kbroker.Status{
		{Host: "w1", Instance: "a", Credential: "w1 Ua"},
		{Host: "w1", Instance: "b", Credential: "w2 Ub"},
		{Host: "w1", Instance: "c", Credential: "x", User: "Uc"},
		{Host: "w1", Instance: "d", User: "Ud"},
	}}
	d.identify(&r)
	for i, want := range []string{"Ua", "", "", ""} {
		if st := r.Statuses[i]; st.User != want || st.Credential != "" {
			t.Errorf("%s is stored with user %q and credential %q, want user %q", st.Instance, st.User, st.Credential, want)
		}
	}
	r.Ended = []string{"w1 Ue", "w2 Uf", "x"}
	for _, c := range []struct{ renewed, want time.Time }{{ends.Add(-time.Hour), ends}, {ends.Add(time.Hour), ends.Add(time.Hour)}} {
		got, starts := d.ended(r, c.renewed)
		if len(starts) != 1 || starts[0].Incarnation != "shop-web-1.ue" {
			t.Errorf("over are %+v, want the start that had it", starts)
		}
		if len(got) != 1 || got[0] != (kbroker.Revocation{User: "Ue", Until: c.want}) {
			t.Errorf("taken back are %v, want Ue until %v", got, c.want)
		}
	}
}

func TestTheLongestLifeIsThatOfAnyCore(t *testing.T) {
	type hosts = map[kbroker.HostID]kbroker.Host
	core, removed := kbroker.Host{Role: kbroker.RoleCore}, kbroker.Host{Role: kbroker.RoleCore, State: kbroker.HostRemoved}
	says := func(h kbroker.Host, life time.Duration) kbroker.Host {
		h.CredentialLife = life
		return h
	}
	worker := kbroker.Host{Role: kbroker.RoleWorker}
	for name, c := range map[string]struct {
		hosts hosts
		want  time.Duration
	}{
		"none but this one":                    {nil, time.Hour},
		"another core's":                       {hosts{"h1": says(core, time.Minute), "h2": says(core, 3*time.Hour)}, 3 * time.Hour},
		"that of one that was removed":         {hosts{"h1": says(core, time.Minute), "h2": says(removed, 3*time.Hour)}, 3 * time.Hour},
		"no worker's: it signs nothing":        {hosts{"w1": says(worker, 3*time.Hour)}, time.Hour},
		"no longer one than any core can have": {hosts{"h2": says(removed, math.MaxInt64)}, kbroker.MaxCredentialLife},
		"no life below zero":                   {hosts{"h2": says(core, math.MinInt64)}, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			if got := longestLife(c.hosts, time.Hour); got != c.want {
				t.Errorf("it is %v, want %v", got, c.want)
			}
		})
	}
}

// TestALifeIsTakenFromCoresAlone: who signs nothing has no say in how long what is taken
// back is kept, and a core none beyond the bounds.
func TestALifeIsTakenFromCoresAlone(t *testing.T) {
	for name, c := range map[string]struct {
		role       kbroker.Role
		says, want time.Duration
	}{
		"a core's":               {kbroker.RoleCore, 2 * time.Hour, 2 * time.Hour},
		"one that is too long":   {kbroker.RoleCore, math.MaxInt64, kbroker.MaxCredentialLife},
		"one that is too short":  {kbroker.RoleCore, 1, kbroker.MinCredentialLife},
		"of a core that is mute": {kbroker.RoleCore, 0, 0},
		"a worker's":             {kbroker.RoleWorker, 2 * time.Hour, 0},
	} {
		t.Run(name, func(t *testing.T) {
			u := newCluster(t, 3)
			u.settle()
			h := u.view.Hosts["h3"]
			h.Role = c.role
			u.view.Hosts["h3"] = h
			w := u.world()
			beat := w.Verdict.Beats["h3"]
			beat.Role, beat.CredentialLife = kbroker.RoleCore, c.says // whatever it says it is
			w.Verdict.Beats["h3"] = beat
			u.apply(Plan(w))
			if got := u.view.Hosts["h3"].CredentialLife; got != c.want {
				t.Errorf("on record is %v, want %v", got, c.want)
			}
		})
	}
}

// makeToken has a token made, once somebody leads.
func makeToken(t *testing.T, d *desktop, role kbroker.Role) *kbroker.ShownToken {
	t.Helper()
	shown := tokenIn(&state.View{Tokens: map[string]kbroker.Token{}}, role, nil)
	hash := sha256.Sum256(shown.Secret)
	ask := kbroker.TokenRequest{ID: shown.ID, Hash: hash[:], Role: role, TTL: kbroker.TokenTTL}
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbToken, tenant, subjects.NoKey), ask, new(kbroker.TokenReply))
	})
	return shown
}

// TestACoreTakesCredentialsBack: those that a host reports, until all has ended that any
// core may have signed for them, and those of a host that was removed. It signs no more
// for either.
func TestACoreTakesCredentialsBack(t *testing.T) {
	ends := time.Now().Add(time.Minute)
	d := startSuper(t, func(c *Config) {
		c.Signed, c.CredentialLife = signedAs(ends), 2*time.Hour
		c.Sign = func(kbroker.Placement, kbroker.SignRequest) (string, error) { return "signed", nil }
	})
	awaitRevoked := func(user string) {
		t.Helper()
		wait.Until(t, 10*time.Second, func() error {
			until, ok := d.Revoked()[user]
			if left := time.Until(until); !ok || left < 119*time.Minute || left > 121*time.Minute {
				return fmt.Errorf("of %s taken back are %v, want it for two hours", user, d.Revoked())
			}
			return nil
		})
	}
	report := func(r kbroker.ReportRequest) {
		t.Helper()
		wait.Until(t, 10*time.Second, func() error {
			var reply kbroker.ReportReply
			if err := d.ask(subjects.Report(r.Host), r, &reply); err != nil {
				return err
			}
			if !reply.Accepted {
				return fmt.Errorf("report %d is not accepted: %d", r.Number, reply.Number)
			}
			return nil
		})
	}
	reaped, err := d.nc.SubscribeSync(subjects.Reaped(tenant, "shop"))
	if err == nil {
		err = d.nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	report(kbroker.ReportRequest{Host: "w1", Process: "p", Number: 1, Ended: []string{"w1 Uended", "w2 Uother"}})
	if m, err := reaped.NextMsg(10 * time.Second); err != nil || string(m.Data) != `{"incarnations":["shop-web-1.uended"]}` {
		t.Errorf("allocators are told %+v (%v), want which start has ended", m, err)
	}
	awaitRevoked("Uended")
	report(kbroker.ReportRequest{Host: "w9", Process: "p", Number: 1, Statuses: []kbroker.Status{
		{Tenant: tenant, App: "shop", Service: "web", Instance: "shop-web-9", Host: "w9", Epoch: 1, State: kbroker.StateReady, PID: 1, Credential: "w9 Uruns"},
	}})
	wait.Until(t, 10*time.Second, func() error {
		if st := d.store.Load().Peek().Statuses[state.PlacementKey{Host: "w9", Tenant: tenant, Instance: "shop-web-9"}]; st.User != "Uruns" {
			return fmt.Errorf("its status is %+v", st)
		}
		return nil
	})
	if out := d.Revoked(); len(out) != 1 {
		t.Errorf("taken back are %v, want one", out)
	}
	var joined kbroker.JoinReply
	shown := makeToken(t, d, kbroker.RoleWorker)
	wait.Until(t, 10*time.Second, func() error {
		err := d.ask(subjects.Join, kbroker.JoinRequest{Host: "w9", Role: kbroker.RoleWorker, Fingerprint: "f", Token: shown}, &joined)
		if err == nil && !joined.Admitted {
			err = fmt.Errorf("it waits: %s", joined.Wait)
		}
		return err
	})
	var removed kbroker.HostReply
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbRemove, tenant, subjects.NoKey), kbroker.RemoveRequest{Host: "w9"}, &removed)
	})
	awaitRevoked("Uruns")
	if out := d.Revoked(); len(out) != 2 {
		t.Errorf("taken back are %v, want two", out)
	}
	var signed kbroker.SignReply
	err = d.ask(subjects.Sign("w9"), kbroker.SignRequest{Tenant: tenant, Instance: "shop-web-9", Epoch: 1, Incarnation: "shop-web-9.1", Key: "Unew"}, &signed)
	if !errors.Is(err, kbroker.Refused) {
		t.Errorf("a start on a host that was removed is signed: %+v, %v", signed, err)
	}
	err = d.ask(subjects.Sign("h1"), kbroker.SignRequest{Tenant: tenant, Instance: "shop-web-1", Epoch: 1, Incarnation: "shop-web-1.1", Key: "Uended"}, &signed)
	if !errors.Is(err, kbroker.Refused) {
		t.Errorf("a key that was taken back is signed again: %+v, %v", signed, err)
	}
}
