package connect

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker/internal/natstest"
)

func TestWhoGreets(t *testing.T) {
	says := func(what string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = c.Write([]byte(what))
				t.Cleanup(func() { _ = c.Close() })
			}
		}()
		return l.Addr().String()
	}
	host := func(url string) string { return strings.TrimPrefix(url, "nats://") }
	for name, tc := range map[string]struct {
		addr, cluster string
		there, err    bool
	}{
		"a server":                    {host(natstest.Start(t).URL), "test", true, false},
		"nobody":                      {host(refused(t)), "", false, true},
		"one that hangs":              {host(silent(t)), "", true, true},
		"another program":             {says("SSH-2.0-x\r\n"), "", true, true},
		"one that says too much":      {says("INFO " + strings.Repeat("x", maxGreeting)), "", true, true},
		"one that says no JSON":       {says("INFO x\r\n"), "", true, true},
		"one that is of no cluster":   {says("INFO {}\r\n"), "", true, false},
		"one that says a cluster":     {says("INFO {\"cluster\":\"kb-1\"}\r\n"), "kb-1", true, false},
		"one that says a half of one": {says("INFO {\"cluster\":"), "", true, true},
	} {
		t.Run(name, func(t *testing.T) {
			there, cluster, err := Greeting(t.Context(), tc.addr, 300*time.Millisecond)
			if there != tc.there || cluster != tc.cluster || (err != nil) != tc.err {
				t.Errorf("there %t, cluster %q, %v", there, cluster, err)
			}
		})
	}
}
