package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
)

// whyObjectReply is what `why` prints of an object.
type whyObjectReply struct {
	Object kbroker.ObjectDetail `json:"object"`
	Why    []string             `json:"why"`
}

// whyObject says why an object is where and as it is.
func (c *cli) whyObject(ctx context.Context, name string) error {
	app, o, err := kbroker.ParseObject(name)
	if err != nil {
		return err
	}
	ctx, api, done, err := c.connect(ctx, listTimeout)
	if err != nil {
		return err
	}
	defer done()
	row, err := api.App(ctx, app)
	if err != nil {
		return err
	}
	d, err := api.Object(ctx, app, o)
	if err != nil {
		return err
	}
	d.State = nil
	reply := whyObjectReply{d, append(whyOwned(d, row, time.Now()), whySo(d)...)}
	return c.print(reply, func(w io.Writer) {
		for _, sentence := range reply.Why {
			fmt.Fprintln(w, oneLine(sentence))
		}
	})
}

// whyOwned says who owns an object, and why. Pure.
func whyOwned(d kbroker.ObjectDetail, app kbroker.AppRow, now time.Time) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	when := ""
	if d.AssignedAt != nil {
		when = fmt.Sprintf(", decided %s ago (%s)", since(d.AssignedAt, now), d.AssignedAt.Local().Format("Jan 02 15:04:05"))
	}
	on := cmp.Or(string(d.Host), "an unknown host")
	switch {
	case d.Owner == "" && d.Placed:
		say("%s is not allocated, so that nobody owns it: sdk.Allocate has the app's allocator find a place for it (`kbroker allocator %s` says how much room there is).", d.Object, app.App)
	case d.Owner == "" && app.Stopped:
		say("%s is in shard %d, which nobody owns: the app is stopped; `kbroker restart %s` starts it again.", d.Object, d.Shard, app.App)
	case d.Owner == "":
		say("%s is in shard %d, which nobody owns: the app's allocator has given it to no instance yet (%d of %d instances are ready; `kbroker why %s` says more).", d.Object, d.Shard, app.Ready, app.Wanted, app.App)
	case d.Placed:
		say("%s is placed: the app's allocator has found %s on %s for it (epoch %d)%s.", d.Object, d.Owner, on, d.Epoch, when)
	case d.Epoch <= 1:
		say("%s is in shard %d, which %s on %s owns as the first owner%s.", d.Object, d.Shard, d.Owner, on, when)
	default:
		say("%s is in shard %d, which %s on %s owns at epoch %d: it had other owners before%s.", d.Object, d.Shard, d.Owner, on, d.Epoch, when)
	}
	switch {
	case d.Owner == "":
	case app.Stopped:
		say("The app is stopped: nobody serves it until `kbroker restart %s`.", app.App)
	case d.Placed && d.Lease == "revoked":
		say("The lease of %s was revoked, as it was silent for a term or had ended: the object goes to another instance.", d.Owner)
	case d.Placed && d.Lease == "leaving":
		say("%s is to leave: it moves to another instance.", d.Owner)
	case d.Lease == "revoked":
		say("The lease of %s was revoked, as it was silent for a term or had ended: the shard goes to another instance.", d.Owner)
	case d.Lease == "none":
		say("%s has no lease: it does not serve what it was given.", d.Owner)
	case d.Lease == "leaving":
		say("%s is to leave: its shards move to others.", d.Owner)
	}
	if d.Releasing {
		say("It is being released: its owner brings to an end what runs; then nobody owns it.")
	}
	if d.Moving != "" {
		say("It is moving to %s: its owner brings to an end what runs, and releases it.", d.Moving)
	}
	switch {
	case d.Wanted == "":
	case d.Wanted == d.Owner:
		say("Somebody has asked for it to be there; it stays while that start of %s lives.", d.Wanted)
	default:
		say("Somebody has asked for it to be at %s.", d.Wanted)
	}
	return out
}

// whySo says what an object does, and what keeps it from that. Pure.
func whySo(d kbroker.ObjectDetail) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	switch s := d.Seen; {
	case s == nil && d.Owner != "":
		say("What it does is not known: %s.", d.Silent)
	case s == nil:
	case s.Quarantine != "":
		say("It is in quarantine: %s. Its calls are refused until `kbroker objects release %s`, or until another instance owns it.", s.Quarantine, d.Object)
	case !s.Serves && d.Placed && d.Moving == "" && !d.Releasing:
		say("%s does not serve it yet, or any more.", d.Owner)
	case !s.Serves && d.Moving == "" && !d.Releasing:
		say("%s does not serve the shard yet, or any more.", d.Owner)
	case !s.Active:
		say("It is not in memory: its next call loads it.")
	case s.Mailbox > 0:
		say("It is in memory and %s; %d calls wait.", s.Phase, s.Mailbox)
	default:
		say("It is in memory and %s.", s.Phase)
	}
	durable := ""
	if d.Seen != nil {
		durable = d.Seen.Durable
	}
	switch interval, is := strings.CutPrefix(durable, kbroker.ObjectInterval); {
	case is:
		say("Its kind is stored up to %s after a call is answered: if its owner dies, what was answered in that time is lost.", interval)
	case durable == kbroker.ObjectEach:
		say("Its kind is stored before each answer: what was answered is not lost.")
	case durable == kbroker.ObjectNever:
		say("Its kind is never stored: it is gone when its owner ends, when it moves, and when it is put away.")
	}
	if !d.Stored && durable != kbroker.ObjectNever {
		say("Nothing is stored of it: it was never changed, or is deleted.")
	}
	return out
}
