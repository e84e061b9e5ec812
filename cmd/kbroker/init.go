package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
)

// modulePath is this project's module.
const modulePath = "github.com/kbroker/kbroker"

//go:embed newapp
var newApp embed.FS

// newAppFiles maps the files of a new application to their templates.
var newAppFiles = map[string]string{
	"go.mod": "go.mod.tmpl", "main.go": "main.go.tmpl", "main_test.go": "main_test.go.tmpl",
	"app.yaml": "app.yaml.tmpl", ".gitignore": "gitignore.tmpl",
}

func (c *cli) initCommand() *cobra.Command {
	var replace string
	cmd := &cobra.Command{
		Use:   "init NAME",
		Short: "Make a new application",
		Long: `Make a new application in the directory NAME: a Go module with one service, a
test and a spec, which deploys as it is. The directory must be empty, or not be
there.`,
		Example: `  kbroker init shop && cd shop && kbroker deploy app.yaml
  kbroker init shop --replace ~/src/kbroker`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.newApplication(cmd.Context(), args[0], replace)
		},
	}
	cmd.Flags().StringVar(&replace, "replace", "", "the `DIR` of kbroker's sources (default: those that this binary was built from)")
	must(cmd.MarkFlagDirname("replace"))
	return cmd
}

// madeApp is what `init -o json` prints.
type madeApp struct {
	App   string   `json:"app"`
	Dir   string   `json:"dir"`
	Files []string `json:"files"`
	Tidy  bool     `json:"tidy"` // its modules are known: it builds
}

func (c *cli) newApplication(ctx context.Context, path, replace string) error {
	dir, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("directory %s: %w", path, err)
	}
	name := filepath.Base(dir)
	if err := kbroker.CheckName("app", name); err != nil {
		return err
	}
	checkout, err := sources(replace)
	if err != nil {
		return err
	}
	if err := emptyDir(dir); err != nil {
		return err
	}
	made := madeApp{App: name, Dir: dir}
	for _, file := range []string{"go.mod", "main.go", "main_test.go", "app.yaml", ".gitignore"} {
		if err := fill(filepath.Join(dir, file), newAppFiles[file], name, checkout); err != nil {
			return err
		}
		made.Files = append(made.Files, file)
	}
	// What this project was built with is known here, so that no network is
	// needed for what the application is built with.
	sums, err := os.ReadFile(filepath.Join(checkout, "go.sum"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "go.sum"), sums, 0o644)
	}
	if err != nil {
		return fmt.Errorf("write go.sum: %w", err)
	}
	made.Files = append(made.Files, "go.sum")
	trouble := tidy(ctx, dir)
	made.Tidy = trouble == nil
	return c.print(made, func(w io.Writer) {
		fmt.Fprintf(w, "%s is in %s\n\ntry:\n  cd %s\n", name, dir, path)
		if trouble != nil {
			fmt.Fprintf(w, "  go mod tidy   # it failed here: %v\n", trouble)
		}
		fmt.Fprintf(w, "  go test ./...\n  kbroker deploy app.yaml\n  kbroker call %s ask word=tea\n", name)
	})
}

// sources finds this project's checkout: named, or where this binary was built.
func sources(replace string) (string, error) {
	dir := replace
	if dir == "" {
		_, file, _, ok := runtime.Caller(0)
		if ok && filepath.IsAbs(file) {
			dir = filepath.Dir(filepath.Dir(filepath.Dir(file)))
		}
	}
	hint := "name the directory of kbroker's sources with --replace DIR: there is no release to download yet"
	if dir == "" {
		return "", kbroker.Errorf(kbroker.Invalid, "this binary does not know where it was built").WithHint("%s", hint)
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("directory %s: %w", replace, err)
	}
	mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if first, _, _ := strings.Cut(string(mod), "\n"); err != nil || strings.TrimSpace(first) != "module "+modulePath {
		return "", kbroker.Errorf(kbroker.Invalid, "kbroker's sources are not in %s", dir).WithHint("%s", hint)
	}
	return dir, nil
}

// emptyDir makes dir, or holds that nothing is in it.
func emptyDir(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case err == nil && len(entries) > 0:
		return kbroker.Errorf(kbroker.Refused, "%s is not empty: it has %s", dir, entries[0].Name()).WithHint("name a new directory")
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return kbroker.Errorf(kbroker.Invalid, "cannot make %s: %v", dir, reason(err))
		}
		return nil
	}
	return kbroker.Errorf(kbroker.Invalid, "cannot use %s: %v", dir, reason(err))
}

// fill writes a file from its template.
func fill(path, name, app, checkout string) error {
	t, err := template.ParseFS(newApp, "newapp/"+name)
	if err != nil {
		return fmt.Errorf("template of %s: %w", path, err)
	}
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the application: %w", err)
	}
	// A path in go.mod is quoted where it has to be.
	quoted := checkout
	if strings.ContainsAny(checkout, " \"'`(),") {
		quoted = strconv.Quote(checkout)
	}
	return errors.Join(t.Execute(f, struct{ Name, Checkout string }{app, quoted}), f.Close())
}

// tidy completes go.mod and go.sum: from what is on this machine, else from
// where the user's settings say.
func tidy(ctx context.Context, dir string) error {
	goTool, err := exec.LookPath("go")
	if err != nil {
		return errors.New("there is no go tool in PATH")
	}
	var last error
	for _, extra := range [][]string{{"GOPROXY=off"}, nil} {
		cmd := exec.CommandContext(ctx, goTool, "mod", "tidy")
		cmd.Dir = dir
		cmd.Env = append(append(os.Environ(), "GOFLAGS=-mod=mod", "GOWORK=off"), extra...)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return nil
		}
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		last = fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	return last
}
