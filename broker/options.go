package broker

import (
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of a core's server.
const (
	// pingInterval and maxPingsOut find a dead or frozen peer at the third
	// tick, on client connections and routes alike: three ticks and a new
	// connection take less than three seconds.
	pingInterval = 900 * time.Millisecond
	maxPingsOut  = 2

	// handshake bounds that of TLS: a core that starts is busy.
	handshake = 5 * time.Second

	// routePool must be the same on all cores.
	routePool = 3

	// maxPayloadBytes of one message.
	maxPayloadBytes = 1 << 20

	// memoryStoreBytes: nothing of kbroker is stored in memory; this is for
	// what operators create by hand.
	memoryStoreBytes = 64 << 20
	// storeShare is the part of the disk, as this directory finds it, that
	// JetStream may fill.
	storeShare = 2 // one half
	// witnessStoreBytes is too little for any stream; the witness's own log
	// of the meta group does not count.
	witnessStoreBytes = 1 << 20

	// Open atomic batches: one per instance and object stream, a super and
	// the cores' reports. The server's own defaults are 50 and 1000.
	batchesPerStream = 1000
	batchesPerServer = 5000

	// The server takes the number of its routes for the number of members to
	// expect, and a majority of these must vote for the first meta leader.
	// foundRoutes are the core and its witness. joinRoutes are for a fresh
	// joiner: they are so many that all cores that can be fresh at once, if
	// they do not find the others, are no majority that could elect a leader of
	// a cluster of their own.
	foundRoutes = 2
	maxCores    = 5
	joinRoutes  = 2*(maxCores-1) + 1
)

// Tags of the witness; those of cores are in subjects.
const (
	tagWitness     = "witness"
	tagNoPlacement = "!jetstream" // the server itself keeps everything off it
)

// witnessSuffix makes the witness's server name; no host's name has a dot.
const witnessSuffix = ".witness"

func witnessName(h kbroker.HostID) string { return string(h) + witnessSuffix }

// baseOptions are what the core's server and its witness have in common.
func baseOptions(cfg Config, acc *accounts) (*server.Options, error) {
	o := &server.Options{
		NoSigs: true, DisableJetStreamBanner: true,
		JetStream: true, SyncAlways: true,
		PingInterval: pingInterval, MaxPingsOut: maxPingsOut,
		MaxPayload: maxPayloadBytes,
		Cluster: server.ClusterOpts{
			Name: cfg.ClusterID, PoolSize: routePool,
			PingInterval: pingInterval, MaxPingsOut: maxPingsOut,
			TLSConfig: cfg.Routes, TLSTimeout: handshake.Seconds(),
		},
		// The server waits for LameDuckGracePeriod after it has told clients to
		// leave, then sends away who is left, in the rest of LameDuckDuration.
		LameDuckGracePeriod: clientsLeave, LameDuckDuration: clientsLeave + sendAway,
	}
	if cfg.Clients != nil {
		o.TLS, o.TLSConfig, o.TLSTimeout = true, cfg.Clients, handshake.Seconds()
	}
	return o, acc.apply(o)
}

// coreOptions are those of the core's own server.
func coreOptions(cfg Config, acc *accounts, routes []*url.URL) (*server.Options, error) {
	o, err := baseOptions(cfg, acc)
	if err != nil {
		return nil, err
	}
	o.ServerName = string(cfg.Host)
	o.StoreDir = filepath.Join(cfg.Dir, storeDir)
	o.Tags.Add(subjects.TagCore, subjects.TagHost(cfg.Host))
	o.Routes = routes
	o.JetStreamMaxMemory = memoryStoreBytes
	o.JetStreamLimits = server.JSLimitOpts{
		MaxBatchInflightPerStream: batchesPerStream,
		MaxBatchInflightTotal:     batchesPerServer,
	}
	if o.JetStreamMaxStore, err = storeBytes(cfg.Dir); err != nil {
		return nil, err
	}
	if o.Host, o.Port, err = hostPort("client", cfg.ClientAddr); err != nil {
		return nil, err
	}
	if o.Cluster.Host, o.Cluster.Port, err = hostPort("route", cfg.RouteAddr); err != nil {
		return nil, err
	}
	return o, nil
}

// witnessOptions are those of the witness: a voter of the meta group beside
// the founding core, that holds no data and that no client is told of. Its
// ports are new at each start; the others learn its route from the core's.
func witnessOptions(cfg Config, acc *accounts, routes []*url.URL) (*server.Options, error) {
	o, err := baseOptions(cfg, acc)
	if err != nil {
		return nil, err
	}
	o.ServerName = witnessName(cfg.Host)
	o.StoreDir = filepath.Join(cfg.Dir, witnessDir)
	o.Tags.Add(tagWitness, tagNoPlacement)
	o.Routes = routes
	o.JetStreamMaxMemory, o.JetStreamMaxStore = witnessStoreBytes, witnessStoreBytes
	// Listening is not optional: a clustered server that does not listen for
	// clients never starts its routes.
	o.Host, o.Port = "127.0.0.1", server.RANDOM_PORT
	host, _, err := hostPort("route", cfg.RouteAddr)
	if err != nil {
		return nil, err
	}
	o.Cluster.Host, o.Cluster.Port, o.Cluster.NoAdvertise = host, server.RANDOM_PORT, true
	return o, nil
}

// coreRoutes are the routes of a core: its own and those of all cores it
// knows. Until it has joined they are repeated to the number of members that it
// must expect. The witness is not among them: it dials the core, so that
// nothing dials it when it is gone.
func coreRoutes(cfg Config, id identity, joined bool) []*url.URL {
	var routes []*url.URL
	for _, c := range cfg.Cores {
		if c.Host != cfg.Host {
			routes = append(routes, routeURL(c.Route))
		}
	}
	routes = append(routes, routeURL(cfg.RouteAddr))
	switch {
	case joined:
		return routes
	case id.Founder:
		return repeat(routes, foundRoutes)
	default:
		return repeat(routes, joinRoutes)
	}
}

// witnessRoutes lead to the core beside it. Once a cluster is founded a witness
// may start with an empty directory (it was removed, and then the power went):
// then it must not lead.
func witnessRoutes(cfg Config, joined bool) []*url.URL {
	own := []*url.URL{routeURL(cfg.RouteAddr)}
	if joined {
		return repeat(own, joinRoutes)
	}
	return repeat(own, foundRoutes)
}

// repeat repeats routes in turn until there are n.
func repeat(routes []*url.URL, n int) []*url.URL {
	for i := 0; len(routes) < n; i++ {
		routes = append(routes, routes[i])
	}
	return routes
}

func routeURL(addr string) *url.URL { return &url.URL{Scheme: "nats-route", Host: addr} }

func hostPort(what, addr string) (string, int, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, kbroker.Errorf(kbroker.Invalid, "%s address %q: %v", what, addr, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 || host == "" {
		return "", 0, kbroker.Errorf(kbroker.Invalid, "%s address %q: want host:port with a fixed port", what, addr)
	}
	return host, n, nil
}

// storeBytes is what JetStream may fill: a share of what is free on dir's disk
// now and of what the store holds already.
func storeBytes(dir string) (int64, error) {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("size of the disk under %s: %w", dir, err)
	}
	used, err := usedBytes(filepath.Join(dir, storeDir))
	if err != nil {
		return 0, err
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	return (free + used) / storeShare, nil
}
