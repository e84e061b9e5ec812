package broker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestDirectoryBelongsToOneHostOfOneCluster(t *testing.T) {
	other := []kbroker.CoreAddr{{Host: "z", Client: "127.0.0.1:1", Route: "127.0.0.1:2"}}
	joiner := func(c *Config) { c.Found, c.Cores = false, other }
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, cfg *Config)
		again   func(cfg *Config)
		want    error
	}{
		{"the same host starts again", nil, func(*Config) {}, nil},
		{"a founder needs no flag to start again", nil, func(c *Config) { c.Found = false }, nil},
		{"another host is refused", nil, func(c *Config) { c.Host = "b" }, kbroker.Refused},
		{"another cluster is refused", nil, func(c *Config) { c.ClusterID = "other" }, kbroker.Refused},
		{"a joined host cannot found", func(_ *testing.T, c *Config) { joiner(c) }, func(c *Config) { c.Found = true }, kbroker.Refused},
		{"an empty directory cannot found a cluster that has cores", func(t *testing.T, c *Config) {
			c.Dir = t.TempDir()
			c.Found, c.Cores = true, other
		}, nil, kbroker.Refused},
		{"data without an identity is refused", func(t *testing.T, c *Config) { mkdir(t, c.Dir, storeDir) }, nil, kbroker.Refused},
		{"a joined host whose store is gone is refused", func(t *testing.T, c *Config) {
			joiner(c)
			mkdir(t, c.Dir)
			write(t, filepath.Join(c.Dir, joinedFile), "")
		}, func(*Config) {}, kbroker.Refused},
		{"a joined host with its store starts again, and need not know the others", func(t *testing.T, c *Config) {
			joiner(c)
			mkdir(t, c.Dir)
			write(t, filepath.Join(c.Dir, joinedFile), "")
		}, func(c *Config) {
			c.Cores = nil
			if err := os.MkdirAll(filepath.Join(c.Dir, storeDir, metaDir(testGrants.System())), 0o700); err != nil {
				panic(err)
			}
		}, nil},
		{"a fresh joiner must know a core", func(_ *testing.T, c *Config) { c.Found = false }, nil, kbroker.Invalid},
		{"a port must be fixed", func(_ *testing.T, c *Config) { c.RouteAddr = "127.0.0.1:0" }, nil, kbroker.Invalid},
		{"a host name must be one", func(_ *testing.T, c *Config) { c.Host = "a.witness" }, nil, kbroker.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{
				Host: "a", ClusterID: "one", Grants: testGrants, Dir: filepath.Join(t.TempDir(), "broker"), Found: true,
				ClientAddr: "127.0.0.1:4222", RouteAddr: "127.0.0.1:6222",
			}
			if c.prepare != nil {
				c.prepare(t, &cfg)
			}
			_, err := New(cfg)
			if c.again != nil {
				if err != nil {
					t.Fatalf("first start: %v", err)
				}
				c.again(&cfg)
				_, err = New(cfg)
			}
			if c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
				t.Fatalf("New: %v, want %v", err, c.want)
			}
			if e := kbroker.AsError(err); errors.Is(c.want, kbroker.Refused) && e.Hint == "" {
				t.Errorf("refused without a hint: %v", err)
			}
		})
	}
}

func mkdir(t *testing.T, path ...string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(path...), 0o700); err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTornIdentityIsAnError(t *testing.T) {
	cfg := Config{Host: "a", ClusterID: "one", Grants: testGrants, Dir: t.TempDir(), Found: true, ClientAddr: "127.0.0.1:4222", RouteAddr: "127.0.0.1:6222"}
	write(t, filepath.Join(cfg.Dir, identityFile), `{"cluster_`)
	if _, err := New(cfg); err == nil {
		t.Error("a torn identity was taken")
	}
}
