package main

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

// choose is what `agent install` with these flags would install over the file.
func choose(config string, flags ...string) (*installation, error) {
	cmd := (&cli{}).agentInstallCommand()
	if err := cmd.ParseFlags(flags); err != nil {
		return nil, err
	}
	in := &installation{config: config, unit: filepath.Join(filepath.Dir(config), unitName)}
	if err := in.choose(cmd.Flags()); err != nil {
		return in, err
	}
	return in, in.check(false)
}

// installFiles writes what in has chosen.
func installFiles(in *installation) error {
	if err := in.render("/usr/local/bin/kbroker"); err != nil {
		return err
	}
	_, err := in.write()
	return err
}

// TestASecondInstallLaysItsFlagsOverTheFirst: install A, then install with some
// flags, is A with those settings.
func TestASecondInstallLaysItsFlagsOverTheFirst(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(r *rapid.T) {
		config := filepath.Join(root, "agent.yaml")
		if err := os.Remove(config); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.Fatal(err)
		}
		value := map[string]*rapid.Generator[string]{
			"dir":         rapid.SampledFrom([]string{filepath.Join(root, "a"), filepath.Join(root, "b")}),
			"name":        rapid.StringMatching(`[a-z][a-z0-9]{0,8}`),
			"found":       rapid.Just("true"),
			"role":        rapid.Just("core"),
			"advertise":   rapid.SampledFrom([]string{"10.0.0.1", "fd00::1"}),
			"client_port": rapid.SampledFrom([]string{"4222", "4223"}),
			"route_port":  rapid.SampledFrom([]string{"6222", "6223"}),
			"label":       rapid.SampledFrom([]string{"disk=ssd", "disk=hdd", "example.com/rack=r1", "a=1,b=2"}),
			"stock_raft":  rapid.SampledFrom([]string{"true", "false"}),
		}
		flags := func(what string, always ...string) (args []string) {
			for _, doc := range agentDocs {
				if v, ok := value[doc.key]; ok && (slices.Contains(always, doc.key) || rapid.Bool().Draw(r, what+" gives "+doc.key)) {
					args = append(args, "--"+doc.flag()+"="+v.Draw(r, what+" "+doc.key))
				}
			}
			return args
		}
		first, second := flags("first", "dir", "name", "found", "advertise"), flags("second")
		a, err := choose(config, first...)
		if err == nil {
			err = installFiles(a)
		}
		if err != nil {
			r.Fatalf("install %q: %v", first, err)
		}
		want, given := a.settings, map[string]bool{}
		over, err := choose(filepath.Join(root, "none.yaml"), append(slices.Clone(second), "--found", "--advertise=10.9.9.9", "--name=other")...)
		if err != nil {
			r.Fatalf("choose %q: %v", second, err)
		}
		for _, arg := range second {
			name, v, _ := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
			given[strings.ReplaceAll(name, "-", "_")] = true
			switch name {
			case "name":
				want.Name = v
			case "advertise":
				want.Advertise = v
			}
		}
		for _, doc := range agentDocs {
			switch {
			case !given[doc.key] || doc.key == "name" || doc.key == "advertise":
			case doc.key == "label":
				all := maps.Clone(want.Label)
				if all == nil {
					all = map[string]string{}
				}
				maps.Copy(all, over.settings.Label)
				want.Label = all
			default:
				doc.field(&want).Set(doc.field(&over.settings))
			}
		}
		b, err := choose(config, second...)
		if err == nil {
			err = installFiles(b)
		}
		if err != nil {
			r.Fatalf("install %q over %q: %v", second, first, err)
		}
		raw, err := os.ReadFile(config)
		if err != nil {
			r.Fatal(err)
		}
		if got, err := parseSettings(config, raw); err != nil || !reflect.DeepEqual(got, want) {
			r.Fatalf("install %q, then %q, wrote\n%+v, %v\nwant\n%+v", first, second, got, err, want)
		}
	})
}

func TestAnotherDirectoryIsRefusedWhileAnAgentWorksOnTheOldOne(t *testing.T) {
	if err := needLinux(); err != nil {
		t.Skip(err)
	}
	s, _ := fakeSystemd(t)
	data := filepath.Join(t.TempDir(), "data")
	if _, err := install(t, s, agentSettings{Dir: data, Name: "a", Found: true, Advertise: loopback}); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(s.dir, "etc", "agent.yaml")
	if _, alive, err := node.Running(data); err != nil || !alive {
		t.Fatalf("no agent runs on %s: %v", data, err)
	}
	_, err := choose(config, "--dir", filepath.Join(t.TempDir(), "new"))
	if !errors.Is(err, kbroker.Invalid) || !strings.Contains(err.Error(), "works on "+data) || kbroker.AsError(err).Hint == "" {
		t.Errorf("another directory: %v, want invalid with a hint", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	for _, same := range []string{data, data + "/", link} {
		if _, err := choose(config, "--dir", same, "--label", "disk=ssd"); err != nil {
			t.Errorf("the same directory as %s: %v", same, err)
		}
	}
	// What contradicts the directory is refused as the agent would refuse it.
	if _, err := choose(config, "--name", "b"); !errors.Is(err, kbroker.Invalid) || !strings.Contains(err.Error(), "name is b") {
		t.Errorf("another name: %v, want invalid", err)
	}
}
