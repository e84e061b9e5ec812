package agent

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Variables that say who an instance is and where it is found, for programs that do not
// read KBROKER_INSTANCE. docs/programs.md has them for users.
const (
	envApp          = "KBROKER_APP"
	envService      = "KBROKER_SERVICE"
	envInstanceName = "KBROKER_INSTANCE_NAME"
	envHost         = "KBROKER_HOST"
	envHostAddress  = "HOST_ADDRESS"
	envPort         = "PORT" // of an instance with one port; with _<NAME> each of them
)

// variables are what the agent tells an instance, whatever its spec declares. The spec's
// arguments and variables may name them. tree is what its archive is unpacked to, if it
// has one.
func variables(home, address, tree string, r record) map[string]string {
	p := r.Placement
	v := map[string]string{
		envInstance: instancePath(home), envIncarnation: string(r.Incarnation),
		envApp: string(p.App), envService: string(p.Service), envInstanceName: string(p.Instance), envHost: string(p.Host),
		envHostAddress: address,
	}
	if tree != "" {
		v[envArtifactDir] = tree
	}
	for name, number := range r.Ports {
		v[portVariable(name)] = strconv.Itoa(number)
		if len(r.Ports) == 1 {
			v[envPort] = strconv.Itoa(number)
		}
	}
	return v
}

var reference = regexp.MustCompile(`\$\{[A-Z][A-Z0-9_]*\}`)

// expand replaces each ${NAME} of a known variable by its value, once: what is in a value
// stays as it is, and so does what names nothing that is known.
func expand(text string, known map[string]string) string {
	return reference.ReplaceAllStringFunc(text, func(ref string) string {
		if value, ok := known[strings.TrimSuffix(strings.TrimPrefix(ref, "${"), "}")]; ok {
			return value
		}
		return ref
	})
}

func expandAll(texts []string, known map[string]string) []string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = expand(t, known)
	}
	return out
}

// assignments are variables as a process gets them, sorted.
func assignments(v map[string]string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(v)) {
		out = append(out, name+"="+v[name])
	}
	return out
}
