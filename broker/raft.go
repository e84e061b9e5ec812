package broker

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"github.com/nats-io/nats-server/v2/server"
)

// The timing of raft is not an option of the server but package variables of
// it ("can be changed for tests"). With their stock values no failover is
// faster than 4 to 9 s. docs/adr/0002-raft-timing.md says what was weighed.
//
// A renamed variable would still link, as a new one with the value zero: so
// nothing is assigned before every variable was seen with its stock value.

//go:linkname minElectionTimeout github.com/nats-io/nats-server/v2/server.minElectionTimeout
var minElectionTimeout time.Duration

//go:linkname maxElectionTimeout github.com/nats-io/nats-server/v2/server.maxElectionTimeout
var maxElectionTimeout time.Duration

//go:linkname hbInterval github.com/nats-io/nats-server/v2/server.hbInterval
var hbInterval time.Duration

//go:linkname lostQuorumInterval github.com/nats-io/nats-server/v2/server.lostQuorumInterval
var lostQuorumInterval time.Duration

//go:linkname lostQuorumCheck github.com/nats-io/nats-server/v2/server.lostQuorumCheck
var lostQuorumCheck time.Duration

// The way to the meta group's raft node, for the nudge of a founder's restart.
// A renamed function does not link.

//go:linkname serverJetStream github.com/nats-io/nats-server/v2/server.(*Server).getJetStream
func serverJetStream(*server.Server) unsafe.Pointer

//go:linkname jetStreamMeta github.com/nats-io/nats-server/v2/server.(*jetStream).getMetaGroup
func jetStreamMeta(unsafe.Pointer) server.RaftNode

// raftTime is one variable of the server.
type raftTime struct {
	name         string
	value        *time.Duration
	stock, tuned time.Duration
}

// raftTimes holds stock values of nats-server 2.15.2, server/raft.go. The lost
// quorum values are initialised from constants there: a changed heartbeat does
// not move them.
var raftTimes = []raftTime{
	{"minElectionTimeout", &minElectionTimeout, 4 * time.Second, 1500 * time.Millisecond},
	{"maxElectionTimeout", &maxElectionTimeout, 9 * time.Second, 3 * time.Second},
	{"hbInterval", &hbInterval, time.Second, 300 * time.Millisecond},
	{"lostQuorumInterval", &lostQuorumInterval, 10 * time.Second, 3 * time.Second},
	{"lostQuorumCheck", &lostQuorumCheck, 10 * time.Second, 3 * time.Second},
}

// tune sets all variables, or none if one does not have its stock value.
func tune(times []raftTime) error {
	for _, t := range times {
		if *t.value != t.stock {
			return fmt.Errorf("raft timing: %s is %v, want its stock value %v: it was renamed or changed in this version of the server", t.name, *t.value, t.stock)
		}
	}
	for _, t := range times {
		*t.value = t.tuned
	}
	return nil
}

// tuneOnce tunes the process: the variables belong to all its servers and are
// read by their goroutines, so they are set before the first one is made.
var tuneOnce = sync.OnceValue(func() error { return tune(raftTimes) })

// nudge makes a server campaign for the meta group within 0.8 s instead of an
// election timeout. It is the call a bootstrapping server makes itself and only
// resets the election timer.
func nudge(s *server.Server) error {
	js := serverJetStream(s)
	if js == nil {
		return fmt.Errorf("server %s has no JetStream", s.Name())
	}
	meta := jetStreamMeta(js)
	if meta == nil {
		return fmt.Errorf("server %s has no meta group", s.Name())
	}
	return meta.Campaign()
}
