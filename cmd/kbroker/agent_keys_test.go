package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

var update = flag.Bool("update", false, "write docs/agent.yaml and testdata/golden")

// golden compares what is generated with a file, or writes it.
func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what this build generates; run `go test ./cmd/kbroker -update` and look at the difference. Generated:\n%s", path, got)
	}
}

func TestEverySettingIsDocumented(t *testing.T) {
	documented := make([]string, len(agentDocs))
	for i, s := range agentDocs {
		documented[i] = s.key
		if s.usage == "" || s.more == "" || s.example == "" {
			t.Errorf("setting %s: usage %q, more %q, example %q, want all three", s.key, s.usage, s.more, s.example)
		}
	}
	for f := range reflect.TypeFor[agentSettings]().Fields() {
		if f.Tag.Get("yaml") != f.Tag.Get("koanf") {
			t.Errorf("field %s of agentSettings has the tags %s, want the same name twice", f.Name, f.Tag)
		}
	}
	if keys := agentKeys(); !slices.Equal(documented, keys) {
		t.Fatalf("documented are\n%q\nagentSettings has\n%q\nwant the same, in the same order", documented, keys)
	}
	for _, command := range [][]string{{"agent"}, {"agent", "config"}, {"agent", "install"}} {
		cmd, _, err := (&cli{}).root().Find(command)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range agentDocs {
			if f := cmd.Flags().Lookup(s.flag()); f == nil || f.Usage != s.usage {
				t.Errorf("%v has the flag %+v, want --%s with the usage of the setting", command, f, s.flag())
			}
		}
	}
}

func TestTheSampleIsTheDefaultsAndHasEveryKey(t *testing.T) {
	sample, err := renderSettings(defaultAgentSettings())
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join("..", "..", "docs", "agent.yaml"), sample)
	got, err := parseSettings("docs/agent.yaml", sample)
	if err != nil || !reflect.DeepEqual(got, defaultAgentSettings()) {
		t.Errorf("the sample parses to %+v, %v, want the defaults", got, err)
	}
	var keys map[string]any
	if err := yaml.Unmarshal(sample, &keys); err != nil {
		t.Fatal(err)
	}
	for _, key := range agentKeys() {
		if _, ok := keys[key]; !ok {
			t.Errorf("the sample has no key %s", key)
		}
	}
	for i, line := range strings.Split(string(sample), "\n") {
		if len(line) > commentWidth {
			t.Errorf("line %d of the sample has %d bytes", i+1, len(line))
		}
	}
}

func TestTheExamplesOfSettingsAreValidAndChangeSomething(t *testing.T) {
	for _, s := range agentDocs {
		got, err := parseSettings("example", []byte(s.key+": "+s.example))
		if err != nil || reflect.DeepEqual(got, defaultAgentSettings()) {
			t.Errorf("%s: %s parses to %+v, %v, want something else than the defaults", s.key, s.example, got, err)
		}
	}
}

// odd settings have everything that YAML could read as something else.
func oddSettings() agentSettings {
	return agentSettings{
		Dir: "/data dir/#1: x", Name: "on", Role: "core", Found: true, Advertise: "fd00::1", ClientPort: 4222, RoutePort: 6222, StockRaft: true,
		Join:  []string{"[fd00::2]:4222", "a,b", "null", "1:1"},
		Label: map[string]string{"example.com/rack": "007", "b": "yes", "a": "{x}", "~": "a: b #c"},
	}
}

func TestAFileOfAnySettingsParsesToThem(t *testing.T) {
	want := oddSettings()
	text, err := renderSettings(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseSettings("agent.yaml", text)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("parsed %+v, %v\nwant   %+v\nof\n%s", got, err, want, text)
	}
	for range 20 {
		if again, err := renderSettings(want); err != nil || !bytes.Equal(again, text) {
			t.Fatalf("the same settings are written in another way: %v\n%s", err, again)
		}
	}
}

func TestEachSettingSaysWhereItComesFrom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "agent.yaml")
	if err := os.WriteFile(path, []byte("name: a\nclient_port: 1\nlabel: {disk: ssd}\njoin: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KBROKER_AGENT_CLIENT_PORT", "2")
	t.Setenv("KBROKER_AGENT_ROUTE_PORT", "2")
	cmd := (&cli{}).agentCommand()
	if err := cmd.ParseFlags([]string{"--route-port", "3", "--label", "rack=r1"}); err != nil {
		t.Fatal(err)
	}
	layers, err := agentLayers(path, cmd.Flags())
	if err != nil {
		t.Fatal(err)
	}
	settings, err := mergeLayers(layers)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][3]any{ // value, source, place
		"dir":         {defaultAgentDir, sourceDefault, ""},
		"name":        {"a", sourceFile, path},
		"client_port": {2, sourceEnvironment, "KBROKER_AGENT_CLIENT_PORT"},
		"route_port":  {3, sourceFlag, "--route-port"},
		"label":       {map[string]string{"disk": "ssd", "rack": "r1"}, "file, flag", path + ", --label"},
		"join":        {[]string{}, sourceFile, path},
		"found":       {false, sourceDefault, ""},
	}
	rows := effectiveSettings(settings, layers)
	if len(rows) != len(agentDocs) {
		t.Errorf("%d rows, want %d", len(rows), len(agentDocs))
	}
	for _, row := range rows {
		if w, ok := want[row.Key]; ok && !reflect.DeepEqual([3]any{row.Value, row.Source, row.Place}, w) {
			t.Errorf("%s is %v from %s (%s), want %v", row.Key, row.Value, row.Source, row.Place, w)
		}
	}
}
