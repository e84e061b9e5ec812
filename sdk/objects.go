package sdk

import (
	"context"
	"encoding"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of a kind that has not set its own.
const (
	// DefaultIdleAfter is how long an object without calls stays in memory.
	DefaultIdleAfter = 5 * time.Minute
	// DefaultMailbox bounds the calls of one object that wait.
	DefaultMailbox = 1000
	// largeState is what a state is better below: each turn that changes it writes all of it.
	largeState = 64 << 10
)

// Kind is a kind of objects that an app serves; see Objects.
type Kind[T any] struct {
	app  *App
	kind *kind
}

// KindOption changes one kind of objects.
type KindOption func(*kind)

// IdleAfter is how long an object stays in memory after its last call; the default is
// DefaultIdleAfter. It is loaded again by the next one.
func IdleAfter(d time.Duration) KindOption { return func(k *kind) { k.idle = d } }

// Mailbox bounds the calls of one object that wait; more are answered Overloaded, and sent
// again by their callers. The default is DefaultMailbox.
func Mailbox(n int) KindOption { return func(k *kind) { k.mailbox = n } }

// Objects serves objects of a kind, whose state is a T. The spec of the service names the
// kind as well: objects: [account]. Call it before Run, which returns what is wrong.
//
// An object is named by the app, the kind and any id, as in "bank/account:alice". It is
// there when it is called first, as the zero T, and stored from the first call of a Method
// on that returns no error. The exported fields of T are its state, as JSON; a []byte is
// stored as it is; a T whose pointer is an encoding.BinaryMarshaler and BinaryUnmarshaler
// says itself what is stored. Other fields are gone when the object is put away, moves to
// another instance, or fails.
//
// One instance at a time owns an object, and runs one call of it at a time (a turn): T needs
// no lock. A reply leaves after what the turn did to the state is stored. A turn that returns
// an error, or panics, changes nothing: the object is again as it was stored. So does one
// whose state is more than is stored of an object (kbroker.MaxObjectBytes, with what is
// known of its latest callers). A call takes effect once, however often it is sent again.
//
// An object whose turns have panicked more than 5 times within a minute is in quarantine:
// the instance refuses its calls, until it ends or another one owns the object.
func Objects[T any](app *App, name string, opts ...KindOption) *Kind[T] {
	k := &kind{
		name: kbroker.KindName(name), idle: DefaultIdleAfter, mailbox: DefaultMailbox, methods: map[string]*objectMethod{},
		fresh: func() any { return new(T) }, load: loadState[T], store: storeState[T],
	}
	for _, set := range opts {
		set(k)
	}
	app.addKind(k)
	return &Kind[T]{app, k}
}

// Method serves a method of the objects of a kind with fn, which may change the state. In
// and Out are as those of Handle. The context ends with the caller's deadline, when the
// instance owns the object no more, or when the app leaves and its grace is over; what fn
// does afterwards is not stored. An error of fn is sent with its code and counts as
// executed, although it changes nothing: nor is it remembered, so that the same call, sent
// again as that answer was lost, runs again. fn must not keep the T. Call it before Run; a
// mistake (a name that is not valid, a method twice) is returned by Run.
//
// Calls to others that fn waits for keep the object waiting, too; one that comes back to the
// object itself is refused (Deadlock). Of calls that cross each other (A calls B, while B
// calls A) the younger one is refused, too: fn should return that error, as any other; who
// began it all sends it again. Repeated turns make the same calls: with the same
// arguments, in the same order, they have the same ids, and take effect once.
func Method[T, In, Out any](k *Kind[T], name string, fn func(*T, context.Context, In) (Out, error)) {
	k.kind.add(objectMethodOf(name, false, fn))
}

// ReadOnly serves a method that does not change the state; it must not, also not for a
// moment: those of one object run beside each other, and beside no Method. Nothing is stored
// for a call. Otherwise it is as Method.
func ReadOnly[T, In, Out any](k *Kind[T], name string, fn func(*T, context.Context, In) (Out, error)) {
	k.kind.add(objectMethodOf(name, true, fn))
}

// Self is the object whose turn a context belongs to. Without one it is none: its kind is
// empty.
func Self(ctx context.Context) kbroker.Object {
	if t := turnOf(ctx); t != nil {
		return t.object
	}
	return kbroker.Object{}
}

// Epoch grows with every change of the owner of the object whose turn a context belongs to:
// a fencing token for what is done elsewhere. Whoever has seen one refuses a lower one. It
// is 0 where there is no turn.
func Epoch(ctx context.Context) uint64 {
	if t := turnOf(ctx); t != nil {
		return t.epoch
	}
	return 0
}

// Delete has the object whose turn a context belongs to be deleted at the end of the turn,
// if that returns no error: it is as if it had never been called. Where nothing can be
// deleted, in a ReadOnly or outside of a turn, it panics: that is a mistake in the program.
func Delete(ctx context.Context) {
	t := turnOf(ctx)
	if t == nil || t.readOnly {
		panic("sdk: Delete outside of a turn of a Method")
	}
	t.deleted.Store(true)
}

// kind is one kind of objects, whatever its state is in Go.
type kind struct {
	name    kbroker.KindName
	idle    time.Duration
	mailbox int
	// maxActive is how many are in memory at most; 0: any number.
	maxActive int
	durable   ownership.Durability
	schema    schema
	methods   map[string]*objectMethod
	order     []*objectMethod // as they were declared
	err       error           // what is wrong with the declarations

	fresh func() any // a *T, as is that of load
	load  func([]byte) (any, error)
	store func(any) ([]byte, error)
	// activated is for OnActivate; nil: there is none.
	activated func(ctx context.Context, value any) error

	warned atomic.Bool // of a large state
}

// objectMethod is a method of the objects of a kind.
type objectMethod struct {
	kind     kbroker.KindName
	name     string
	readOnly bool
	removes  bool // the object, without the application
	run      func(ctx context.Context, value any, data []byte) ([]byte, *kbroker.Error)

	mu    sync.Mutex
	stats methodStats
}

func objectMethodOf[T, In, Out any](name string, readOnly bool, fn func(*T, context.Context, In) (Out, error)) *objectMethod {
	m := &objectMethod{name: name, readOnly: readOnly}
	m.run = func(ctx context.Context, value any, data []byte) ([]byte, *kbroker.Error) {
		in, err := decode[In](data)
		if err != nil {
			return nil, notRun(kbroker.Errorf(kbroker.Invalid, "the argument of %s is not valid: %v", name, err))
		}
		out, err := fn(value.(*T), ctx, in)
		if err != nil {
			return nil, executedYes(err)
		}
		reply, err := encode(out)
		if err != nil {
			return nil, executedYes(fmt.Errorf("encode the answer of %s: %w", name, err))
		}
		return reply, nil
	}
	return m
}

func (k *kind) add(m *objectMethod) {
	m.kind = k.name
	if err := subjects.CheckMethod(m.name); err != nil {
		k.err = errors.Join(k.err, err)
	}
	if k.methods[m.name] != nil {
		k.err = errors.Join(k.err, kbroker.Errorf(kbroker.Invalid, "method %s of kind %s is declared twice", m.name, k.name))
	}
	k.methods[m.name] = m
	k.order = append(k.order, m)
}

// check reports what is wrong with the declaration.
func (k *kind) check() error {
	err := errors.Join(k.err, kbroker.CheckName("kind", string(k.name)), k.checkDurable(), k.schema.check(k.name))
	if k.idle <= 0 || k.mailbox < 1 {
		err = errors.Join(err, kbroker.Errorf(kbroker.Invalid, "kind %s: idle after %v with a mailbox of %d, want more than nothing and 1 or more", k.name, k.idle, k.mailbox))
	}
	if k.maxActive < 0 {
		err = errors.Join(err, kbroker.Errorf(kbroker.Invalid, "kind %s: %d objects in memory, want 1 or more", k.name, k.maxActive))
	}
	return err
}

// loadState makes a *T of what is stored.
func loadState[T any](data []byte) (any, error) {
	v := new(T)
	if own, ok := any(v).(encoding.BinaryUnmarshaler); ok {
		return v, own.UnmarshalBinary(data)
	}
	state, err := decode[T](data)
	*v = state
	return v, err
}

// storeState is what is stored of a *T.
func storeState[T any](v any) ([]byte, error) {
	if own, ok := v.(encoding.BinaryMarshaler); ok {
		return own.MarshalBinary()
	}
	return encode(*v.(*T))
}

// addKind is for Objects.
func (a *App) addKind(k *kind) {
	if k.name == subscriptionKind {
		a.err = errors.Join(a.err, kbroker.Errorf(kbroker.Invalid, "kind %s is that of durable subscriptions", k.name).WithHint("another name"))
	}
	for _, other := range a.kinds {
		if other.name == k.name {
			a.err = errors.Join(a.err, kbroker.Errorf(kbroker.Invalid, "objects of kind %s are served twice", k.name))
		}
	}
	a.kinds = append(a.kinds, k)
}

// checkKinds compares what the program serves with what its spec says.
func (a *App) checkKinds() error {
	own := &a.identity
	declared := map[kbroker.KindName]bool{}
	for _, name := range own.Objects {
		declared[name] = true
	}
	var errs error
	for _, d := range a.durable {
		errs = errors.Join(errs, d.check())
	}
	for _, k := range a.kinds {
		errs = errors.Join(errs, k.check())
		switch {
		case own.Host == "":
			return errors.Join(errs, kbroker.Errorf(kbroker.Refused, "objects of kind %s need an instance that an agent has started: the app's allocator gives it what it owns", k.name).
				WithHint("`kbroker deploy` it; `kbroker run` is for programs without objects"))
		case !declared[k.name]:
			errs = errors.Join(errs, kbroker.Errorf(kbroker.Invalid, "service %s/%s serves objects of kind %s, which its spec does not name", own.App, own.Service, k.name).
				WithHint("add to the service in its app.yaml: objects: [%s]", k.name))
		case own.ObjectStreams == 0:
			errs = errors.Join(errs, kbroker.Errorf(kbroker.Refused, "the agent does not say where objects of kind %s are stored", k.name).
				WithHint("upgrade the agent of host %s", own.Host))
		}
		errs = errors.Join(errs, k.schema.matches(own, k.name))
		delete(declared, k.name)
	}
	for _, name := range own.Objects {
		if declared[name] {
			errs = errors.Join(errs, kbroker.Errorf(kbroker.Invalid, "the spec of service %s/%s names objects of kind %s, which the program does not serve", own.App, own.Service, name).
				WithHint("serve them with sdk.Objects, or take the kind out of the service's objects"))
		}
	}
	return errs
}
