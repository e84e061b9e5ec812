package client

import "github.com/kbroker/kbroker/internal/connect"

// NamedContext is one of the contexts that the user of this machine keeps.
type NamedContext = connect.NamedContext

// Contexts are those of the user, by name.
func Contexts() ([]NamedContext, error) { return connect.Contexts() }

// CurrentContext is the name of the one that is used when nothing else names a
// cluster; it may not be there. Empty: none was chosen.
func CurrentContext() (string, error) { return connect.CurrentContext() }

// ReadContext reads the context that place names: one of the user's, a file or the
// directory of a cluster. NotFound: there is none; Invalid: it is none.
func ReadContext(place string) (Context, error) { return connect.ReadContext(place) }

// ParseContext takes the content of a context file; source says which, after the word
// context. Invalid: it is none.
func ParseContext(b []byte, source string) (Context, error) { return connect.ParseContext(b, source) }

// UserContext reads one of the user's contexts. NotFound: its hint names those that
// there are.
func UserContext(name string) (Context, error) { return connect.UserContext(name) }

// AddContext keeps c as one of the user's. Conflict: there is one of that name, and
// it is not to be replaced.
func AddContext(name string, c Context, replace bool) error {
	return connect.AddContext(name, c, replace)
}

// UseContext makes one of the user's contexts the current one. NotFound.
func UseContext(name string) error { return connect.UseContext(name) }

// RemoveContext deletes one of the user's contexts. NotFound; Refused: it is the
// current one, and force is not set.
func RemoveContext(name string, force bool) error { return connect.RemoveContext(name, force) }
