package child

import "context"

// Peer is one way to send a request to another process and get its reply. What
// is measured is the same for all: the reply is the request's bytes.
type Peer interface {
	// Name is the peer's word in the keys of the result.
	Name() string
	// Serve answers requests until ctx ends, then returns nil. It calls ready
	// once, when requests can come, with what Dial needs to know of this
	// responder: an address, or nothing for those who meet at the broker.
	Serve(ctx context.Context, env Env, ready func(address string)) error
	// Dial connects a process that calls; responders are what they said.
	Dial(ctx context.Context, env Env, responders []string) (Caller, error)
}

// Caller is a connected process that calls. Call is safe for concurrent use.
type Caller interface {
	// Call returns the reply to one request. A failure is final for the round.
	Call(ctx context.Context, payload []byte) ([]byte, error)
	Close()
}

// Env is what the cluster offers to a process of a peer.
type Env struct {
	// Servers are the nats:// URLs of the hosts, that of the own host first.
	Servers []string `json:"servers"`
}
