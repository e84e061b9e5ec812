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
	})
	s["required"] = []string{"name", "services"}
	s["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	s["$id"] = SchemaID
	return s
}

func serviceSchema() schema {
	scalar := schema{"type": []string{"string", "number", "boolean"}}
	instances := schema{"type": "integer", "minimum": 0, "maximum": MaxInstances}
	s := object("A program of the app", map[string]schema{
		"build":    {"type": "string", "description": "command that deploy runs in the spec's folder first"},
		"run":      {"type": "string", "description": "the program: a local file, uploaded by its digest at deploy"},
		"artifact": artifactSchema(),
		"args":     {"type": "array", "description": "arguments of the program", "items": scalar, "maxItems": MaxArgs},
		"env": {
			"type": "object", "description": "environment of the program", "additionalProperties": scalar, "maxProperties": MaxEnv,
			"propertyNames": schema{"pattern": "^[^=]+$", "not": schema{"pattern": "^" + ReservedEnv}},
		},
		"count": {
			"description": "number of instances, or its bounds", "default": DefaultCount,
			"oneOf": []schema{instances, required(object("", map[string]schema{"min": instances, "max": instances}), "min", "max")},
		},
		"resources": object("what an instance reserves on its host", map[string]schema{
			"cpu":    {"type": "number", "description": "cores", "minimum": MinCPU, "maximum": MaxCPU, "default": DefaultCPU},
			"memory": {"type": "string", "description": "a size with its unit, e.g. 64MiB", "pattern": sizeForm.String(), "default": formatSize(DefaultMemoryBytes)},
		}),
		"health": object("when an instance counts as ready", map[string]schema{
			"ready":    enum("sdk: when the SDK in the program says so; alive: when the process runs", kbroker.HealthSDK, kbroker.HealthAlive),
			"interval": duration("time between two looks", DefaultInterval.String()),
		}),
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
		"spread": enum("host: prefer hosts with fewer instances of the service", SpreadHost, SpreadNone),
		"require": {
			"type": "array", "description": "constraints on the labels of a host; all must hold", "maxItems": MaxRequire,
			"items": schema{"type": "string", "pattern": "(==|!=)", "examples": []string{"disk == ssd", `zone != "rack 4"`}},
		},
	})
	s["oneOf"] = []schema{{"required": []string{"run"}}, {"required": []string{"artifact"}}}
	return s
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
