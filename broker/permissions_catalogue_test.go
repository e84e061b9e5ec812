package broker

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// The catalogue is all that the matrix of permissions_test.go tries. Own and other
// names in it are
//
//	tenant default: app shop with the services web and mail, app bank with service api;
//	tenant other has a shop, too
//	host w1 runs shop-web-1 and shop-allocator-1, host w2 shop-web-2, shop-mail-1 and
//	bank-api-1; host c1 is a core
//	shop-web-1.1 is the incarnation of the matrix, shop-web-1.2 its next start
//
// and in a subject <own> is the key of who tries, <another> that of somebody else.
type entry struct {
	of   string // what of package subjects it is, or of the server
	says []string
}

var (
	tenants      = []kbroker.TenantID{"default", "other"}
	hosts        = []kbroker.HostID{"w1", "w2", "c1"}
	apps         = []kbroker.AppName{"shop", "bank"}
	instances    = []kbroker.InstanceID{"shop-web-1", "shop-web-2", "shop-mail-1", "shop-allocator-1", "bank-api-1"}
	incarnations = []kbroker.Incarnation{"shop-web-1.1", "shop-web-1.2", "shop-web-2.1", "shop-mail-1.1", "shop-allocator-1.1", "bank-api-1.1"}
)

// streams are those of the cluster: what <stream> in the table of permissions stands for.
var streams = func() []string {
	all := []string{subjects.ControlStream, subjects.StatusStream, subjects.EventStream, subjects.AuditStream, subjects.MirrorOf(subjects.ControlStream, "c1"), "KV_other"}
	for _, t := range tenants {
		all = append(all, subjects.Artifacts(t))
		for _, a := range apps {
			stream, _ := subjects.Ownership(t, a)
			objects, _ := subjects.Objects(t, a, 0)
			events, _ := subjects.TopicStream(t, a)
			all = append(all, stream, objects, events)
		}
	}
	return all
}()

// keys are those of the control bucket, and of the status bucket.
var keys = slices.Concat(
	[]string{subjects.KeySuperLease, "x"},
	each2(tenants, apps, subjects.KeyApp), each2(tenants, apps, subjects.KeyDemand),
	each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { return subjects.KeyVersion(t, a, 3) }),
	each1(hosts, subjects.KeyHead), each1(hosts, subjects.KeyHost), each1(hosts, subjects.KeyNonce), each1(hosts, subjects.KeyCanary),
	each1(hosts, subjects.KeyReport), []string{subjects.KeyRevoked("x"), subjects.KeyToken("x"), subjects.KeyAudit(7), subjects.KeyUser("default", "x"), subjects.KeyUser("other", "x")}, placements(subjects.KeyPlacement), placements(subjects.KeyStatus),
)

func placements(key func(kbroker.HostID, kbroker.TenantID, kbroker.InstanceID) string) (all []string) {
	for _, h := range hosts {
		all = append(all, each2(tenants, instances, func(t kbroker.TenantID, i kbroker.InstanceID) string { return key(h, t, i) })...)
	}
	return all
}

func each1[A any](as []A, f func(A) string) (all []string) {
	for _, a := range as {
		all = append(all, f(a))
	}
	return all
}

func each2[A, B any](as []A, bs []B, f func(A, B) string) (all []string) {
	for _, a := range as {
		all = append(all, each1(bs, func(b B) string { return f(a, b) })...)
	}
	return all
}

func verb[A any](of string, args []A, subject func(string, A) string, verb string) entry {
	return entry{of, each1(args, func(a A) string { return subject(verb, a) })}
}

func onHost(verb string, h kbroker.HostID) string { return subjects.Host(h, verb, "default") }

// asOwn is what somebody asks with the own key.
func asOwn(verb string, t kbroker.TenantID) string { return subjects.Super(verb, t, "<own>") }

// catalogue is of package subjects.
var catalogue = []entry{
	{"Method", []string{subjects.Method("shop", "web", "m"), subjects.Method("shop", "mail", "m"), subjects.Method("bank", "api", "m")}},
	{"Methods", []string{subjects.Methods("shop.web"), subjects.Methods("shop.mail"), subjects.Methods("bank.api"), subjects.Methods("*.*"), "svc.shop.>", "svc.*.web.*", "svc.*.web.m", "svc.shop.*.m", "svc.shop.web.*"}},
	{"StreamTaken", []string{
		subjects.StreamTaken("shop", "web", "m", "p.1", "s", 1), subjects.StreamTaken("shop", "mail", "m", "p.1", "s", 1), subjects.StreamTaken("bank", "api", "m", "p.1", "s", 1),
	}},
	{"StreamsTaken", []string{subjects.StreamsTaken("shop", "web", "m", "p.1")}},
	{"Topic", []string{subjects.Topic("shop", "orders"), subjects.Topic("shop", "web"), subjects.Topic("bank", "orders")}},
	{"Topics", []string{subjects.Topics("shop.*"), subjects.Topics("*.*")}},
	{"AllMethods", []string{subjects.AllMethods}},
	{"ObjectMethod", each2(apps, []kbroker.Shard{0, kbroker.Shards - 1}, func(a kbroker.AppName, s kbroker.Shard) string { return subjects.ObjectMethod(a, s, "account", "m") })},
	{"ShardMethods", each1(apps, func(a kbroker.AppName) string { return subjects.ShardMethods(a, 7) })},
	{"Shards", each1(apps, subjects.Shards)},
	{"ObjectMethods", slices.Concat(each1(apps, subjects.ObjectMethods), []string{subjects.ObjectMethods("*")})},
	{"KindMethod", each1(apps, func(a kbroker.AppName) string { return subjects.KindMethod(a, "account", "m") })},
	{"AllObjectMethods", []string{subjects.AllObjectMethods}},
	verb("VerbDeploy", tenants, asOwn, subjects.VerbDeploy),
	verb("VerbScale", tenants, asOwn, subjects.VerbScale),
	verb("VerbStop", tenants, asOwn, subjects.VerbStop),
	verb("VerbDemand", tenants, asOwn, subjects.VerbDemand),
	verb("VerbJoin", tenants, asOwn, subjects.VerbJoin),
	verb("VerbDrain", tenants, asOwn, subjects.VerbDrain),
	verb("VerbRemove", tenants, asOwn, subjects.VerbRemove),
	verb("VerbRollback", tenants, asOwn, subjects.VerbRollback),
	verb("VerbRestart", tenants, asOwn, subjects.VerbRestart),
	verb("VerbMaintain", tenants, asOwn, subjects.VerbMaintain),
	verb("VerbApps", tenants, subjects.Core, subjects.VerbApps),
	verb("VerbInstances", tenants, subjects.Core, subjects.VerbInstances),
	verb("VerbHosts", tenants, subjects.Core, subjects.VerbHosts),
	verb("VerbStatus", tenants, subjects.Core, subjects.VerbStatus),
	verb("VerbVersion", tenants, subjects.Core, subjects.VerbVersion),
	verb("VerbPlacement", tenants, subjects.Core, subjects.VerbPlacement),
	verb("VerbArtifactBegin", tenants, subjects.Core, subjects.VerbArtifactBegin),
	verb("VerbArtifactGet", tenants, subjects.Core, subjects.VerbArtifactGet),
	verb("VerbHistory", tenants, subjects.Core, subjects.VerbHistory),
	verb("VerbPlan", tenants, subjects.Core, subjects.VerbPlan),
	verb("VerbEvents", tenants, subjects.Core, subjects.VerbEvents),
	verb("VerbToken", tenants, asOwn, subjects.VerbToken),
	verb("VerbRevoke", tenants, asOwn, subjects.VerbRevoke),
	verb("VerbTokens", tenants, subjects.Core, subjects.VerbTokens),
	verb("VerbUser", tenants, asOwn, subjects.VerbUser),
	verb("VerbUserRevoke", tenants, asOwn, subjects.VerbUserRevoke),
	verb("VerbUsers", tenants, subjects.Core, subjects.VerbUsers),
	verb("VerbAudit", tenants, subjects.Core, subjects.VerbAudit),
	verb("VerbFigures", tenants, subjects.Core, subjects.VerbFigures),
	verb("VerbAllocator", tenants, subjects.Core, subjects.VerbAllocator),
	verb("VerbObjects", tenants, subjects.Core, subjects.VerbObjects),
	verb("VerbObjectOwners", tenants, subjects.Core, subjects.VerbObjectOwners),
	verb("VerbObject", tenants, subjects.Core, subjects.VerbObject),
	verb("VerbObjectState", tenants, subjects.Core, subjects.VerbObjectState),
	verb("VerbObjectAct", tenants, subjects.Core, subjects.VerbObjectAct),
	verb("VerbWhy", tenants, subjects.Core, subjects.VerbWhy),
	verb("VerbDevelop", tenants, subjects.Core, subjects.VerbDevelop),
	verb("VerbLogs", hosts, onHost, subjects.VerbLogs),
	verb("VerbCheckup", hosts, onHost, subjects.VerbCheckup),
	{"VerbExec", append(each1(hosts, func(h kbroker.HostID) string { return onHost(subjects.VerbExec, h) }), each1(tenants, func(t kbroker.TenantID) string { return subjects.Core(subjects.VerbExec, t) })...)},
	{"VerbSignal", append(each1(hosts, func(h kbroker.HostID) string { return onHost(subjects.VerbSignal, h) }), each1(tenants, func(t kbroker.TenantID) string { return subjects.Core(subjects.VerbSignal, t) })...)},
	verb("VerbSession", hosts, onHost, subjects.VerbSession),
	{"Host", slices.Concat(each1(hosts, func(h kbroker.HostID) string { return subjects.Host(h, "*", "*") }), []string{subjects.Host("*", "*", "*"), subjects.Host("*", "logs", "*"), subjects.Host("w1", "logs", "other"), subjects.Host("w1", "new", "default"), "kb.host.>"})},
	{"Super", slices.Concat(each1(tenants, func(t kbroker.TenantID) string { return subjects.Super("*", t, "<own>") }), []string{subjects.Super("deploy", "*", "*"), subjects.Super("new", "default", "<own>"), subjects.Super("deploy", "default", "<another>"), subjects.Super("stop", "default", subjects.NoKey), "kb.super.deploy.default"})},
	{"Join", []string{subjects.Join, subjects.Join + ".x", "kb.super.join.default"}},
	{"NoKey", []string{subjects.Super("deploy", "default", subjects.NoKey)}},
	{"SuperAll", []string{subjects.SuperAll(), "kb.super.>"}},
	{"Core", slices.Concat(each1(tenants, func(t kbroker.TenantID) string { return subjects.Core("*", t) }), []string{subjects.Core("get", "*"), subjects.Core("new", "default")})},
	{"CoreAll", []string{subjects.CoreAll(), "kb.core.>"}},
	{"View", each1(hosts, subjects.View)},
	{"Report", each1(hosts, subjects.Report)},
	{"Heartbeat", each1(hosts, subjects.Heartbeat)},
	{"Figures", each1(hosts, subjects.Figures)},
	{"Sign", each1(hosts, subjects.Sign)},
	{"Renew", []string{subjects.Renew("<own>"), subjects.Renew("<another>"), "kb.renew", "kb.renew.>"}},
	{"AllRenews", []string{subjects.AllRenews}},
	{"Revoked", each1(hosts, subjects.Revoked)},
	{"Demand", each2(tenants, apps, subjects.Demand)},
	{"AllDemands", []string{subjects.AllDemands, "kb.demand.>", "kb.demand.default.*"}},
	{"Lease", each2(tenants, apps, subjects.Lease)},
	{"AllLeases", []string{subjects.AllLeases, "kb.lease.>", "kb.lease.default.*"}},
	{"Endpoints", slices.Concat(each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { return subjects.Endpoints(t, a, "web") }), []string{subjects.Endpoints("default", "shop", "mail"), subjects.Endpoints("default", "bank", "api")})},
	{"EndpointsOf", each1(tenants, func(t kbroker.TenantID) string { return subjects.EndpointsOf(t, "shop.*") })},
	{"AllEndpoints", []string{subjects.AllEndpoints, "kb.endpoints.>", "kb.endpoints.default.>"}},
	{"AllViews", []string{subjects.AllViews}},
	{"AllReports", []string{subjects.AllReports}},
	{"AllHeartbeats", []string{subjects.AllHeartbeats}},
	{"AllFigures", []string{subjects.AllFigures}},
	{"AllSigns", []string{subjects.AllSigns}},
	{"Heard", []string{subjects.Heard}},
	{"Upload", slices.Concat(each1(hosts, func(h kbroker.HostID) string { return subjects.Upload(h, "default", "s") }), []string{subjects.Upload("c1", "other", "s"), subjects.Upload("c1", "*", "*"), "kb.artifact.>"})},
	{"Ping", slices.Concat(each2(tenants, incarnations, subjects.Ping), []string{subjects.Ping("default", "shop-web-1.*"), subjects.Ping("*", "*.*"), subjects.Ping("*", "*.1")})},
	{"Pong", slices.Concat(each2(tenants, hosts, func(t kbroker.TenantID, h kbroker.HostID) string { return subjects.Pong(t, h, "q") }), each1(hosts, func(h kbroker.HostID) string { return subjects.Pong("*", h, "*") }), []string{"kb.pong.>"})},
	{"Keeper", slices.Concat(each2(tenants, incarnations, subjects.Keeper), []string{subjects.Keeper("default", "shop-web-1.*"), subjects.Keeper("*", "*.*"), "kb.keeper.>"})},
	{"Kept", slices.Concat(each2(tenants, incarnations, func(t kbroker.TenantID, i kbroker.Incarnation) string { return subjects.Kept(t, i, "c1", "q") }), []string{subjects.Kept("default", "shop-web-1.1", "*", "*"), "kb.kept.>"})},
	{"AllKept", each1(hosts, subjects.AllKept)},
	{"AllPings", []string{subjects.AllPings}},
	{"AllInboxes", []string{subjects.AllInboxes, "_INBOX.*", "_INBOX.*.*", "_INBOX.*.x.*", "_INBOX.x"}},
	{"Inbox", []string{subjects.Inbox("<own>"), subjects.Inbox("<own>") + ".>", subjects.Inbox("<own>") + ".x", subjects.Inbox("<own>") + ".x.*", subjects.Inbox("<another>"), subjects.Inbox("<another>") + ".>", subjects.Inbox("<another>") + ".x", subjects.Inbox("<another>") + ".x.*"}},
	{"GateInbox", []string{subjects.GateInbox, subjects.GateInbox + ".>", subjects.GateInbox + ".x", subjects.GateInbox + ".x.*"}},
	{"Discovery", func() []string {
		all := []string{subjects.Discovery + ".>", subjects.Discovery + ".*", subjects.Discovery + ".*.>", subjects.Discovery + ".*.*"}
		for _, v := range []string{"PING", "INFO", "STATS"} {
			all = append(all, subjects.Discovery+"."+v, subjects.Discovery+"."+v+".*")
		}
		return all
	}()},
	{"MicroName", func() (all []string) {
		for _, n := range []string{subjects.MicroName("shop", "web"), subjects.MicroName("shop", "mail"), subjects.MicroName("bank", "api")} {
			for _, v := range []string{"PING", "INFO", "STATS", "*"} {
				all = append(all, subjects.Discovery+"."+v+"."+n, subjects.Discovery+"."+v+"."+n+".>")
			}
		}
		return all
	}()},
	{"MicroID", []string{"$SRV.PING.shop_web." + subjects.MicroID("shop-web-1.1"), "$SRV.PING.shop_web." + subjects.MicroID("shop-web-2.1"), "$SRV.PING.bank_api." + subjects.MicroID("bank-api-1.1"), "$SRV.INFO.shop_web.*", "$SRV.STATS.shop_web.*", "$SRV.PING.shop_mail.*", "$SRV.INFO.shop_mail.*", "$SRV.STATS.shop_mail.*", "$SRV.INFO.bank_api.*", "$SRV.STATS.bank_api.*"}},
	{"Control", each1(keys, subjects.Control)},
	{"ControlAll", []string{subjects.ControlAll, "$KV.>", "$KV.*.x", "$KV.other.x"}},
	{"Changed", each1(keys, subjects.Changed)},
	{"ControlChanged", []string{subjects.ControlChanged, subjects.Changed("*.*"), subjects.Changed("app.default.*"), subjects.Changed("app.default.>"), subjects.Changed("place.*.default.shop-web-1"), subjects.Changed("place.w1.default.*"), subjects.Changed("place.*.*.*")}},
	{"KeyPlacements", slices.Concat(each1(hosts, func(h kbroker.HostID) string { return subjects.Changed(subjects.KeyPlacements(h)) }), []string{subjects.Changed(subjects.KeyPlacements("*"))})},
	{"Status", each1(keys, subjects.Status)},
	{"StatusAll", []string{subjects.StatusAll}},
	{"StatusChanged", slices.Concat([]string{subjects.StatusChanged}, each1(keys, func(k string) string { return strings.TrimSuffix(subjects.StatusChanged, ">") + k }))},
	{"Ownership", func() []string {
		return slices.Concat(each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { _, all := subjects.Ownership(t, a); return all }), []string{"own.>", "own.default.*.lease.alloc", "own.default.shop.x", "own.default.shop.lease.x"})
	}()},
	{"AllocatorLease", each2(tenants, apps, subjects.AllocatorLease)},
	{"VerbOwnRead", each1(incarnations, func(i kbroker.Incarnation) string {
		return subjects.Own("default", "shop", subjects.VerbOwnRead, i)
	})},
	{"VerbOwnWrite", each1(incarnations, func(i kbroker.Incarnation) string {
		return subjects.Own("default", "shop", subjects.VerbOwnWrite, i)
	})},
	{"Own", slices.Concat(each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string {
		return subjects.Own(t, a, subjects.VerbOwnWrite, "shop-web-1.1")
	}), []string{subjects.Own("default", "bank", subjects.VerbOwnRead, "bank-api-1.1"), subjects.Own("default", "shop", "new", "shop-web-1.1"), "kb.own.default.shop.read.shop-web-1", "kb.own.default.shop.read.shop-web-1.*", "kb.own.default.shop.read.*.*"})},
	{"AllOwnOf", []string{subjects.AllOwnOf(subjects.VerbOwnRead), subjects.AllOwnOf(subjects.VerbOwnWrite)}},
	{"VerbTopicPublish", each1(incarnations, func(i kbroker.Incarnation) string {
		return subjects.TopicAsk("default", "shop", "orders", subjects.VerbTopicPublish, i)
	})},
	{"VerbTopicRead", each1(incarnations, func(i kbroker.Incarnation) string {
		return subjects.TopicAsk("default", "shop", "orders", subjects.VerbTopicRead, i)
	})},
	{"TopicAsk", slices.Concat(
		each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string {
			return subjects.TopicAsk(t, a, "web", subjects.VerbTopicPublish, "shop-web-1.1")
		}),
		each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string {
			return subjects.TopicAsk(t, a, "web", subjects.VerbTopicRead, "shop-web-1.1")
		}),
		each1([]string{"orders", "web"}, func(topic string) string {
			return subjects.TopicAsk("default", "shop", topic, subjects.VerbTopicRead, "bank-api-1.1")
		}),
		[]string{
			subjects.TopicAsk("default", "shop", "web", subjects.VerbTopicPublish, "bank-api-1.1"), subjects.TopicAsk("default", "bank", "orders", subjects.VerbTopicPublish, "bank-api-1.1"),
			subjects.TopicAsk("default", "bank", "orders", subjects.VerbTopicRead, "bank-api-1.1"), subjects.TopicAsk("default", "shop", "orders", "new", "shop-web-1.1"),
			"kb.topic.default.shop.orders.read.shop-web-1", "kb.topic.default.shop.orders.read.shop-web-1.*", "kb.topic.default.shop.orders.read.*.*",
		},
	)},
	{"TopicAskOf", []string{subjects.TopicAskOf("default", "shop.*", subjects.VerbTopicRead, "shop-web-1.1"), subjects.TopicAskOf("default", "*.*", subjects.VerbTopicRead, "shop-web-1.1")}},
	{"AllTopicAsks", []string{subjects.AllTopicAsks, "kb.topic.>", "kb.topic.default.shop.*.*.*.*"}},
	{"TopicStream", slices.Concat(each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string {
		_, all := subjects.TopicStream(t, a)
		return all
	}), []string{"evs.>"})},
	{"StoredEvent", each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { return subjects.StoredEvent(t, a, "orders", "x") })},
	{"StoredEvents", each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { return subjects.StoredEvents(t, a, "orders") })},
	{"AllOwn", []string{subjects.AllOwn, "kb.own.>", "kb.own.default.shop.*.*.*"}},
	{"Owned", each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string {
		return subjects.Owned(t, a, subjects.KeyAllocatorLease)
	})},
	{"OwnedOf", each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { return subjects.OwnedOf(t, a) + ">" })},
	{"AllOwned", slices.Concat(each1(tenants, subjects.AllOwned), []string{"kb.owned.>", "kb.owned.*.shop.>"})},
	{"Load", slices.Concat(each2(tenants, incarnations, func(t kbroker.TenantID, i kbroker.Incarnation) string { return subjects.Load(t, "shop", i) }), []string{subjects.Load("default", "bank", "bank-api-1.1")})},
	{"LoadOf", slices.Concat(each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { return subjects.LoadOf(t, a) + "*.*" }), []string{"kb.load.>"})},
	{"Placing", slices.Concat(each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string {
		return subjects.Placing(t, a, subjects.VerbAllocate)
	}), []string{"kb.placing.>", "kb.placing.default.shop.*"})},
	{"PlacedOn", slices.Concat(each2(tenants, incarnations, func(t kbroker.TenantID, i kbroker.Incarnation) string { return subjects.PlacedOn(t, "shop", i) }), []string{subjects.PlacedOn("default", "bank", "bank-api-1.1"), "kb.placed.>"})},
	{"Reaped", append(each2(tenants, apps, subjects.Reaped), "kb.reaped.>", "kb.reaped.default.*")},
	{"StoredAt", each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string {
		key := subjects.KeyLease("shop-web-1.1")
		_, prefix, _ := subjects.StoredAt(t, a, 4, key)
		return prefix + key
	})},
	{"Objects", slices.Concat(each2(tenants, apps, func(t kbroker.TenantID, a kbroker.AppName) string { _, all := subjects.Objects(t, a, 0); return all }), []string{"obj.>", "obj.default.shop.0.257.state.account.alice"})},
	{"LeaderInfo", each1(streams, subjects.LeaderInfo)},
	{"ArtifactAll", slices.Concat(each1(tenants, subjects.ArtifactAll), []string{"art.>"})},
	{"ArtifactMeta", each1(tenants, func(t kbroker.TenantID) string { return subjects.ArtifactMeta(t, "00ff") })},
	{"ArtifactChunk", each1(tenants, func(t kbroker.TenantID) string { return subjects.ArtifactChunk(t, "u", 1) })},
	{"ArtifactChunks", each1(tenants, func(t kbroker.TenantID) string { return subjects.ArtifactChunks(t, "u") })},
	{"LeaderRead", each1(streams, subjects.LeaderRead)},
	{"AnyRead", each1(streams, subjects.AnyRead)},
	{"Event", slices.Concat(each2(tenants, instances, func(t kbroker.TenantID, i kbroker.InstanceID) string { return subjects.Event(t, "shop", i) }), []string{subjects.Event("", "", "")})},
	{"EventAll", []string{subjects.EventAll}},
	{"EventsOf", []string{subjects.EventsOf("default", "", ""), subjects.EventsOf("default", "shop", ""), subjects.EventsOf("default", "shop", "shop-web-1")}},

	{"AuditRecord", []string{subjects.AuditRecord}},
	{"AuditAll", []string{subjects.AuditAll}},

	// Of the server. What has a name of more than one part may hide a wildcard.
	{"everything", []string{">", "*", "*.*", "*.>", "*.*.*", "kb.>", "kb.*.>", "kb.*.*", "kb.*.w1", "kb.*.*.*", "$KV.kbroker", "$JS.>", "x", "kb.new", "$NRG.V.x"}},
	{"the system", []string{
		"$SYS.>", "$SYS.REQ.USER.INFO", "$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.SERVER.x.KICK", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.LIST",
		"$SYS.REQ.ACCOUNT.x.CONNZ", "$SYS.REQ.ACCOUNT.x.CLAIMS.UPDATE", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.ACCOUNT.x.CONNECT", "$SYS.SERVER.x.SHUTDOWN",
	}},
	{"JetStream, without a stream", []string{
		"$JS.API.>", "$JS.API.*", "$JS.API.INFO", "$JS.API.ACCOUNT.PURGE.x", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST", "$JS.API.STREAM.TEMPLATE.CREATE.x",
		"$JS.API.SERVER.REMOVE", "$JS.API.SERVER.EVACUATE", "$JS.API.META.LEADER.STEPDOWN", "$JS.API.META.RESCUE", "$JS.API.ACCOUNT.STREAM.MOVE.a.s", "$JS.API.STREAM.>",
		"$JS.API.CONSUMER.>", "$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.>", "$JS.EVENT.>", "$JS.EVENT.ADVISORY.STREAM.CREATED.x", "$JS.ACK.>", "$JS.FC.>",
	}},
	{"JetStream, of a stream", func() (all []string) {
		for _, api := range []string{
			"STREAM.CREATE.<stream>", "STREAM.UPDATE.<stream>", "STREAM.DELETE.<stream>", "STREAM.PURGE.<stream>", "STREAM.INFO.<stream>", "STREAM.MSG.DELETE.<stream>",
			"STREAM.SNAPSHOT.<stream>", "STREAM.RESTORE.<stream>", "STREAM.LEADER.STEPDOWN.<stream>", "STREAM.PEER.REMOVE.<stream>", "STREAM.PEER.EVACUATE.<stream>",
			"STREAM.CANCEL_MOVE.<stream>", "DIRECT.GET.<stream>", "DIRECT.GET.<stream>.a.b",
			"CONSUMER.CREATE.<stream>", "CONSUMER.CREATE.<stream>.c", "CONSUMER.CREATE.<stream>.c.a.b", "CONSUMER.DURABLE.CREATE.<stream>.c", "CONSUMER.DELETE.<stream>.c",
			"CONSUMER.INFO.<stream>.c", "CONSUMER.NAMES.<stream>", "CONSUMER.LIST.<stream>", "CONSUMER.MSG.NEXT.<stream>.c", "CONSUMER.PAUSE.<stream>.c", "CONSUMER.RESET.<stream>.c",
			"CONSUMER.UNPIN.<stream>.c", "CONSUMER.LEADER.STEPDOWN.<stream>.c", "CONSUMER.PEER.REMOVE.<stream>.c", "CONSUMER.PEER.EVACUATE.<stream>.c",
		} {
			all = append(all, expand("$JS.API."+api)...)
		}
		return slices.Concat(all, expand("$JS.ACK.<stream>.c.1.1.1.1.1"), expand("$JS.FC.<stream>.c.x"))
	}()},
}

// noSubject are what package subjects exports and nobody publishes or subscribes to.
var noSubject = map[string]string{
	"QueueService": "a queue group: all subscriptions are tried in it", "QueueCore": "a queue group: all subscriptions are tried in it",
	"ControlBucket": "a bucket", "StatusBucket": "a bucket",
	"ControlStream": "a stream: in streams", "StatusStream": "a stream: in streams", "EventStream": "a stream: in streams", "AuditStream": "a stream: in streams",
	"Artifacts": "a stream: in streams", "MirrorOf": "a stream: in streams",
	"KeySuperLease": "a key: in keys", "KeyApp": "a key: in keys", "KeyVersion": "a key: in keys", "KeyPlacement": "a key: in keys", "KeyHead": "a key: in keys",
	"KeyHost": "a key: in keys", "KeyDemand": "a key: in keys", "KeyNonce": "a key: in keys", "KeyCanary": "a key: in keys", "KeyStatus": "a key: in keys", "KeyReport": "a key: in keys", "KeyRevoked": "a key: in keys", "KeyToken": "a key: in keys", "KeyUser": "a key: in keys", "KeyAudit": "a key: in keys", "KeyAllocatorLease": "a key: in Owned", "KeyOwnershipHead": "a key of ownership", "KeyLease": "a key: in StoredAt", "KeyAssign": "a key of ownership", "KeyRelease": "a key of ownership", "MatchPlaced": "the beginning of keys", "MatchPlacedReleases": "the beginning of keys", "ParsePlacing": "a parser", "VerbAllocate": "in Placing", "VerbFind": "in Placing", "VerbRelease": "in Placing", "KeyWishes": "a key of ownership", "KeyState": "a key: in Objects", "KeyOut": "a key of an object", "KeyDue": "a key of an object",
	"MatchShard": "the beginning of keys", "MatchStates": "the beginning of keys", "MatchOuts": "the beginning of keys", "MatchDues": "the beginning of keys", "MatchLeases": "the beginning of keys", "MatchAssigns": "the beginning of keys", "MatchReleases": "the beginning of keys", "MatchOutsOf": "the beginning of keys", "MatchDuesOf": "the beginning of keys", "MatchKind": "the beginning of keys", "FilterStates": "a filter of keys", "FilterKind": "a filter of keys",
	"EscapeID": "makes a token", "UnescapeID": "a parser", "ParseOwn": "a parser", "ParseTopicAsk": "a parser", "ParseStoredEvent": "a parser", "ParseObjectMethod": "a parser", "ParseOwnKey": "a parser", "OwnershipKey": "a parser",
	"OwnUnknown": "a number", "OwnAllocatorLease": "a number", "OwnLease": "a number", "OwnAssign": "a number", "OwnRelease": "a number", "OwnHead": "a number", "OwnWishes": "a number", "OwnState": "a number", "OwnOut": "a number", "OwnDue": "a number",
	"Discoveries": "in Discovery",
	"CheckMethod": "looks at a name", "ParseAPI": "a parser", "AgentVerb": "a parser", "HostOf": "a parser", "ControlKey": "a parser", "StatusKey": "a parser", "ParseKey": "a parser", "ParseDemand": "a parser", "RenewKey": "a parser", "IsInbox": "a parser", "TenantOf": "a parser", "HostVerb": "a parser", "InboxOwner": "a parser", "ParseLease": "a parser", "ParseEndpoints": "a parser", "KeyOf": "a parser", "IsPong": "a parser", "IsKept": "a parser", "QuestionOf": "a parser", "UploadTenant": "a parser",
	"ParseMirror": "a parser", "ParseStreamTaken": "a parser", "QueueTopic": "a queue group: subscriptions in any are alike", "IsAllocatorLease": "a parser", "IsTagHost": "a parser",
	"TagCore": "a server's tag", "TagHost": "a server's tag", "MirrorOrigin": "of a stream's metadata", "CopiedUpTo": "of a stream's metadata",
	"UnknownTable": "a number", "LeaseTable": "a number", "AppTable": "a number", "VersionTable": "a number", "PlacementTable": "a number", "HeadTable": "a number",
	"HostTable": "a number", "DemandTable": "a number", "NonceTable": "a number", "CanaryTable": "a number", "StatusTable": "a number", "ReportTable": "a number", "RevokedTable": "a number", "TokenTable": "a number", "UserTable": "a number", "AuditTable": "a number",
}

func TestPermissionCatalogueHasEverySubject(t *testing.T) {
	named := map[string]bool{}
	for _, e := range catalogue {
		if named[e.of] {
			t.Errorf("%s is in the catalogue twice", e.of)
		}
		named[e.of] = true
	}
	exported := exportedOf(t, filepath.Join("..", "subjects"))
	if len(exported) < 80 {
		t.Fatalf("only %d names found in package subjects: %q", len(exported), exported)
	}
	for _, name := range exported {
		_, none := noSubject[name]
		switch {
		case strings.HasPrefix(name, "Header"): // of a message
		case named[name] == none:
			t.Errorf("subjects.%s: want it in the catalogue, or among what is no subject, with the reason; it is in both or in none", name)
		}
	}
	for name := range noSubject {
		if !slices.Contains(exported, name) {
			t.Errorf("package subjects has no %s any more", name)
		}
	}
}

// exportedOf are the exported functions, constants and variables of a package.
func exportedOf(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files in %s: %v", len(files), dir, err)
	}
	add := func(id *ast.Ident) {
		if id.IsExported() {
			names = append(names, id.Name)
		}
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range parsed.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					add(d.Name)
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					if v, ok := s.(*ast.ValueSpec); ok {
						for _, id := range v.Names {
							add(id)
						}
					}
				}
			}
		}
	}
	slices.Sort(names)
	return names
}
