package spec

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// maxErrors bounds how many findings are reported at once.
const maxErrors = 100

// decoder walks the YAML tree. A value that cannot be read is reported and
// leaves its default, so that the walk goes on.
type decoder struct {
	doc     *Document
	aliases map[*ast.AliasNode]ast.Node
	nodes   int // visited, aliases expanded
	errs    Errors
	more    bool            // there were more than maxErrors
	failed  map[string]bool // paths that have a finding already
}

// value is a node at a path of the spec.
type value struct {
	path string
	node ast.Node
}

// field is a key that a mapping may have.
type field struct {
	name string
	read func(value)
	// unsupported is set instead of read for a key that is part of the app
	// spec but not of this build: what to do without it.
	unsupported string
}

func (d *decoder) report(e Error) {
	if len(d.errs) == maxErrors {
		d.more = true
		return
	}
	d.errs = append(d.errs, e)
}

// fail reports a finding at v, and keeps the rules from reporting another.
func (d *decoder) fail(v value, hint, format string, args ...any) {
	d.failed[v.path] = true
	d.report(d.doc.errorAt(d.doc.locate(v.path), format, args...).WithHint("%s", hint))
}

// sorted are the findings in the order of the file.
func (d *decoder) sorted() Errors {
	slices.SortStableFunc(d.errs, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	if d.more {
		last := d.errs[len(d.errs)-1]
		last.Message, last.Hint = "there are more errors", fmt.Sprintf("these are the first %d that were found", maxErrors)
		return append(d.errs, last)
	}
	return d.errs
}

// enter resolves the node of v and records where it stands. key is where the
// key of the value stands: that is where a block mapping, or nothing, is seen.
func (d *decoder) enter(v value, key position) (value, bool) {
	at := key
	if v.node != nil && !isBlock(v.node) {
		at = positionOf(v.node)
	}
	d.doc.at[v.path], d.doc.keys[v.path] = at, key
	if d.nodes++; d.nodes > MaxNodes {
		if d.nodes == MaxNodes+1 {
			d.fail(v, "repeat fewer or smaller aliases", "the spec expands to more than %d values", MaxNodes)
		}
		return v, false
	}
	for range MaxDepth {
		switch n := v.node.(type) {
		case *ast.AnchorNode:
			v.node = n.Value
		case *ast.AliasNode:
			target, ok := d.aliases[n]
			if !ok {
				d.fail(v, "define it before its use with &NAME", "there is no anchor %q", n.Value.GetToken().Value)
				return v, false
			}
			v.node = target
		case *ast.TagNode:
			d.fail(v, "remove it; quote a value that must be text", "YAML tags such as %s are not supported", n.GetToken().Value)
			return v, false
		default:
			return v, true
		}
	}
	d.fail(v, "", "an anchor contains itself")
	return v, false
}

// isBlock says that the node's own position is on a later line than its key's,
// or that it has none.
func isBlock(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.MappingNode:
		return !n.IsFlowStyle
	case *ast.MappingValueNode:
		return true
	case *ast.SequenceNode:
		return !n.IsFlowStyle
	case *ast.NullNode:
		return n.Token.Type == token.ImplicitNullType
	}
	return false
}

// entries calls each for the entries of a mapping, in order, and reports what
// is no plain key, and repeated keys. It returns false if v is no mapping.
func (d *decoder) entries(v value, want string, each func(name string, key position, v value)) bool {
	m, ok := v.node.(ast.MapNode)
	if !ok {
		d.fail(v, "", "%s is %s, want %s", label(v.path), describe(v.node), want)
		return false
	}
	lines := map[string]int{}
	for it := m.MapRange(); it.Next(); {
		name, ok := d.key(v, it.Key())
		if !ok {
			continue
		}
		key := positionOf(it.Key())
		entry := value{path: join(v.path, name), node: it.Value()}
		if first, ok := lines[name]; ok {
			d.report(d.doc.errorAt(key, "key %s appears twice", quote(name)).WithHint("the first is in line %d", first))
			continue
		}
		lines[name] = key.line
		each(name, key, entry)
	}
	return true
}

func (d *decoder) key(in value, n ast.MapKeyNode) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.NullNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	case *ast.MergeKeyNode:
		d.report(d.doc.errorAt(positionOf(n), "YAML merge keys are not supported").WithHint("write the keys out, or alias the whole value"))
	default:
		d.report(d.doc.errorAt(positionOf(n), "a key of %s is not plain text", label(in.path)))
	}
	return "", false
}

// fields reads a mapping with a fixed set of keys.
func (d *decoder) fields(v value, fields ...field) bool {
	known := make([]string, 0, len(fields))
	for _, f := range fields {
		if f.read != nil {
			known = append(known, f.name)
		}
	}
	return d.entries(v, "a mapping with the keys "+strings.Join(known, ", "), func(name string, key position, entry value) {
		for _, f := range fields {
			switch {
			case f.name != name:
				continue
			case f.read == nil:
				d.report(d.doc.errorAt(key, "key %s is not supported by this build", quote(name)).WithHint("%s", f.unsupported))
			default:
				if entry, ok := d.enter(entry, key); ok {
					f.read(entry)
				}
			}
			return
		}
		d.report(d.doc.errorAt(key, "unknown key %s in %s", quote(name), label(v.path)).WithHint("%s", didYouMean(name, known)))
	})
}

// list calls each for the items of a list.
func (d *decoder) list(v value, want string, each func(value)) {
	s, ok := v.node.(*ast.SequenceNode)
	if !ok {
		d.fail(v, `write [item, item] or one "- item" a line`, "%s is %s, want %s", label(v.path), describe(v.node), want)
		return
	}
	for i, n := range s.Values {
		item := value{path: v.path + "[" + strconv.Itoa(i) + "]", node: n}
		if item, ok := d.enter(item, positionOf(n)); ok {
			each(item)
		}
	}
}

// text reads a string. Numbers and booleans are refused: they may have been
// meant as something else.
func (d *decoder) text(into *string) func(value) {
	return func(v value) {
		switch n := v.node.(type) {
		case *ast.StringNode:
			*into = n.Value
		case *ast.LiteralNode:
			*into = n.Value.Value
		default:
			d.fail(v, "put it in quotes if it is meant as text", "%s is %s, want text", label(v.path), describe(v.node))
		}
	}
}

// scalar reads any scalar but null as the text that stands in the file.
func (d *decoder) scalar(into func(string)) func(value) {
	return func(v value) {
		switch n := v.node.(type) {
		case *ast.StringNode:
			into(n.Value)
		case *ast.LiteralNode:
			into(n.Value.Value)
		case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
			into(n.GetToken().Value)
		case *ast.NullNode:
			d.fail(v, `write "" for an empty text`, "%s has no value", label(v.path))
		default:
			d.fail(v, "", "%s is %s, want text, a number or a boolean", label(v.path), describe(v.node))
		}
	}
}

func (d *decoder) integer(into *int) func(value) {
	return func(v value) {
		if n, ok := v.node.(*ast.IntegerNode); ok {
			if i, err := strconv.ParseInt(fmt.Sprint(n.Value), 10, 32); err == nil {
				*into = int(i)
				return
			}
		}
		d.fail(v, "", "%s is %s, want a whole number", label(v.path), describe(v.node))
	}
}

func (d *decoder) number(into *float64, hint string) func(value) {
	return func(v value) {
		switch n := v.node.(type) {
		case *ast.IntegerNode, *ast.FloatNode:
			f, err := strconv.ParseFloat(strings.ReplaceAll(n.GetToken().Value, "_", ""), 64)
			if err == nil && !math.IsInf(f, 0) && !math.IsNaN(f) {
				*into = f
				return
			}
		}
		d.fail(v, hint, "%s is %s, want a number", label(v.path), describe(v.node))
	}
}

func (d *decoder) boolean(into *bool) func(value) {
	return func(v value) {
		n, ok := v.node.(*ast.BoolNode)
		if !ok {
			d.fail(v, "", "%s is %s, want true or false", label(v.path), describe(v.node))
			return
		}
		*into = n.Value
	}
}

const durationHint = "write a duration with its unit, e.g. 500ms, 10s or 2m"

func (d *decoder) duration(into *time.Duration) func(value) {
	return func(v value) {
		if n, ok := v.node.(*ast.StringNode); ok {
			if t, err := time.ParseDuration(n.Value); err == nil {
				*into = t
				return
			}
		}
		d.fail(v, durationHint, "%s is %s, want a duration", label(v.path), describe(v.node))
	}
}

func (d *decoder) size(into *int64) func(value) {
	return func(v value) {
		if n, ok := v.node.(*ast.StringNode); ok {
			if size, ok := parseSize(n.Value); ok {
				*into = size
				return
			}
		}
		d.fail(v, sizeHint, "%s is %s, want a size", label(v.path), describe(v.node))
	}
}

// describe says what stands there, for "x is ..., want ...".
func describe(n ast.Node) string {
	switch n := n.(type) {
	case *ast.NullNode:
		return "empty"
	case *ast.StringNode:
		return quote(n.Value)
	case *ast.LiteralNode:
		return "a block of text"
	case *ast.SequenceNode:
		return "a list"
	case ast.MapNode:
		return "a mapping"
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value
	}
	return "something else"
}

// quote quotes text of the file for a message, shortened.
func quote(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return strconv.Quote(string(r[:most])) + "..."
	}
	return strconv.Quote(s)
}

// label names a path in a message.
func label(path string) string {
	const most = 120
	if path == "" {
		return "the spec"
	}
	if r := []rune(path); len(r) > most {
		return string(r[:most]) + "..."
	}
	return path
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
