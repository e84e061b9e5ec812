package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

const (
	defaultAgentDir = "/var/lib/kbroker"
	agentEnvPrefix  = "KBROKER_AGENT_"
)

// agentSettings are the settings of an agent as its file spells them.
type agentSettings struct {
	Dir        string            `yaml:"dir" koanf:"dir"`
	Name       string            `yaml:"name" koanf:"name"`
	Role       string            `yaml:"role" koanf:"role"`
	Found      bool              `yaml:"found" koanf:"found"`
	Advertise  string            `yaml:"advertise" koanf:"advertise"`
	Join       []string          `yaml:"join" koanf:"join"`
	ClientPort int               `yaml:"client_port" koanf:"client_port"`
	RoutePort  int               `yaml:"route_port" koanf:"route_port"`
	Label      map[string]string `yaml:"label" koanf:"label"`
	StockRaft  bool              `yaml:"stock_raft" koanf:"stock_raft"`
}

// agentKeys are the names of all settings.
func agentKeys() []string {
	t := reflect.TypeFor[agentSettings]()
	keys := make([]string, t.NumField())
	for i := range keys {
		keys[i] = t.Field(i).Tag.Get("koanf")
	}
	return keys
}

// defaultAgentSettings are what holds where nothing else is said.
func defaultAgentSettings() agentSettings { return agentSettings{Dir: defaultAgentDir} }

// loadAgentSettings merges file, environment and flags, the later over the
// earlier, over the defaults. Errors are Invalid and name the place.
func loadAgentSettings(path string, flags *pflag.FlagSet) (agentSettings, error) {
	layers, err := agentLayers(path, flags)
	if err != nil {
		return agentSettings{}, err
	}
	return mergeLayers(layers)
}

// layer is what one source says about an agent's settings.
type layer struct {
	source string // "file", "environment" or "flag"
	values *koanf.Koanf
}

// newSettings holds settings by name. Label keys may contain dots: no setting
// nests by its name.
func newSettings() *koanf.Koanf { return koanf.New("\x00") }

// mergeLayers lays each layer over those before it and over the defaults.
// Labels add up; of any other setting the last value holds.
func mergeLayers(layers []layer) (agentSettings, error) {
	s, ko := defaultAgentSettings(), newSettings()
	for _, l := range layers {
		if err := ko.Merge(l.values); err != nil {
			return s, fmt.Errorf("merge settings: %w", err)
		}
	}
	if err := ko.Unmarshal("", &s); err != nil {
		return s, kbroker.Errorf(kbroker.Invalid, "settings of the agent: %v", err)
	}
	// An empty list is none: settings can be compared.
	for _, f := range reflect.ValueOf(&s).Elem().Fields() {
		if k := f.Kind(); (k == reflect.Slice || k == reflect.Map) && f.Len() == 0 {
			f.SetZero()
		}
	}
	return s, s.validate()
}

// agentLayers reads the sources of settings, the weakest first: the file at
// path (none if it is empty), the environment, flags.
func agentLayers(path string, flags *pflag.FlagSet) ([]layer, error) {
	fromFile := newSettings()
	if path != "" {
		if err := fromFile.Load(file.Provider(path), settingsFile{path}); err != nil {
			if _, ok := errors.AsType[*kbroker.Error](err); ok {
				return nil, err
			}
			return nil, inputError(path, err)
		}
	}
	fromEnv, err := agentEnvironment()
	if err != nil {
		return nil, err
	}
	fromFlags := newSettings()
	if err := fromFlags.Load(confmap.Provider(givenFlags(flags), ""), nil); err != nil {
		return nil, fmt.Errorf("read flags: %w", err)
	}
	return []layer{{sourceFile, fromFile}, {sourceEnvironment, fromEnv}, {sourceFlag, fromFlags}}, nil
}

// agentEnvironment reads the settings in the environment. A variable that
// looks like one and is none is an error.
func agentEnvironment() (*koanf.Koanf, error) {
	ko, keys := newSettings(), agentKeys()
	var unknown []string
	provider := env.Provider("\x00", env.Opt{Prefix: agentEnvPrefix, TransformFunc: func(name, value string) (string, any) {
		key := strings.ToLower(strings.TrimPrefix(name, agentEnvPrefix))
		switch {
		case value == "":
			return "", nil // the same as not set
		case !slices.Contains(keys, key):
			unknown = append(unknown, name)
			return "", nil
		case key == "join":
			return key, splitList(value)
		case key == "label":
			return key, parseLabels(splitList(value))
		}
		return key, value
	}})
	if err := ko.Load(provider, nil); err != nil {
		return nil, fmt.Errorf("read environment: %w", err)
	}
	if len(unknown) > 0 {
		return nil, kbroker.Errorf(kbroker.Invalid, "there is no setting %s", strings.Join(unknown, ", ")).
			WithHint("settings are %s", strings.Join(keys, ", "))
	}
	return ko, nil
}

// givenFlags are the settings that the command line gave.
func givenFlags(flags *pflag.FlagSet) map[string]any {
	given := map[string]any{}
	flags.Visit(func(f *pflag.Flag) {
		key := strings.ReplaceAll(f.Name, "-", "_")
		if !slices.Contains(agentKeys(), key) {
			return
		}
		switch v := f.Value.(type) {
		case pflag.SliceValue:
			given[key] = v.GetSlice()
		default:
			given[key] = f.Value.String()
		}
		if labels, err := flags.GetStringToString(f.Name); err == nil {
			m := map[string]any{}
			for k, v := range labels {
				m[k] = v
			}
			given[key] = m
		}
	})
	return given
}

func splitList(s string) []string {
	var out []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func parseLabels(pairs []string) map[string]any {
	m := map[string]any{}
	for _, p := range pairs {
		k, v, _ := strings.Cut(p, "=")
		m[k] = v
	}
	return m
}

func (s agentSettings) validate() error {
	if s.Name != "" {
		if err := kbroker.CheckName("host", s.Name); err != nil {
			return err
		}
	}
	if s.Role != "" && s.Role != string(kbroker.RoleCore) && s.Role != string(kbroker.RoleWorker) {
		return kbroker.Errorf(kbroker.Invalid, "role is %q, want core or worker", s.Role)
	}
	for name, port := range map[string]int{"client port": s.ClientPort, "route port": s.RoutePort} {
		if port < 0 || port > 65535 {
			return kbroker.Errorf(kbroker.Invalid, "%s is %d, want 1 to 65535, or 0 for any", name, port)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Label)) {
		if k == "" || s.Label[k] == "" {
			return kbroker.Errorf(kbroker.Invalid, "label %s=%s has an empty part", k, s.Label[k])
		}
	}
	return nil
}

func (s agentSettings) node(log *slog.Logger) node.Config {
	return node.Config{
		Dir: s.Dir, Name: kbroker.HostID(s.Name), Role: kbroker.Role(s.Role),
		Found: s.Found, Join: s.Join, Advertise: s.Advertise,
		ClientPort: s.ClientPort, RoutePort: s.RoutePort,
		Labels: s.Label, StockRaft: s.StockRaft, Log: log,
	}
}

// settingsFile parses the file of --config strictly: a key that does not exist
// is an error at its line.
type settingsFile struct{ path string }

func (f settingsFile) Unmarshal(b []byte) (map[string]any, error) {
	var checked agentSettings
	if err := yaml.NewDecoder(bytes.NewReader(b), yaml.Strict()).Decode(&checked); err != nil && !errors.Is(err, io.EOF) {
		return nil, f.invalid(err)
	}
	m := map[string]any{}
	if err := yaml.Unmarshal(b, &m); err != nil {
		return nil, f.invalid(err)
	}
	return m, nil
}

func (f settingsFile) invalid(err error) error {
	place, message := f.path, err.Error()
	if y, ok := errors.AsType[yaml.Error](err); ok {
		message = y.GetMessage()
		if typed, ok := errors.AsType[*yaml.TypeError](err); ok {
			message = "want " + typeInWords(typed.DstType)
		}
		if t := y.GetToken(); t != nil && t.Position != nil {
			place = fmt.Sprintf("%s:%d:%d", f.path, t.Position.Line, t.Position.Column)
		}
	}
	return kbroker.Errorf(kbroker.Invalid, "%s: %s", place, message).WithHint("settings are %s", strings.Join(agentKeys(), ", "))
}

// typeInWords says what a setting of type t may be.
func typeInWords(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Int:
		return "a whole number"
	case reflect.Bool:
		return "true or false"
	}
	return "text"
}

// Marshal is the other half of koanf's Parser.
func (f settingsFile) Marshal(m map[string]any) ([]byte, error) { return yaml.Marshal(m) }

var _ koanf.Parser = settingsFile{}
