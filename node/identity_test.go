package node

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/internal/pki"
)

// newHost is a host of a cluster, in a directory of its own.
func newHost(t *testing.T, cluster string, name kbroker.HostID) *membership {
	t.Helper()
	m := &membership{path: filepath.Join(t.TempDir(), membershipFile), ClusterID: cluster, Host: name, Role: kbroker.RoleCore, Generation: 1}
	key, err := hostKey(filepath.Dir(m.path))
	if err != nil {
		t.Fatal(err)
	}
	if m.Fingerprint, err = pki.Fingerprint(key.Public()); err != nil {
		t.Fatal(err)
	}
	return m
}

// open is the identity of a host at a time.
func open(t *testing.T, m *membership, now time.Time) *identity {
	t.Helper()
	i, err := m.openIdentity(func() time.Time { return now }, discard())
	if err != nil {
		t.Fatal(err)
	}
	i.tls.Open()
	return i
}

func newFounder(t *testing.T, cluster string) *identity {
	t.Helper()
	m := newHost(t, cluster, "h1")
	m.Founded = true
	return open(t, m, time.Now())
}

// request is what a host asks to be admitted with.
func request(t *testing.T, m *membership) (kbroker.JoinRequest, *pki.Box) {
	t.Helper()
	r := kbroker.JoinRequest{Host: m.Host, Role: m.Role, Fingerprint: m.Fingerprint}
	box, err := m.present(&r)
	if err != nil {
		t.Fatal(err)
	}
	return r, box
}

// joined is a core that was admitted by another.
func joined(t *testing.T, by *identity, name kbroker.HostID) *membership {
	t.Helper()
	m := newHost(t, by.self.Cluster, name)
	r, box := request(t, m)
	reply := kbroker.JoinReply{Admitted: true, Generation: 1}
	if err := errors.Join(by.admit(r, &reply), m.takeIdentity(reply, box, "")); err != nil {
		t.Fatal(err)
	}
	return m
}

// talk reports what each side of a route between two says.
func talk(t *testing.T, server, client *identity) error {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	said := make(chan error, 1)
	go func() {
		s := tls.Server(a, server.routes())
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		_ = a.Close()
		said <- err
	}()
	c := tls.Client(b, client.routes())
	err := c.Handshake()
	if err == nil {
		_, err = io.ReadFull(c, make([]byte, 1))
	}
	_ = b.Close()
	return errors.Join(err, <-said)
}

// TestACoreProvesWhoItIs: to those of its cluster, however long all were off, and
// to no others; each core can admit the next one.
func TestACoreProvesWhoItIs(t *testing.T) {
	now := time.Now()
	founder := newFounder(t, "kb-test")
	second := joined(t, founder, "h2")
	third := joined(t, open(t, second, now), "h3")
	h2, h3 := open(t, second, now), open(t, third, now)
	for _, pair := range [][2]*identity{{founder, h2}, {h2, founder}, {h2, h3}, {h3, founder}} {
		if err := talk(t, pair[0], pair[1]); err != nil {
			t.Errorf("%s and %s: %v", pair[0].self.Host, pair[1].self.Host, err)
		}
	}
	if err := talk(t, founder, newFounder(t, "kb-test")); err == nil {
		t.Error("a core of another cluster of the same name is believed")
	}
	later := now.Add(100 * 24 * time.Hour)
	if err := talk(t, open(t, second, later), open(t, third, later)); err != nil {
		t.Errorf("after 100 days: %v", err)
	}
	h2.believe([]kbroker.HostID{"h3"})
	if err := talk(t, h2, h3); err == nil {
		t.Error("a core that was removed is believed")
	}
	for _, m := range []*membership{second, third} {
		for _, file := range []string{filepath.Join(m.identityDir(), rootKeyFile), filepath.Join(filepath.Dir(m.path), identityDir, hostKeyFile)} {
			if info, err := os.Stat(file); err != nil || info.Mode() != 0o600 {
				t.Errorf("%s: %v, %v; want mode 0600", file, info, err)
			}
		}
	}
}

// TestACertificateIsRenewed at half of its life, and when the clock was set back,
// for connections that begin then.
func TestACertificateIsRenewed(t *testing.T) {
	m := newHost(t, "kb-test", "h1")
	m.Founded = true
	now := time.Now()
	i, err := m.openIdentity(func() time.Time { return now }, discard())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		by   time.Duration
		want bool
	}{
		"it is young":            {pki.HostLife/2 - time.Second, false},
		"it is old":              {pki.HostLife / 2, true},
		"the clock was set back": {-time.Second, true},
	} {
		now = i.made.Add(tc.by)
		if i.due() != tc.want {
			t.Errorf("%s: due %t, want %t", name, i.due(), tc.want)
		}
	}
	before, err := i.routes().GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	now = i.made.Add(pki.HostLife)
	if err := i.renew(); err != nil {
		t.Fatal(err)
	}
	after, err := i.routes().GetCertificate(nil)
	if err != nil || after.Leaf.SerialNumber.Cmp(before.Leaf.SerialNumber) == 0 || i.due() {
		t.Errorf("it shows the same certificate, %v", err)
	}
}

// TestWhoIsNotAdmitted, and what an answer must be.
func TestWhoIsNotAdmitted(t *testing.T) {
	founder := newFounder(t, "kb-test")
	m := newHost(t, "kb-test", "h2")
	other, err := x509.MarshalPKIXPublicKey(founder.key.Public())
	if err != nil {
		t.Fatal(err)
	}
	thief, err := pki.NewBox()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(r *kbroker.JoinRequest){
		"without a key":                   func(r *kbroker.JoinRequest) { r.Key = nil },
		"with another's key":              func(r *kbroker.JoinRequest) { r.Key = other },
		"without a proof":                 func(r *kbroker.JoinRequest) { r.Proof = nil },
		"with the proof of another box":   func(r *kbroker.JoinRequest) { r.Box = thief.Public() },
		"with the proof of another route": func(r *kbroker.JoinRequest) { r.Route = "10.0.0.9:6222" },
		"without a box": func(r *kbroker.JoinRequest) {
			r.Box = nil
			if err := prove(mustKey(t, m), r); err != nil {
				t.Fatal(err)
			}
		},
	} {
		r, _ := request(t, m)
		change(&r)
		reply := kbroker.JoinReply{Admitted: true, Generation: 1}
		if err := founder.admit(r, &reply); !errors.Is(err, kbroker.Invalid) {
			t.Errorf("%s: %v, want it invalid", name, err)
		}
	}
	r, box := request(t, m)
	reply := kbroker.JoinReply{Admitted: true, Generation: 7} // it asks as of generation 1
	if err := founder.admit(r, &reply); err != nil {
		t.Fatal(err)
	}
	if err := m.takeIdentity(reply, box, ""); err == nil {
		t.Error("a certificate for another generation was taken")
	}
}

// TestTheRootKeyIsKeptElsewhere: no core is admitted then, one that was before goes
// on, and when the key is back the next is admitted, without a restart.
func TestTheRootKeyIsKeptElsewhere(t *testing.T) {
	founder := newFounder(t, "kb-test")
	before := joined(t, founder, "h2")
	file, away := filepath.Join(founder.dir, rootKeyFile), filepath.Join(t.TempDir(), "root.key")
	if err := os.Rename(file, away); err != nil {
		t.Fatal(err)
	}
	r, _ := request(t, newHost(t, "", "h3"))
	reply := kbroker.JoinReply{Admitted: true, Generation: 1}
	if err := founder.admit(r, &reply); !errors.Is(err, kbroker.Refused) || !strings.Contains(err.Error(), "root key") || kbroker.AsError(err).Hint == "" {
		t.Errorf("without the root's key: %v", err)
	}
	again, box := request(t, before)
	again.ClusterID = before.ClusterID
	reply = kbroker.JoinReply{Admitted: true, Generation: 1}
	if err := errors.Join(founder.admit(again, &reply), before.takeIdentity(reply, box, "")); err != nil {
		t.Errorf("a core that was admitted before: %v", err)
	}
	if err := talk(t, founder, open(t, before, time.Now())); err != nil {
		t.Errorf("it and the founder: %v", err)
	}
	before.Generation = 2
	if err := before.takeIdentity(reply, box, ""); !errors.Is(err, kbroker.Refused) {
		t.Errorf("it goes on with the certificate of another admission: %v", err)
	}
	if err := os.Rename(away, file); err != nil {
		t.Fatal(err)
	}
	joined(t, founder, "h3")
}

// TestAFounderWithoutItsCertificate makes another of the root that it has, and of no
// other: the others would not believe it.
func TestAFounderWithoutItsCertificate(t *testing.T) {
	m := newHost(t, "kb-test", "h1")
	m.Founded = true
	before := open(t, m, time.Now())
	second := open(t, joined(t, before, "h2"), time.Now())
	broker := brokerDir(filepath.Dir(m.path))
	if err := errors.Join(os.Mkdir(broker, 0o700), os.WriteFile(filepath.Join(broker, "joined"), nil, 0o600),
		os.Remove(filepath.Join(before.dir, coreFile))); err != nil {
		t.Fatal(err)
	}
	if err := talk(t, second, open(t, m, time.Now())); err != nil {
		t.Errorf("with its root's key: %v", err)
	}
	if err := errors.Join(os.Remove(filepath.Join(before.dir, coreFile)), os.Remove(filepath.Join(before.dir, rootKeyFile))); err != nil {
		t.Fatal(err)
	}
	if _, err := m.openIdentity(time.Now, discard()); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
		t.Errorf("without: %v, want a refusal with a hint", err)
	}
}

// TestWhoIsOutStaysOut, after a restart too, before anybody could say so.
func TestWhoIsOutStaysOut(t *testing.T) {
	m := newHost(t, "kb-test", "h1")
	m.Founded = true
	founder := open(t, m, time.Now())
	removed := open(t, joined(t, founder, "h2"), time.Now())
	if err := errors.Join(m.noteOut([]kbroker.HostID{"h2"}), m.noteOut(nil)); err != nil {
		t.Fatal(err)
	}
	again, err := readMember(filepath.Dir(m.path))
	if err != nil {
		t.Fatal(err)
	}
	if err := talk(t, open(t, again, time.Now()), removed); err == nil {
		t.Error("a core that was removed is believed after a restart")
	}
}

// TestWhatIsNotedAtOnceIsAllOnDisk: an older copy never takes a newer one's place, and
// what could not be written is with the next.
func TestWhatIsNotedAtOnceIsAllOnDisk(t *testing.T) {
	m := newHost(t, "kb-test", "h1")
	dir := filepath.Dir(m.path)
	const hosts = 50
	var all sync.WaitGroup
	for n := range hosts {
		all.Go(func() {
			if err := m.noteOut([]kbroker.HostID{kbroker.HostID(fmt.Sprint("o", n))}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, err := readMember(dir); err != nil || len(got.Out) != hosts {
		t.Fatalf("on disk are %d hosts, %v; want %d", len(got.Out), err, hosts)
	}
	away := m.path
	m.path = filepath.Join(dir, "gone", membershipFile)
	if err := m.noteOut([]kbroker.HostID{"late"}); err == nil {
		t.Fatal("it was written where nothing can be")
	}
	m.path = away
	if err := m.noteOut(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := readMember(dir); err != nil || len(got.Out) != hosts+1 {
		t.Errorf("then there are %d hosts, %v; want %d", len(got.Out), err, hosts+1)
	}
}

func mustKey(t *testing.T, m *membership) crypto.Signer {
	t.Helper()
	key, err := hostKey(filepath.Dir(m.path))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestWhomAWorkerBelieves: the root that it was given, also when the cluster was
// rescued: its second core makes the new one with the same.
func TestWhomAWorkerBelieves(t *testing.T) {
	founder := newFounder(t, "kb-test")
	worker := newHost(t, "kb-test", "w1")
	worker.Role = kbroker.RoleWorker
	r, box := request(t, worker)
	reply := kbroker.JoinReply{Admitted: true, Generation: 1}
	if err := errors.Join(founder.admit(r, &reply), worker.takeIdentity(reply, box, "")); err != nil {
		t.Fatal(err)
	}
	if reply.Certificate != "" || len(reply.RootKey) > 0 {
		t.Errorf("a worker was given %+v", reply)
	}
	second := joined(t, founder, "h2")
	rescued := second.rescued("kb-new")
	rescued.path = second.path
	h2 := open(t, rescued, time.Now())
	for name, core := range map[string]*identity{"the founder": founder, "the core that was rescued": h2} {
		srv := natstest.StartTLS(t, core.clients())
		secure, err := worker.secure()
		if err != nil {
			t.Fatal(err)
		}
		if nc, err := nats.Connect(srv.URL, secure...); err != nil {
			t.Errorf("%s is not believed: %v", name, err)
		} else {
			nc.Close()
		}
	}
	if err := talk(t, founder, h2); err == nil {
		t.Error("cores of the lost cluster and of the new one make a route")
	}
	stranger := natstest.StartTLS(t, newFounder(t, "kb-test").clients())
	if secure, err := worker.secure(); err != nil {
		t.Error(err)
	} else if nc, err := nats.Connect(stranger.URL, secure...); err == nil {
		nc.Close()
		t.Error("a core of another root is believed")
	}
}

// TestACoreWithoutItsCertificate says what to do.
func TestACoreWithoutItsCertificate(t *testing.T) {
	founder := newFounder(t, "kb-test")
	m := joined(t, founder, "h2")
	if err := os.Remove(filepath.Join(m.identityDir(), coreFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.openIdentity(time.Now, discard()); !errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == "" {
		t.Errorf("error %v, want a refusal with a hint", err)
	}
}

// TestADirectoryFromBeforeCredentials is refused in one line, and the hint says so.
func TestADirectoryFromBeforeCredentials(t *testing.T) {
	founder := newFounder(t, "kb-test")
	for name, m := range map[string]*membership{"a founder": newHost(t, "kb-test", "h1"), "a core that joined": joined(t, founder, "h2")} {
		if name == "a founder" {
			m.Founded = true
			open(t, m, time.Now())
		}
		dir := filepath.Dir(m.path)
		err := errors.Join(m.save(), os.Remove(filepath.Join(m.identityDir(), accountsFile)), os.MkdirAll(brokerDir(dir), 0o700),
			os.WriteFile(filepath.Join(brokerDir(dir), "joined"), nil, 0o600))
		if err != nil {
			t.Fatal(err)
		}
		err = Run(t.Context(), Config{Dir: dir})
		if e := kbroker.AsError(err); e.Code != kbroker.Refused || strings.Contains(e.Message, "\n") || !strings.Contains(e.Message, accountsFile+" is not there") || !strings.Contains(e.Hint, "from before there were credentials cannot be used") {
			t.Errorf("%s: %v with hint %q", name, err, e.Hint)
		}
	}
}

// TestOnlyCoresReachTheRoutes of a running core: in TLS, and with a certificate of
// the cluster.
func TestOnlyCoresReachTheRoutes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "h1")
	start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	m := awaitLeader(t, dir)
	m.path = filepath.Join(dir, membershipFile)
	now := time.Now()
	core := open(t, m, now)
	worker, expired, stranger := open(t, m, now), open(t, m, now.Add(-48*time.Hour)), newFounder(t, m.ClusterID)
	worker.self.Role = kbroker.RoleWorker
	if err := worker.renew(); err != nil {
		t.Fatal(err)
	}
	anybody := &tls.Config{InsecureSkipVerify: true}
	shown := func(i *identity) *tls.Config {
		c := anybody.Clone()
		c.GetClientCertificate = i.routes().GetClientCertificate
		return c
	}
	for name, tc := range map[string]struct {
		with *tls.Config // nil: plain text
		want bool
	}{
		"plain text":             {nil, false},
		"no certificate":         {anybody, false},
		"one of another root":    {shown(stranger), false},
		"one that has expired":   {shown(expired), false},
		"one of a worker":        {shown(worker), false},
		"one of a core":          {shown(core), true},
		"a core that looks, too": {core.routes(), true},
	} {
		t.Run(name, func(t *testing.T) {
			greeted, err := asRoute(m.Route, tc.with)
			if greeted != tc.want {
				t.Errorf("greeted: %t (%v), want %t", greeted, err, tc.want)
			}
		})
	}
}

// asRoute connects to a route port as a server would, and reports whether it was
// greeted as one.
func asRoute(addr string, with *tls.Config) (greeted bool, err error) {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return false, err
	}
	if with != nil {
		conn = tls.Client(conn, with)
	} else if _, err := io.WriteString(conn, "CONNECT {}\r\nPING\r\n"); err != nil {
		return false, err
	}
	line := make([]byte, 5)
	_, err = io.ReadFull(conn, line)
	return strings.HasPrefix(string(line), "INFO "), err
}
