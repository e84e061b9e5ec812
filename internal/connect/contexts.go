package connect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

// The contexts of a user are files under kbroker in the user's configuration
// directory:
//
//	contexts/NAME.json  one each, 0600
//	current             the name of the current one

// maxContextName bounds the name of a context, in bytes.
const maxContextName = 64

// contextName is its form: it is a file name, and needs no quotes in a shell.
var contextName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// NamedContext is one of the user's contexts.
type NamedContext struct {
	Name    string
	Current bool
	Context Context
	// Err is why it cannot be read; Context is empty then.
	Err error
}

// Contexts are those of the user, by name.
func Contexts() ([]NamedContext, error) {
	names, err := contextNames()
	if err != nil {
		return nil, err
	}
	current, err := CurrentContext()
	if err != nil {
		return nil, err
	}
	var all []NamedContext
	for _, name := range names {
		n := NamedContext{Name: name, Current: name == current}
		n.Context, n.Err = UserContext(name)
		all = append(all, n)
	}
	return all, nil
}

// CurrentContext is the name of the user's current context, which may not be there;
// empty: none was chosen.
func CurrentContext() (string, error) {
	path, err := userFile("current")
	if err != nil {
		return "", nil // no home: no current context
	}
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the name of the current context: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// UserContext reads one of the user's contexts. NotFound: its hint names those that
// there are.
func UserContext(name string) (Context, error) {
	path, err := contextPath(name)
	if err != nil {
		return Context{}, err
	}
	c, err := readContext(path)
	if errors.Is(err, kbroker.NotFound) {
		err = errNoContext(name)
	}
	return c, err
}

// AddContext keeps c as one of the user's contexts, durably; only they may read it.
// Conflict: there is one of that name, and it is not to be replaced.
func AddContext(name string, c Context, replace bool) error {
	path, err := contextPath(name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil && !replace {
		return kbroker.Errorf(kbroker.Conflict, "there is a context %s already", name).WithHint("--force replaces it; kbroker context show %s tells what it is", name)
	}
	if err := durable.MakeDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("context %s: %w", name, err)
	}
	return writeContext(path, c)
}

// UseContext makes one of the user's contexts the current one. NotFound: there is none
// of that name.
func UseContext(name string) error {
	if _, err := UserContext(name); err != nil {
		return err
	}
	path, err := userFile("current")
	if err != nil {
		return err
	}
	if err := durable.Replace(path, []byte(name+"\n"), 0o600); err != nil {
		return fmt.Errorf("use context %s: %w", name, err)
	}
	return nil
}

// RemoveContext deletes one of the user's contexts. NotFound: there is none of that
// name; Refused: it is the current one, and force is not set. With it there is no
// current one then.
func RemoveContext(name string, force bool) error {
	path, err := contextPath(name)
	if err != nil {
		return err
	}
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return errNoContext(name)
	}
	current, err := CurrentContext()
	if err != nil {
		return err
	}
	if current == name && !force {
		return kbroker.Errorf(kbroker.Refused, "context %s is the current one", name).
			WithHint("kbroker context use makes another one the current one; --force removes it all the same")
	}
	if current == name {
		chosen, err := userFile("current")
		if err != nil {
			return err
		}
		err = os.Remove(chosen)
		if err == nil {
			err = durable.Sync(filepath.Dir(chosen))
		}
		if err != nil {
			return fmt.Errorf("forget the current context: %w", err)
		}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove context %s: %w", name, err)
	}
	return durable.Sync(filepath.Dir(path))
}

func errNoContext(name string) error {
	return kbroker.Errorf(kbroker.NotFound, "there is no context %s", name).WithHint("name one that there is%s; kbroker context add makes one", existing())
}

// existing are the user's contexts for a hint: " (dev, prod)", or " (there is none)".
func existing() string {
	names, err := contextNames()
	if err != nil || len(names) == 0 {
		return " (there is none)"
	}
	return " (" + strings.Join(names, ", ") + ")"
}

// contextNames are those of the user's contexts.
func contextNames() ([]string, error) {
	dir, err := userFile("contexts")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list contexts: %w", err)
	}
	var names []string
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if ok && !e.IsDir() && checkContextName(name) == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func contextPath(name string) (string, error) {
	if err := checkContextName(name); err != nil {
		return "", err
	}
	return userFile("contexts", name+".json")
}

func checkContextName(name string) error {
	if len(name) > maxContextName || !contextName.MatchString(name) || strings.Contains(name, "..") {
		return kbroker.Errorf(kbroker.Invalid, "context name %q is not valid", name).
			WithHint("use letters, digits, dashes, underscores and single dots, at most %d", maxContextName)
	}
	return nil
}

// userFile is a path in kbroker's part of the user's configuration directory.
func userFile(path ...string) (string, error) {
	config, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the contexts: %w", err)
	}
	return filepath.Join(append([]string{config, "kbroker"}, path...)...), nil
}
