package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"time"

	"github.com/knadh/koanf/providers/confmap"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
	"github.com/kbroker/kbroker/node"
)

const (
	defaultAgentConfig = "/etc/kbroker/agent.yaml"
	defaultUnitDir     = "/etc/systemd/system"
	// installTimeout bounds `agent install`; stopping the agent that it
	// restarts is most of it.
	installTimeout = 60 * time.Second
)

func (c *cli) agentInstallCommand() *cobra.Command {
	var configFile, unitDir string
	var force, show, noStart bool
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Make systemd run this host's agent",
		Long: `Make systemd run this host's agent: write the settings into a file and a unit that
runs this very binary with them, then enable and start it. Settings that the agent
would refuse are refused (2) before anything is written.

Run again, what is given is laid over the file that is there: the other settings
stay (labels add up). Where nothing changes nothing is written; else the agent is
restarted, also when it has not seen what an earlier run wrote. A file that somebody
edited is refused (4) unless --force. To take it back: systemctl disable --now
kbroker; applications run on, and the data directory stays.`,
		Example: `  kbroker agent install --name a --found --advertise 10.0.0.1
  kbroker agent install --name b --join 10.0.0.1:4222 --token-file join.token --advertise 10.0.0.2
  kbroker agent install --label disk=ssd   # the other settings stay
  kbroker agent install --found --advertise 10.0.0.1 --print`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needLinux(); err != nil {
				return err
			}
			in := &installation{force: force, systemd: systemd{dir: unitDir}}
			var err error
			if in.config, err = filepath.Abs(configFile); err != nil {
				return fmt.Errorf("file %s: %w", configFile, err)
			}
			if in.unit, err = filepath.Abs(filepath.Join(unitDir, unitName)); err != nil {
				return fmt.Errorf("directory %s: %w", unitDir, err)
			}
			if err := in.choose(cmd.Flags()); err != nil {
				return err
			}
			if err := in.check(show); err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return fmt.Errorf("find this program: %w", err)
			}
			if err := in.render(program); err != nil {
				return err
			}
			if show {
				return c.printInstallation(in)
			}
			ctx, cancel := c.within(cmd.Context(), installTimeout)
			defer cancel()
			return c.install(ctx, in, !noStart)
		},
	}
	f := cmd.Flags()
	f.StringVar(&configFile, "config", defaultAgentConfig, "the settings `file` to write")
	f.StringVar(&unitDir, "unit-dir", defaultUnitDir, "the `directory` of the unit")
	f.BoolVar(&force, "force", false, "replace files that somebody has edited")
	f.BoolVar(&show, "print", false, "print what would be written, and change nothing")
	f.BoolVar(&noStart, "no-start", false, "write the files only")
	must(cmd.MarkFlagFilename("config", "yaml", "yml"))
	must(cmd.MarkFlagDirname("unit-dir"))
	addSettingFlags(cmd)
	return cmd
}

// installation is an agent that systemd is to run.
type installation struct {
	config, unit string // absolute paths of the two files
	settings     agentSettings
	keep         bool   // the settings are those of the file that is there
	dirBefore    string // the data directory in the file that is there; empty: there is none
	force        bool
	systemd      systemd

	configText, unitText []byte // what the files should hold; sealed
}

// choose lays the settings of the environment and of flags over those of the
// file that is there. Relative paths are those of the working directory; in the
// file they are Invalid.
func (in *installation) choose(flags *pflag.FlagSet) error {
	file := in.config
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		file = ""
	}
	layers, err := agentLayers(file, flags)
	if err != nil {
		return err
	}
	fromFile, over := layers[:1], layers[1:]
	switch in.keep = !given(over); {
	case file == "" && in.keep:
		return kbroker.Errorf(kbroker.Invalid, "no setting was given, and there is no %s", in.config).
			WithHint("say how this host begins: --found --advertise IP, or --join HOST:PORT --token-file FILE --advertise IP")
	case file != "":
		before, err := laid(fromFile) // what is bad in it may be what is given now
		if err != nil {
			return err
		}
		in.dirBefore = before.Dir
	}
	for _, l := range over {
		if err := l.absolute(); err != nil {
			return err
		}
	}
	if in.settings, err = mergeLayers(layers); err != nil {
		return err
	}
	if in.settings.TokenFile == stdin {
		return kbroker.Errorf(kbroker.Invalid, "token_file is %s, and a service has no standard input", stdin).
			WithHint("put the token into a file of mode 0600: --token-file FILE; it may go when the host has joined")
	}
	for _, doc := range agentDocs {
		if path, ok := doc.value(in.settings).(string); ok && doc.path && path != "" && !filepath.IsAbs(path) {
			return kbroker.Errorf(kbroker.Invalid, "%s: %s is %s, want an absolute path", in.config, doc.key, path).
				WithHint("systemd starts the agent in the root directory")
		}
	}
	return nil
}

// absolute makes paths of a command line good for every working directory.
func (l layer) absolute() error {
	for _, doc := range agentDocs {
		path := l.values.String(doc.key)
		if !doc.path || path == "" || doc.file && path == stdin {
			continue
		}
		abs, err := filepath.Abs(path)
		if err == nil {
			err = l.values.Set(doc.key, abs)
		}
		if err != nil {
			return fmt.Errorf("path %s: %w", path, err)
		}
	}
	return nil
}

// check refuses settings that the agent would refuse, and another directory
// while an agent works on the one before. lenient: what this user may not look
// at is taken to be good.
func (in *installation) check(lenient bool) error {
	err := in.settings.node(nil).Check()
	if err == nil && in.dirBefore != "" && !samePath(in.dirBefore, in.settings.Dir) {
		var pid int
		var alive bool
		if pid, alive, err = node.Running(in.dirBefore); alive {
			return kbroker.Errorf(kbroker.Invalid, "dir is %s, but the agent, process %d, works on %s", in.settings.Dir, pid, in.dirBefore).
				WithHint("the directory is the host: leave --dir out, or end the agent and its applications first: kbroker drain, then systemctl stop kbroker")
		}
	}
	if errors.Is(err, fs.ErrPermission) {
		if lenient {
			return nil
		}
		return kbroker.Errorf(kbroker.Refused, "cannot look at the data directory: %v", err).
			WithHint("run it as root; --print shows what it would write")
	}
	return err
}

// samePath reports whether two absolute paths lead to the same directory.
func samePath(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// parseSettings are the settings of a file alone.
func parseSettings(path string, raw []byte) (agentSettings, error) {
	values, err := settingsFile{path}.Unmarshal(raw)
	if err != nil {
		return agentSettings{}, err
	}
	ko := newSettings()
	if err := ko.Load(confmap.Provider(values, ""), nil); err != nil {
		return agentSettings{}, fmt.Errorf("read %s: %w", path, err)
	}
	return mergeLayers([]layer{{sourceFile, path, ko}})
}

// render makes the contents of the two files.
func (in *installation) render(program string) error {
	if strings.Contains(program, "/go-build") {
		return kbroker.Errorf(kbroker.Refused, "this binary is one of go run, which removes it").
			WithHint("go build -o /usr/local/bin/kbroker ./cmd/kbroker, and install with that one")
	}
	text, err := renderSettings(in.settings)
	if err != nil {
		return err
	}
	in.configText = seal(text)
	unit, err := renderUnit(program, in.config, in.settings.Dir)
	in.unitText = seal([]byte(unit))
	return err
}

func (c *cli) printInstallation(in *installation) error {
	type content struct {
		Path    string `json:"path"`
		Content string `json:"content"`
	}
	files := []content{{in.unit, string(in.unitText)}}
	if !in.keep {
		files = append(files, content{in.config, string(in.configText)})
	}
	return c.print(files, func(w io.Writer) {
		for i, f := range files {
			if i > 0 {
				fmt.Fprintln(w)
			}
			fmt.Fprintf(w, "# %s\n%s", f.Path, f.Content)
		}
	})
}

// write brings the files to what they should be, both or, when one of them is
// refused, none, and returns the paths of those that it changed.
func (in *installation) write() ([]string, error) {
	same := func(have []byte) bool {
		settings, err := parseSettings(in.config, have)
		return err == nil && reflect.DeepEqual(settings, in.settings)
	}
	files := []installedFile{{path: in.unit, text: in.unitText}}
	if !in.keep {
		files = append(files, installedFile{path: in.config, text: in.configText, same: same})
	}
	var due []installedFile
	for _, f := range files {
		have, err := os.ReadFile(f.path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			due = append(due, f)
			continue
		case err != nil:
			return nil, notAllowed(f.path, err)
		case bytes.Equal(unsealed(have), unsealed(f.text)), f.same != nil && f.same(have):
			continue
		case !in.force && !intact(have):
			return nil, kbroker.Errorf(kbroker.Refused, "%s is there, says something else, and is not as `kbroker agent install` wrote it", f.path).
				WithHint("--print shows what would be written, --force replaces it")
		}
		due = append(due, f)
	}
	var written []string
	for _, f := range due {
		if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
			return written, notAllowed(f.path, err)
		}
		if err := durable.Replace(f.path, f.text, 0o644); err != nil {
			return written, notAllowed(f.path, err)
		}
		written = append(written, f.path)
	}
	return written, nil
}

type installedFile struct {
	path string
	text []byte
	same func(have []byte) bool // other content that means the same; may be nil
}

func notAllowed(path string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return kbroker.Errorf(kbroker.Refused, "cannot write %s: %v", path, reason(err)).
			WithHint("run it as root; --print shows what it would write")
	}
	return fmt.Errorf("install %s: %w", path, err)
}

// sealLine is the first line of a file that `agent install` wrote. The digest is
// that of all that follows, so that an edit is seen.
const sealLine = "# Written by kbroker agent install, which replaces it as long as nobody edits it. sha256:%x\n"

func seal(text []byte) []byte {
	return append(fmt.Appendf(nil, sealLine, sha256.Sum256(text)), text...)
}

// intact reports whether a file is as it was sealed.
func intact(sealed []byte) bool {
	return bytes.Equal(sealed, seal(unsealed(sealed)))
}

// unsealed is a file without its first line, if that is a seal.
func unsealed(text []byte) []byte {
	prefix, _, _ := strings.Cut(sealLine, "%x")
	line, rest, _ := bytes.Cut(text, []byte("\n"))
	if bytes.HasPrefix(line, []byte(prefix)) {
		return rest
	}
	return text
}

// installed is what `agent install` prints.
type installed struct {
	Config  string   `json:"config"`
	Unit    string   `json:"unit"`
	Written []string `json:"written"`
	Running bool     `json:"running"`
	PID     *int     `json:"pid"` // of the agent, if it runs
}

// install writes the files and, if start, has systemd run the agent.
func (c *cli) install(ctx context.Context, in *installation, start bool) error {
	written, err := in.write()
	if err != nil {
		return err
	}
	result := installed{Config: in.config, Unit: in.unit, Written: append([]string{}, written...)}
	var next string
	switch {
	case !start, !in.systemd.running():
		next = "systemctl daemon-reload && systemctl enable --now " + in.systemd.enableName()
	default:
		pid, err := in.systemd.start(ctx, in.settings.Dir, len(written) > 0, in.unit, in.config)
		if err != nil {
			return err
		}
		result.Running, result.PID = true, &pid
	}
	return c.print(result, func(w io.Writer) {
		for _, path := range written {
			fmt.Fprintf(w, "wrote %s\n", path)
		}
		if len(written) == 0 {
			fmt.Fprintf(w, "nothing to write: %s and %s are as they should be\n", in.unit, in.config)
		}
		switch {
		case result.Running:
			fmt.Fprintf(w, "%s is enabled and runs, pid %d\n", unitName, *result.PID)
		case start:
			fmt.Fprintf(w, "systemd does not run here; where it does:\n  %s\n", next)
		default:
			fmt.Fprintf(w, "to start it:\n  %s\n", next)
		}
	})
}
