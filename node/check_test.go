package node

import (
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestAConfigurationIsCheckedAgainstItsDirectory(t *testing.T) {
	found := Config{Name: "a", Found: true, Advertise: "10.0.0.1"}
	member := membership{ClusterID: "kb-1", Host: "a", Role: kbroker.RoleCore, Client: "10.0.0.1:4222", Route: "10.0.0.1:6222"}
	named := membership{Host: "a", Role: kbroker.RoleCore, Client: "10.0.0.1:4222", Route: "10.0.0.1:6222"}
	gone := membership{ClusterID: "kb-1", Host: "a", Role: kbroker.RoleCore, Removed: true}
	with := func(change func(*Config)) Config {
		c := found
		change(&c)
		return c
	}
	for name, tc := range map[string]struct {
		cfg  Config
		has  *membership
		want string // part of the error; empty: accepted
	}{
		"a founder": {cfg: found},
		"a member needs nothing but its directory":   {cfg: Config{}, has: &member},
		"a member may be told what it knows":         {cfg: found, has: &member},
		"a member under another name":                {cfg: with(func(c *Config) { c.Name = "b" }), has: &member, want: "name is b"},
		"a member on another port":                   {cfg: with(func(c *Config) { c.ClientPort = 1 }), has: &member, want: "client address is 1"},
		"a member in another role":                   {cfg: with(func(c *Config) { c.Role = kbroker.RoleWorker }), has: &member, want: "role is worker"},
		"a removed one":                              {cfg: found, has: &gone, want: "was removed from cluster kb-1"},
		"one that waits to be admitted goes on":      {cfg: Config{Join: []string{"10.0.0.2:4222"}, TokenFile: "-"}, has: &named},
		"one that waits still has to know whom":      {cfg: Config{Name: "a"}, has: &named, want: "belongs to no cluster yet"},
		"one that waits may begin again":             {cfg: Config{Name: "b", Join: []string{"10.0.0.2:4222"}, TokenFile: "-", Advertise: "10.0.0.1"}, has: &named},
		"a host that joins without a token":          {cfg: Config{Name: "b", Join: []string{"10.0.0.2:4222"}, Advertise: "10.0.0.1"}, want: "needs a token to join"},
		"a worker that joins without a token":        {cfg: Config{Name: "w", Role: kbroker.RoleWorker, Join: []string{"10.0.0.2:4222"}}, want: "needs a token to join"},
		"a host whose token is not there":            {cfg: Config{Name: "b", Join: []string{"10.0.0.2:4222"}, TokenFile: "/none", Advertise: "10.0.0.1"}, want: "there is no file /none"},
		"a host whose token is something else":       {cfg: Config{Name: "b", Join: []string{"10.0.0.2:4222"}, TokenFile: "check_test.go", Advertise: "10.0.0.1"}, want: "check_test.go: this is not a join token"},
		"a member whose token has gone":              {cfg: Config{TokenFile: "/none"}, has: &member},
		"beginning again needs what a beginning is":  {cfg: Config{Name: "b", Join: []string{"10.0.0.2:4222"}}, has: &named, want: "advertise is"},
		"every address of the host is no address":    {cfg: with(func(c *Config) { c.Advertise = "0.0.0.0" }), want: `advertise is "0.0.0.0"`},
		"a name is no address":                       {cfg: with(func(c *Config) { c.Advertise = "a.example.com" }), want: "want the IP"},
		"a member with an address that is none":      {cfg: with(func(c *Config) { c.Advertise = "x" }), has: &member, want: "want the IP"},
		"no directory":                               {cfg: with(func(c *Config) { c.Dir = "none" }), want: "dir is empty"},
		"a core to join that cannot be one":          {cfg: Config{Name: "a", Join: []string{":4222"}, Advertise: "10.0.0.1"}, want: `join is ":4222"`},
		"a port that is none":                        {cfg: with(func(c *Config) { c.RoutePort = 65536 }), want: "route port is 65536"},
		"one port for two":                           {cfg: with(func(c *Config) { c.ClientPort, c.RoutePort = 5, 5 }), want: "both 5"},
		"a label without a value":                    {cfg: with(func(c *Config) { c.Labels = map[string]string{"disk": ""} }), want: "label disk="},
		"a worker that has picked its name founding": {cfg: Config{Found: true}, has: &membership{Host: "w", Role: kbroker.RoleWorker}, want: "a worker cannot found"},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		if tc.has != nil {
			raw, err := json.Marshal(tc.has)
			if err := errors.Join(err, os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, membershipFile), raw, 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		tc.cfg.Dir = map[bool]string{true: "", false: dir}[tc.cfg.Dir == "none"]
		before := tree(t, filepath.Dir(dir))
		err := tc.cfg.Check()
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if after := tree(t, filepath.Dir(dir)); !maps.Equal(before, after) {
			t.Errorf("%s: the directory was %v, is %v", name, slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after)))
		}
	}
}

// tree is every file below dir, by its path.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			files[path] = "directory"
			return err
		}
		raw, err := os.ReadFile(path)
		files[path] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
