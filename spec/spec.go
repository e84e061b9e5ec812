// Package spec is the app spec: what a person writes into an app.yaml, what
// the rest of the system works with (kbroker.App) and the rules between them.
//
//	bytes --source--> YAML tree --decode--> kbroker.App --check--> valid App
//	       syntax,          unknown keys,               names, bounds,
//	       size, depth      types, units, defaults      cross-field rules
//
// Every step reports everything it finds, each finding with its place in the
// file, so that one run of `kbroker validate` shows all there is to repair.
// Super calls Validate, the last step alone, on what arrives over the wire:
// the rules have one home.
//
// The dialect is strict YAML: one document, no unknown or repeated keys, no
// tags, no merge keys. Anchors and aliases work, but a spec may not expand to
// more than MaxNodes values.
package spec

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
)

// Parse reads an app spec and fills in its defaults. file is only used in
// messages. The error is Errors, with all findings in the order of the file;
// errors.Is(err, kbroker.Invalid) holds.
//
// For a service with `run`, Run and Artifact.Path are that path, as written;
// for one with `artifact`, Artifact.Path and Artifact.SHA256, or Artifact.Command, or
// all of them are set. Artifact.Path is relative to the folder of the file. Parse reads no other file and runs
// nothing; the deploying program fills in the rest of Artifact. The same holds for the
// program of the app's own policy.
func Parse(src []byte, file string) (*kbroker.App, error) {
	d, err := ParseDocument(src, file)
	if err != nil {
		return nil, err
	}
	return d.App(), nil
}

// Document is a valid spec that remembers where its values stand, for what
// can only be found out afterwards (a missing binary, a constraint that no
// host meets).
type Document struct {
	file  string
	lines []string
	app   *kbroker.App
	at    map[string]position // where the value of a path stands
	keys  map[string]position // where its key stands
}

type position struct{ line, column int }

// ParseDocument is Parse for a caller that will report findings of its own.
func ParseDocument(src []byte, file string) (*Document, error) {
	src = bytes.TrimPrefix(src, []byte("\ufeff")) // the byte order mark of some editors
	d := &Document{file: file, lines: splitLines(src), at: map[string]position{}, keys: map[string]position{}}
	root, err := readSource(src, d)
	if err != nil {
		return nil, d.withExcerpts(Errors{*err})
	}
	dec := decoder{doc: d, aliases: resolveAliases(root), failed: map[string]bool{}}
	d.app = dec.app(root)
	for _, f := range check(d.app, false) {
		if dec.more {
			break
		}
		if dec.suppressed(f) {
			continue
		}
		at, ok := d.keys[f.path]
		if !ok || !f.key {
			at = d.locate(f.path)
		}
		dec.report(d.errorAt(at, "%s", f.message).WithHint("%s", f.hint))
	}
	if len(dec.errs) > 0 {
		return nil, d.withExcerpts(dec.sorted())
	}
	for _, s := range d.app.Services {
		slices.Sort(s.Objects) // another order is no other spec
	}
	return d, nil
}

// App is the parsed spec. The caller may change it.
func (d *Document) App() *kbroker.App { return d.app }

// At makes a finding at the value of a path such as "services.hello.run" or
// "services.hello.require[0]". Where the file does not have the path (a
// default), the finding is at the closest thing above it.
func (d *Document) At(path, format string, args ...any) Error {
	return d.withExcerpts(Errors{d.errorAt(d.locate(path), format, args...)})[0]
}

func (d *Document) locate(path string) position {
	p, ok := d.at[path]
	for !ok && path != "" {
		path = path[:max(0, strings.LastIndexAny(path, ".["))]
		p, ok = d.at[path]
	}
	if !ok {
		p = position{1, 1}
	}
	return p
}

func (d *Document) errorAt(p position, format string, args ...any) Error {
	return Error{File: d.file, Line: p.line, Column: p.column, Message: fmt.Sprintf(format, args...)}
}

// withExcerpts comes last, when the number of findings is bounded: an excerpt
// costs as much as its line is long.
func (d *Document) withExcerpts(errs Errors) Errors {
	for i, e := range errs {
		errs[i].Excerpt = excerpt(d.lines, position{e.Line, e.Column})
	}
	return errs
}
