package spec

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/kbroker/kbroker"
)

// Constraint is a hard rule on a host's labels: `label == value` or
// `label != value`. A host without the label has none of its values: == does
// not match it, != does.
type Constraint struct {
	Label string
	Not   bool // !=
	Value string
}

// maxLabelBytes bounds a label's name and its value.
const maxLabelBytes = 63

var (
	constraintForm = regexp.MustCompile(`^\s*([^\s=!"']+)\s*(==|!=)\s*(.*?)\s*$`)
	labelForm      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$`)
	bareValueForm  = regexp.MustCompile(`^[A-Za-z0-9._/:+@-]+$`)
)

const constraintHint = `a constraint is LABEL == VALUE or LABEL != VALUE, e.g. "disk == ssd"; quote a value that has blanks`

// ParseConstraint reads `label op value`; the value may stand in double or
// single quotes. The error is a *kbroker.Error of code Invalid with a hint.
func ParseConstraint(s string) (Constraint, error) {
	bad := func(why string) (Constraint, error) {
		return Constraint{}, kbroker.Errorf(kbroker.Invalid, "constraint %.80q: %s", s, why).WithHint("%s", constraintHint)
	}
	m := constraintForm.FindStringSubmatch(s)
	if m == nil {
		return bad("not of the form LABEL == VALUE")
	}
	label, value := m[1], m[3]
	switch {
	case len(label) > maxLabelBytes || !labelForm.MatchString(label):
		return bad("the label's name is not valid")
	case value == "":
		return bad("the value is missing")
	}
	switch {
	case value[0] == '"':
		v, err := strconv.Unquote(value)
		if err != nil {
			return bad("the quotes of the value do not match")
		}
		value = v
	case value[0] == '\'':
		v, ok := strings.CutSuffix(value[1:], "'")
		if !ok || strings.Contains(v, "'") {
			return bad("the quotes of the value do not match")
		}
		value = v
	case !bareValueForm.MatchString(value):
		return bad("the value is not one word")
	}
	if len(value) > maxLabelBytes || strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("the value is not a label's value")
	}
	return Constraint{Label: label, Not: m[2] == "!=", Value: value}, nil
}

// Match says whether a host with these labels satisfies the constraint.
func (c Constraint) Match(labels map[string]string) bool {
	v, ok := labels[c.Label]
	return (ok && v == c.Value) != c.Not
}

// String is the canonical form; ParseConstraint reads it back.
func (c Constraint) String() string {
	op := " == "
	if c.Not {
		op = " != "
	}
	if bareValueForm.MatchString(c.Value) {
		return c.Label + op + c.Value
	}
	return c.Label + op + strconv.Quote(c.Value)
}
