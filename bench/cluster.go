package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/internal/credential"
)

const (
	benchHosts = 3
	// upBound and downBound are how long the cluster may take to come and go.
	upBound   = 2 * time.Minute
	downBound = 2 * time.Minute
	// outputBound is how long a command's output may stay open after its end.
	outputBound = 5 * time.Second
)

// cluster is one of its own, in a temporary folder.
type cluster struct {
	bin, dir string
	Cluster
}

// newCluster has a folder, and no hosts yet; bin is the kbroker program.
func newCluster(bin string) (*cluster, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "kbroker-bench-")
	if err != nil {
		return nil, err
	}
	return &cluster{bin: bin, dir: dir}, nil
}

// startCluster starts three hosts with the kbroker program bin.
func startCluster(ctx context.Context, bin string) (*cluster, error) {
	c, err := newCluster(bin)
	if err != nil {
		return nil, err
	}
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *cluster) start(ctx context.Context) error {
	if _, err := c.up(ctx); err != nil {
		return err
	}
	out, err := c.run(ctx, "hosts", "-o", "json")
	if err != nil {
		return err
	}
	if c.Servers, err = serversOf(out); err != nil {
		return err
	}
	return c.identify(ctx)
}

// up starts the hosts and returns what the command says.
func (c *cluster) up(ctx context.Context, more ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, upBound)
	defer cancel()
	return c.run(ctx, append([]string{"up", "--hosts", strconv.Itoa(benchHosts), "--dir", c.dir}, more...)...)
}

// envCA names the file of a cluster's roots, envCreds that of a credential, for all
// that call it: the peers connect over the same TLS, as instances of the same service.
const (
	envCA    = "NATS_CA"
	envCreds = "NATS_CREDS"
)

// identify notes what the peers need to connect: of an earlier commit, less or nothing.
func (c *cluster) identify(ctx context.Context) error {
	target, err := client.Find(c.dir)
	if err != nil {
		return err
	}
	if target.CA != "" {
		roots := filepath.Join(c.dir, "ca.pem")
		if err := os.WriteFile(roots, []byte(target.CA), 0o600); err != nil {
			return err
		}
		c.Environ = append(c.Environ, envCA+"="+roots)
	}
	if target.Credential == "" {
		return nil
	}
	own, err := credential.New()
	if err != nil {
		return err
	}
	api, err := client.Open(ctx, target, "bench")
	if err != nil {
		return err
	}
	defer api.Close()
	signed, err := api.Develop(ctx, kbroker.DevelopRequest{
		App: "bench", Service: "echo", Instance: "bench-echo-dev", Incarnation: "bench-echo-dev.1",
	}, own)
	if err != nil {
		return err
	}
	creds := filepath.Join(c.dir, "instance.creds")
	c.Environ = append(c.Environ, envCreds+"="+creds)
	return own.Signed(signed).Save(creds)
}

// serversOf reads the URLs out of the JSON of `kbroker hosts`.
func serversOf(hosts []byte) ([]string, error) {
	var rows []kbroker.HostRow
	if err := json.Unmarshal(hosts, &rows); err != nil {
		return nil, fmt.Errorf("decode hosts: %w", err)
	}
	var servers []string
	for _, r := range rows {
		if r.Client == "" || r.State != kbroker.HostReady {
			return nil, fmt.Errorf("host %s is %s at %q, want it ready at an address", r.Name, r.State, r.Client)
		}
		servers = append(servers, "nats://"+r.Client)
	}
	if len(servers) != benchHosts {
		return nil, fmt.Errorf("the cluster has %d hosts, want %d", len(servers), benchHosts)
	}
	return servers, nil
}

// close takes the cluster down and removes its folder, which stays if that
// fails: what runs on is found by it.
func (c *cluster) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), downBound)
	defer cancel()
	if _, err := c.run(ctx, "down", "--dir", c.dir); err != nil {
		return fmt.Errorf("%w\nwhat is left is in %s", err, c.dir)
	}
	return os.RemoveAll(c.dir)
}

func (c *cluster) run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.bin, args...)
	cmd.Env = append(os.Environ(), "KBROKER_DIR="+c.dir)
	cmd.Dir = c.dir // neither a .kbroker nor an app.yaml of the caller's folder
	cmd.WaitDelay = outputBound
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %v: %w: %s", filepath.Base(c.bin), args, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
