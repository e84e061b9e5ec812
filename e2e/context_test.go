package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// useContexts uses the cluster as a person does: from a core host's data directory,
// by a context that was made of it, and with a plain client of NATS, which is given
// what was exported for the nats CLI and nothing else.
func useContexts(c *cluster) {
	c.t.Helper()
	config := c.t.TempDir()
	c.t.Setenv("XDG_CONFIG_HOME", config)
	core := filepath.Join(c.dir, "h1")
	c.must("status", "--context", core)
	wait.Until(c.t, 10*time.Second, func() error { // it follows the cluster
		raw, err := os.ReadFile(filepath.Join(core, client.ContextFile))
		if n := strings.Count(string(raw), "nats://"); err == nil && n != c.hosts {
			err = fmt.Errorf("it names %d cores, want %d", n, c.hosts)
		}
		return err
	})
	c.must("context", "add", "mine", "--from", core, "--use")
	c.must("status", "--context", "mine")
	c.must("context", "export", "mine")

	conn := c.natsCLI(config, "mine")
	defer conn.Close()
	reply, err := conn.Request(subjects.Method("hello", "hello", "greet"), []byte(`{"name":"Eve"}`), 5*time.Second)
	if err != nil || !strings.Contains(string(reply.Data), "Hello, Eve") {
		c.t.Errorf("a NATS client with the exported context is answered %v, %v; want a greeting", reply, err)
	}
	if cores := conn.Opts.Servers; len(cores) != c.hosts {
		c.t.Errorf("the URL is of %q, want those of all cores", cores)
	}
}

// natsCLI connects as the nats CLI does with a context that was exported; the
// caller closes it.
func (c *cluster) natsCLI(config, name string) *nats.Conn {
	c.t.Helper()
	raw, err := os.ReadFile(filepath.Join(config, "nats", "context", name+".json"))
	if err != nil {
		c.t.Fatal(err)
	}
	var written struct {
		URL         string `json:"url"`
		Creds       string `json:"creds"`
		CA          string `json:"ca"`
		InboxPrefix string `json:"inbox_prefix"`
	}
	if err := json.Unmarshal(raw, &written); err != nil {
		c.t.Fatal(err)
	}
	nc, err := nats.Connect(written.URL, nats.UserCredentials(written.Creds), nats.RootCAs(written.CA), nats.CustomInboxPrefix(written.InboxPrefix))
	if err != nil {
		c.t.Fatalf("a NATS client with %s: %v", raw, err)
	}
	return nc
}
