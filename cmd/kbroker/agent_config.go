package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// Where a setting's value comes from. With -o json these are protocol.
const (
	sourceDefault     = "default"
	sourceFile        = "file"
	sourceEnvironment = "environment"
	sourceFlag        = "flag"
)

// effective is one row of `kbroker agent config`: a setting in force, and who
// says so.
type effective struct {
	Key    string `json:"key"`
	Value  any    `json:"value"`
	Source string `json:"source"` // of labels there may be several: "file, flag"
	Place  string `json:"place"`  // the file, the variable or the flag; empty for a default
	Usage  string `json:"usage"`
}

func (c *cli) agentConfigCommand() *cobra.Command {
	var configFile string
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print a settings file for the agent, or which settings are in force and why",
		Long: `Print a settings file for the agent: every key, what it means, its default. With
--config, a setting's flag or a setting in the environment: the settings that
kbroker agent would run with there, and where each value comes from.`,
		Example: `  kbroker agent config > agent.yaml
  kbroker agent config --config /etc/kbroker/agent.yaml --name a`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			layers, err := agentLayers(configFile, cmd.Flags())
			if err != nil {
				return err
			}
			settings, err := mergeLayers(layers)
			if err != nil {
				return err
			}
			if configFile == "" && !given(layers) && c.output == formatTable {
				sample, err := renderSettings(settings)
				if err != nil {
					return err
				}
				_, err = c.out.Write(sample)
				return err
			}
			rows := effectiveSettings(settings, layers)
			return c.print(rows, func(w io.Writer) { c.settingsTable(w, rows) })
		},
	}
	cmd.Flags().StringVar(&configFile, "config", "", "read settings from this YAML `file`")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	addSettingFlags(cmd)
	return cmd
}

// given reports whether any layer says anything.
func given(layers []layer) bool {
	for _, l := range layers {
		if len(l.values.Keys()) > 0 {
			return true
		}
	}
	return false
}

// effectiveSettings says of each setting in all where it comes from. Pure.
func effectiveSettings(all agentSettings, layers []layer) []effective {
	rows := make([]effective, 0, len(agentDocs))
	for _, s := range agentDocs {
		row := effective{Key: s.key, Value: s.value(all), Usage: s.sentence()}
		var sources, places []string
		for _, l := range layers {
			if !l.values.Exists(s.key) {
				continue
			}
			if _, adds := row.Value.(map[string]string); !adds {
				sources, places = nil, nil // the later one wins
			}
			sources = append(sources, l.source)
			places = append(places, l.placeOf(s))
		}
		if sources == nil {
			sources = []string{sourceDefault}
		}
		row.Source, row.Place = strings.Join(sources, ", "), strings.Join(places, ", ")
		if v := reflect.ValueOf(row.Value); v.Kind() == reflect.Slice && v.IsNil() {
			row.Value = []string{}
		} else if v.Kind() == reflect.Map && v.IsNil() {
			row.Value = map[string]string{}
		}
		rows = append(rows, row)
	}
	return rows
}

func (c *cli) settingsTable(w io.Writer, rows []effective) {
	t := table{header: []string{"SETTING", "VALUE", "SOURCE", "PLACE"}}
	for _, r := range rows {
		t.add(r.Key, valueText(r.Value), r.Source, r.Place)
	}
	t.write(c, w)
}

// valueText is a setting's value as its flag would take it; "-" for none.
func valueText(v any) string {
	text := fmt.Sprint(v)
	switch v := v.(type) {
	case []string:
		text = strings.Join(v, ",")
	case map[string]string:
		var pairs bytes.Buffer
		for _, key := range slices.Sorted(maps.Keys(v)) {
			fmt.Fprintf(&pairs, ",%s=%s", key, v[key])
		}
		text = strings.TrimPrefix(pairs.String(), ",")
	}
	if text == "" {
		return "-"
	}
	return text
}
