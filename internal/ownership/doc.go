// Package ownership decides who owns what of an app, and when what an object does takes
// effect: leases, takeover, moves, claims, commits, effect once. It is pure: events in,
// effects out, no clock, no I/O, no goroutine. The SDK drives an Owner, an allocator an
// Assigner; a simulator drives both in the tests of this package, with a store that
// answers late, clocks that drift, and processes that pause and die.
//
// # Names
//
// An incarnation is one start of an instance. It holds a lease, is assigned shards under
// an epoch that grows with every change of the owner, and claims each object of them by
// a compare-and-set before it first runs or reads it. The store compares revisions, not
// epochs: the claim is the fence.
//
// # An owner's shard
//
//	none --assigned to me--> owner --next is B--> releasing --silent, committed--> released
//	  \--next is me--> waiting --released to me at my epoch--^        |
//	                                                  cancelled: owner again
//
// # An object
//
//	cold --call--> loading --read--> claiming --accepted--> idle <--> reading
//	                  ^                                     |  ^
//	                  | refused, or not known               v  | accepted, then the reply leaves
//	                  +---------------------------------- turning --> committing
//
// # Invariants
//
//  1. A holder counts its term from when it sent the last renewal that was accepted. A
//     lease once lost is never held again: the incarnation owns nothing, and is silent.
//  2. An observer acts on a lease only after it has seen its revision unchanged for longer
//     than any holder counts, and revokes it in the batch by which it acts.
//  3. A shard has a new owner only after the one before has released it to that one, or
//     is out.
//  4. No turn and no read of an object starts while a write of it is outstanding.
//  5. A reply leaves after what it says is stored.
//
// rules.go names the rules, each of which a test takes away to see what breaks.
package ownership
