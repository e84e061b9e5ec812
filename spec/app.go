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
		Health:    kbroker.Health{Ready: kbroker.HealthSDK, Interval: DefaultInterval},
		Update:    kbroker.Update{Parallel: DefaultParallel, MinHealthy: DefaultMinHealthy, Deadline: DefaultDeadline},
		Stop:      kbroker.Stop{Signal: DefaultSignal, Grace: DefaultGrace},
		Spread:    SpreadHost,
	}
}

const statelessHint = "remove it: services of this build are stateless programs"

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
		field{name: "allocator", unsupported: "remove it: every app has the built-in allocator, which keeps the count"},
	)
	slices.SortFunc(app.Services, func(a, b kbroker.Service) int { return cmp.Compare(a.Name, b.Name) })
	return app
}

func (d *decoder) service(app *kbroker.App, name kbroker.ServiceName, v value) {
	s := defaultService(name)
	var hasRun, hasArtifact bool
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
		field{name: "resources", read: func(v value) {
			d.fields(v,
				field{name: "cpu", read: d.number(&s.Resources.CPU, "cpu is in cores, e.g. 0.25")},
				field{name: "memory", read: d.size(&s.Resources.MemoryBytes)},
				field{name: "pids", unsupported: "remove it: this build reserves cpu and memory"},
				field{name: "fds", unsupported: "remove it: this build reserves cpu and memory"},
			)
		}},
		field{name: "health", read: func(v value) {
			d.fields(v,
				field{name: "ready", read: d.ready(&s.Health.Ready)},
				field{name: "interval", read: d.duration(&s.Health.Interval)},
			)
		}},
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
		field{name: "objects", unsupported: statelessHint},
		field{name: "on_disconnect", unsupported: "remove it: in this build a service that loses the cluster keeps running"},
	)
	if !ok {
		return
	}
	if hasRun && hasArtifact {
		d.fail(value{path: join(v.path, "artifact")}, "keep one of the two", "%s has both run and artifact", label(v.path))
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

func (d *decoder) ready(into *string) func(value) {
	return func(v value) {
		var s string
		d.text(&s)(v)
		switch s {
		case "":
			if !d.failed[v.path] {
				*into = s
			}
		case "http", "tcp", "exec":
			d.fail(v, "use sdk (the program uses the SDK) or alive (the process runs)", "%s %q is not supported by this build", label(v.path), s)
		default:
			*into = s
		}
	}
}
