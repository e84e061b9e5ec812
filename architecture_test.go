package kbroker_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/kbroker/kbroker"

// mayImport says which packages of the module a package may import. All may
// import the root; tests may also import what testOnly lists, and subjects to
// play the other side of the bus.
var mayImport = map[string][]string{
	"":                     {},
	"subjects":             {},
	"spec":                 {},
	"state":                {"subjects", "internal/boottime"},
	"broker":               {"subjects", "internal/durable", "internal/grants"},
	"agent":                {"agent/artifact", "agent/cgroup", "agent/output", "agent/spawn", "state", "subjects", "internal/credential", "internal/durable", "internal/flow", "internal/program", "internal/pulse", "internal/stamp"},
	"agent/artifact":       {"internal/durable", "internal/stamp", "internal/unpack"},
	"agent/cgroup":         {"internal/durable"},
	"agent/output":         {"internal/durable"},
	"agent/spawn":          {"agent/cgroup"},
	"allocator":            {"state", "subjects", "internal/ownership", "internal/connect", "internal/pulse"},
	"super":                {"state", "subjects", "spec", "internal/ownership"},
	"node":                 {"broker", "agent", "allocator", "super", "state", "spec", "subjects", "internal/connect", "internal/credential", "internal/durable", "internal/freeport", "internal/grants", "internal/pki"},
	"client":               {"subjects", "internal/connect", "internal/flow", "internal/pki"},
	"sdk":                  {"spec", "subjects", "internal/ownership", "internal/boottime", "internal/connect", "internal/credential", "internal/pulse", "internal/sdkseam"},
	"sdk/sdktest":          {"sdk", "allocator", "state", "super", "subjects", "internal/natstest", "internal/ownership", "internal/sdkseam", "internal/wait"}, // not node: a host has processes, files and ports
	"cmd/kbroker":          {"node", "client", "spec", "sdk", "internal/credential", "internal/durable", "internal/freeport", "internal/program", "internal/unpack"},
	"e2e":                  {"client", "sdk", "internal/credential", "internal/grants", "internal/pki"}, // to forge what is to be refused
	"e2e/netlab":           {},
	"internal/ownership":   {"subjects"},
	"internal/boottime":    {},
	"internal/connect":     {"subjects", "internal/credential", "internal/durable", "internal/pki"},
	"internal/credential":  {"subjects", "internal/durable"},
	"internal/grants":      {"subjects"},
	"internal/durable":     {},
	"internal/flow":        {},
	"internal/freeport":    {},
	"internal/pki":         {"internal/durable"},
	"internal/program":     {},
	"internal/pulse":       {},
	"internal/sdkseam":     {},
	"internal/stamp":       {},
	"internal/unpack":      {},
	"internal/metricstest": {},
	"internal/natstest":    {"internal/freeport", "internal/wait"},
	"internal/archivetest": {},
	"internal/wait":        {},
	"examples/...":         {"sdk", "allocator"},
}

// testOnly are the packages that nothing but tests, and they themselves, may
// import.
var testOnly = []string{"internal/archivetest", "internal/metricstest", "internal/natstest", "internal/wait", "e2e/netlab", "sdk/sdktest"}

// confined are modules that only these packages may import, in tests too.
var confined = map[string][]string{
	"github.com/nats-io/nats-server/":             {"broker", "internal/natstest"},
	"github.com/nats-io/nats.go/jetstream":        {"state", "broker", "internal/ownership"},
	"github.com/synadia-io/orbit.go/jetstreamext": {"state", "broker", "internal/ownership"},
}

// sdkWithout are modules that an application must not get with the SDK.
var sdkWithout = []string{"github.com/nats-io/nats-server/", "github.com/knadh/koanf", "github.com/spf13/cobra", "github.com/shirou/gopsutil", "github.com/prometheus/"}

type goPackage struct {
	ImportPath, Dir, Name              string
	GoFiles, TestGoFiles, XTestGoFiles []string
	IgnoredGoFiles                     []string
	Imports, TestImports, XTestImports []string
}

// part is the package's path in the module; "" is the root.
func (p goPackage) part() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

func goList(t *testing.T, args ...string) []goPackage {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("%v: %v", cmd, err)
		}
		all = append(all, p)
	}
}

func TestImportsFollowTheTable(t *testing.T) {
	packages := goList(t, "./...")
	if len(packages) < 10 {
		t.Fatalf("go list found %d packages; is this the module's root?", len(packages))
	}
	for _, p := range packages {
		allowed, ok := allowedFor(p.part())
		if !ok {
			t.Errorf("package %q is not in the table of architecture_test.go: say there what it may import", p.part())
			continue
		}
		for _, i := range p.Imports {
			if to, ours := strings.CutPrefix(i, module); ours {
				to = strings.TrimPrefix(to, "/")
				if slices.Contains(testOnly, to) && !slices.Contains(testOnly, p.part()) {
					t.Errorf("%s imports %s, which is for tests", p.ImportPath, to)
				} else if to != "" && !slices.Contains(allowed, to) {
					t.Errorf("%s imports %s; it may import the root and %q", p.ImportPath, to, allowed)
				}
			}
		}
		inTests := slices.Concat(allowed, testOnly, []string{p.part(), "subjects"})
		for _, i := range slices.Concat(p.TestImports, p.XTestImports) {
			if to, ours := strings.CutPrefix(i, module); ours {
				to = strings.TrimPrefix(to, "/")
				if to != "" && !slices.Contains(inTests, to) {
					t.Errorf("a test of %s imports %s; it may import the root and %q", p.ImportPath, to, inTests)
				}
			}
		}
		for _, i := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for prefix, only := range confined {
				if strings.HasPrefix(i, prefix) && !slices.Contains(only, p.part()) {
					t.Errorf("%s imports %s, which only %q may", p.ImportPath, i, only)
				}
			}
		}
	}
}

func allowedFor(part string) ([]string, bool) {
	if strings.HasPrefix(part, "examples/") {
		part = "examples/..."
	}
	allowed, ok := mayImport[part]
	return allowed, ok
}

func TestRootImportsTheStandardLibraryOnly(t *testing.T) {
	for _, p := range goList(t, ".") {
		for _, i := range p.Imports {
			if first, _, _ := strings.Cut(i, "/"); strings.Contains(first, ".") || first == "net" || first == "os" {
				t.Errorf("the root package imports %s: it is a vocabulary without I/O", i)
			}
		}
	}
}

func TestSDKStaysSmall(t *testing.T) {
	deps := goList(t, "-deps", "./sdk")
	if len(deps) < 50 {
		t.Fatalf("go list -deps ./sdk found only %d packages", len(deps))
	}
	for _, p := range deps {
		for _, prefix := range sdkWithout {
			if strings.HasPrefix(p.ImportPath, prefix) {
				t.Errorf("applications get %s with the SDK", p.ImportPath)
			}
		}
	}
}

func TestPackageNamesSayWhatIsInside(t *testing.T) {
	for _, p := range goList(t, "./...") {
		for _, name := range []string{p.Name, path.Base(p.ImportPath)} {
			if slices.Contains([]string{"util", "utils", "common", "model", "models", "helper", "helpers", "types", "misc", "base"}, name) {
				t.Errorf("package %s: %q says nothing; name it after what it does", p.ImportPath, name)
			}
		}
	}
}

// goFile is a parsed file of the module.
type goFile struct {
	name string // relative to the module
	part string
	test bool
	set  *token.FileSet
	ast  *ast.File
}

func goFiles(t *testing.T) []goFile {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var files []goFile
	for _, p := range goList(t, "./...") {
		for _, name := range slices.Concat(p.GoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles) {
			full := filepath.Join(p.Dir, name)
			set := token.NewFileSet()
			f, err := parser.ParseFile(set, full, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			rel, err := filepath.Rel(root, full)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, goFile{name: rel, part: p.part(), test: strings.HasSuffix(name, "_test.go"), set: set, ast: f})
		}
	}
	return files
}

func TestEveryPackageHasOneComment(t *testing.T) {
	commented := map[string][]string{}
	for _, f := range goFiles(t) {
		if f.test {
			continue
		}
		files := commented[f.part]
		if f.ast.Doc != nil {
			files = append(files, f.name)
		}
		commented[f.part] = files
	}
	for part, files := range commented {
		if len(files) != 1 {
			t.Errorf("package %q has %d package comments %q, want exactly one", part, len(files), files)
		}
	}
}

func TestSubjectsAreSpelledInPackageSubjects(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.test || f.part == "subjects" {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			s, err := strconv.Unquote(lit.Value)
			if err == nil && (strings.Contains(s, "$KV") || strings.HasPrefix(s, "kb.") || strings.HasPrefix(s, "svc.")) {
				t.Errorf("%s: the subject %q belongs into package subjects", f.set.Position(lit.Pos()), s)
			}
			return true
		})
	}
}

// A sleep on the clock of a synctest bubble costs nothing and is exact; every
// other one is too short or too long.
func TestNothingSleeps(t *testing.T) {
	for _, f := range goFiles(t) {
		bubble := f.test && slices.ContainsFunc(f.ast.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing/synctest"` })
		if f.part == "internal/wait" || bubble {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && s.Sel.Name == "Sleep" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s: time.Sleep; wait with a timer that ctx can end (in tests: wait.Until)", f.set.Position(s.Pos()))
				}
			}
			return true
		})
	}
}

func TestNothingIsLeftForAnotherDay(t *testing.T) {
	mark := regexp.MustCompile(`(?i)\b(to` + `do|fix` + `me)\b`)
	looked := 0
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name != "." && slices.Contains([]string{".git", ".kbroker", "bin", "testdata"}, d.Name()) {
				return fs.SkipDir
			}
			return nil
		}
		if !slices.Contains([]string{".go", ".md", ".yml", ".yaml", ".sh", ".txtar"}, filepath.Ext(name)) {
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		looked++
		for i, line := range strings.Split(string(b), "\n") {
			if m := mark.FindString(line); m != "" {
				t.Errorf("%s:%d: %q: do it now or write an issue", name, i+1, m)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if looked < 50 {
		t.Fatalf("looked at only %d files", looked)
	}
}

func TestDecisionsAreNumberedOnce(t *testing.T) {
	files, err := os.ReadDir("docs/adr")
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^([0-9]{4})-[a-z0-9]+(-[a-z0-9]+)*\.md$`)
	seen := map[string]string{}
	for _, f := range files {
		m := form.FindStringSubmatch(f.Name())
		if m == nil {
			t.Errorf("docs/adr/%s: want NNNN-title-in-lower-case.md", f.Name())
			continue
		}
		if other := seen[m[1]]; other != "" {
			t.Errorf("docs/adr: %s and %s have the same number", other, f.Name())
		}
		seen[m[1]] = f.Name()
	}
}
