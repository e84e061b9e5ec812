package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

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
	TokenFile  string            `yaml:"token_file" koanf:"token_file"`
	ClientPort int               `yaml:"client_port" koanf:"client_port"`
	RoutePort  int               `yaml:"route_port" koanf:"route_port"`
	Label      map[string]string `yaml:"label" koanf:"label"`
	StockRaft  bool              `yaml:"stock_raft" koanf:"stock_raft"`

	CredentialLife string `yaml:"credential_life" koanf:"credential_life"`
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
	place  string // the path of a file
	values *koanf.Koanf
}

// placeOf names where in the layer a setting is.
func (l layer) placeOf(s setting) string {
	return map[string]string{sourceFile: l.place, sourceEnvironment: s.env(), sourceFlag: "--" + s.flag()}[l.source]
}

// newSettings holds settings by name. Label keys may contain dots: no setting
// nests by its name.
func newSettings() *koanf.Koanf { return koanf.New("\x00") }

// mergeLayers lays each layer over those before it and over the defaults.
// Labels add up; of any other setting the last value holds. A value that no
// host takes is Invalid, with its source.
func mergeLayers(layers []layer) (agentSettings, error) {
	s, err := laid(layers)
	if err == nil {
		err = s.node(nil).Validate()
	}
	if err != nil {
		return s, blame(layers, err)
	}
	return s, nil
}

// laid is what layers say together.
func laid(layers []layer) (agentSettings, error) {
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
	return s, nil
}

// blame adds to an error of the values of layers where the bad one is from: the
// first that no host takes together with those that are weaker.
func blame(layers []layer, err error) error {
	refused, ok := errors.AsType[*kbroker.Error](err)
	if !ok {
		return err
	}
	var weaker []layer
	for _, l := range layers {
		one := layer{source: l.source, place: l.place, values: newSettings()}
		weaker = append(weaker, one)
		for _, doc := range agentDocs {
			if !l.values.Exists(doc.key) {
				continue
			}
			if err := one.values.Set(doc.key, l.values.Get(doc.key)); err != nil {
				return fmt.Errorf("look for the bad setting: %w", err)
			}
			s, err := laid(weaker)
			if err == nil {
				err = s.node(nil).Validate()
			}
			if err != nil && l.source == sourceFlag {
				return refused // whoever has given it, just now, knows
			}
			if err != nil {
				where := fmt.Sprintf("it is set by %s", l.placeOf(doc))
				if refused.Hint != "" {
					where = refused.Hint + "; " + where
				}
				return refused.WithHint("%s", where)
			}
		}
	}
	return err
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
	return []layer{{sourceFile, path, fromFile}, {sourceEnvironment, "", fromEnv}, {sourceFlag, "", fromFlags}}, nil
}

// agentEnvironment reads the settings in the environment. A variable that
// looks like one and is none, or whose value is of another kind, is an error.
func agentEnvironment() (*koanf.Koanf, error) {
	ko, keys := newSettings(), agentKeys()
	var unknown []string
	var bad error
	provider := env.Provider("\x00", env.Opt{Prefix: agentEnvPrefix, TransformFunc: func(name, value string) (string, any) {
		key := strings.ToLower(strings.TrimPrefix(name, agentEnvPrefix))
		switch {
		case value == "":
			return "", nil // the same as not set
		case !slices.Contains(keys, key):
			unknown = append(unknown, name)
			return "", nil
		}
		typed, err := parseSetting(agentDocs[slices.IndexFunc(agentDocs, func(s setting) bool { return s.key == key })], value)
		if bad == nil {
			bad = err
		}
		return key, typed
	}})
	if err := ko.Load(provider, nil); err != nil {
		return nil, fmt.Errorf("read environment: %w", err)
	}
	if len(unknown) > 0 {
		return nil, kbroker.Errorf(kbroker.Invalid, "there is no setting %s", strings.Join(unknown, ", ")).
			WithHint("settings are %s", strings.Join(keys, ", "))
	}
	return ko, bad
}

// parseSetting is a value of the environment as its setting has it.
func parseSetting(s setting, text string) (any, error) {
	var v any = text
	var err error
	want := s.value(defaultAgentSettings())
	switch want.(type) {
	case bool:
		v, err = strconv.ParseBool(text)
	case int:
		v, err = strconv.Atoi(text)
	case []string:
		v = splitList(text)
	case map[string]string:
		v = parseLabels(splitList(text))
	}
	if err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "%s is %q, want %s", s.key, text, typeInWords(reflect.TypeOf(want))).
			WithHint("it is set by the environment: %s; correct it there, or unset it", s.env())
	}
	return v, nil
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

func (s agentSettings) node(log *slog.Logger) node.Config {
	life, err := time.ParseDuration(cmp.Or(s.CredentialLife, "0"))
	if err != nil {
		life = -1 // which Validate refuses
	}
	return node.Config{
		Dir: s.Dir, Name: kbroker.HostID(s.Name), Role: kbroker.Role(s.Role),
		Found: s.Found, Join: s.Join, TokenFile: s.TokenFile, Advertise: s.Advertise,
		ClientPort: s.ClientPort, RoutePort: s.RoutePort,
		Labels: s.Label, StockRaft: s.StockRaft, CredentialLife: life, Log: log,
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
