//go:build unix && !linux

package agent

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/kbroker/kbroker"
)

var errNeedsLinux = kbroker.Errorf(kbroker.Refused, "an agent needs Linux").
	WithHint("the client commands and the SDK work here; run agents on Linux hosts")

func supported() error { return errNeedsLinux }

func prepareProcess() error { return errNeedsLinux }

func openPidfd(procID) (*os.File, error) { return nil, errNeedsLinux }

func waitPidfd(*os.File) error { return errNeedsLinux }

func pidfdStatus(*os.File) (unix.WaitStatus, error) { return 0, errNeedsLinux }

func signalProcess(procID, unix.Signal) error { return errNeedsLinux }

func syncFileSystem(string) error { return errNeedsLinux }

func deadChild() bool { return false }
