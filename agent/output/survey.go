package output

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/kbroker/kbroker"
)

// foldAnyway is a hole that is folded however fast its file grows: file systems
// end at some TiB.
const foldAnyway = 1 << 40

// survey lists the output files, hands new ones to the looker (add), notes the times of
// those that have grown, and folds those with a large hole.
func (o *Files) survey(add func(*output), now time.Time) {
	keys, err := o.cfg.Instances()
	if err != nil {
		o.log.Warn("output files cannot be listed; the next second retries", "err", err)
		return
	}
	there := make(map[kbroker.StatusKey]bool, len(keys))
	for _, k := range keys {
		f, size, err := o.find(k, add)
		if err == nil && f != nil {
			there[k] = true
			err = o.attend(f, size, now)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			o.log.Warn("an output file is not kept in order; the next second retries", "instance", k.Instance, "err", err)
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for k := range o.files {
		if !there[k] {
			delete(o.files, k)
		}
	}
}

// find returns the output of k and its size, nil if it has none. A file that was not
// known is settled, then the looker gets it.
func (o *Files) find(k kbroker.StatusKey, add func(*output)) (*output, int64, error) {
	info, err := os.Stat(o.cfg.Path(k))
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("output: %w", err)
	}
	o.mu.Lock()
	f := o.files[k]
	o.mu.Unlock()
	if f == nil || f.inode != inodeOf(info) || f.lost.Load() {
		f = &output{key: k, path: o.cfg.Path(k), inode: inodeOf(info), size: -1}
		f.unsettled.Store(true)
		if err := f.settle(); err != nil {
			return f, 0, err
		}
		o.mu.Lock()
		o.files[k] = f
		o.mu.Unlock()
		add(f)
	}
	return f, info.Size(), nil
}

// settle mends what a crash, or an error, has left of a move.
func (f *output) settle() error {
	if !f.unsettled.Load() {
		return nil
	}
	file, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	defer file.Close()
	f.place.Lock()
	defer f.place.Unlock()
	if err := settleOutput(f.path, file); err != nil {
		return err
	}
	s, err := measure(f.path, file)
	if err != nil {
		return err
	}
	if err := settleMarks(f.path, s.end); err != nil {
		return err
	}
	f.moves++
	f.unsettled.Store(false)
	return nil
}

// attend does once a second what a file needs.
func (o *Files) attend(f *output, size int64, now time.Time) error {
	if err := f.settle(); err != nil {
		return err
	}
	if size < f.size {
		if err := f.rebase(); err != nil {
			return err
		}
	}
	l, was := limitsOf(o.bound), f.measured()
	if size == f.size && (f.unfolded || was.first-was.base < l.foldAbove) {
		return nil
	}
	file, err := os.OpenFile(f.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	defer file.Close()
	s, err := measure(f.path, file) // only this moves it, and the looker where it has to be emptied
	if err != nil {
		return err
	}
	growth := size - f.size
	f.size, f.moved = size, f.movesNow()
	f.setMeasured(s)
	if err := addMark(f.path, now, s); err != nil {
		return err
	}
	hole := s.first - s.base
	if f.unfolded || hole < l.foldAbove || growth > o.bound/2 && hole < foldAnyway {
		return nil
	}
	if err := f.fold(file, l.align); err != nil {
		f.unfolded = unable(err)
		if !f.unfolded {
			return err
		}
	}
	return nil
}

func (f *output) movesNow() int {
	f.place.RLock()
	defer f.place.RUnlock()
	return f.moves
}

// rebase takes note that the file has become shorter without the agent, as when a
// shell opens /dev/stdout to write it anew: what was in it counts as dropped, so that
// no number is given twice.
func (f *output) rebase() error {
	f.place.Lock()
	defer f.place.Unlock()
	if f.moves != f.moved {
		return nil // it was the agent
	}
	file, err := os.Open(f.path)
	if err != nil {
		return fmt.Errorf("output: %w", err)
	}
	defer file.Close()
	l, err := loadLedger(f.path, file)
	if err != nil {
		return err
	}
	l.Base += f.size
	if err := saveLedger(f.path, l); err != nil {
		return err
	}
	f.moves++
	return nil
}

// fold folds the file unless somebody reads it just now.
func (f *output) fold(file *os.File, align int64) error {
	// What folding would write while the process waits is written before.
	if err := file.Sync(); err != nil {
		return fmt.Errorf("fold output: %w", err)
	}
	if !f.place.TryLock() {
		return nil
	}
	defer f.place.Unlock()
	f.moves++
	f.unsettled.Store(true)
	if err := fold(f.path, file, align); err != nil {
		return err // what is left of it is settled before the file is cut again
	}
	f.unsettled.Store(false)
	f.size = -1
	return nil
}

// empty empties a file that cannot be cut.
func (f *output) empty(file *os.File) error {
	if !f.place.TryLock() {
		return nil
	}
	defer f.place.Unlock()
	f.moves++
	f.unsettled.Store(true)
	if err := empty(f.path, file); err != nil {
		return err
	}
	f.unsettled.Store(false)
	return nil
}
