package main

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

// setting is what there is to say about one key of agentSettings. This table is
// its one home: flags, `kbroker agent config`, the file that `kbroker agent
// install` writes and docs/agent.yaml are made of it.
type setting struct {
	key     string
	usage   string // one line, the flag's help; its value's name in backquotes
	more    string // what a file says beyond the usage
	example string // YAML
	choices []string
	path    bool // a path: relative to the working directory on a command line
	file    bool // that of a file, or stdin
}

// agentDocs documents every key, in the order of a file.
var agentDocs = []setting{
	{
		key: "dir", usage: "data directory of the host", path: true, example: "/srv/kbroker",
		more: "Made with mode 0700. It is the host: its name, its cluster and its copy of the data are in it. One agent at a time holds it.",
	},
	{
		key: "name", usage: "permanent name of the host (default: the machine's)", example: "rack1-a",
		more: "Lower-case letters, digits and dashes. Kept by the data directory for ever.",
	},
	{
		key: "role", usage: "core or worker (default: core)", example: "worker", choices: []string{string(kbroker.RoleCore), string(kbroker.RoleWorker)},
		more: "A core has a copy of the cluster's data; a worker only runs applications.",
	},
	{
		key: "found", usage: "found a new cluster, unless the directory belongs to one", example: "true",
		more: "On the first host only; every other one joins.",
	},
	{
		key: "advertise", usage: "the `IP` that other hosts and clients reach a core at", example: "10.0.0.1",
		more: "The agent listens there and nowhere else. A worker needs none.",
	},
	{
		key: "join", usage: "client addresses (`HOST:PORT`) of cores to join through", example: "[10.0.0.1:4222, 10.0.0.2:4222]",
		more: "One that answers is enough; more of them let a host join while one is down.",
	},
	{
		key: "token_file", usage: "`file` with the token to join with; - is standard input", path: true, file: true, example: "/etc/kbroker/join.token",
		more: "One line, which kbroker token create prints on a host of the cluster. A host that has joined needs it no more, and the file may go. There is no setting for the token itself: command lines and environments are no place for it.",
	},
	{
		key: "client_port", usage: "port for clients (default: picked once)", example: "4222",
		more: "0 lets the kernel pick one, which the data directory keeps.",
	},
	{
		key: "route_port", usage: "port for the other cores (default: picked once)", example: "6222",
		more: "0 lets the kernel pick one, which the data directory keeps.",
	},
	{
		key: "label", usage: "labels of the host, for constraints, as `KEY=VALUE`", example: "{disk: ssd, example.com/rack: r1}",
		more: `What an app's spec may require: require: ["disk == ssd"].`,
	},
	{
		key: "stock_raft", usage: "the broker's own raft timing: slower failover, more patience with slow disks", example: "true",
		more: "The same on every host of a cluster.",
	},
	{
		key: "credential_life", usage: "how long the credential of an instance holds (default: 1h)", example: "15m",
		more: "On cores. A process has its own renewed when half of that has passed. Between 10s and 720h.",
	},
}

// stdin is how a file on a command line is standard input.
const stdin = "-"

// flag is the setting's name on a command line.
func (s setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }

// env is the setting's name in the environment.
func (s setting) env() string { return agentEnvPrefix + strings.ToUpper(s.key) }

// field is where all keeps the setting.
func (s setting) field(all *agentSettings) reflect.Value {
	i := slices.Index(agentKeys(), s.key)
	if i < 0 {
		panic(fmt.Sprintf("agentSettings has no key %q", s.key)) // at the start of every command, so in no release
	}
	return reflect.ValueOf(all).Elem().Field(i)
}

// value is the setting's value in all.
func (s setting) value(all agentSettings) any { return s.field(&all).Interface() }

// addSettingFlags gives cmd a flag for every setting.
func addSettingFlags(cmd *cobra.Command) {
	f, defaults := cmd.Flags(), defaultAgentSettings()
	for _, s := range agentDocs {
		switch v := s.value(defaults).(type) {
		case string:
			f.String(s.flag(), v, s.usage)
		case bool:
			f.Bool(s.flag(), v, s.usage)
		case int:
			f.Int(s.flag(), v, s.usage)
		case []string:
			f.StringSlice(s.flag(), v, s.usage)
		case map[string]string:
			f.StringToString(s.flag(), v, s.usage)
		default:
			panic(fmt.Sprintf("setting %s: there is no flag for a %T", s.key, v))
		}
		switch {
		case len(s.choices) > 0:
			must(cmd.RegisterFlagCompletionFunc(s.flag(), cobra.FixedCompletions(s.choices, cobra.ShellCompDirectiveNoFileComp)))
		case s.file:
			must(cmd.MarkFlagFilename(s.flag()))
		case s.path:
			must(cmd.MarkFlagDirname(s.flag()))
		}
	}
}

// settingsHead is the beginning of a file of settings.
const settingsHead = `Settings of this host's agent: kbroker agent --config FILE. The environment wins over this file, ` +
	`a flag over both: client_port is KBROKER_AGENT_CLIENT_PORT and --client-port there. Once the data directory ` +
	`belongs to a cluster it knows name, role, ports and cluster; what contradicts it is refused.`

// renderSettings is a file that parses to s and explains every key.
func renderSettings(s agentSettings) ([]byte, error) {
	var b bytes.Buffer
	comment(&b, settingsHead)
	for _, doc := range agentDocs {
		value, err := flowYAML(doc.value(s))
		if err != nil {
			return nil, fmt.Errorf("write setting %s: %w", doc.key, err)
		}
		b.WriteByte('\n')
		comment(&b, doc.sentence()+" "+doc.more)
		fmt.Fprintf(&b, "# For example: %s: %s\n", doc.key, doc.example)
		fmt.Fprintf(&b, "%s: %s\n", doc.key, value)
	}
	return b.Bytes(), nil
}

// sentence is the usage as a sentence.
func (s setting) sentence() string {
	text := strings.ReplaceAll(s.usage, "`", "")
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:] + "."
}

// flowYAML is a value on one line.
func flowYAML(v any) (string, error) {
	// A nil map or slice means the same as an empty one, and reads better.
	switch v := v.(type) {
	case []string:
		if len(v) == 0 {
			return "[]", nil
		}
	case map[string]string:
		if len(v) == 0 {
			return "{}", nil
		}
	}
	b, err := yaml.MarshalWithOptions(v, yaml.Flow(true))
	return strings.TrimSpace(string(b)), err
}

// commentWidth is where comments are broken.
const commentWidth = 100

// comment writes text as lines of a comment.
func comment(b *bytes.Buffer, text string) {
	line := "#"
	for _, word := range strings.Fields(text) {
		if len(line)+1+len(word) > commentWidth {
			fmt.Fprintln(b, line)
			line = "#"
		}
		line += " " + word
	}
	fmt.Fprintln(b, line)
}
