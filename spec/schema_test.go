package spec_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/kbroker/kbroker/spec"
)

var update = flag.Bool("update", false, "write docs/app.schema.json")

const schemaFile = "../docs/app.schema.json"

func TestSchemaIsPublished(t *testing.T) {
	got := spec.Schema()
	if *update {
		if err := os.WriteFile(schemaFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not what Schema returns; run `go test ./spec -update`", schemaFile)
	}
}

type properties map[string]struct {
	Properties           properties                        `json:"properties"`
	OneOf                []struct{ Properties properties } `json:"oneOf"`
	AdditionalProperties json.RawMessage                   `json:"additionalProperties"`
}

// The schema has exactly the keys that Parse takes: Parse is asked about an
// unknown key in each mapping, and answers with those it knows.
func TestSchemaHasTheKeysOfParse(t *testing.T) {
	var root struct{ Properties properties }
	if err := json.Unmarshal(spec.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	var services struct{ Properties properties }
	if err := json.Unmarshal(root.Properties["services"].AdditionalProperties, &services); err != nil {
		t.Fatal(err)
	}
	compare := func(where, src string, p properties) {
		t.Helper()
		_, err := spec.Parse([]byte(src), "app.yaml")
		if err == nil {
			t.Fatalf("%s: an unknown key was accepted", where)
		}
		_, hint, ok := strings.Cut(err.Error(), "known here: ")
		hint, _, _ = strings.Cut(hint, "\n")
		keys := strings.Split(hint, ", ")
		slices.Sort(keys)
		if want := slices.Sorted(maps.Keys(p)); !ok || !slices.Equal(keys, want) {
			t.Errorf("%s: Parse knows %q, the schema %q", where, keys, want)
		}
	}
	compare("app", "zzzzzzzz: 1\nname: x\nservices: {a: {run: b}}\n", root.Properties)
	compare("topics", "name: x\nservices: {a: {run: b}}\ntopics: {zzzzzzzz: 1}\n", root.Properties["topics"].Properties)
	compare("service", in("zzzzzzzz: 1"), services.Properties)
	nested := 0
	for key, p := range services.Properties {
		sub := p.Properties
		for _, o := range p.OneOf {
			if o.Properties != nil {
				sub = o.Properties
			}
		}
		if sub != nil {
			nested++
			compare(key, in(key+": {zzzzzzzz: 1}"), sub)
		}
	}
	if want := 7; nested != want { // artifact, count, health, resources, scale, stop, update
		t.Errorf("the schema has %d nested mappings, want %d", nested, want)
	}
}
