package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/durable"
)

// The credential of a start that is over is to be taken back, whatever becomes of the
// agent: it is on disk until a core has taken it back.
//
//	the process ends     instances/T/I/instance.creds is what is left of it
//	the next start,      over/KEY has what was signed, before those files get others
//	or nothing is left
//	a core has heard     over/KEY is deleted
//
// An agent that starts says of both that they are over.

// overDir is in the data directory: files that are named after a public key.
const overDir = "over"

// endCredential has the credential taken back that a start of an instance had whose
// process is over. It may be called again.
func (a *Agent) endCredential(home string) {
	own, err := credential.Load(filepath.Join(home, credsFile))
	if err == nil && own.IsSigned() { // its end does not count: the process may have had it renewed
		a.reporter.ended(own.Key(), own.JWT())
	}
}

// keepOver has the credential of a start whose process is over outlive the files of its
// instance, until a core has taken it back.
func (a *Agent) keepOver(home string) error {
	own, err := credential.Load(filepath.Join(home, credsFile))
	if err != nil || !own.IsSigned() || a.reporter.takenBack(own.Key()) {
		return nil
	}
	path := a.cfg.Dir.over(own.Key())
	err = durable.MakeDir(filepath.Dir(path))
	if err == nil {
		err = durable.Replace(path, []byte(own.JWT()), 0o600)
	}
	a.reporter.ended(own.Key(), own.JWT())
	if err != nil {
		return fmt.Errorf("keep a credential that is to be taken back: %w", err)
	}
	return nil
}

// loadOver has all taken back that earlier agents have kept.
func (a *Agent) loadOver() error {
	entries, err := os.ReadDir(filepath.Join(a.cfg.Dir.Path, overDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list credentials that are to be taken back: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue // of a write that was cut off
		}
		signed, err := os.ReadFile(a.cfg.Dir.over(e.Name()))
		if err != nil {
			a.log.Error("a credential that is to be taken back cannot be read; it holds until its end", "err", err)
			continue
		}
		a.reporter.ended(e.Name(), string(signed))
	}
	return nil
}

// over is the file of a credential that is to be taken back.
func (d *Dir) over(key string) string { return filepath.Join(d.Path, overDir, key) }

// forgetOver deletes it, and reports whether it was there. After a power-off it may be
// there again, which is said once more then.
func (d *Dir) forgetOver(key string) bool { return os.Remove(d.over(key)) == nil }
