package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"sync"
)

// line is one of the journal: what is about to be sent, or what became of it.
type line struct {
	ID      int     `json:"id"` // of the request, from 1
	From    *int    `json:"from,omitempty"`
	To      *int    `json:"to,omitempty"`
	Cents   int64   `json:"cents,omitempty"`
	Outcome outcome `json:"outcome,omitempty"`
}

// journal is a file of what callers send. It is on the disk before anything is sent, for
// all callers that wait with one sync:
//
//	begin --waiting--> write, sync --> done
//
// Safe for concurrent use.
type journal struct {
	file *os.File
	ends chan struct{}

	mu      sync.Mutex
	wake    *sync.Cond
	next    int
	waiting []line
	done    []chan error // of those that are waited for
	closed  bool
	err     error // for good
}

func openJournal(path string) (*journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	j := &journal{file: file, ends: make(chan struct{})}
	j.wake = sync.NewCond(&j.mu)
	go j.run()
	return j, nil
}

// begin notes a request, and returns its id when that is on the disk.
func (j *journal) begin(m move) (int, error) {
	done := make(chan error, 1)
	id, err := j.add(m, done)
	if err != nil {
		return 0, err
	}
	return id, <-done
}

func (j *journal) add(m move, done chan error) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, j.err
	}
	j.next++
	l := line{ID: j.next, Cents: m.cents}
	if m.from != outside {
		l.From = &m.from
	}
	if m.to != outside {
		l.To = &m.to
	}
	j.waiting, j.done = append(j.waiting, l), append(j.done, done)
	j.wake.Signal()
	return l.ID, nil
}

// end notes what became of a request; it is on the disk some time later.
func (j *journal) end(id int, o outcome) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.waiting = append(j.waiting, line{ID: id, Outcome: o})
	j.wake.Signal()
}

// close writes what waits, and returns whether all of it is on the disk.
func (j *journal) close() error {
	j.mu.Lock()
	j.closed = true
	j.wake.Signal()
	j.mu.Unlock()
	<-j.ends
	return j.err
}

// run writes and syncs until the journal is closed.
func (j *journal) run() {
	defer close(j.ends)
	for {
		lines, done, more := j.take()
		err := j.write(lines)
		for _, d := range done {
			d <- err
		}
		if !more || err != nil {
			return
		}
	}
}

// take waits for lines; more is false with the last.
func (j *journal) take() (lines []line, done []chan error, more bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.waiting) == 0 && !j.closed {
		j.wake.Wait()
	}
	lines, done, more = j.waiting, j.done, !j.closed
	j.waiting, j.done = nil, nil
	return lines, done, more
}

func (j *journal) write(lines []line) (err error) {
	var out []byte
	for _, l := range lines {
		raw, err := json.Marshal(l)
		if err != nil {
			panic("bank load: a line does not marshal: " + err.Error()) // numbers and names only
		}
		out = append(append(out, raw...), '\n')
	}
	if _, err = j.file.Write(out); err == nil {
		err = j.file.Sync()
	}
	if err == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = fmt.Errorf("journal: %w", err)
	for _, d := range j.done {
		d <- j.err
	}
	j.done = nil
	return j.err
}

// readJournal reads what was sent, and what became of it. A last line that is cut off, as
// by a crash, was never sent.
func readJournal(path string) ([]move, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var moves []move
	s := bufio.NewScanner(file)
	for s.Scan() {
		var l line
		if err := json.Unmarshal(s.Bytes(), &l); err != nil {
			if !s.Scan() && s.Err() == nil {
				break
			}
			return nil, fmt.Errorf("journal %s: line %q: %w", path, s.Bytes(), err)
		}
		switch {
		case l.Outcome != "" && l.ID >= 1 && l.ID <= len(moves):
			moves[l.ID-1].outcome = l.Outcome
		case l.Outcome == "" && l.ID == len(moves)+1:
			moves = append(moves, move{from: accountOf(l.From), to: accountOf(l.To), cents: l.Cents, outcome: unknown})
		default:
			return nil, fmt.Errorf("journal %s: line %q out of place", path, s.Bytes())
		}
	}
	return moves, s.Err()
}

func accountOf(n *int) int {
	if n == nil {
		return outside
	}
	return *n
}
