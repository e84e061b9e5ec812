//go:build unix && !linux

package output

import (
	"io/fs"
	"os"
	"time"

	"github.com/kbroker/kbroker"
)

var errNeedsLinux = kbroker.Errorf(kbroker.Refused, "output files are kept in bounds on Linux only")

func punch(*os.File, int64, int64) error { return errNeedsLinux }

func collapse(*os.File, int64) error { return errNeedsLinux }

func unable(error) bool { return true }

func holeOf(*os.File, int64) (int64, error) { return 0, nil }

func inodeOf(fs.FileInfo) uint64 { return 0 }

type alerts struct{}

func newAlerts() (*alerts, error) { return nil, errNeedsLinux }

func (*alerts) arm(string) (int32, error) { return 0, errNeedsLinux }

func (*alerts) wait(time.Duration) []int32 { return nil }

func (*alerts) nudge() {}

func (*alerts) close() {}

func hurry() {}
