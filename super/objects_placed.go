package super

import (
	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
)

// of is who owns an object: nobody, where the shard is that of another placed one.
func (o owners) of(object kbroker.Object) ownership.Assignment {
	a := o.assigned[object.Shard()]
	if object.Placed && (a.Placed == nil || a.Placed.Object() != object) {
		return ownership.Assignment{}
	}
	return a
}

// place says of a placed object how it was allocated.
func place(out *kbroker.ObjectDetail, a ownership.Assignment) {
	if a.Next == ownership.Nobody {
		out.Moving, out.Releasing = "", true
	}
	if a.Placed != nil {
		out.Takes, out.Labels = &a.Placed.Demanded, a.Placed.Labels
	}
}
