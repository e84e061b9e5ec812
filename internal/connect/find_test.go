package connect

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/pki"
)

// world is a machine on which nothing is configured yet.
type world struct {
	t                 *testing.T
	root, config, cwd string
}

func newWorld(t *testing.T) world {
	t.Helper()
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	w := world{t, root, filepath.Join(root, "config"), filepath.Join(root, "src", "deep")}
	for _, dir := range []string{w.cwd, filepath.Join(w.config, "kbroker", "contexts")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{EnvInstance, EnvDir, EnvContext, EnvURL, EnvCA, EnvCreds} {
		t.Setenv(name, "")
	}
	t.Setenv("XDG_CONFIG_HOME", w.config)
	t.Setenv("HOME", root)
	t.Chdir(w.cwd)
	return w
}

// cluster makes a directory with a context whose server is named after it.
func (w world) cluster(path ...string) string {
	w.t.Helper()
	dir := filepath.Join(append([]string{w.root}, path...)...)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := WriteContext(dir, Context{Servers: []string{"nats://" + filepath.Base(dir) + ":1"}}); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

func (w world) write(content string, path ...string) string {
	w.t.Helper()
	file := filepath.Join(append([]string{w.root}, path...)...)
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return file
}

func (w world) named(name, server string) {
	w.write(`{"servers":["`+server+`"],"tenant":"acme"}`, "config", "kbroker", "contexts", name+".json")
}

func (w world) instance() string {
	b, err := json.Marshal(kbroker.InstanceFile{App: "a", Service: "s", Instance: "a-s-1", Incarnation: "a-s-1.0", Servers: []string{"nats://own:1", "nats://other:1"}})
	if err != nil {
		w.t.Fatal(err)
	}
	return w.write(string(b), "instance.json")
}

func TestFindTakesTheFirstPlaceThatNamesACluster(t *testing.T) {
	for _, c := range []struct {
		name    string
		flag    string
		prepare func(w world)
		servers []string
		tenant  kbroker.TenantID
		source  string // contained
	}{
		{
			"NATS_URL alone", "", func(w world) { w.t.Setenv(EnvURL, "nats://a:1, nats://b:2") },
			[]string{"nats://a:1", "nats://b:2"},
			"default", "NATS_URL=",
		},
		{"the current context before NATS_URL", "", func(w world) {
			w.t.Setenv(EnvURL, "nats://a:1")
			w.named("prod", "nats://prod:1")
			w.write("prod\n", "config", "kbroker", "current")
		}, []string{"nats://prod:1"}, "acme", "current context prod"},
		{".kbroker above before the current context", "", func(w world) {
			w.named("prod", "nats://prod:1")
			w.write("prod\n", "config", "kbroker", "current")
			w.cluster("src", LocalDir)
		}, []string{"nats://.kbroker:1"}, "default", filepath.Join("src", LocalDir)},
		{"the nearest .kbroker", "", func(w world) {
			w.cluster(LocalDir)
			w.cluster("src", "deep", LocalDir)
		}, []string{"nats://.kbroker:1"}, "default", filepath.Join("src", "deep", LocalDir)},
		{"a .kbroker without a context is not one", "", func(w world) {
			w.cluster(LocalDir)
			if err := os.Mkdir(filepath.Join(w.cwd, LocalDir), 0o700); err != nil {
				w.t.Fatal(err)
			}
		}, []string{"nats://.kbroker:1"}, "default", LocalDir},
		{"KBROKER_CONTEXT before .kbroker", "", func(w world) {
			w.cluster(LocalDir)
			w.named("prod", "nats://prod:1")
			w.t.Setenv(EnvContext, "prod")
		}, []string{"nats://prod:1"}, "acme", "KBROKER_CONTEXT=prod"},
		{"KBROKER_CONTEXT as a path", "", func(w world) {
			w.t.Setenv(EnvContext, filepath.Join(w.cluster("here"), ContextFile))
		}, []string{"nats://here:1"}, "default", "KBROKER_CONTEXT="},
		{"KBROKER_DIR before KBROKER_CONTEXT", "", func(w world) {
			w.named("prod", "nats://prod:1")
			w.t.Setenv(EnvContext, "prod")
			w.t.Setenv(EnvDir, w.cluster("mine"))
		}, []string{"nats://mine:1"}, "default", "KBROKER_DIR="},
		{"the instance file before KBROKER_DIR", "", func(w world) {
			w.t.Setenv(EnvDir, w.cluster("mine"))
			w.t.Setenv(EnvInstance, w.instance())
		}, []string{"nats://own:1", "nats://other:1"}, "default", "KBROKER_INSTANCE="},
		{
			"the flag before all: URLs", "nats://x:1,nats://y:1", func(w world) { w.t.Setenv(EnvInstance, w.instance()) },
			[]string{"nats://x:1", "nats://y:1"},
			"default", "flag nats://x:1",
		},
		{
			"the flag: a directory", "mine", func(w world) { w.cluster("src", "deep", "mine") },
			[]string{"nats://mine:1"},
			"default", "flag mine",
		},
		{"the flag: a context before a directory of the same name", "mine", func(w world) {
			w.cluster("src", "deep", "mine")
			w.named("mine", "nats://named:1")
		}, []string{"nats://named:1"}, "acme", "flag mine"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.prepare(w)
			got, err := Find(c.flag)
			if err != nil {
				t.Fatalf("Find(%q): %v (%s)", c.flag, err, kbroker.AsError(err).Hint)
			}
			if !slices.Equal(got.Servers, c.servers) || got.Tenant != c.tenant || !strings.Contains(got.Source, c.source) {
				t.Errorf("Find(%q) = %+v, want servers %v, tenant %s, source %q", c.flag, got, c.servers, c.tenant, c.source)
			}
			if (got.Instance != nil) != strings.HasPrefix(got.Source, EnvInstance) {
				t.Errorf("instance %v from source %q", got.Instance, got.Source)
			}
			if got.Dir != "" && !filepath.IsAbs(got.Dir) {
				t.Errorf("directory %q is not absolute", got.Dir)
			}
		})
	}
}

// TestACredentialGoesWithItsRoots, in all combinations of what names servers, roots and a
// credential: no server is shown one that the place neither names nor knows by its roots
// where the credential is from.
func TestACredentialGoesWithItsRoots(t *testing.T) {
	root := func(name string) string {
		a, err := pki.NewRoot(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(pki.EncodeCerts(a.Cert))
	}
	const flagged, around = "nats://flag:1", "nats://around:1"
	rootsAround, rootsEnv := root("around"), root("env")
	for _, servers := range []string{"flag", "flag that names the same server", "flag that names one more", "NATS_URL", "place"} {
		for _, place := range []string{"none", "bare", "with roots", "with a credential", "with both"} {
			for _, env := range []string{"none", "NATS_CA", "NATS_CREDS", "both"} {
				t.Run(servers+", place "+place+", environment "+env, func(t *testing.T) {
					w := newWorld(t)
					c := Context{Servers: []string{around}}
					if place == "with roots" || place == "with both" {
						c.CA = rootsAround
					}
					if place == "with a credential" || place == "with both" {
						c.Credential = "around"
					}
					if place != "none" {
						w.cluster(LocalDir)
						if err := WriteContext(filepath.Join(w.root, LocalDir), c); err != nil {
							t.Fatal(err)
						}
					}
					ca, creds := "", ""
					if env == "NATS_CA" || env == "both" {
						ca = rootsEnv
						t.Setenv(EnvCA, w.write(rootsEnv, "env.pem"))
					}
					if env == "NATS_CREDS" || env == "both" {
						creds = filepath.Join(w.root, "env.creds")
						t.Setenv(EnvCreds, creds)
					}
					flag, want := "", Target{Servers: c.Servers, CA: c.CA, Credential: c.Credential}
					switch servers {
					case "flag", "flag that names the same server", "flag that names one more":
						flag = map[string]string{"flag": flagged, "flag that names the same server": around}[servers]
						if flag == "" {
							flag = around + "," + flagged
						}
						switch {
						case env != "none": // it says all there is to say of URLs
							want = Target{CA: ca, CredentialFile: creds}
						case c.CA != "": // they must prove that they are of that cluster
						case servers != "flag that names the same server":
							want = Target{} // which could be anybody
						}
						want.Servers = strings.Split(flag, ",")
					case "NATS_URL":
						t.Setenv(EnvURL, flagged)
						if place == "none" {
							want = Target{Servers: []string{flagged}, CA: ca, CredentialFile: creds}
						}
					case "place":
						if place == "none" {
							return
						}
					}
					got, err := Find(flag)
					if err != nil {
						t.Fatal(err)
					}
					if !slices.Equal(got.Servers, want.Servers) || got.CA != want.CA || got.Credential != want.Credential || got.CredentialFile != want.CredentialFile {
						t.Errorf("Find(%q):\n%+v, want\n%+v", flag, got, want)
					}
				})
			}
		}
	}
}

// TestURLsGoWithReadableRoots or not at all.
func TestURLsGoWithReadableRoots(t *testing.T) {
	w := newWorld(t)
	t.Setenv(EnvCA, w.write("x", "other.pem"))
	if _, err := Find("nats://b:1"); !errors.Is(err, kbroker.Invalid) || kbroker.AsError(err).Hint == "" {
		t.Errorf("with a file that holds none: %v", err)
	}
}

func TestFindNeverTakesAnotherClusterThanTheNamedOne(t *testing.T) {
	for _, c := range []struct {
		name    string
		flag    string
		prepare func(w world)
		code    kbroker.Code
	}{
		{"nothing at all", "", func(world) {}, kbroker.Unavailable},
		{"a flag that names nothing", "nowhere", func(world) {}, kbroker.NotFound},
		{"a flag that is a path to nothing", "./nowhere", func(world) {}, kbroker.NotFound},
		{"a missing instance file", "", func(w world) { w.t.Setenv(EnvInstance, "nowhere.json") }, kbroker.NotFound},
		{"an instance file without servers", "", func(w world) { w.t.Setenv(EnvInstance, w.write("{}", "i.json")) }, kbroker.Invalid},
		{"KBROKER_DIR without a cluster", "", func(w world) { w.t.Setenv(EnvDir, w.cwd) }, kbroker.NotFound},
		{"KBROKER_CONTEXT that does not exist", "", func(w world) { w.t.Setenv(EnvContext, "prod") }, kbroker.NotFound},
		{"a current context that does not exist", "", func(w world) { w.write("prod", "config", "kbroker", "current") }, kbroker.NotFound},
		{"a current context with a path in it", "", func(w world) { w.write("../../x", "config", "kbroker", "current") }, kbroker.Invalid},
		{"a context that is not JSON", "", func(w world) {
			w.write("servers: x", "mine.json")
			w.t.Setenv(EnvContext, filepath.Join(w.root, "mine.json"))
		}, kbroker.Invalid},
		{"a .kbroker with a broken context", "", func(w world) {
			w.cluster(LocalDir)
			w.write("{}", LocalDir, ContextFile)
		}, kbroker.Invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			c.prepare(w)
			if c.code != kbroker.Unavailable { // there is another cluster to be taken by mistake
				t.Setenv(EnvURL, "nats://wrong:1")
			}
			got, err := Find(c.flag)
			if !errors.Is(err, c.code) {
				t.Fatalf("Find(%q) = %+v, %v; want code %s", c.flag, got, err, c.code)
			}
			if e := kbroker.AsError(err); c.code == kbroker.Unavailable {
				for _, place := range []string{EnvInstance, EnvDir, EnvContext, LocalDir, "current context", EnvURL} {
					if !strings.Contains(e.Hint, place) {
						t.Errorf("hint %q does not say that %s was looked at", e.Hint, place)
					}
				}
			}
		})
	}
}

func TestWriteContextReplacesAllOfIt(t *testing.T) {
	w := newWorld(t)
	dir := w.cluster("mine")
	if err := WriteContext(dir, Context{Servers: []string{"nats://new:1"}, Tenant: "acme"}); err != nil {
		t.Fatal(err)
	}
	got, err := Find(dir)
	if err != nil || got.Servers[0] != "nats://new:1" || got.Tenant != "acme" || got.Dir != dir {
		t.Errorf("Find = %+v, %v; want the new context of %s", got, err, dir)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("%d files in %s (%v), want the context alone", len(files), dir, err)
	}
	if info, err := os.Stat(filepath.Join(dir, ContextFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v (%v), want 0600", info.Mode(), err)
	}
	if err := WriteContext(dir, Context{}); !errors.Is(err, kbroker.Invalid) {
		t.Errorf("a context without servers: %v, want Invalid", err)
	}
	if err := WriteContext(filepath.Join(dir, "missing"), Context{Servers: []string{"nats://x:1"}}); err == nil {
		t.Error("a missing directory: no error")
	}
}
