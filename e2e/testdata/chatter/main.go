// Command chatter writes lines to its output: `chatter count N`, N lines a second,
// numbered, until it is told to leave; `chatter flood N`, N bytes a second for ten
// seconds (0: as many as it can), then what that was like to the file report in its
// working directory.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// report is what a flood was like.
type report struct {
	Bytes   int64         `json:"bytes"`
	Took    time.Duration `json:"took"`
	Longest time.Duration `json:"longest"` // call of write
}

func main() {
	left := make(chan os.Signal, 1)
	signal.Notify(left, syscall.SIGTERM)
	var err error
	switch what := os.Args[1]; what {
	case "count":
		err = count(os.Args[2], left)
	case "flood":
		if err = flood(os.Args[2]); err == nil {
			<-left
		}
	default:
		err = fmt.Errorf("there is no %s", what)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// count writes whole lines only: this start, a number, and something to be long.
func count(perSecond string, left <-chan os.Signal) error {
	n, err := strconv.Atoi(perSecond)
	if err != nil {
		return err
	}
	const ticks = 50
	tick := time.NewTicker(time.Second / ticks)
	pad := strings.Repeat(".", 180)
	began := time.Now().UnixNano()
	for line := 0; ; {
		select {
		case <-left:
			return nil
		case <-tick.C:
		}
		var b bytes.Buffer
		for range n / ticks {
			fmt.Fprintf(&b, "%d %d %s\n", began, line, pad)
			line++
		}
		if _, err := os.Stdout.Write(b.Bytes()); err != nil {
			return err
		}
	}
}

func flood(perSecond string) error {
	const d = 10 * time.Second
	limit, err := strconv.ParseInt(perSecond, 10, 64)
	if err != nil {
		return err
	}
	lines := []byte(strings.Repeat("a line of a flood of lines, each a bit more than sixty bytes\n", 1000))
	var r report
	for began := time.Now(); r.Took < d; r.Took = time.Since(began) {
		if limit > 0 {
			if early := time.Duration(float64(r.Bytes)/float64(limit)*float64(time.Second)) - r.Took; early > 0 {
				<-time.After(early)
			}
		}
		call := time.Now()
		if _, err := os.Stdout.Write(lines); err != nil {
			return err
		}
		r.Bytes, r.Longest = r.Bytes+int64(len(lines)), max(r.Longest, time.Since(call))
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.WriteFile("report.tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename("report.tmp", "report")
}
