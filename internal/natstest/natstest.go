// Package natstest runs a real embedded NATS server inside a test.
package natstest

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Server is one running server with JetStream on a directory of the test.
type Server struct {
	URL string
	srv *server.Server
}

// Start runs a server on a port that the kernel picks and stops it when the
// test ends.
func Start(t testing.TB) *Server {
	t.Helper()
	return StartTLS(t, nil)
}

// StartTLS is Start with a server that takes clients in TLS alone; nil: in plain
// text.
func StartTLS(t testing.TB, secure *tls.Config) *Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{
		ServerName: "test", Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, Cluster: server.ClusterOpts{Name: "test"},
		JetStream: true, StoreDir: t.TempDir(), DisableJetStreamBanner: true,
		TLS: secure != nil, TLSConfig: secure, TLSTimeout: 5,
	})
	if err != nil {
		t.Fatalf("new server: %v", err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("embedded server not ready within 10 s")
	}
	return &Server{URL: s.ClientURL(), srv: s}
}

// Connect returns a connection that is closed when the test ends.
func (s *Server) Connect(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(s.URL, opts...)
	if err != nil {
		t.Fatalf("connect %s: %v", s.URL, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Shutdown stops the server now, as a test of what survives it.
func (s *Server) Shutdown() { s.srv.Shutdown(); s.srv.WaitForShutdown() }

// Listen has handle hear what comes on subject. The server knows of it when it
// returns, so that what another connection asks at once is heard.
func Listen(t testing.TB, nc *nats.Conn, subject string, handle nats.MsgHandler) {
	t.Helper()
	if _, err := nc.Subscribe(subject, handle); err != nil {
		t.Fatalf("subscribe to %s: %v", subject, err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatalf("subscribe to %s: %v", subject, err)
	}
}
