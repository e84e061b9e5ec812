//go:build !linux

package artifact

import (
	"errors"
	"os"
)

func exchange(from, to string) error { return errors.Join(os.RemoveAll(to), os.Rename(from, to)) }
