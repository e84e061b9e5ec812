package sdk

import (
	"time"

	"github.com/kbroker/kbroker"
)

// figuresEvery is how old what is told of objects to the agent may be.
const figuresEvery = 500 * time.Millisecond

// figure has the figures of now told to the agent, when it asks next, and to the allocator.
func (k *keeper) figure(now time.Duration) {
	f := k.owner.Figures()
	k.queued.Store(int64(f.Waiting))
	if k.figured != 0 && now-k.figured < figuresEvery {
		return
	}
	k.figured = max(now, 1)
	l := k.shardLoads.busiest(now)
	var shards int
	shards, l.placed = k.owner.Serves()
	k.busiest.Store(&l)
	k.app.figures.Store(&kbroker.ObjectFigures{
		Turns: f.Turns, Reads: f.Reads, Refused: f.Refused, Activations: f.Activations, Commits: f.Commits, CommitsRefused: f.CommitsRefused,
		ShardsTaken: f.Taken, TakingS: f.TakenFor.Seconds(), ShardsReleased: f.Released, ReleasingS: f.ReleasedFor.Seconds(),
		Shards: shards, Active: len(k.active), Outbox: f.Messages,
	})
}
