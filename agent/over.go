package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/credential"
	"github.com/kbroker/kbroker/internal/durable"
)

// The credential of a start that is over is to be taken back, whatever becomes of the
// agent: it is on disk until a core has taken it back.
//
//	the process ends     instances/T/I/run/INCARNATION.creds is what is left of it; the file
//	                     is the instance's, so what this agent saw signed counts, too
//	nothing is left      over/KEY has what was signed, before those files go
//	a core has heard     either is deleted
//
// An agent that starts says of both that they are over, unless the start runs.

// overDir is in the data directory: files that are named after a public key.
const overDir = "over"

// endCredentials has the credentials taken back that an instance's starts had, but for the
// one that runs, if any. It may be called again.
func (a *Agent) endCredentials(home string, running kbroker.Incarnation) {
	left, last := 0, error(nil)
	for _, path := range credsIn(home) {
		if running != "" && path == credsPath(home, running) {
			continue
		}
		own, err := credential.Load(path)
		if err == nil && !own.IsSigned() {
			err = os.Remove(path) // nobody can do anything with the key alone
		} else if err == nil { // its end does not count: the process may have had it renewed
			a.reporter.ended(own.Key(), own.JWT(), path)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			left, last = left+1, err
		}
	}
	if left > 0 {
		a.log.Error("credentials of starts that are over are left; they hold until their end", "count", left, "err", last)
	}
}

// endSigned has the credential taken back that this agent saw signed for a start that is
// over: what is in the file is its instance's to say.
func (a *Agent) endSigned(k kbroker.StatusKey, start kbroker.Incarnation) {
	signed := a.reporter.signedFor(k, start)
	if key := credential.KeyOf(signed); key != "" {
		a.reporter.ended(key, signed, credsPath(a.cfg.Dir.home(k), start))
	}
}

// keepOver has the credentials of starts that are over outlive the files of their
// instance, until a core has taken them back.
func (a *Agent) keepOver(home string) error {
	var errs error
	for _, from := range credsIn(home) {
		own, err := credential.Load(from)
		if unread := (*fs.PathError)(nil); errors.As(err, &unread) && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, fmt.Errorf("keep a credential that is to be taken back: %w", err)) // it may be signed
		}
		if err != nil || !own.IsSigned() {
			continue
		}
		path := a.cfg.Dir.over(own.Key())
		err = durable.MakeDir(filepath.Dir(path))
		if err == nil {
			err = durable.Replace(path, []byte(own.JWT()), 0o600)
		}
		a.reporter.ended(own.Key(), own.JWT(), path)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("keep a credential that is to be taken back: %w", err))
		}
	}
	return errs
}

// loadOver has all taken back that earlier agents have kept.
func (a *Agent) loadOver() error {
	a.heal(filepath.Join(a.cfg.Dir.Path, overDir), fs.ModeDir)
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
		path := a.cfg.Dir.over(e.Name())
		signed, err := os.ReadFile(path)
		if err != nil {
			a.log.Error("a credential that is to be taken back cannot be read; it holds until its end", "err", err)
			continue
		}
		a.reporter.ended(e.Name(), string(signed), path)
	}
	return nil
}

// over is the file of a credential that is to be taken back.
func (d *Dir) over(key string) string { return filepath.Join(d.Path, overDir, key) }
