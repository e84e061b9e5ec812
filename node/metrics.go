package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/kbroker/kbroker"
)

// Each part of a host has metrics of its own; the host serves them all, over
// HTTP, on a socket in its data directory, for who may read that: GET /metrics,
// and the profiles of the Go runtime under /debug/pprof/. It listens on no port.
const (
	metricsFile = "metrics.sock"
	metricsPath = "/metrics"
	// maxSocketPath is what the kernel takes as the path of a socket: 108 bytes,
	// the last of them zero; unix(7).
	maxSocketPath = 107
	// scrapeWithin bounds an answer, maxScrapes how many are made at once.
	scrapeWithin = 5 * time.Second
	maxScrapes   = 4
	// requestWithin is how long a client may take to say what it wants.
	requestWithin = 5 * time.Second
	// scrapesEnd is how long those who are served may take when the host stops.
	scrapesEnd = time.Second
)

// metrics are those of one host, from openMetrics to close.
type metrics struct {
	*prometheus.Registry
	log    *slog.Logger
	server *http.Server
	cancel context.CancelFunc // ends what is served
	served chan struct{}      // closed when nobody listens any more
}

// openMetrics serves the metrics of the host of dir, which the caller has locked.
// A host runs without them too: what speaks against it is in the log.
func openMetrics(dir string, log *slog.Logger) *metrics {
	ctx, cancel := context.WithCancel(context.Background())
	m := &metrics{Registry: prometheus.NewRegistry(), log: log, cancel: cancel, served: make(chan struct{})}
	m.MustRegister(
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewBuildInfoCollector(),
	)
	m.server = &http.Server{
		Handler: m.handler(), ReadHeaderTimeout: requestWithin, IdleTimeout: time.Minute,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	listener, err := listenIn(dir)
	if err != nil {
		log.Warn("the host runs without metrics", "err", err)
		close(m.served)
		return m
	}
	go func() {
		defer close(m.served)
		if err := m.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("metrics are not served any more", "err", err)
		}
	}()
	return m
}

// close ends what is served, and removes the socket. It takes scrapesEnd at most:
// an answer that hangs by then, in a lock of a part, holds up no stop.
func (m *metrics) close() {
	m.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), scrapesEnd)
	defer cancel()
	if err := m.server.Shutdown(ctx); err != nil {
		_ = m.server.Close() // it has waited for somebody who is silent
	}
	<-m.served
}

func (m *metrics) handler() http.Handler {
	mux := http.NewServeMux()
	// On a socket of this machine compression costs more than it saves.
	mux.Handle("GET "+metricsPath, promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(m.log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		Timeout: scrapeWithin, MaxRequestsInFlight: maxScrapes, DisableCompression: true,
	}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// listenIn listens on the socket of a data directory, in the place of one that an
// agent has left which was killed.
func listenIn(dir string) (net.Listener, error) {
	path := filepath.Join(dir, metricsFile)
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() == fs.ModeSocket {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace the old socket: %w", err)
	}
	// The file that is bound gets the mode of the socket: there is no moment in
	// which others may connect.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = syscall.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}}
	return private.Listen(context.Background(), "unix", path)
}

func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return kbroker.Errorf(kbroker.Invalid, "the path of the socket has %d bytes, the kernel takes %d: %s", len(path), maxSocketPath, path).
			WithHint("a data directory with a shorter path has metrics")
	}
	return nil
}
