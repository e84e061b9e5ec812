package super

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
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

// guess is a request of a host with a token that nobody made.
func guess(n int) kbroker.JoinRequest {
	return hostAsks(kbroker.HostID(fmt.Sprintf("x%d", n)), kbroker.RoleWorker, &kbroker.ShownToken{ID: strings.ToLower(rand.Text()[:kbroker.TokenIDLen]), Secret: []byte("x")})
}

// TestUnknownTokensShareABucket: of 10,000 guesses a few are looked at, and those who
// have something to show are not among them.
func TestUnknownTokensShareABucket(t *testing.T) {
	j := newJoiner(t)
	member, admitted := hostAsks("w1", kbroker.RoleWorker, j.fresh(kbroker.RoleWorker, "")), hostAsks("w2", kbroker.RoleWorker, j.fresh(kbroker.RoleWorker, ""))
	j.must(member)
	j.must(admitted)
	delete(j.view.Hosts, "w2") // its admission was taken back
	honest := hostAsks("w3", kbroker.RoleWorker, j.fresh(kbroker.RoleWorker, ""))
	member.Token, admitted.Token = nil, nil
	now := time.Hour
	g := newGuesses(now)
	looked := 0
	for n := range 10_000 {
		r := guess(n)
		if n%2 == 0 {
			r.Token = nil
		}
		now += time.Millisecond
		switch err := g.check(&j.view, r, now, nil); {
		case err == nil:
			looked++
		case !errors.Is(err, kbroker.Overloaded) || kbroker.AsError(err).Hint == "":
			t.Fatalf("guess %d: %v, want overloaded with a hint", n, err)
		}
		for _, r := range []kbroker.JoinRequest{member, admitted, honest} {
			if err := g.check(&j.view, r, now, nil); err != nil {
				t.Fatalf("host %s, after %d guesses: %v", r.Host, n+1, err)
			}
		}
	}
	if want := strangersBurst + 10*strangersPerSecond; looked < want-1 || looked > want {
		t.Errorf("%d of 10,000 guesses within 10 s were looked at, want %d", looked, want)
	}
	if told := g.tell(now + time.Second); told != 10_000-looked {
		t.Errorf("told of %d that were turned away, want %d", told, 10_000-looked)
	}
	if told := g.tell(now + 2*time.Second); told != 0 {
		t.Errorf("told again of %d", told)
	}
}

// TestAGuessedSecretLocksItsToken for this leader, and that token alone.
func TestAGuessedSecretLocksItsToken(t *testing.T) {
	j := newJoiner(t)
	shown, other := j.fresh(kbroker.RoleWorker, ""), j.fresh(kbroker.RoleWorker, "")
	leader := &term{memory: newMemory(), guesses: newGuesses(0), leader: &leader{Super: &Super{cfg: Config{
		Times: state.Tuned, Clock: func() time.Duration { return j.cluster.now }, Members: func() Members { return j.members },
	}}}}
	join := func(r kbroker.JoinRequest) error {
		_, err := leader.join(t.Context(), &j.view, r, j.now)
		return err
	}
	for n := range maxWrongSecrets {
		wrong := hostAsks("w1", kbroker.RoleWorker, &kbroker.ShownToken{ID: shown.ID, Secret: fmt.Append(nil, n)})
		if err := join(wrong); err == nil || !strings.Contains(err.Error(), "the secret of token "+shown.ID+" is another one") {
			t.Fatalf("guess %d: %v", n, err)
		}
	}
	right := hostAsks("w1", kbroker.RoleWorker, shown)
	for _, err := range []error{join(right), leader.guesses.check(&j.view, right, 0, nil)} {
		if e := kbroker.AsError(err); !errors.Is(err, kbroker.Refused) || !strings.Contains(e.Message, "locked") || e.Hint == "" {
			t.Errorf("the right secret after %d wrong ones: %v, want it locked, with a hint", maxWrongSecrets, err)
		}
	}
	if err := join(hostAsks("w1", kbroker.RoleWorker, other)); err != nil {
		t.Errorf("another token: %v", err)
	}
	leader.guesses = newGuesses(0)
	if err := join(right); err != nil {
		t.Errorf("with the next leader: %v", err)
	}
}

// TestGuessesDoNotKeepAHostOut sends 10,000 of them to a leader, as fast as they go,
// while a host joins.
func TestGuessesDoNotKeepAHostOut(t *testing.T) {
	d := startSuper(t)
	secret := []byte(rand.Text())
	hash := sha256.Sum256(secret)
	made := kbroker.TokenRequest{ID: "abcdefghijkl", Hash: hash[:], Role: kbroker.RoleWorker, TTL: time.Minute}
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbToken, tenant, subjects.NoKey), made, new(kbroker.TokenReply))
	})
	const guesses = 10_000
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	inbox := d.nc.NewRespInbox()
	sub, err := d.nc.SubscribeSync(inbox)
	if err == nil {
		err = sub.SetPendingLimits(guesses+1, -1)
	}
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for n := range guesses {
		body, err := json.Marshal(guess(n))
		if err == nil {
			err = d.nc.PublishRequest(subjects.Join, inbox, body)
		}
		if err != nil {
			t.Fatal(err)
		}
		if n != guesses/2 {
			continue
		}
		var reply kbroker.JoinReply
		asked := time.Now()
		err = d.ask(subjects.Join, hostAsks("w1", kbroker.RoleWorker, &kbroker.ShownToken{ID: made.ID, Secret: secret}), &reply)
		if took := time.Since(asked); err != nil || !reply.Admitted || took > 10*time.Second { // 3 s and more under the race detector, beside others
			t.Errorf("a host with a token, after %d guesses and within %v: %+v, %v; want it admitted within 10 s", n, took, reply, err)
		}
	}
	answers := map[string]int{}
	for range guesses {
		m, err := sub.NextMsgWithContext(ctx)
		if err != nil {
			t.Fatalf("%v after %v", err, answers)
		}
		answers[m.Header.Get(subjects.HeaderCode)]++
	}
	looked := strangersBurst + int(strangersPerSecond*time.Since(began).Seconds()) + 1
	if answers[string(kbroker.Refused)] > looked || answers[string(kbroker.Refused)]+answers[string(kbroker.Overloaded)] != guesses {
		t.Errorf("%d guesses were answered %v in %v, want at most %d of them looked at and none admitted", guesses, answers, time.Since(began), looked)
	}
	t.Logf("%d guesses in %v: %v", guesses, time.Since(began).Round(time.Millisecond), answers)
	var rows []kbroker.TokenRow
	if err := d.ask(subjects.Core(subjects.VerbTokens, tenant), kbroker.ListRequest{}, &rows); err != nil || len(rows) != 1 || rows[0].State != kbroker.TokenUsed || *rows[0].Host != "w1" {
		t.Errorf("tokens are %+v, %v; want one, used by w1", rows, err)
	}
}

// TestOneTokenAdmitsOneOfManyHosts that show it at the same time, however often they
// ask.
func TestOneTokenAdmitsOneOfManyHosts(t *testing.T) {
	d := startSuper(t)
	secret := []byte(rand.Text())
	hash := sha256.Sum256(secret)
	made := kbroker.TokenRequest{ID: "abcdefghijkl", Hash: hash[:], Role: kbroker.RoleWorker, TTL: time.Minute}
	wait.Until(t, 10*time.Second, func() error {
		return d.ask(subjects.Super(subjects.VerbToken, tenant, subjects.NoKey), made, new(kbroker.TokenReply))
	})
	const hosts, times = 8, 5
	inbox := d.nc.NewRespInbox()
	sub, err := d.nc.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	for range times {
		for n := range hosts {
			body, err := json.Marshal(hostAsks(kbroker.HostID(fmt.Sprintf("w%d", n)), kbroker.RoleWorker, &kbroker.ShownToken{ID: made.ID, Secret: secret}))
			if err == nil {
				err = d.nc.PublishMsg(&nats.Msg{Subject: subjects.Join, Reply: inbox, Data: body})
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	admitted := 0
	for range hosts * times {
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		var reply kbroker.JoinReply
		if m.Header.Get(subjects.HeaderCode) == "" && json.Unmarshal(m.Data, &reply) == nil && reply.Admitted {
			admitted++
		}
	}
	var rows []kbroker.HostRow
	err = d.ask(subjects.Core(subjects.VerbHosts, tenant), kbroker.ListRequest{}, &rows)
	joined := 0
	for _, r := range rows {
		if r.Name != "h1" {
			joined++
		}
	}
	if err != nil || joined != 1 || admitted != times {
		t.Errorf("%d hosts joined, told so %d times, %v; want one, told %d times", joined, admitted, err, times)
	}
}

// TestWhoNamesAKnownHostHasToProveIt: its fingerprint and its address are no secrets.
func TestWhoNamesAKnownHostHasToProveIt(t *testing.T) {
	g := newGuesses(0)
	v := &state.View{Hosts: map[kbroker.HostID]kbroker.Host{"h2": {Name: "h2", Role: kbroker.RoleCore, State: kbroker.HostReady, Fingerprint: "f", Route: "r", Generation: 1}}}
	r := kbroker.JoinRequest{Host: "h2", Role: kbroker.RoleCore, Fingerprint: "f", Route: "r"}
	forged := func(kbroker.JoinRequest) error { return errors.New("another key") }
	real := func(kbroker.JoinRequest) error { return nil }
	through := 0
	for range 1000 {
		if g.check(v, r, 0, forged) == nil {
			through++
		}
	}
	if through > 100 {
		t.Errorf("%d of 1000 requests that prove nothing are let through", through)
	}
	if err := g.check(v, r, 0, real); err != nil {
		t.Errorf("the host itself is turned away: %v", err)
	}
}
