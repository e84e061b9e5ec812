// Package state is the control store: typed records in a JetStream KV bucket,
// written by compare-and-set, read behind a barrier.
//
// It is the only package that may touch the bucket, and it is built so that no
// other package can break the rules of the store:
//
//   - only a Leader can write what super owns, and each of its writes is one
//     atomic batch whose first message rewrites the lease by compare-and-set: a
//     deposed leader's batch is refused whole;
//   - a host's head is computed here, in the batch that changes the host;
//   - a View is complete up to a nonce that was written after View was called;
//   - leases are judged on the observer's boottime clock; an allocator, which has no
//     right to a stream, holds its own through a core that decides nothing (Store.Lease).
//
// Each core keeps a replica of the bucket in memory (Store.Run), fed by the
// stream's republished messages; the stream's sequence has no gaps, so a missed
// message is seen at the next one and read again from the stream:
//
//	stream --republish--> follower --whole batches--> replica --> View, Peek
//	   ^                     |
//	   +---- batched reads --+-- gap, start, silence
//	   +---- nonce (barrier) ------- View asks: everything up to here
//
// No consumer is used: one that lives on a host that died can hang its reader
// for tens of seconds.
//
// What an app's allocators and instances store of who owns its objects, and of the objects,
// is in streams of the app. They have no right to one: a core reads and writes for them
// (Store.OwnRead, Store.OwnWrite), and decides nothing.
//
// Statuses have a bucket and a replica of their own, not behind the barrier.
// They are guarded by the report number of their host instead of a lease.
//
// The audit trail is a stream of its own, to which every core appends by
// compare-and-set on its end, so that its chain of hashes never forks. A change
// is in the batch that makes it, as one record more (PutAudit); the leader
// appends it to the trail, or the next leader does (TellChanges).
//
// With three replicas a batch is one entry of the log: all or nothing, whatever
// fails. With one replica a crash of its server may leave the beginning of the
// batch under way (never acknowledged). Batches are ordered so that this is a
// state to go on from; the heads that it leaves behind are mended by the leader,
// and HostView refuses a host until then.
package state
