package spec

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/kbroker/kbroker"
)

// The defaults of a service.
const (
	DefaultCount       = 1
	DefaultCPU         = 0.1      // cores
	DefaultMemoryBytes = 64 << 20 // 64 MiB
	DefaultInterval    = time.Second
	DefaultParallel    = 1
	DefaultMinHealthy  = 2 * time.Second
	DefaultDeadline    = 2 * time.Minute
	DefaultSignal      = "SIGTERM"
	DefaultGrace       = 10 * time.Second
)

// Values of Service.Spread.
const (
	SpreadHost = "host" // prefer hosts that run fewer instances of the service
	SpreadNone = "none"
)

func defaultService(name kbroker.ServiceName) kbroker.Service {
	return kbroker.Service{
		Name:      name,
		Count:     kbroker.Count{Min: DefaultCount, Max: DefaultCount},
		Resources: kbroker.Resources{CPU: DefaultCPU, MemoryBytes: DefaultMemoryBytes},
		Health:    kbroker.Health{Check: kbroker.Check{Ready: kbroker.HealthSDK, Interval: DefaultInterval}},
		Update:    kbroker.Update{Parallel: DefaultParallel, MinHealthy: DefaultMinHealthy, Deadline: DefaultDeadline},
		Stop:      kbroker.Stop{Signal: DefaultSignal, Grace: DefaultGrace},
		Spread:    SpreadHost,
	}
}

func (d *decoder) app(root ast.Node) *kbroker.App {
	app := &kbroker.App{}
	v, ok := d.enter(value{node: root}, positionOf(root))
	if !ok {
		return app
	}
	if _, ok := v.node.(ast.MapNode); !ok {
		d.fail(v, minimalHint, "the spec is %s, want a mapping with the keys name and services", describe(v.node))
		d.failed["name"], d.failed["services"] = true, true
		return app
	}
	d.fields(v,
		field{name: "name", read: d.text((*string)(&app.Name))},
		field{name: "services", read: func(v value) {
			d.entries(v, "a mapping of service names", func(name string, key position, v value) {
				if v, ok := d.enter(v, key); ok {
					d.service(app, kbroker.ServiceName(name), v)
				}
			})
		}},
		field{name: "object_streams", read: func(v value) {
			d.integer(&app.ObjectStreams)(v)
			if app.ObjectStreams == 0 && !d.failed[v.path] {
				d.fail(v, streamsHint, "object_streams is 0, want one of 1, 4, 16")
			}
		}},
		field{name: "topics", read: func(v value) {
			d.fields(v,
				field{name: "keep", read: d.nonzero(d.duration(&app.Topics.Keep), func() bool { return app.Topics.Keep == 0 }, keepHint)},
				field{name: "max_bytes", read: d.nonzero(d.size(&app.Topics.MaxBytes), func() bool { return app.Topics.MaxBytes == 0 }, topicBytesHint)},
			)
		}},
		field{name: "allocator", read: func(v value) {
			own := kbroker.OwnPolicy{}
			written := false
			part := func(into *string) func(value) {
				return func(v value) {
					written = true
					d.text(into)(v)
				}
			}
			d.fields(v,
				field{name: "policy", read: d.text(&app.Policy)},
				field{name: "build", read: part(&own.Build)},
				field{name: "run", read: part(&own.Run)},
			)
			if own.Artifact.Path = own.Run; written {
				app.Own = &own
			}
		}},
	)
	slices.SortFunc(app.Services, func(a, b kbroker.Service) int { return cmp.Compare(a.Name, b.Name) })
	return app
}

// nonzero reads a value; one of 0 would stand for one that is not written.
func (d *decoder) nonzero(read func(value), zero func() bool, hint string) func(value) {
	return func(v value) {
		if read(v); zero() && !d.failed[v.path] {
			d.fail(v, hint, "%s is 0", label(v.path))
		}
	}
}

func (d *decoder) service(app *kbroker.App, name kbroker.ServiceName, v value) {
	s := defaultService(name)
	var hasRun, hasArtifact, hasMemory bool
	ok := d.fields(v,
		field{name: "build", read: d.text(&s.Build)},
		field{name: "run", read: func(v value) {
			hasRun = true
			d.text(&s.Run)(v)
			s.Artifact.Path = s.Run
		}},
		field{name: "artifact", read: func(v value) {
			hasArtifact = true
			d.artifact(&s.Artifact, v)
		}},
		field{name: "args", read: func(v value) {
			d.list(v, "a list of arguments", d.scalar(func(arg string) { s.Args = append(s.Args, arg) }))
		}},
		field{name: "env", read: func(v value) { d.env(&s, v) }},
		field{name: "count", read: func(v value) { d.count(&s.Count, v) }},
		field{name: "scale", read: func(v value) {
			s.Scale = &kbroker.Scale{}
			d.scale(s.Scale, v)
		}},
		field{name: "resources", read: func(v value) {
			d.fields(v,
				field{name: "cpu", read: d.number(&s.Resources.CPU, "cpu is in cores, e.g. 0.25")},
				field{name: "memory", read: func(v value) {
					hasMemory = true
					d.size(&s.Resources.MemoryBytes)(v)
				}},
				field{name: "cpu_limit", read: d.number(&s.Resources.CPULimit, "cpu_limit is in cores, e.g. 1.5")},
				field{name: "memory_limit", read: d.size(&s.Resources.MemoryLimitBytes)},
				field{name: "pids", read: d.integer(&s.Resources.PIDs)},
				field{name: "fds", read: d.integer(&s.Resources.Files)},
			)
		}},
		field{name: "ports", read: func(v value) { d.ports(&s, v) }},
		field{name: "health", read: func(v value) { d.health(&s.Health, v) }},
		field{name: "sandbox", read: d.text(&s.Sandbox)},
		field{name: "update", read: func(v value) {
			d.fields(v,
				field{name: "parallel", read: d.integer(&s.Update.Parallel)},
				field{name: "min_healthy", read: d.duration(&s.Update.MinHealthy)},
				field{name: "deadline", read: d.duration(&s.Update.Deadline)},
				field{name: "auto_rollback", read: d.boolean(&s.Update.AutoRollback)},
			)
		}},
		field{name: "stop", read: func(v value) {
			d.fields(v,
				field{name: "signal", read: d.text(&s.Stop.Signal)},
				field{name: "grace", read: d.duration(&s.Stop.Grace)},
			)
		}},
		field{name: "spread", read: d.text(&s.Spread)},
		field{name: "require", read: func(v value) {
			d.list(v, `a list of constraints such as "disk == ssd"`, func(item value) {
				var c string
				d.text(&c)(item)
				s.Require = append(s.Require, c)
			})
		}},
		field{name: "calls", read: func(v value) {
			d.list(v, "a list of services such as bank/ledger", func(item value) {
				var c string
				d.text(&c)(item)
				s.Calls = append(s.Calls, c)
			})
		}},
		field{name: "subscribes", read: func(v value) {
			d.list(v, "a list of topics such as shop/orders", func(item value) {
				var topic string
				d.text(&topic)(item)
				s.Subscribes = append(s.Subscribes, topic)
			})
		}},
		field{name: "objects", read: func(v value) { d.objects(&s, v) }},
		field{name: "slots", read: d.nonzero(d.integer(&s.Slots), func() bool { return s.Slots == 0 }, slotsHint)},
		field{name: "on_disconnect", unsupported: "remove it: in this build a service that loses the cluster keeps running"},
	)
	if !ok {
		return
	}
	if hasRun && hasArtifact {
		d.fail(value{path: join(v.path, "artifact")}, "keep one of the two", "%s has both run and artifact", label(v.path))
	}
	// Memory that is asked for is also the limit, as users of Nomad expect.
	if hasMemory && s.Resources.MemoryLimitBytes == 0 {
		s.Resources.MemoryLimitBytes = s.Resources.MemoryBytes
	}
	app.Services = append(app.Services, s)
}

func (d *decoder) artifact(a *kbroker.Artifact, v value) {
	archive := false
	d.fields(v,
		field{name: "path", read: d.text(&a.Path)},
		field{name: "command", read: func(v value) {
			d.text(&a.Command)(v)
			if archive = true; a.Command == "" && !d.failed[v.path] {
				d.fail(v, commandHint, "%s is empty", label(v.path))
			}
		}},
		field{name: "sha256", read: d.text(&a.SHA256)},
	)
	missing := func(name, hint string) {
		if !d.failed[v.path] && !d.failed[join(v.path, name)] {
			d.fail(v, hint, "%s has no %s", label(v.path), name)
		}
	}
	if a.Path == "" {
		missing("path", "path is the local file: a program with its sha256, or an archive with its command")
	}
	if a.SHA256 == "" && !archive {
		missing("sha256", "for a program write `run: FILE` and let deploy compute the digest; for an archive say which `command` in it to run")
	}
	if d.failedBelow(v.path) {
		d.failed[strings.TrimSuffix(v.path, "artifact")+"run"] = true
	}
}

func (d *decoder) env(s *kbroker.Service, v value) {
	s.Env = map[string]string{}
	d.entries(v, "a mapping of variables", func(name string, key position, v value) {
		if v, ok := d.enter(v, key); ok {
			d.scalar(func(text string) { s.Env[name] = text })(v)
		}
	})
	if len(s.Env) == 0 {
		s.Env = nil
	}
}

func (d *decoder) count(c *kbroker.Count, v value) {
	if _, ok := v.node.(ast.MapNode); !ok {
		d.integer(&c.Min)(v)
		c.Max = c.Min
		return
	}
	var hasMin, hasMax bool
	d.fields(v,
		field{name: "min", read: func(v value) { hasMin = true; d.integer(&c.Min)(v) }},
		field{name: "max", read: func(v value) { hasMax = true; d.integer(&c.Max)(v) }},
	)
	if !hasMin || !hasMax {
		d.fail(v, "write `count: 3` or `count: {min: 2, max: 20}`", "%s needs both min and max", label(v.path))
	}
}

func (d *decoder) scale(s *kbroker.Scale, v value) {
	target := func(name string, into *float64, hint string) field {
		return field{name: name, read: d.nonzero(d.number(into, hint), func() bool { return *into == 0 }, hint)}
	}
	d.fields(v,
		target("busy", &s.Busy, busyHint),
		target("cpu", &s.CPU, loadHint),
		target("requests", &s.Requests, requestsHint),
		target("mailbox", &s.Mailbox, mailboxHint),
		target("objects", &s.Objects, objectsHint),
		field{name: "buffer", read: d.integer(&s.Buffer)},
		field{name: "down", read: d.nonzero(d.duration(&s.Down), func() bool { return s.Down == 0 }, downHint)},
	)
}

// ports are names, or names with numbers.
func (d *decoder) ports(s *kbroker.Service, v value) {
	if _, ok := v.node.(ast.MapNode); !ok {
		d.list(v, "a list of names, or a mapping of names to numbers", d.scalar(func(name string) {
			s.Ports = append(s.Ports, kbroker.Port{Name: name})
		}))
	} else {
		d.entries(v, "a mapping of names to numbers", func(name string, key position, v value) {
			p := kbroker.Port{Name: name}
			if v, ok := d.enter(v, key); ok {
				d.integer(&p.Number)(v)
				if p.Number == 0 && !d.failed[v.path] {
					d.fail(v, portsHint, "%s is 0, want a number from 1 to 65535", label(v.path))
				}
			}
			s.Ports = append(s.Ports, p)
		})
	}
	slices.SortFunc(s.Ports, func(a, b kbroker.Port) int { return cmp.Compare(a.Name, b.Name) })
}

const portsHint = "write `ports: [http]` for a number that is free on the host, `ports: {http: 8080}` for this one"

// objects are names of kinds, or kinds with settings.
func (d *decoder) objects(s *kbroker.Service, v value) {
	d.list(v, "a list of kinds such as account", func(item value) {
		var kind string
		if _, ok := item.node.(ast.MapNode); ok {
			d.kind(s, &kind, item)
		} else {
			d.text(&kind)(item)
		}
		s.Objects = append(s.Objects, kbroker.KindName(kind))
	})
}

// kind is a kind with settings. A program without a Downgrade writes its own schema alone.
func (d *decoder) kind(s *kbroker.Service, name *string, v value) {
	var of kbroker.Schema
	var hasKind, hasSchema, hasLowest, hasPlaced bool
	var takes kbroker.Demanded
	ok := d.fields(v,
		field{name: "kind", read: func(v value) { hasKind = true; d.text(name)(v) }},
		field{name: "schema", read: func(v value) { hasSchema = true; d.integer(&of.Number)(v) }},
		field{name: "lowest", read: func(v value) { hasLowest = true; d.integer(&of.Lowest)(v) }},
		field{name: "placed", read: func(v value) { hasPlaced = true; d.demanded(&takes, v) }},
	)
	if ok && hasKind && hasPlaced {
		if s.Placed == nil {
			s.Placed = map[kbroker.KindName]kbroker.Demanded{}
		}
		s.Placed[kbroker.KindName(*name)] = takes
	}
	switch {
	case !ok:
		return
	case !hasKind:
		d.fail(v, "write `- {kind: account, schema: 2}`", "%s does not name its kind", label(v.path))
		return
	case !hasSchema && !hasLowest:
		return
	case !hasSchema:
		of.Number = 1
	case !hasLowest:
		of.Lowest = of.Number
	}
	if of == (kbroker.Schema{Number: 1, Lowest: 1}) {
		return // as it is without
	}
	if s.Schemas == nil {
		s.Schemas = map[kbroker.KindName]kbroker.Schema{}
	}
	s.Schemas[kbroker.KindName(*name)] = of
}

// demanded is what a placed object takes: one slot, if it does not say.
func (d *decoder) demanded(of *kbroker.Demanded, v value) {
	hasAny := false
	note := func(read func(value)) func(value) { return func(v value) { hasAny = true; read(v) } }
	d.fields(v,
		field{name: "slots", read: note(d.integer(&of.Slots))},
		field{name: "cpu", read: note(d.number(&of.CPU, placedHint))},
		field{name: "memory", read: note(d.size(&of.MemoryBytes))},
	)
	if !hasAny {
		of.Slots = 1
	}
}

const (
	placedHint = "write what one of its objects takes of an instance: `placed: {slots: 1}`, or cpu and memory of its resources"
	slotsHint  = "write how many slots an instance has for placed objects, e.g. 100; leave it out where they are not counted"
)

const streamsHint = "leave it out for 4; it is fixed by the first version with objects"

func (d *decoder) health(h *kbroker.Health, v value) {
	fields := append(d.check(&h.Check),
		field{name: "successes", read: d.integer(&h.Successes)},
		field{name: "start", read: d.duration(&h.Start)},
		field{name: "live", read: func(v value) {
			h.Live = &kbroker.Check{Ready: h.Ready, Interval: DefaultInterval}
			if _, ok := v.node.(ast.MapNode); !ok {
				d.text(&h.Live.Ready)(v)
				return
			}
			h.Live.Ready = ""
			d.fields(v, d.check(h.Live)...)
		}})
	d.fields(v, fields...)
}

func (d *decoder) check(c *kbroker.Check) []field {
	return []field{
		{name: "ready", read: d.text(&c.Ready)},
		{name: "port", read: d.text(&c.Port)},
		{name: "path", read: d.text(&c.Path)},
		{name: "command", read: func(v value) {
			d.list(v, "a list: the program and its arguments", d.scalar(func(arg string) { c.Command = append(c.Command, arg) }))
		}},
		{name: "interval", read: d.duration(&c.Interval)},
		{name: "timeout", read: d.duration(&c.Timeout)},
		{name: "failures", read: d.integer(&c.Failures)},
	}
}
