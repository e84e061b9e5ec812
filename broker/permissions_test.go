package broker

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/subjects"
)

// may says who may do what; everything else of the catalogue is refused. It is written
// by hand, from DESIGN.md and docs/protocol.md, not from package grants: who changes a
// role changes it here as well, and a reviewer reads the difference.
//
//	publish S     S is one subject
//	subscribe S   alone, and in the queue groups of services and of cores; also to what
//	              is a part of S, unless it is exactly
//	{a,b}         each of them
//	<stream>      each stream of the catalogue
//	<own>         the key of who tries; <another>: that of somebody else
var may = map[string][]string{
	// Who shows no credential asks to join, and hears the answer. All of them have the
	// same inbox.
	"nobody": {
		"publish kb.join",
		"subscribe _GATE.>",
	},

	// A worker's agent asks for its host, reports of it, and answers for it. It fetches
	// what it is to run, and pings what it runs; an incarnation names no host. To the
	// server who may subscribe a.* may subscribe a.> too.
	"worker w1": slices.Concat(answering, []string{
		"publish kb.{view,report,beat,figures,sign}.w1",
		"publish kb.core.get.{default,other}",
		"publish kb.ping.{default,other}.{shop-web-1.1,shop-web-1.2,shop-web-2.1,shop-mail-1.1,shop-allocator-1.1,bank-api-1.1}",
		"subscribe kb.pong.*.w1.*",
		"subscribe exactly kb.pong.{*,default,other}.w1.>",
		"subscribe kb.host.w1.*.*",
		"subscribe exactly kb.host.w1.{*,logs,checkup,exec,signal,session,new}.>",
		"subscribe kb.changed.place.w1.>",
	}),
	"worker w2": slices.Concat(answering, []string{
		"publish kb.{view,report,beat,figures,sign}.w2",
		"publish kb.core.get.{default,other}",
		"publish kb.ping.{default,other}.{shop-web-1.1,shop-web-1.2,shop-web-2.1,shop-mail-1.1,shop-allocator-1.1,bank-api-1.1}",
		"subscribe kb.pong.*.w2.*",
		"subscribe exactly kb.pong.{*,default,other}.w2.>",
		"subscribe kb.host.w2.*.*",
		"subscribe exactly kb.host.w2.{*,logs,checkup,exec,signal,session}.>",
		"subscribe kb.changed.place.w2.>",
	}),

	// An instance serves its own service, calls what it was given leave to and asks where
	// that listens, answers its agent and hears of its own placement. It asks as itself for
	// what its app stores of objects, and hears who owns them; it serves objects of its app,
	// answers cores that ask about those, and calls those of the apps that it may call. It
	// has events of its app stored, and reads those of the topics that it may hear.
	// Discovery tells services apart, not the instances of one.
	"instance shop-web-1, calls all": slices.Concat(answering, discovering, []string{
		"publish evt.shop.{orders,web}",
		"subscribe evt.*.*",
		"subscribe exactly evt.{*,shop,bank}.>",
		"publish svc.{shop.web,shop.mail,bank.api}.{m,m.p_1.s.1}",
		"publish obj.{shop,bank}.{0,1023}.account.m",
		"subscribe obj.shop.>",
		"publish kb.endpoints.default.{shop.web,shop.mail,bank.web,bank.api}",
		"publish kb.core.placement.default",
		"subscribe kb.ping.default.shop-web-1.1",
		"subscribe kb.keeper.default.shop-web-1.1",
		"publish kb.kept.default.shop-web-1.1.c1.q",
		"publish kb.load.default.shop.shop-web-1.1",
		"publish kb.placing.default.{shop,bank}.allocate",
		"subscribe kb.placed.default.shop.shop-web-1.1",
		"publish kb.own.default.shop.{read,write,new}.shop-web-1.1",
		"publish kb.topic.default.shop.{orders,web}.publish.shop-web-1.1",
		"publish kb.topic.default.{shop.orders,shop.web,bank.web}.read.shop-web-1.1",
		"subscribe kb.owned.default.shop.>",
		"publish kb.pong.default.w1.q",
		"subscribe kb.changed.place.w1.default.shop-web-1",
		"subscribe svc.shop.web.>",
		"subscribe $SRV.{PING,INFO,STATS}",
		"subscribe $SRV.{PING,INFO,STATS}.shop_web",
		"subscribe $SRV.{PING,INFO,STATS}.shop_web.*",
		"subscribe exactly $SRV.{PING,INFO,STATS}.shop_web.>",
		"publish kb.renew.<own>",
	}),
	"instance bank-api-1, calls shop.web": slices.Concat(answering, discovering, []string{
		"publish evt.bank.orders",
		"subscribe evt.shop.web",
		"publish svc.shop.web.{m,m.p_1.s.1}",
		"publish obj.shop.{0,1023}.account.m",
		"subscribe obj.bank.>",
		"publish kb.endpoints.default.shop.web",
		"publish kb.core.placement.default",
		"subscribe kb.ping.default.bank-api-1.1",
		"subscribe kb.keeper.default.bank-api-1.1",
		"publish kb.kept.default.bank-api-1.1.c1.q",
		"publish kb.load.default.bank.bank-api-1.1",
		"publish kb.placing.default.shop.allocate",
		"subscribe kb.placed.default.bank.bank-api-1.1",
		"publish kb.own.default.bank.read.bank-api-1.1",
		"publish kb.topic.default.bank.orders.publish.bank-api-1.1",
		"publish kb.topic.default.shop.web.read.bank-api-1.1",
		"subscribe kb.owned.default.bank.>",
		"publish kb.pong.default.w2.q",
		"subscribe kb.changed.place.w2.default.bank-api-1",
		"subscribe svc.bank.api.>",
		"subscribe $SRV.{PING,INFO,STATS}",
		"subscribe $SRV.{PING,INFO,STATS}.bank_api",
		"subscribe $SRV.{PING,INFO,STATS}.bank_api.*",
		"subscribe exactly $SRV.{PING,INFO,STATS}.bank_api.>",
		"publish kb.renew.<own>",
	}),

	// One whose spec names nothing calls the services of its own app.
	"instance shop-mail-1, calls its own app": slices.Concat(answering, discovering, []string{
		"publish evt.shop.{orders,web}",
		"subscribe evt.shop.*",
		"subscribe exactly evt.shop.>",
		"publish svc.{shop.web,shop.mail}.{m,m.p_1.s.1}",
		"publish obj.shop.{0,1023}.account.m",
		"subscribe obj.shop.>",
		"publish kb.endpoints.default.{shop.web,shop.mail}",
		"publish kb.core.placement.default",
		"subscribe kb.ping.default.shop-mail-1.1",
		"subscribe kb.keeper.default.shop-mail-1.1",
		"publish kb.kept.default.shop-mail-1.1.c1.q",
		"publish kb.load.default.shop.shop-mail-1.1",
		"publish kb.placing.default.shop.allocate",
		"subscribe kb.placed.default.shop.shop-mail-1.1",
		"publish kb.own.default.shop.{read,write}.shop-mail-1.1",
		"publish kb.topic.default.shop.orders.{publish,read}.shop-mail-1.1",
		"subscribe kb.owned.default.shop.>",
		"publish kb.pong.default.w2.q",
		"subscribe kb.changed.place.w2.default.shop-mail-1",
		"subscribe svc.shop.mail.>",
		"subscribe $SRV.{PING,INFO,STATS}",
		"subscribe $SRV.{PING,INFO,STATS}.shop_mail",
		"subscribe $SRV.{PING,INFO,STATS}.shop_mail.*",
		"subscribe exactly $SRV.{PING,INFO,STATS}.shop_mail.>",
		"publish kb.renew.<own>",
	}),

	// One of another tenant has the same within its own. Neither's services, inboxes or
	// discovery are the other's, though they have the same names: they are in accounts
	// apart (TestAccountsAreApart).
	"instance shop-web-1 of tenant other": slices.Concat(answering, discovering, []string{
		"publish evt.shop.{orders,web}",
		"subscribe evt.*.*",
		"subscribe exactly evt.{*,shop,bank}.>",
		"publish svc.{shop.web,shop.mail,bank.api}.{m,m.p_1.s.1}",
		"publish obj.{shop,bank}.{0,1023}.account.m",
		"subscribe obj.shop.>",
		"publish kb.endpoints.other.{shop.web,bank.web}",
		"publish kb.core.placement.other",
		"subscribe kb.ping.other.shop-web-1.1",
		"subscribe kb.keeper.other.shop-web-1.1",
		"publish kb.kept.other.shop-web-1.1.c1.q",
		"publish kb.load.other.shop.shop-web-1.1",
		"publish kb.placing.other.{shop,bank}.allocate",
		"subscribe kb.placed.other.shop.shop-web-1.1",
		"publish kb.own.other.shop.write.shop-web-1.1",
		"publish kb.topic.other.shop.web.publish.shop-web-1.1",
		"publish kb.topic.other.{shop,bank}.web.read.shop-web-1.1",
		"subscribe kb.owned.other.shop.>",
		"publish kb.pong.other.w1.q",
		"subscribe kb.changed.place.w1.other.shop-web-1",
		"subscribe svc.shop.web.>",
		"subscribe $SRV.{PING,INFO,STATS}",
		"subscribe $SRV.{PING,INFO,STATS}.shop_web",
		"subscribe $SRV.{PING,INFO,STATS}.shop_web.*",
		"subscribe exactly $SRV.{PING,INFO,STATS}.shop_web.>",
		"publish kb.renew.<own>",
	}),

	// An allocator holds the lease of its own app through a core, reads its spec, says what
	// it wants, and hears which starts of its app have ended. It hears what is asked of
	// services of its app that have no instance, passes it on, and asks what methods they have.
	"allocator of shop": slices.Concat(answering, []string{
		"publish kb.core.{placement,appversion}.default",
		"publish kb.demand.default.shop",
		"publish kb.renew.<own>",
		"publish kb.lease.default.shop",
		"subscribe kb.ping.default.shop-allocator-1.1",
		"publish kb.own.default.shop.{read,write}.shop-allocator-1.1",
		"subscribe kb.owned.default.shop.>",
		"publish kb.pong.default.w1.q",
		"subscribe kb.changed.place.w1.default.shop-allocator-1",
		"subscribe kb.changed.app.default.shop",
		"subscribe kb.reaped.default.shop",
		"publish kb.core.figures.default",
		"subscribe kb.keeper.default.shop-allocator-1.1",
		"publish kb.kept.default.shop-allocator-1.1.c1.q",
		"subscribe kb.load.default.shop.>",
		"subscribe kb.placing.default.shop.*",
		"subscribe exactly kb.placing.default.shop.>",
		"publish kb.placed.default.shop.{shop-web-1.1,shop-web-1.2,shop-web-2.1,shop-mail-1.1,shop-allocator-1.1,bank-api-1.1}",
		"subscribe svc.shop.*.*",
		"subscribe exactly svc.shop.{*,web,mail}.>",
		"publish svc.{shop.web,shop.mail}.m",
		"publish $SRV.INFO.{shop_web,shop_mail,bank_api}",
	}),

	// People: each may do what the one before may.
	"viewer":   viewing,
	"deployer": slices.Concat(viewing, deploying),
	"operator": slices.Concat(viewing, deploying, operating),
	"admin":    slices.Concat(viewing, deploying, operating, admitting),

	// A core may do everything in the account of control.
	"core": {everything},
}

const everything = "everything"

var (
	// Everybody who has a key hears the answers to it, and nobody else's.
	inbox = []string{"subscribe _INBOX.<own>.>"}
	// Who answers, or moves to another server, publishes to inboxes; who has no
	// credential asks none of these anything.
	answering = slices.Concat(inbox, []string{"publish _INBOX.{<own>,<another>,x}", "publish _INBOX.{<own>,<another>}.x"})
	// Who discovers asks all services, those of one name, or one instance.
	discovering = []string{
		"publish $SRV.{PING,INFO,STATS}",
		"publish $SRV.{PING,INFO,STATS}.{shop_web,shop_mail,bank_api}",
		"publish $SRV.PING.{shop_web.shop-web-1_1,shop_web.shop-web-2_1,bank_api.bank-api-1_1}",
	}
	// The SDK hears itself when it moves to another server (docs/protocol.md, Connecting).
	viewing = slices.Concat(inbox, discovering, []string{
		"publish _INBOX.<own>.x",
		"publish kb.core.{apps,ps,hosts,status,appversion,placement,history,plan,events,why,figures,allocator,objects,objectowners,object}.default",
		"publish kb.host.{w1,w2,c1}.{logs,checkup}.default",
		"publish kb.endpoints.default.{shop.web,shop.mail,bank.web,bank.api}",
	})
	deploying = []string{
		"publish kb.super.{deploy,scale,stop,rollback,restart}.default.<own>",
		"publish kb.core.{put,get,develop,objectstate}.default",
		"publish kb.artifact.{w1,w2,c1}.default.s",
		"publish svc.{shop.web,shop.mail,bank.api}.{m,m.p_1.s.1}",
		"publish obj.{shop,bank}.{0,1023}.account.m",
		"publish kb.placing.default.{shop,bank}.allocate",
	}
	// Who may reach into an instance, or has something done with objects, asks a core; only
	// cores ask the agent, or the owner.
	operating = []string{
		"publish kb.super.{drain,remove,maintain}.default.<own>",
		"publish kb.core.{exec,signal,objectact}.default",
		"publish kb.host.{w1,w2,c1}.session.default",
	}
	admitting = []string{
		"publish kb.super.{token,revoke,user,userrevoke}.default.<own>",
		"publish kb.core.{tokens,users,audit}.default",
	}
)

// refusedToAll is what not even a core does: the votes of the servers are their own.
var refusedToAll = []string{"publish $NRG.V.x"}

// expand makes the lines that one with {a,b} and <stream> stands for.
func expand(line string) []string {
	line = strings.ReplaceAll(line, "<stream>", "{"+strings.Join(streams, ",")+"}")
	before, rest, ok := strings.Cut(line, "{")
	if !ok {
		return []string{line}
	}
	inner, after, ok := strings.Cut(rest, "}")
	if !ok {
		panic("no } in " + line)
	}
	var all []string
	for _, one := range strings.Split(inner, ",") {
		all = append(all, expand(before+one+after)...)
	}
	return all
}

// attempt is one cell of the matrix: a line of the protocol.
type attempt struct{ verb, subject, queue string }

func (a attempt) String() string {
	if a.queue != "" {
		return a.verb + " " + a.subject + " in queue " + a.queue
	}
	return a.verb + " " + a.subject
}

// isIn reports whether a line of the table is about the attempt.
func (a attempt) isIn(line string) bool {
	verb, subject, _ := strings.Cut(line, " ")
	if a.verb != verb {
		return false
	}
	if exact, ok := strings.CutPrefix(subject, "exactly "); ok {
		return a.subject == exact
	}
	return a.subject == subject || verb == "subscribe" && isPart(a.subject, subject)
}

// isPart reports whether all that matches a also matches b.
func isPart(a, b string) bool {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i, t := range bs {
		switch {
		case i == len(as):
			return false
		case t == ">":
			return true
		case t != as[i] && (t != "*" || as[i] == ">"):
			return false
		}
	}
	return len(as) == len(bs)
}

// attempts are all of the catalogue, and subscriptions to everything that is a little
// wider than something in it.
func attempts() []attempt {
	var all []attempt
	seen, published := map[string]bool{}, map[string]bool{}
	subscribe := func(s string) {
		if !seen[s] {
			seen[s] = true
			all = append(all, attempt{"subscribe", s, ""}, attempt{"subscribe", s, subjects.QueueService}, attempt{"subscribe", s, subjects.QueueCore})
		}
	}
	for _, e := range catalogue {
		for _, s := range e.says {
			tokens := strings.Split(s, ".")
			// Nobody publishes to a wildcard: the server would take it for a name.
			if !published[s] && !slices.Contains(tokens, ">") && !slices.Contains(tokens, "*") {
				published[s] = true
				all = append(all, attempt{"publish", s, ""})
			}
			subscribe(s)
			for i := range tokens {
				subscribe(strings.Join(append(slices.Clone(tokens[:i]), ">"), "."))
				wide := slices.Clone(tokens)
				if wide[i] != ">" {
					wide[i] = "*"
					subscribe(strings.Join(wide, "."))
				}
			}
			if tokens[len(tokens)-1] != ">" {
				subscribe(s + ".>")
			}
		}
	}
	return all
}

func TestPermissionMatrix(t *testing.T) {
	cfg := configOf(t, "c1", true)
	h := start(t, cfg)
	h.awaitReady(30 * time.Second)
	all := attempts()
	people := callers(t)
	if len(people) != len(may) {
		t.Errorf("%d identities and %d rows of the table", len(people), len(may))
	}
	for i, p := range people {
		t.Run(p.name, func(t *testing.T) {
			rows, ok := may[p.name]
			if !ok {
				t.Fatalf("the table does not say what %s may", p.name)
			}
			var lines []string
			for _, r := range rows {
				lines = append(lines, expand(r)...)
			}
			tried := map[string]bool{} // of the lines
			another := people[(i+1)%len(people)]
			names := strings.NewReplacer("<own>", p.key, "<another>", another.key)
			refused := try(t, cfg.ClientAddr, p, all, names)
			wrong := 0
			for _, a := range all {
				want := slices.Equal(lines, []string{everything}) && !slices.ContainsFunc(refusedToAll, a.isIn)
				for _, l := range lines {
					if a.isIn(l) {
						want, tried[l] = true, true
					}
				}
				if got := !refused[a]; got != want {
					wrong++
					t.Errorf("%s: %s: allowed is %t, the table says %t", p.name, a, got, want)
				}
			}
			for _, l := range lines {
				if !tried[l] && l != everything {
					t.Errorf("%s: %q is in the table and not in the catalogue", p.name, l)
				}
			}
			t.Logf("%d attempts, %d refused, %d not as declared", len(all), len(refused), wrong)
		})
	}
}

// caller is who tries.
type caller struct {
	name string
	key  string // public
	user user   // no jwt: shows none
}

func callers(t *testing.T) []caller {
	t.Helper()
	of := func(tenant, host, app, service, instance, call string) map[string][]string {
		tags := map[string][]string{
			grants.TagTenant: {tenant}, grants.TagHost: {host}, grants.TagApp: {app}, grants.TagService: {service},
			grants.TagInstance: {instance}, grants.TagIncarnation: {instance + ".1"}, grants.TagCall: {call},
			grants.TagObjects: {strings.Split(call, ".")[0]}, grants.TagTopic: {call},
		}
		return tags
	}
	tenant := map[string][]string{grants.TagTenant: {"default"}}
	all := []caller{nobody(t)}
	for _, c := range []struct {
		name string
		role grants.Role
		tags map[string][]string
	}{
		{"worker w1", grants.Worker, map[string][]string{grants.TagHost: {"w1"}}},
		{"worker w2", grants.Worker, map[string][]string{grants.TagHost: {"w2"}}},
		{"instance shop-web-1, calls all", grants.Instance, of("default", "w1", "shop", "web", "shop-web-1", "*.*")},
		{"instance bank-api-1, calls shop.web", grants.Instance, of("default", "w2", "bank", "api", "bank-api-1", "shop.web")},
		{"instance shop-mail-1, calls its own app", grants.Instance, of("default", "w2", "shop", "mail", "shop-mail-1", "shop.*")},
		{"instance shop-web-1 of tenant other", grants.Instance, of("other", "w1", "shop", "web", "shop-web-1", "*.*")},
		{"allocator of shop", grants.Allocator, of("default", "w1", "shop", "allocator", "shop-allocator-1", "*.*")},
		{"viewer", grants.Viewer, tenant},
		{"deployer", grants.Deployer, tenant},
		{"operator", grants.Operator, tenant},
		{"admin", grants.Admin, tenant},
		{"core", grants.Core, nil},
	} {
		all = append(all, signed(t, c.name, c.role, c.tags))
	}
	return all
}

func signed(t *testing.T, name string, role grants.Role, tags map[string][]string) caller {
	t.Helper()
	var public string
	u, err := newUser(func(key string) (string, error) {
		public = key
		return testGrants.Sign(grants.User{Role: role, Name: name, Key: key, Tags: tags}, time.Now())
	})
	if err != nil {
		t.Fatalf("sign for %s: %v", name, err)
	}
	return caller{name, public, u}
}

// nobody shows no credential: the servers take it for the gate, whose key is in a
// credential that they have.
func nobody(t *testing.T) caller {
	t.Helper()
	gate, err := testGrants.Gate()
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.DecodeUserClaims(gate)
	if err != nil {
		t.Fatal(err)
	}
	return caller{name: "nobody", key: claims.Subject}
}

// tryAtOnce bounds what is sent before the answers are read.
const tryAtOnce = 200

// try makes all attempts over one connection of its own, which it closes, and returns
// those that the server refused. It speaks the protocol itself: a client's library
// reports a violation when it likes, the server before its next PONG.
func try(t *testing.T, addr string, who caller, all []attempt, names *strings.Replacer) map[attempt]bool {
	t.Helper()
	c := dialRaw(t, addr, who)
	defer c.Close()
	refused := map[attempt]bool{}
	sid := 0
	for some := range slices.Chunk(all, tryAtOnce) {
		of := map[string]attempt{} // by what the server says of it
		var lines strings.Builder
		for _, a := range some {
			s := names.Replace(a.subject)
			switch {
			case a.verb == "publish":
				fmt.Fprintf(&lines, "PUB %s 0\r\n\r\n", s)
				of[fmt.Sprintf("Permissions Violation for Publish to %q", s)] = a
			case a.queue == "":
				sid++
				fmt.Fprintf(&lines, "SUB %s %d\r\nUNSUB %d\r\n", s, sid, sid)
				of[fmt.Sprintf("Permissions Violation for Subscription to %q", s)] = a
			default:
				sid++
				fmt.Fprintf(&lines, "SUB %s %s %d\r\nUNSUB %d\r\n", s, a.queue, sid, sid)
				of[fmt.Sprintf("Permissions Violation for Subscription to %q using queue %q", s, a.queue)] = a
			}
		}
		for _, said := range c.flush(lines.String()) {
			a, ok := of[said]
			if !ok {
				t.Fatalf("%s: the server says %q, which is about none of the attempts", who.name, said)
			}
			refused[a] = true
		}
	}
	return refused
}

// rawConn is a connection of the NATS protocol, line by line.
type rawConn struct {
	net.Conn
	t    *testing.T
	who  caller
	read *bufio.Reader
}

func dialRaw(t *testing.T, addr string, who caller) *rawConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	c := &rawConn{conn, t, who, bufio.NewReader(conn)}
	t.Cleanup(func() { _ = c.Close() })
	var info struct {
		Nonce string `json:"nonce"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(c.line(), "INFO ")), &info); err != nil {
		t.Fatalf("the server's INFO: %v", err)
	}
	hello := map[string]any{"verbose": false, "pedantic": false, "headers": true, "no_responders": true, "protocol": 1, "lang": "test", "version": "1", "name": who.name}
	if who.user.jwt != "" {
		hello["jwt"], hello["sig"] = who.user.jwt, sign(t, who.user.key, info.Nonce)
	}
	b, err := json.Marshal(hello)
	if err != nil {
		t.Fatal(err)
	}
	if said := c.flush("CONNECT " + string(b) + "\r\n"); len(said) > 0 {
		t.Fatalf("%s connects: the server says %q", who.name, said)
	}
	return c
}

func sign(t *testing.T, key nkeys.KeyPair, nonce string) string {
	t.Helper()
	b, err := key.Sign([]byte(nonce))
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func (c *rawConn) line() string {
	c.t.Helper()
	line, err := c.read.ReadString('\n')
	if err != nil {
		c.t.Fatalf("%s: read from the server: %v", c.who.name, err)
	}
	return strings.TrimRight(line, "\r\n")
}

// flush sends lines, and returns the errors up to the answer that follows them all.
func (c *rawConn) flush(lines string) (said []string) {
	c.t.Helper()
	if _, err := io.WriteString(c, lines+"PING\r\n"); err != nil {
		c.t.Fatalf("%s: write to the server: %v", c.who.name, err)
	}
	for {
		line := c.line()
		verb, rest, _ := strings.Cut(line, " ")
		switch verb {
		case "PONG":
			return said
		case "-ERR":
			said = append(said, strings.Trim(rest, "'"))
		case "PING":
			_, _ = io.WriteString(c, "PONG\r\n")
		case "INFO":
		case "MSG", "HMSG":
			fields := strings.Fields(rest)
			n, err := strconv.Atoi(fields[len(fields)-1])
			if err == nil {
				_, err = c.read.Discard(n + 2)
			}
			if err != nil {
				c.t.Fatalf("%s: %q: %v", c.who.name, line, err)
			}
		default:
			c.t.Fatalf("%s: the server says %q", c.who.name, line)
		}
	}
}
