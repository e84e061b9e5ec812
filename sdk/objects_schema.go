package sdk

import (
	"fmt"

	"github.com/kbroker/kbroker"
)

// schema is what a program makes of the state of a kind; see Schema.
type schema struct {
	number    int // 0: it was not said, so the first
	upgrade   func(old []byte, from int) ([]byte, error)
	downgrade func(state []byte, to int) ([]byte, error)
	writes    int // the one that is written
}

// SchemaOption says how a state comes to another schema.
type SchemaOption func(*schema)

// Schema says which schema the state of a kind has in this program, 1 and up; without it
// the first. It is stored with each state, and grows when the type is changed in a way that
// older programs do not read, or that does not read what they wrote. The spec of the service
// says the same: objects: [{kind: account, schema: 2, lowest: 1}], lowest being the schema
// down to which the program has a Downgrade; Run returns what differs.
//
// A state of an older schema goes through Upgrade before it is read. What is written has the
// newest schema that every instance of the app, and the version before, can read: while a
// new version is rolled out, and as long as it may be rolled back, states go through
// Downgrade. A program without one writes its own schema at once: then instances of the
// version before answer calls of such an object with an error, and the app cannot be rolled
// back. A state of a higher schema than the program's is never overwritten.
func Schema(number int, opts ...SchemaOption) KindOption {
	return func(k *kind) {
		k.schema.number = number
		if number < 1 {
			k.schema.number = -1 // it is wrong, and was said
		}
		for _, set := range opts {
			set(&k.schema)
		}
	}
}

// Upgrade makes of a state, as a program with the schema from has stored it, one of the
// program's own schema: with one step or several. Without it states of all schemas are read
// as they are. Its error is that of the call, which is not run.
func Upgrade(fn func(old []byte, from int) ([]byte, error)) SchemaOption {
	return func(s *schema) { s.upgrade = fn }
}

// Downgrade makes of a state, as this program stores it, one of an older schema, as those
// programs stored it: without what they do not know. It must be able to be upgraded again.
// Its error takes the turn back.
func Downgrade(fn func(state []byte, to int) ([]byte, error)) SchemaOption {
	return func(s *schema) { s.downgrade = fn }
}

// of is its number.
func (s *schema) of() int { return max(s.number, 1) }

// check reports what is wrong with it.
func (s *schema) check(k kbroker.KindName) error {
	if s.number < 0 {
		return kbroker.Errorf(kbroker.Invalid, "kind %s has a schema below 1", k)
	}
	return nil
}

// matches reports how it differs from that of the spec.
func (s *schema) matches(own *kbroker.InstanceFile, k kbroker.KindName) error {
	said, ok := own.Schemas[k]
	if !ok {
		said = kbroker.Schema{Number: 1, Lowest: 1}
	}
	switch hint := fmt.Sprintf("objects: [{kind: %s, schema: %d, lowest: 1}]; without a Downgrade, lowest is left out", k, s.of()); {
	case said.Number != s.of() && !ok:
		return kbroker.Errorf(kbroker.Invalid, "the program has schema %d of kind %s, and the spec of service %s/%s says none", s.of(), k, own.App, own.Service).
			WithHint("write %s; if it does say so, the agent of host %s is older than that: upgrade it", hint, own.Host)
	case said.Number != s.of():
		return kbroker.Errorf(kbroker.Invalid, "the program has schema %d of kind %s, and the spec of service %s/%s says %d", s.of(), k, own.App, own.Service, said.Number).
			WithHint("write %s", hint)
	case said.Lowest < said.Number && s.downgrade == nil:
		return kbroker.Errorf(kbroker.Invalid, "the spec of service %s/%s says that kind %s is written in schemas down to %d, and the program has no Downgrade", own.App, own.Service, k, said.Lowest).
			WithHint("leave lowest out")
	}
	return nil
}

// decide decides in which schema states are written.
func (s *schema) decide(own *kbroker.InstanceFile, k kbroker.KindName) {
	lowest := s.of()
	if said, ok := own.Schemas[k]; ok {
		lowest = said.Lowest
	}
	s.writes = min(max(own.WriteSchemas[k], lowest, 1), s.of())
}

// read makes a *T of what is stored. The error has code Internal or, where a newer program
// has written it, Refused.
func (k *kind) read(o kbroker.Object, raw []byte, from int) (any, error) {
	from = max(from, 1)
	if own := k.schema.of(); from > own {
		return nil, notRun(kbroker.Errorf(kbroker.Refused, "the state of %s has schema %d, and this version of the program knows schemas up to %d", o, from, own).
			WithHint("a newer version has written it: deploy that again; nothing of it is lost"))
	}
	if k.schema.upgrade != nil && from < k.schema.of() {
		var err error
		if raw, err = k.schema.upgrade(raw, from); err != nil {
			return nil, notRun(kbroker.Errorf(kbroker.Internal, "the state of %s cannot be upgraded from schema %d: %v", o, from, err))
		}
	}
	v, err := k.load(raw)
	if err != nil {
		return nil, notRun(kbroker.Errorf(kbroker.Internal, "the stored state of %s is not one of this program: %v", o, err).
			WithHint("its type was changed so that it cannot read what it wrote before: sdk.Schema"))
	}
	return v, nil
}

// write is what is stored of a *T, and in which schema: 0 for the first.
func (k *kind) write(v any) (state []byte, in int, err error) {
	if state, err = k.store(v); err != nil {
		return nil, 0, err
	}
	in = k.schema.writes
	if in < k.schema.of() {
		if state, err = k.schema.downgrade(state, in); err != nil {
			return nil, 0, fmt.Errorf("downgrade it to schema %d: %w", in, err)
		}
	}
	if in == 1 {
		in = 0
	}
	return state, in, nil
}
