package grants

import (
	"fmt"
	"regexp"
	"slices"

	"github.com/nats-io/jwt/v2"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Role is what kind of user a credential is for.
type Role string

// The roles. Each of the people's may do what the one before it may.
const (
	// Core is a core host itself: its connections never leave the process.
	Core Role = "core"
	// Gate is everybody who shows no credential: it may ask for one.
	Gate Role = "gate"
	// Worker is the agent of a host that is no core. Tags: host.
	Worker Role = "worker"
	// Instance is one incarnation of an application's service. Tags: tenant, host,
	// app, service, instance, incarnation, call, objects, topic.
	Instance Role = "instance"
	// Allocator is that of an allocator, which is an instance as well.
	Allocator Role = "allocator"

	Viewer   Role = "viewer"
	Deployer Role = "deployer"
	Operator Role = "operator"
	Admin    Role = "admin"
)

// ofPeople reports whether it is one that users have.
func (r Role) ofPeople() bool { return r == Viewer || r == Deployer || r == Operator || r == Admin }

// Tags of users, which stand in the permissions of their roles.
const (
	TagTenant      = "tenant"
	TagHost        = "host"
	TagApp         = "app"
	TagService     = "service"
	TagInstance    = "instance"
	TagIncarnation = "incarnation"
	// TagRole is that of people, for themselves: a JWT has only the key of it, and no
	// permission names it.
	TagRole = "role"
	// TagBy is the public key of the person for whose program a credential is, in lower
	// case as all tags: it is not renewed when theirs was taken back.
	TagBy = "by"
	// TagUntil is when that of TagBy ends, in seconds of Unix: it is not renewed beyond.
	TagUntil = "until"
	// TagCall is <app>.<service>, <app>.* or *.*, that an instance may call.
	TagCall = "call"
	// TagTopic is <app>.<topic>, <app>.* or *.*, that an instance may hear, and read of what
	// is stored.
	TagTopic = "topic"
	// TagObjects is an app whose objects an instance may call, or *.
	TagObjects = "objects"
)

// roles are the permissions of each role. docs/security.md has them in words, and a
// test of its own knows them by heart.
var roles = map[Role]permissions{
	Core:      {publish: []string{">"}, subscribe: []string{">"}},
	Gate:      {publish: []string{subjects.Join}, bearer: true},
	Worker:    worker,
	Instance:  instance,
	Allocator: allocator,
	Viewer:    viewer,
	Deployer:  deployer,
	Operator:  operator,
	Admin:     admin,
}

var (
	worker = permissions{
		tags: []string{TagHost},
		publish: []string{
			subjects.View(kbroker.HostID(tag(TagHost))), subjects.Report(kbroker.HostID(tag(TagHost))), subjects.Heartbeat(kbroker.HostID(tag(TagHost))),
			subjects.Figures(kbroker.HostID(tag(TagHost))), subjects.Sign(kbroker.HostID(tag(TagHost))), subjects.Core(subjects.VerbArtifactGet, "*"), subjects.AllPings,
		},
		subscribe: []string{
			subjects.Host(kbroker.HostID(tag(TagHost)), "*", "*"), subjects.Pong("*", kbroker.HostID(tag(TagHost)), "*"),
			subjects.Changed(subjects.KeyPlacements(kbroker.HostID(tag(TagHost)))),
		},
		answers: true,
	}
	placed = permissions{
		tags: []string{TagTenant, TagHost, TagApp, TagService, TagInstance, TagIncarnation},
		publish: []string{
			subjects.Core(subjects.VerbPlacement, kbroker.TenantID(tag(TagTenant))), subjects.Renew(ownKey),
			subjects.Pong(kbroker.TenantID(tag(TagTenant)), kbroker.HostID(tag(TagHost)), "*"),
			subjects.Own(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp)), "*", kbroker.Incarnation(tag(TagIncarnation))),
			subjects.Kept(kbroker.TenantID(tag(TagTenant)), kbroker.Incarnation(tag(TagIncarnation)), "*", "*"),
		},
		subscribe: []string{
			subjects.Keeper(kbroker.TenantID(tag(TagTenant)), kbroker.Incarnation(tag(TagIncarnation))),
			subjects.OwnedOf(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp))) + ">",
			subjects.Ping(kbroker.TenantID(tag(TagTenant)), kbroker.Incarnation(tag(TagIncarnation))),
			subjects.Changed(subjects.KeyPlacement(kbroker.HostID(tag(TagHost)), kbroker.TenantID(tag(TagTenant)), kbroker.InstanceID(tag(TagInstance)))),
		},
		answers: true,
	}
	instance = placed.and(permissions{
		tags: []string{TagCall, TagObjects, TagTopic},
		publish: []string{
			subjects.Methods(tag(TagCall)), subjects.ObjectMethods(kbroker.AppName(tag(TagObjects))), subjects.EndpointsOf(kbroker.TenantID(tag(TagTenant)), tag(TagCall)),
			subjects.Placing(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagObjects)), "*"),
			subjects.Topic(kbroker.AppName(tag(TagApp)), "*"), subjects.Discovery + ".>",
			subjects.TopicAsk(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp)), "*", subjects.VerbTopicPublish, kbroker.Incarnation(tag(TagIncarnation))),
			subjects.TopicAskOf(kbroker.TenantID(tag(TagTenant)), tag(TagTopic), subjects.VerbTopicRead, kbroker.Incarnation(tag(TagIncarnation))),
			subjects.Load(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp)), kbroker.Incarnation(tag(TagIncarnation))),
		},
		// The server drops a template with a queue, and takes a last * for a >.
		subscribe: slices.Concat(
			[]string{
				subjects.PlacedOn(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp)), kbroker.Incarnation(tag(TagIncarnation))),
				subjects.Methods(tag(TagApp) + "." + tag(TagService)), subjects.Shards(kbroker.AppName(tag(TagApp))), subjects.Topics(tag(TagTopic)),
			}, subjects.Discoveries,
			each(subjects.Discoveries, func(question string) string {
				return question + "." + subjects.MicroName(kbroker.AppName(tag(TagApp)), kbroker.ServiceName(tag(TagService)))
			}),
			each(subjects.Discoveries, func(question string) string {
				return question + "." + subjects.MicroName(kbroker.AppName(tag(TagApp)), kbroker.ServiceName(tag(TagService))) + ".*"
			}),
		),
	})
	allocator = placed.and(permissions{
		publish: []string{
			subjects.Demand(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp))),
			subjects.Core(subjects.VerbVersion, kbroker.TenantID(tag(TagTenant))), subjects.Core(subjects.VerbFigures, kbroker.TenantID(tag(TagTenant))),
			subjects.Lease(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp))),
			subjects.PlacedOn(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp)), "*.*"),
			// What was asked of a service while it had no instance, and what methods one has.
			subjects.Method(kbroker.AppName(tag(TagApp)), "*", "*"), subjects.Discovery + ".INFO.*",
		},
		subscribe: []string{
			subjects.Method(kbroker.AppName(tag(TagApp)), "*", "*"),
			subjects.Changed(subjects.KeyApp(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp)))),
			subjects.Reaped(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp))),
			subjects.LoadOf(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp))) + ">",
			subjects.Placing(kbroker.TenantID(tag(TagTenant)), kbroker.AppName(tag(TagApp)), "*"),
		},
	})
)

// The people's: each has what the one before has.
var (
	viewer = permissions{
		tags: []string{TagTenant},
		publish: slices.Concat(
			reads(subjects.VerbApps, subjects.VerbInstances, subjects.VerbHosts, subjects.VerbStatus, subjects.VerbVersion,
				subjects.VerbPlacement, subjects.VerbHistory, subjects.VerbPlan, subjects.VerbEvents, subjects.VerbWhy, subjects.VerbFigures, subjects.VerbAllocator,
				subjects.VerbObjects, subjects.VerbObjectOwners, subjects.VerbObject),
			[]string{
				subjects.Host("*", subjects.VerbLogs, kbroker.TenantID(tag(TagTenant))), subjects.Host("*", subjects.VerbCheckup, kbroker.TenantID(tag(TagTenant))),
				subjects.Endpoints(kbroker.TenantID(tag(TagTenant)), "*", "*"), subjects.Discovery + ".>",
			},
		),
	}
	deployer = viewer.and(permissions{publish: slices.Concat(
		writes(subjects.VerbDeploy, subjects.VerbScale, subjects.VerbStop, subjects.VerbRollback, subjects.VerbRestart),
		reads(subjects.VerbArtifactBegin, subjects.VerbArtifactGet, subjects.VerbDevelop, subjects.VerbObjectState), []string{subjects.Upload("*", kbroker.TenantID(tag(TagTenant)), "*"), subjects.AllMethods, subjects.AllObjectMethods, subjects.Placing(kbroker.TenantID(tag(TagTenant)), "*", "*")},
	)})
	// What is asked inside an instance goes through a core, who tells the audit trail; a
	// deployer puts programs there, and has no hands in those that run.
	operator = deployer.and(permissions{publish: slices.Concat(
		writes(subjects.VerbDrain, subjects.VerbRemove, subjects.VerbMaintain), reads(subjects.VerbExec, subjects.VerbSignal, subjects.VerbObjectAct),
		[]string{subjects.Host("*", subjects.VerbSession, kbroker.TenantID(tag(TagTenant)))},
	)})
	// An admin lets hosts and users in, and reads who did what.
	admin = operator.and(permissions{publish: slices.Concat(
		writes(subjects.VerbToken, subjects.VerbRevoke, subjects.VerbUser, subjects.VerbUserRevoke), reads(subjects.VerbTokens, subjects.VerbUsers, subjects.VerbAudit),
	)})
)

func reads(verbs ...string) []string {
	return each(verbs, func(v string) string { return subjects.Core(v, kbroker.TenantID(tag(TagTenant))) })
}

func writes(verbs ...string) []string {
	return each(verbs, func(v string) string { return subjects.Super(v, kbroker.TenantID(tag(TagTenant)), ownKey) })
}

func each(names []string, subject func(string) string) []string {
	var out []string
	for _, n := range names {
		out = append(out, subject(n))
	}
	return out
}

// What who shows no credential may have: a request to join is far smaller, and needs one
// inbox, two of which may overlap.
const (
	gateSubscriptions = 4
	gatePayload       = 64 << 10 // bytes
)

// ownKey is the public key of the user, in a template.
const ownKey = "{{subject()}}"

func tag(name string) string { return "{{tag(" + name + ")}}" }

// permissions are the subjects of a role. All may use the inbox of their own key;
// none may read that of another. To answer is to publish to the inbox of who asked:
// its name is a secret between the two, so that it is open to who serves something.
type permissions struct {
	publish, subscribe []string
	answers            bool
	bearer             bool
	tags               []string
}

// and adds what is in q.
func (p permissions) and(q permissions) permissions {
	return permissions{
		publish: slices.Concat(p.publish, q.publish), subscribe: slices.Concat(p.subscribe, q.subscribe),
		answers: p.answers || q.answers, bearer: p.bearer || q.bearer, tags: slices.Concat(p.tags, q.tags),
	}
}

func (p permissions) template() jwt.UserPermissionLimits {
	t := jwt.UserPermissionLimits{Limits: jwt.Limits{NatsLimits: jwt.NatsLimits{Subs: jwt.NoLimit, Data: jwt.NoLimit, Payload: jwt.NoLimit}}}
	if t.BearerToken = p.bearer; p.bearer {
		t.Subs, t.Payload = gateSubscriptions, gatePayload
	}
	t.Pub.Allow.Add(p.publish...)
	t.Sub.Allow.Add(p.subscribe...)
	if p.answers {
		t.Pub.Allow.Add(subjects.AllInboxes)
	}
	if p.bearer {
		t.Sub.Allow.Add(subjects.GateInbox + ".>")
	} else {
		t.Sub.Allow.Add(subjects.Inbox(ownKey) + ".>")
		t.Pub.Allow.Add(subjects.Inbox(ownKey) + ".>") // who moves to another server listens to itself
	}
	return t
}

// forms are what the values of tags look like: one token of a subject each, but for
// incarnations, calls, topics and apps with objects.
var (
	token = regexp.MustCompile(`^[a-z0-9_-]+$`)
	forms = map[string]*regexp.Regexp{
		TagIncarnation: regexp.MustCompile(`^[a-z0-9_-]+\.[a-z0-9_-]+$`),
		TagObjects:     regexp.MustCompile(`^([a-z0-9_-]+|\*)$`),
		TagTopic:       regexp.MustCompile(`^([a-z0-9_-]+\.([a-z0-9_-]+|\*)|\*\.\*)$`),
		TagCall:        regexp.MustCompile(`^([a-z0-9_-]+\.([a-z0-9_-]+|\*)|\*\.\*)$`),
	}
)

// checkTag refuses what would be more, or something else, than its part of a subject.
func checkTag(name, v string) error {
	form, ok := forms[name]
	if !ok {
		form = token
	}
	if !form.MatchString(v) {
		return fmt.Errorf("%q cannot be in a subject", v)
	}
	return nil
}
