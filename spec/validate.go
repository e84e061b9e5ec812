package spec

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// Bounds of a spec.
const (
	MaxServices     = 100
	MaxInstances    = 10_000 // of one service
	MaxBusy         = 1.0
	MaxLoad         = 100.0 // of the cores that an instance reserves
	MaxTarget       = 1e9   // requests in a second, calls that wait, objects
	MaxArgs         = 256
	MaxEnv          = 256
	MaxRequire      = 32
	MaxCalls        = 64
	MaxKinds        = 64       // of objects, of one service
	MaxSlots        = 1 << 20  // of an instance, for placed objects
	MaxSchema       = 1 << 20  // of a kind
	MaxStringBytes  = 8 << 10  // one argument, variable, path or command
	MaxServiceBytes = 32 << 10 // a service as JSON: it is part of each of its placements
	MaxAppBytes     = 512 << 10

	MaxCPU         = 1024.0 // cores
	MinCPU         = 0.001
	MinMemoryBytes = 1 << 20
	MaxMemoryBytes = 16 << 40

	// An instance needs some processes and files to be one: a Go program starts
	// about ten threads.
	MinPIDs  = 1
	MaxPIDs  = 4 << 20 // the kernel's own (proc(5), pid_max)
	MinFiles = 16
	MaxFiles = 1 << 20 // the kernel's default bound (proc(5), nr_open)

	MinTopicKeep     = time.Minute
	MaxTopicKeep     = 10 * 366 * 24 * time.Hour
	MinTopicMaxBytes = 1 << 20
	MaxTopicMaxBytes = 16 << 40

	MaxPorts      = 16
	MinInterval   = 100 * time.Millisecond
	MaxInterval   = time.Minute
	MinTimeout    = 10 * time.Millisecond
	MaxTimeout    = time.Minute
	MaxThreshold  = 1000 // checks in a row
	MinStart      = time.Second
	MaxStart      = time.Hour
	MaxMinHealthy = time.Hour
	MinDeadline   = time.Second
	MaxDeadline   = 24 * time.Hour
	MinDown       = time.Second
	MaxDown       = 24 * time.Hour
	MinGrace      = 100 * time.Millisecond
	MaxGrace      = time.Hour
)

// ReservedEnv begins the names of variables that the agent sets. PortEnv begins those of
// ports, AddressEnv has the address of the host; where there is one port, OnlyPortEnv has
// its number.
const (
	ReservedEnv = "KBROKER_"
	PortEnv     = "PORT_"
	AddressEnv  = "HOST_ADDRESS"
	OnlyPortEnv = "PORT"
)

// signals are those that ask a process to leave.
var signals = []string{"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL"}

// Validate checks an app that did not come out of Parse in this process: all
// that Parse guarantees, and that every service has the digest of its program
// (or the name of a built-in one). The error is Errors without positions; it
// names the paths. Super calls it on every spec it is sent.
func Validate(app *kbroker.App) error {
	var errs Errors
	for _, f := range check(app, true) {
		if len(errs) == maxErrors {
			break
		}
		errs = append(errs, Error{Message: f.message, Hint: f.hint})
	}
	if len(errs) > 0 {
		return errs
	}
	return nil
}

// finding is a broken rule.
type finding struct {
	path, message, hint string
	// key: it is about the key at the path, whatever is below.
	key bool
	// with is the path of what else the rule looks at; empty: nothing.
	with string
}

// suppressed says that the rule was broken only because something could not be
// read, which has been reported.
func (d *decoder) suppressed(f finding) bool {
	return d.failed[f.path] || !f.key && d.failedBelow(f.path) || f.with != "" && d.failedBelow(f.with)
}

func (d *decoder) failedBelow(path string) bool {
	for p := range d.failed {
		if p == path || strings.HasPrefix(p, path+".") || strings.HasPrefix(p, path+"[") {
			return true
		}
	}
	return false
}

// checker collects the findings of check.
type checker struct{ found []finding }

func (c *checker) add(path, hint, format string, args ...any) {
	c.found = append(c.found, finding{path: path, hint: hint, message: fmt.Sprintf(format, args...)})
}

// check holds the rules of a spec. uploaded: the digests must be there.
func check(app *kbroker.App, uploaded bool) []finding {
	c := &checker{}
	c.name(finding{path: "name"}, "app", string(app.Name))
	switch n := len(app.Services); {
	case n == 0:
		c.add("services", minimalHint, "the app has no service")
	case n > MaxServices:
		c.add("services", "", "the app has %d services, at most %d are allowed", n, MaxServices)
		return c.found
	}
	for i := range app.Services {
		s := &app.Services[i]
		path := "services." + string(s.Name)
		if i > 0 && app.Services[i-1].Name >= s.Name {
			c.add(path, "", "services are not sorted by name, or %s appears twice", quote(string(s.Name)))
		}
		c.service(path, s, uploaded)
	}
	c.objects(app)
	c.topics(app.Topics)
	if app.Policy != "" && !slices.Contains(policies, app.Policy) {
		c.oneOf("allocator.policy", app.Policy, policies)
	}
	c.own(app.Own, uploaded)
	if len(c.found) == 0 {
		if b, err := json.Marshal(app); err != nil || len(b) > MaxAppBytes {
			c.add("", "", "the spec takes %d bytes, at most %d are allowed", len(b), MaxAppBytes)
		}
	}
	return c.found
}

func (c *checker) name(f finding, what, name string) {
	if err := kbroker.CheckName(what, name); err != nil {
		e := kbroker.AsError(err)
		f.message, f.hint = e.Message, e.Hint
		c.found = append(c.found, f)
	}
}

func (c *checker) service(path string, s *kbroker.Service, uploaded bool) {
	c.name(finding{path: path, key: true}, "service", string(s.Name))
	if s.Name == kbroker.AllocatorService {
		c.found = append(c.found, finding{path: path, message: "service name allocator is reserved", hint: "every app's allocator runs under it; choose another name", key: true})
	}
	c.program(path, s, uploaded)
	c.environment(path, s)
	c.numbers(path, s)
	c.scale(path, s)
	c.ports(path+".ports", s.Ports)
	c.health(path+".health", s)
	if s.Sandbox != "" && s.Sandbox != kbroker.SandboxStrict {
		c.oneOf(path+".sandbox", s.Sandbox, []string{kbroker.SandboxStrict})
	}
	if s.Spread != SpreadHost && s.Spread != SpreadNone {
		c.oneOf(path+".spread", s.Spread, []string{SpreadHost, SpreadNone})
	}
	if !slices.Contains(signals, s.Stop.Signal) {
		c.oneOf(path+".stop.signal", s.Stop.Signal, signals)
	}
	if len(s.Require) > MaxRequire {
		c.add(path+".require", "", "%s.require has %d constraints, at most %d are allowed", label(path), len(s.Require), MaxRequire)
	}
	for i, r := range s.Require {
		if _, err := ParseConstraint(r); err != nil {
			e := kbroker.AsError(err)
			at := fmt.Sprintf("%s.require[%d]", path, i)
			c.add(at, e.Hint, "%s: %s", label(at), e.Message)
		}
	}
	c.calls(path+".calls", "service", s.Calls)
	c.calls(path+".subscribes", "topic", s.Subscribes)
	if b, err := json.Marshal(s); err != nil || len(b) > MaxServiceBytes {
		c.add(path, "shorten its arguments and variables", "%s takes %d bytes, at most %d are allowed", label(path), len(b), MaxServiceBytes)
	}
}

// objectStreams are the numbers of streams that an app's objects may be in: more than one
// has them committed side by side, and each is a stream more for every core.
var objectStreams = []int{1, 4, 16}

// policies are how an allocator may decide; the first is the default.
var policies = []string{kbroker.PolicySpread, kbroker.PolicyBalanced, kbroker.PolicyPack}

// objects holds the rules of kinds. A shard has objects of all kinds, and is of one
// instance: so all are of one service.
func (c *checker) objects(app *kbroker.App) {
	if n := app.ObjectStreams; n != 0 && !slices.Contains(objectStreams, n) {
		c.add("object_streams", streamsHint, "object_streams is %d, want one of 1, 4, 16", n)
	} else if n != 0 && !app.HasObjects() {
		c.add("object_streams", "remove it, or name the kinds of a service: `objects: [account]`", "object_streams is %d, and no service has objects", n)
	}
	var has kbroker.ServiceName
	for _, s := range app.Services {
		path := "services." + string(s.Name) + ".objects"
		switch {
		case len(s.Objects) == 0:
			continue
		case has != "":
			c.add(path, "one service of an app has its objects: move the kinds there, or make the service an app of its own", "%s: service %s has objects already", label(path), has)
			continue
		case len(s.Objects) > MaxKinds:
			c.add(path, "", "%s has %d kinds, at most %d are allowed", label(path), len(s.Objects), MaxKinds)
		default:
			c.kinds(path, s.Objects)
			c.placed(path, s)
		}
		c.schemas(path, s)
		has = s.Name
	}
}

const (
	keepHint       = "write how long events are kept, e.g. 24h; leave it out for 168h"
	topicBytesHint = "write a size with its unit, e.g. 256MiB; leave it out for 1GiB"
)

// topics holds the rules of what is stored of events; 0 is the default.
func (c *checker) topics(l kbroker.TopicLimits) {
	if l.Keep != 0 && (l.Keep < MinTopicKeep || l.Keep > MaxTopicKeep) {
		c.add("topics.keep", keepHint, "topics.keep is %v, want %v to %v", l.Keep, MinTopicKeep, MaxTopicKeep)
	}
	if n := l.MaxBytes; n != 0 && (n < MinTopicMaxBytes || n > MaxTopicMaxBytes) {
		c.add("topics.max_bytes", topicBytesHint, "topics.max_bytes is %s, want %s to %s", formatSize(n), formatSize(MinTopicMaxBytes), formatSize(MaxTopicMaxBytes))
	}
}

// placed holds the rules of placed kinds: one of their objects fits into an instance.
func (c *checker) placed(path string, s kbroker.Service) {
	for i, kind := range s.Objects {
		d, is := s.Placed[kind]
		at, has := fmt.Sprintf("%s[%d].placed", path, i), s.Resources
		switch {
		case !is:
		case d.Slots < 0 || d.Slots > MaxSlots || d.CPU < 0 || d.CPU > MaxCPU || d.MemoryBytes < 0:
			c.add(at, placedHint, "%s: %d slots, %v cores, %s; want 0 to %d slots, to %d cores", label(at), d.Slots, d.CPU, formatSize(d.MemoryBytes), MaxSlots, int(MaxCPU))
		case s.Slots > 0 && d.Slots > s.Slots:
			c.add(at, "more `slots` of the service, or less here", "%s: %d slots, an instance has %d", label(at), d.Slots, s.Slots)
		case has.CPU > 0 && d.CPU > has.CPU:
			c.add(at, "more cpu in the resources of the service, or less here", "%s: %v cores, an instance reserves %v", label(at), d.CPU, has.CPU)
		case has.MemoryBytes > 0 && d.MemoryBytes > has.MemoryBytes:
			c.add(at, "more memory in the resources of the service, or less here", "%s: %s, an instance reserves %s", label(at), formatSize(d.MemoryBytes), formatSize(has.MemoryBytes))
		}
	}
	if s.Slots < 0 || s.Slots > MaxSlots {
		c.add(strings.TrimSuffix(path, ".objects")+".slots", slotsHint, "slots is %d, want 1 to %d", s.Slots, MaxSlots)
	}
}

func (c *checker) kinds(path string, kinds []kbroker.KindName) {
	for i, kind := range kinds {
		at := fmt.Sprintf("%s[%d]", path, i)
		c.name(finding{path: at}, "kind", string(kind))
		if slices.Contains(kinds[:i], kind) {
			c.add(at, "remove it", "%s: %s is there twice", label(at), quote(string(kind)))
		}
	}
}

func (c *checker) schemas(path string, s kbroker.Service) {
	for _, kind := range slices.Sorted(maps.Keys(s.Schemas)) {
		i, of := slices.Index(s.Objects, kind), s.Schemas[kind]
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case i < 0:
			c.add(path, "", "%s does not name kind %s, which has a schema", label(path), kind)
		case of.Number < 1 || of.Number > MaxSchema:
			c.add(at+".schema", "", "%s.schema is %d, want a number from 1 to %d", label(at), of.Number, MaxSchema)
		case of.Lowest < 1 || of.Lowest > of.Number:
			c.add(at+".lowest", "it is the schema down to which the program has a Downgrade", "%s.lowest is %d, want a number from 1 to %d", label(at), of.Lowest, of.Number)
		}
	}
}

// AllServices is the entry of calls that allows all of them, of all apps; of subscribes, all
// topics.
const AllServices = "*"

// calls checks a list of what a service may call, or hear: what is the noun.
func (c *checker) calls(path, what string, calls []string) {
	if len(calls) > MaxCalls {
		c.add(path, fmt.Sprintf(`"app/*" allows all %ss of an app`, what), "%s has %d %ss, at most %d are allowed", label(path), len(calls), what, MaxCalls)
		return
	}
	for i, call := range calls {
		at := fmt.Sprintf("%s[%d]", path, i)
		app, service, ok := strings.Cut(call, "/")
		switch {
		case call == AllServices:
		case !ok:
			c.add(at, fmt.Sprintf(`name the %[1]s, too: app/%[1]s, or "app/*" for all of the app`, what), "%s is %s, want an app and a %s", label(at), quote(call), what)
		default:
			c.name(finding{path: at}, "app", app)
			if service != AllServices {
				c.name(finding{path: at}, what, service)
			}
		}
		if slices.Contains(calls[:i], call) {
			c.add(at, "", "%s: %s is there twice", label(at), quote(call))
		}
	}
}

func (c *checker) oneOf(path, got string, known []string) {
	hint, ok := similar(got, known)
	if !ok {
		hint, _ = similar("SIG"+got, known)
	}
	c.add(path, hint, "%s is %s, want %s", label(path), quote(got), strings.Join(known, " or "))
}

const ownHint = "name the program of your policy, which calls allocator.Run: `allocator: {run: bin/policy}`"

// own holds the rules of the program of a policy.
func (c *checker) own(p *kbroker.OwnPolicy, uploaded bool) {
	const path = "allocator"
	if p == nil {
		return
	}
	c.str(path+".build", p.Build)
	c.str(path+".run", p.Run)
	c.artifact(path, p.Artifact)
	switch a := p.Artifact; {
	case a.Builtin != "" || a.Command != "":
		c.add(path, ownHint, "%s wants a program of its own", label(path))
	case !uploaded && a.Path == "" && p.Build != "":
		c.found = append(c.found, finding{path: path + ".build", key: true, message: "allocator.build makes a program, and allocator.run does not say which", hint: ownHint})
	case !uploaded && a.Path == "":
		c.add(path+".run", ownHint, "%s is empty", label(path+".run"))
	case uploaded && a.SHA256 == "":
		c.add(path, "deploy uploads the program and fills in its digest", "%s wants the digest of its program", label(path))
	}
}

func (c *checker) program(path string, s *kbroker.Service, uploaded bool) {
	a := s.Artifact
	c.str(path+".build", s.Build)
	c.str(path+".run", s.Run)
	c.artifact(path, a)
	switch {
	case !uploaded && a.Path == "":
		c.add(path+".run", "write `run: FILE`, or for an archive `artifact: {path: FILE, command: PATH IN IT}`", "%s has no program to run", label(path))
	case uploaded && (a.SHA256 == "") == (a.Builtin == ""):
		c.add(path+".artifact", "deploy uploads the program and fills in its digest", "%s wants exactly one of an artifact's digest and a built-in program", label(path))
	}
	if a.Builtin != "" && a.Builtin != kbroker.BuiltinHello {
		c.add(path+".artifact", "", "%s: there is no built-in service %s", label(path), quote(a.Builtin))
	}
}

// artifact holds the rules of what a program is in.
func (c *checker) artifact(path string, a kbroker.Artifact) {
	c.str(path+".artifact.path", a.Path)
	c.command(path+".artifact.command", a)
	if a.SHA256 != "" {
		if b, err := hex.DecodeString(a.SHA256); err != nil || len(b) != 32 || strings.ToLower(a.SHA256) != a.SHA256 {
			c.add(path+".artifact.sha256", "64 lower-case hex digits, as sha256sum prints them", "%s is %s, want a SHA-256 digest", label(path+".artifact.sha256"), quote(a.SHA256))
		}
	}
	if a.SizeBytes < 0 || a.SizeBytes > kbroker.MaxArtifactBytes {
		c.add(path+".artifact", "", "%s: an artifact of %d bytes is not possible, at most %d are allowed", label(path), a.SizeBytes, int64(kbroker.MaxArtifactBytes))
	}
	if len(a.Arch) > 16 || strings.ContainsFunc(a.Arch, func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }) {
		c.add(path+".artifact", "", "%s: %s is no architecture", label(path), quote(a.Arch))
	}
}

const commandHint = "the path of the program in the archive, such as bin/web"

// command checks the path of an archive's program. Whether it is there is seen in
// the archive.
func (c *checker) command(path string, a kbroker.Artifact) {
	c.str(path, a.Command)
	switch {
	case a.Command == "":
		return
	case a.Builtin != "":
		c.add(path, "", "%s is not possible for a built-in program", label(path))
	case strings.HasPrefix(a.Command, "/"):
		c.add(path, commandHint, "%s is %s, want a path in the archive, without a / in front", label(path), quote(a.Command))
	case slices.Contains(strings.Split(a.Command, "/"), ".."):
		c.add(path, commandHint, "%s is %s, want a path in the archive, without ..", label(path), quote(a.Command))
	case strings.ContainsAny(a.Command, " \t"):
		c.add(path, "write arguments as `args: [ARG, ARG]`", "%s is %s, want a path without blanks", label(path), quote(a.Command))
	}
}

// str checks a text that ends up in an exec call or on a terminal.
func (c *checker) str(path, s string) {
	switch {
	case len(s) > MaxStringBytes:
		c.add(path, "", "%s has %d bytes, at most %d are allowed", label(path), len(s), MaxStringBytes)
	case strings.ContainsRune(s, 0):
		c.add(path, "", "%s contains a zero byte", label(path))
	}
}

func (c *checker) environment(path string, s *kbroker.Service) {
	if len(s.Args) > MaxArgs {
		c.add(path+".args", "", "%s.args has %d arguments, at most %d are allowed", label(path), len(s.Args), MaxArgs)
	}
	for i, a := range s.Args {
		c.str(fmt.Sprintf("%s.args[%d]", path, i), a)
	}
	if len(s.Env) > MaxEnv {
		c.add(path+".env", "", "%s.env has %d variables, at most %d are allowed", label(path), len(s.Env), MaxEnv)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		at := path + ".env." + name
		switch {
		case name == "" || len(name) > 256 || strings.ContainsAny(name, "=\x00"):
			c.add(at, "without = and zero bytes, at most 256 bytes", "%s is not the name of an environment variable", quote(name))
		case strings.HasPrefix(name, ReservedEnv):
			c.add(at, "choose another name", "environment variables %s* are set by the agent", ReservedEnv)
		case strings.HasPrefix(name, PortEnv), name == AddressEnv, name == OnlyPortEnv && len(s.Ports) == 1:
			c.add(at, "choose another name; a value may have ${"+name+"} in it", "environment variable %s is set by the agent", name)
		}
		c.str(at, s.Env[name])
	}
}

func (c *checker) numbers(path string, s *kbroker.Service) {
	switch n := s.Count; {
	case n.Min < 0:
		c.add(path+".count", "", "%s.count is %d, want 0 or more", label(path), n.Min)
	case n.Max < n.Min:
		c.add(path+".count", "", "%s.count: max %d is below min %d", label(path), n.Max, n.Min)
	case n.Max > MaxInstances:
		c.add(path+".count", "", "%s.count is %d, at most %d instances of a service are allowed", label(path), n.Max, MaxInstances)
	}
	if cpu := s.Resources.CPU; !(cpu >= MinCPU && cpu <= MaxCPU) {
		c.add(path+".resources.cpu", "cpu is in cores, e.g. 0.25", "%s.resources.cpu is %v, want %v to %v", label(path), cpu, MinCPU, MaxCPU)
	}
	if m := s.Resources.MemoryBytes; m < MinMemoryBytes || m > MaxMemoryBytes {
		c.add(path+".resources.memory", sizeHint, "%s.resources.memory is %s, want %s to %s", label(path), formatSize(m), formatSize(MinMemoryBytes), formatSize(MaxMemoryBytes))
	}
	c.limits(path+".resources", s.Resources)
	if p := s.Update.Parallel; p < 1 || p > MaxInstances {
		c.add(path+".update.parallel", "", "%s.update.parallel is %d, want 1 to %d", label(path), p, MaxInstances)
	}
	c.duration(path+".update.min_healthy", s.Update.MinHealthy, 0, MaxMinHealthy)
	c.duration(path+".update.deadline", s.Update.Deadline, MinDeadline, MaxDeadline)
	c.duration(path+".stop.grace", s.Stop.Grace, MinGrace, MaxGrace)
	if s.Update.MinHealthy <= MaxMinHealthy && s.Update.Deadline >= MinDeadline && s.Update.Deadline <= s.Update.MinHealthy {
		c.add(path+".update.deadline", "a new instance must stay ready for min_healthy before the rollout makes progress",
			"%s.update.deadline %v is not longer than min_healthy %v", label(path), s.Update.Deadline, s.Update.MinHealthy)
	}
}

func (c *checker) duration(path string, d, least, most time.Duration) {
	if d < least || d > most {
		c.add(path, durationHint, "%s is %v, want %v to %v", label(path), d, least, most)
	}
}
