package node

import (
	"context"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/broker"
	"github.com/kbroker/kbroker/super"
)

// membersOf is what the broker sees of its members, for super.
func membersOf(b *broker.Broker) super.Members {
	seen := b.Members()
	out := super.Members{
		Known: seen.Leader, Current: seen.Current, Replicas: seen.Replicas, Writable: b.Writable(),
		Unsettled: seen.Unsettled, Witness: b.HasWitness(), Alone: map[kbroker.HostID]string{},
	}
	for _, s := range seen.Streams {
		if s.Replicas == 1 && s.Leader != "" {
			out.Alone[s.Leader] = s.Name
		}
	}
	return out
}

// coreCheckup looks at the broker within ctx.
func coreCheckup(ctx context.Context, b *broker.Broker) kbroker.CoreCheckup {
	fresh := b.Look(ctx) == nil
	seen := b.Members()
	out := kbroker.CoreCheckup{
		Fresh: fresh, Leader: seen.Leader, Current: seen.Current, Replicas: seen.Replicas,
		Settled: seen.Settled, Unsettled: seen.Unsettled, Mirrored: seen.Mirrored, Writable: b.Writable(),
	}
	for _, s := range seen.Streams {
		out.Streams = append(out.Streams, kbroker.StreamCheckup(s))
	}
	return out
}
