//go:build unix && !linux

package agent

import (
	"os"

	"github.com/kbroker/kbroker"
)

func openTerminal(kbroker.TerminalSize) (master, slave *os.File, err error) {
	return nil, nil, errNeedsLinux
}

func setSize(*os.File, kbroker.TerminalSize) error { return errNeedsLinux }
