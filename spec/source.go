package spec

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds of the source. The parser's work grows with the square of the depth,
// so depth is bounded before it starts.
const (
	// MaxBytes bounds the size of a spec file.
	MaxBytes = 1 << 20
	// MaxDepth bounds how deep lists and mappings nest.
	MaxDepth = 32
	// MaxNodes bounds how many values a spec has once its aliases are expanded.
	MaxNodes = 100_000
)

// readSource turns the bytes into the root mapping of the one document.
func readSource(src []byte, d *Document) (ast.Node, *Error) {
	fail := func(p position, hint, format string, args ...any) (ast.Node, *Error) {
		e := d.errorAt(p, format, args...).WithHint("%s", hint)
		return nil, &e
	}
	if len(src) > MaxBytes {
		return fail(position{1, 1}, "programs and data are uploaded by `run` and `artifact`, not written into the spec", "the spec has more than 1 MiB")
	}
	if p, bad := firstNonText(d.lines); bad {
		return fail(p, "is this the right file?", "this is not text: a spec is YAML in UTF-8")
	}
	tokens := lexer.Tokenize(string(src))
	if p, deep := tooDeep(tokens); deep {
		return fail(p, "", "lists and mappings nest more than %d deep", MaxDepth)
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		e := d.syntaxError(err)
		return nil, &e
	}
	var root ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil:
		case doc.Body.Type() == ast.DirectiveType:
			return fail(positionOf(doc.Body), "remove the line", "YAML directives are not supported")
		case root != nil:
			p := positionOf(doc.Body)
			if doc.Start != nil {
				p = position{doc.Start.Position.Line, doc.Start.Position.Column}
			}
			return fail(p, "a spec is one document: one app per file", "a second document begins here")
		default:
			root = doc.Body
		}
	}
	if root == nil {
		return fail(position{1, 1}, minimalHint, "the spec is empty")
	}
	return root, nil
}

const minimalHint = "the least that works is `name: NAME` and `services: {SERVICE: {run: PROGRAM}}`"

func (d *Document) syntaxError(err error) Error {
	p, message := position{1, 1}, err.Error()
	if s, ok := errors.AsType[*yaml.SyntaxError](err); ok {
		message = s.Message
		if s.Token != nil && s.Token.Position != nil {
			p = position{s.Token.Position.Line, s.Token.Position.Column}
		}
	}
	e := d.errorAt(p, "not valid YAML: %s", message)
	if p.line <= len(d.lines) && strings.HasPrefix(strings.TrimLeft(d.lines[p.line-1], " "), "\t") {
		e.Hint = "YAML indents with spaces, not with tabs"
	}
	return e
}

// splitLines splits at \n, \r\n and \r, as the YAML parser counts lines.
func splitLines(src []byte) []string {
	if len(src) > MaxBytes {
		return nil
	}
	src = bytes.ReplaceAll(src, []byte("\r\n"), []byte("\n"))
	src = bytes.ReplaceAll(src, []byte("\r"), []byte("\n"))
	return strings.Split(string(src), "\n")
}

func firstNonText(lines []string) (position, bool) {
	for i, line := range lines {
		column := 0
		for j, r := range line {
			column++
			bad := r < ' ' && r != '\t' || r == 0x7f
			if r == utf8.RuneError {
				_, width := utf8.DecodeRuneInString(line[j:])
				bad = width == 1
			}
			if bad {
				return position{i + 1, column}, true
			}
		}
	}
	return position{}, false
}

// tooDeep finds the token at which the nesting exceeds MaxDepth: brackets, the
// levels of indentation, and marks stacked on one value ("- - - a", "!a !b c").
func tooDeep(tokens token.Tokens) (position, bool) {
	flow, marks, line := 0, 0, 0
	var indent []int
	for _, t := range tokens {
		if t.Position.Line != line && flow == 0 {
			line, marks = t.Position.Line, 0
			for len(indent) > 0 && indent[len(indent)-1] >= t.Position.Column {
				indent = indent[:len(indent)-1]
			}
			indent = append(indent, t.Position.Column)
		}
		switch t.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
		case token.SequenceEndType, token.MappingEndType:
			flow = max(0, flow-1)
		case token.CollectEntryType:
			marks = 0
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType:
			marks++
		}
		if flow+marks+len(indent) > MaxDepth {
			return position{t.Position.Line, t.Position.Column}, true
		}
	}
	return position{}, false
}

func positionOf(n ast.Node) position {
	t := n.GetToken()
	switch n := n.(type) {
	case *ast.MappingNode:
		if n.Start != nil && n.IsFlowStyle {
			t = n.Start
		} else if len(n.Values) > 0 {
			return positionOf(n.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return positionOf(n.Key)
	}
	if t == nil || t.Position == nil {
		return position{1, 1}
	}
	return position{t.Position.Line, t.Position.Column}
}

// resolveAliases maps each alias to the value of the last anchor of that name
// before it. An alias without an anchor is missing from the map.
func resolveAliases(root ast.Node) map[*ast.AliasNode]ast.Node {
	v := &aliasVisitor{anchors: map[string]ast.Node{}, aliases: map[*ast.AliasNode]ast.Node{}}
	ast.Walk(v, root)
	return v.aliases
}

type aliasVisitor struct {
	anchors map[string]ast.Node
	aliases map[*ast.AliasNode]ast.Node
}

func (v *aliasVisitor) Visit(n ast.Node) ast.Visitor {
	switch n := n.(type) {
	case *ast.AnchorNode:
		v.anchors[n.Name.GetToken().Value] = n.Value
	case *ast.AliasNode:
		if target, ok := v.anchors[n.Value.GetToken().Value]; ok {
			v.aliases[n] = target
		}
	}
	return v
}
