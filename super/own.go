package super

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/state"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// ownTimeout bounds the work on one request for the ownership or the objects of an app:
	// more than one batch at the store.
	ownTimeout = 3 * time.Second
	// maxOwnRead bounds a request to read: as many keys as are allowed, and as long.
	maxOwnRead = (kbroker.MaxReadKeys + 2) * (kbroker.MaxKeyBytes + 3)
)

// ownership reads or writes the ownership and the objects of an app for its allocators and
// instances. The subject says which app, and which start asks: servers let nobody ask as
// another. What is in the records is theirs.
func (d *desk) ownership(do func(context.Context, state.AppKey, kbroker.Incarnation, []byte) (any, error)) func(context.Context, *nats.Msg) (any, error) {
	return func(ctx context.Context, m *nats.Msg) (any, error) {
		tenant, app, _, who, ok := subjects.ParseOwn(m.Subject)
		if !ok {
			return nil, kbroker.Errorf(kbroker.Invalid, "subject %q names no start of an app", m.Subject)
		}
		k, err := askedOf(m, tenant, app)
		if err != nil {
			return nil, err
		}
		return do(ctx, k, who, m.Data)
	}
}

func (d *desk) ownRead(ctx context.Context, k state.AppKey, _ kbroker.Incarnation, body []byte) (any, error) {
	if len(body) > maxOwnRead {
		return nil, kbroker.Errorf(kbroker.Invalid, "a request of %d bytes to read, want %d at most", len(body), maxOwnRead)
	}
	var r kbroker.OwnReadRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	streams, err := d.objectStreams(k, append(slices.Clone(r.Keys), r.Match)...)
	if err != nil {
		return nil, err
	}
	reply, err := d.store.OwnRead(ctx, k, streams, r)
	if err != nil {
		return nil, err
	}
	data, err := reply.MarshalBinary()
	return &nats.Msg{Data: data}, err
}

func (d *desk) ownWrite(ctx context.Context, k state.AppKey, who kbroker.Incarnation, body []byte) (any, error) {
	var r kbroker.OwnWriteRequest
	if err := r.UnmarshalBinary(body); err != nil {
		return nil, err
	}
	if err := mayOwn(k.App, who, r.Writes); err != nil {
		return nil, err
	}
	streams, err := d.objectStreams(k, r.Writes[0].Key)
	if err != nil {
		return nil, err
	}
	return d.store.OwnWrite(ctx, k, streams, r)
}

// objectStreams is how many streams of objects an app has, as far as this core knows. It
// may be behind: then what is asked of objects is not refused for good.
func (d *desk) objectStreams(k state.AppKey, keys ...string) (int, error) {
	streams := d.store.App(k).ObjectStreams
	if streams == 0 && slices.ContainsFunc(keys, func(key string) bool { return key != "" && key[0] >= '0' && key[0] <= '9' }) {
		e := kbroker.Errorf(kbroker.Unavailable, "core %s does not know that app %s has objects", d.cfg.Host, k.App)
		e.Executed = kbroker.ExecutedNo
		return 0, e
	}
	return streams, nil
}

// mayOwn reports why a start of an app may not write a batch, or nil. Pure.
//
// An allocator writes who owns what, and each of its batches begins with its lease: that
// of one who has lost it is refused whole. An instance writes its own lease, what it has
// released, and objects. Everybody of the app may read all of it.
func mayOwn(app kbroker.AppName, who kbroker.Incarnation, writes []kbroker.Write) error {
	allocator := state.IsAllocatorOf(app, who)
	for i, w := range writes {
		k := subjects.ParseOwnKey(w.Key)
		may := false
		switch k.Table {
		case subjects.OwnUnknown:
			return kbroker.Errorf(kbroker.Invalid, "%.80q is not a key of app %s", w.Key, app)
		case subjects.OwnAllocatorLease:
			may = allocator && i == 0
		case subjects.OwnAssign, subjects.OwnHead:
			may = allocator
		case subjects.OwnLease:
			may = allocator || k.Incarnation == who
		case subjects.OwnRelease:
			may = true
		case subjects.OwnState, subjects.OwnOut, subjects.OwnDue:
			may = !allocator
		}
		if !may {
			return kbroker.Errorf(kbroker.Refused, "%s may not write %s of app %s", who, w.Key, app)
		}
	}
	if allocator {
		return behindLease(app, who, writes[0])
	}
	return nil
}

// behindLease refuses a batch of an allocator that does not begin with the own lease, by
// compare-and-set.
func behindLease(app kbroker.AppName, who kbroker.Incarnation, first kbroker.Write) error {
	var l kbroker.AllocatorLease
	switch {
	case first.Key != subjects.KeyAllocatorLease || first.Guard != "":
		return kbroker.Errorf(kbroker.Refused, "a batch of %s begins with %s, want the lease of app %s", who, first, app)
	case json.Unmarshal(first.Value, &l) != nil:
		return kbroker.Errorf(kbroker.Invalid, "the lease of app %s is not readable", app)
	case l.Holder != who:
		return kbroker.Errorf(kbroker.Refused, "%s may not write the lease of %.80q", who, l.Holder)
	}
	return nil
}
