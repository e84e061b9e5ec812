package spec

import (
	"encoding/json"
	"fmt"

	"github.com/kbroker/kbroker"
)

// SchemaID is the identity of the JSON schema.
const SchemaID = "https://github.com/kbroker/kbroker/blob/main/docs/app.schema.json"

// Schema is the JSON schema (draft 2020-12) of an app spec, for editors. It
// knows keys, types, enumerations and bounds; Parse knows more. The same bytes
// on every call; the caller may keep them.
func Schema() []byte {
	b, err := json.MarshalIndent(appSchema(), "", "  ")
	if err != nil {
		panic(fmt.Sprintf("spec: the schema does not marshal: %v", err))
	}
	return append(b, '\n')
}

type schema map[string]any

func appSchema() schema {
	s := object("An application of kbroker", map[string]schema{
		"name": {"type": "string", "description": "name of the app", "pattern": kbroker.NamePattern, "maxLength": kbroker.MaxNameBytes},
		"services": {
			"type": "object", "description": "the app's programs, by name",
			"minProperties": 1, "maxProperties": MaxServices,
			"propertyNames": schema{
				"pattern": kbroker.NamePattern, "maxLength": kbroker.MaxNameBytes,
				"not": schema{"const": string(kbroker.AllocatorService)},
			},
			"additionalProperties": serviceSchema(),
		},
		"object_streams": {
			"description": "streams that the app's objects are stored in, fixed by its first version with objects",
			"enum":        objectStreams, "default": kbroker.DefaultObjectStreams,
		},
		"allocator": allocatorSchema(),
		"topics": object("what is stored of the app's events, for durable subscriptions; the oldest leave first", map[string]schema{
			"keep":      duration("how long they are kept", kbroker.DefaultTopicKeep.String()),
			"max_bytes": {"type": "string", "description": "of all topics of the app, with its unit, e.g. 256MiB", "pattern": sizeForm.String(), "default": formatSize(kbroker.DefaultTopicMaxBytes)},
		}),
	})
	s["required"] = []string{"name", "services"}
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["$id"] = SchemaID
	return s
}

func allocatorSchema() schema {
	s := object("how the app's allocator decides", map[string]schema{
		"policy": enum("which instances own the objects; spread: each about as many shards; balanced: each about the same load; pack: as few as the load needs. With run, it takes over where the app's own policy is refused", policies...),
		"build":  {"type": "string", "description": "command that deploy runs in the spec's folder first"},
		"run":    {"type": "string", "description": "the program of the app's own policy, which calls allocator.Run: a local file, uploaded by its digest at deploy", "minLength": 1},
	})
	s["dependentRequired"] = map[string][]string{"build": {"run"}}
	return s
}

func serviceSchema() schema {
	scalar := schema{"type": []string{"string", "number", "boolean"}}
	kindName := schema{"type": "string", "pattern": kbroker.NamePattern, "maxLength": kbroker.MaxNameBytes}
	kindSchema := func(description string) schema {
		return schema{"type": "integer", "description": description, "minimum": 1, "maximum": MaxSchema}
	}
	kindWith := required(object("a kind with settings", map[string]schema{
		"kind":   kindName,
		"schema": kindSchema("of its state in this version of the program; default 1"),
		"lowest": kindSchema("down to which the program has a Downgrade; default: schema"),
		"placed": object("its objects are allocated, each to an instance that has room for what it takes; one slot, if nothing is said", map[string]schema{
			"slots":  {"type": "integer", "description": "of those of its service", "minimum": 0, "maximum": MaxSlots},
			"cpu":    {"type": "number", "description": "cores, of the resources of an instance", "minimum": 0, "maximum": MaxCPU},
			"memory": {"type": "string", "description": "of the resources of an instance, with its unit, e.g. 64MiB", "pattern": sizeForm.String()},
		}),
	}), "kind")
	instances := schema{"type": "integer", "minimum": 0, "maximum": MaxInstances}
	s := object("A program of the app", map[string]schema{
		"build":    {"type": "string", "description": "command that deploy runs in the spec's folder first"},
		"run":      {"type": "string", "description": "the program: a local file, uploaded by its digest at deploy"},
		"artifact": artifactSchema(),
		"args":     {"type": "array", "description": "arguments of the program", "items": scalar, "maxItems": MaxArgs},
		"env": {
			"type": "object", "description": "environment of the program", "additionalProperties": scalar, "maxProperties": MaxEnv,
			"propertyNames": schema{"pattern": "^[^=]+$", "not": schema{"pattern": "^(" + ReservedEnv + "|" + PortEnv + "|" + AddressEnv + "$)"}},
		},
		"count": {
			"description": "number of instances, or its bounds", "default": DefaultCount,
			"oneOf": []schema{instances, required(object("", map[string]schema{"min": instances, "max": instances}), "min", "max")},
		},
		"scale": scaleSchema(),
		"resources": object("what an instance reserves on its host", map[string]schema{
			"cpu":          {"type": "number", "description": "cores", "minimum": MinCPU, "maximum": MaxCPU, "default": DefaultCPU},
			"memory":       {"type": "string", "description": "a size with its unit, e.g. 64MiB", "pattern": sizeForm.String(), "default": formatSize(DefaultMemoryBytes)},
			"cpu_limit":    {"type": "number", "description": "cores that it gets at most", "minimum": MinCPU, "maximum": MaxCPU},
			"memory_limit": {"type": "string", "description": "memory that it gets at most; memory, if that is written", "pattern": sizeForm.String()},
			"pids":         {"type": "integer", "description": "processes and threads at most", "minimum": MinPIDs, "maximum": MaxPIDs},
			"fds":          {"type": "integer", "description": "open files of each process at most", "minimum": MinFiles, "maximum": MaxFiles},
		}),
		"ports": {
			"description": "ports that it listens on; their numbers are in PORT_<NAME>",
			"oneOf": []schema{
				{"type": "array", "items": schema{"type": "string", "pattern": kbroker.NamePattern}, "maxItems": MaxPorts},
				{"type": "object", "propertyNames": schema{"pattern": kbroker.NamePattern}, "maxProperties": MaxPorts, "additionalProperties": schema{"type": "integer", "minimum": 1, "maximum": 65535}},
			},
		},
		"objects": {
			"type": "array", "description": "kinds of objects that its instances own; one service of an app has its objects",
			"items": schema{"oneOf": []schema{kindName, kindWith}}, "maxItems": MaxKinds, "uniqueItems": true,
		},
		"slots":   {"type": "integer", "description": "of an instance, for placed objects; they are not counted without", "minimum": 1, "maximum": MaxSlots},
		"health":  healthSchema(),
		"sandbox": {"description": "strict: it reads its program and the system's files, writes its own directories, connects to the brokers alone", "enum": []string{kbroker.SandboxStrict}},
		"update": object("how a running service is changed", map[string]schema{
			"parallel":      {"type": "integer", "description": "instances replaced at a time", "minimum": 1, "maximum": MaxInstances, "default": DefaultParallel},
			"min_healthy":   duration("a new instance must stay ready for this long before the next step", DefaultMinHealthy.String()),
			"deadline":      duration("a rollout without progress for this long has failed", DefaultDeadline.String()),
			"auto_rollback": {"type": "boolean", "description": "a failed rollout returns to the version before", "default": false},
		}),
		"stop": object("how an instance is asked to leave", map[string]schema{
			"signal": enum("signal that asks it", signals...),
			"grace":  duration("then the whole process group is killed", DefaultGrace.String()),
		}),
		"calls": {
			"type": "array", "description": "services of other apps that it may call; those of its own app need not be named", "maxItems": MaxCalls, "uniqueItems": true,
			"items": schema{"type": "string", "pattern": `^(\*|[^/]+/[^/]+)$`, "examples": []string{"bank/ledger", "bank/*"}},
		},
		"subscribes": {
			"type": "array", "description": "topics of other apps that it may hear; those of its own app need not be named", "maxItems": MaxCalls, "uniqueItems": true,
			"items": schema{"type": "string", "pattern": `^(\*|[^/]+/[^/]+)$`, "examples": []string{"shop/orders", "shop/*"}},
		},
		"spread": enum("host: prefer hosts with fewer instances of the service", SpreadHost, SpreadNone),
		"require": {
			"type": "array", "description": "constraints on the labels of a host; all must hold", "maxItems": MaxRequire,
			"items": schema{"type": "string", "pattern": "(==|!=)", "examples": []string{"disk == ssd", `zone != "rack 4"`}},
		},
	})
	s["oneOf"] = []schema{{"required": []string{"run"}}, {"required": []string{"artifact"}}}
	return s
}

func scaleSchema() schema {
	target := func(description string, most float64) schema {
		return schema{"type": "number", "description": description, "exclusiveMinimum": 0, "maximum": most}
	}
	return object("what decides how many instances there are, within the bounds of count: what each is to have on average; the target that needs most counts", map[string]schema{
		"busy":     target(fmt.Sprintf("part of what it works on at once that is under way; without any target %v", kbroker.DefaultBusy), MaxBusy),
		"cpu":      target("part of the cores that it reserves", MaxLoad),
		"requests": target("requests in a second", MaxTarget),
		"mailbox":  target("calls of its objects that wait", MaxTarget),
		"objects":  target("objects in its memory", MaxTarget),
		"buffer":   {"type": "integer", "description": "instances beyond what the targets need", "minimum": 0, "maximum": MaxInstances, "default": 0},
		"down":     duration("instances leave when fewer were enough for this long", kbroker.DefaultDown.String()),
	})
}

func healthSchema() schema {
	check := func(ways ...string) map[string]schema {
		threshold := schema{"type": "integer", "minimum": 1, "maximum": MaxThreshold}
		return map[string]schema{
			"ready":    enum("sdk: the SDK in the program says so; http: a request is answered; tcp: a connection is taken; exec: a command exits with 0; alive: the process runs", ways...),
			"port":     {"type": "string", "description": "of http and tcp: the name of a port, if there are several"},
			"path":     {"type": "string", "description": "of http", "pattern": "^/", "default": "/"},
			"command":  {"type": "array", "description": "of exec: the program and its arguments", "items": schema{"type": "string"}, "maxItems": MaxArgs},
			"interval": duration("time between two checks", DefaultInterval.String()),
			"timeout":  duration("of one check", kbroker.DefaultCheckTimeout.String()),
			"failures": threshold,
		}
	}
	keys := check(readyChecks...)
	keys["successes"] = schema{"type": "integer", "description": "checks in a row until it is ready", "minimum": 1, "maximum": MaxThreshold, "default": 1}
	keys["start"] = duration("it must be ready within this of its start, or is killed", kbroker.DefaultStart.String())
	keys["live"] = schema{
		"description": "when it is hung and to be killed; by default when it answers nothing",
		"oneOf":       []schema{{"enum": []string{kbroker.HealthOff}}, object("", check(liveChecks...))},
	}
	return object("when an instance counts as ready, and when it is hung", keys)
}

func artifactSchema() schema {
	s := required(object("an archive and the program in it; or a program and the digest it must have", map[string]schema{
		"path":    {"type": "string", "description": "local file: .tar, .tar.gz, .tar.zst or .zip with a command, else a program"},
		"command": {"type": "string", "description": "path of the program in the archive", "pattern": "^[^/ \t]", "examples": []string{"bin/web"}},
		"sha256":  {"type": "string", "description": "digest that the file must have", "pattern": "^[0-9a-f]{64}$"},
	}), "path")
	s["anyOf"] = []schema{{"required": []string{"command"}}, {"required": []string{"sha256"}}}
	return s
}

func object(description string, properties map[string]schema) schema {
	s := schema{"type": "object", "additionalProperties": false, "properties": properties}
	if description != "" {
		s["description"] = description
	}
	return s
}

func required(s schema, keys ...string) schema {
	s["required"] = keys
	return s
}

// enum's first value is the default.
func enum(description string, values ...string) schema {
	return schema{"description": description, "enum": values, "default": values[0]}
}

func duration(description, byDefault string) schema {
	return schema{"type": "string", "description": description, "pattern": `^([0-9]+(\.[0-9]+)?(ns|us|µs|ms|s|m|h))+$`, "default": byDefault}
}
