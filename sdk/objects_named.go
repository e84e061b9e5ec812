package sdk

import "github.com/kbroker/kbroker"

// named are what objects have under names, as timers and reminders: kept by shard, so that
// those of one that is let go are found without a look at all others.
type named[T any] map[kbroker.Shard]map[kbroker.Object]map[string]T

// of are those of an object; not to be changed.
func (n named[T]) of(o kbroker.Object) map[string]T { return n[o.Shard()][o] }

func (n named[T]) put(o kbroker.Object, name string, x T) {
	s := o.Shard()
	if n[s] == nil {
		n[s] = map[kbroker.Object]map[string]T{}
	}
	if n[s][o] == nil {
		n[s][o] = map[string]T{}
	}
	n[s][o][name] = x
}

func (n named[T]) drop(o kbroker.Object, name string) {
	s := o.Shard()
	delete(n[s][o], name)
	if len(n[s][o]) == 0 {
		delete(n[s], o)
	}
	if len(n[s]) == 0 {
		delete(n, s)
	}
}
