package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// shortDir is a directory whose sockets the kernel takes, whatever the test's name.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func get(c *http.Client, path string) (string, error) {
	res, err := c.Get("http://host" + path)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, b)
	}
	return string(b), err
}

// TestAHostServesItsMetrics runs a real host, on a directory in which an agent
// that was killed has left its socket.
func TestAHostServesItsMetrics(t *testing.T) {
	dir := filepath.Join(shortDir(t), "h1")
	path := filepath.Join(dir, metricsFile)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	killed, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	killed.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := killed.Close(); err != nil {
		t.Fatal(err)
	}

	stop := start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1"})
	awaitLeader(t, dir)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("the socket has mode %v, want %v", info.Mode(), fs.ModeSocket|0o600)
	}

	var text bytes.Buffer
	wait.Until(t, 10*time.Second, func() error {
		text.Reset()
		if err := Scrape(t.Context(), dir, &text); err != nil {
			return err
		}
		for _, line := range []string{
			`kbroker_agent_info{goversion="go[^"]*",host="h1",role="core",version="[^"]+"} 1`, `kbroker_agent_instances{state="ready"} 0`,
			`kbroker_broker_ready 1`, `kbroker_broker_answers 1`, `kbroker_broker_witness 1`, `kbroker_broker_jetstream_streams [1-9]`,
			`kbroker_super_leads 1`, `kbroker_super_hosts{state="ready"} 1`, `kbroker_super_round_duration_seconds_count [1-9].*`,
			`go_goroutines [1-9].*`, `process_resident_memory_bytes [1-9].*`, `go_build_info{.*} 1`,
		} {
			if !regexp.MustCompile("(?m)^" + line + "$").MatchString(text.String()) {
				return fmt.Errorf("no line %s in:\n%s", line, text.String())
			}
		}
		return nil
	})
	problems, err := promlint.New(&text).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v %v", problems, err)
	}

	c := &http.Client{Timeout: 10 * time.Second, Transport: over(path)}
	for path, part := range map[string]string{"/debug/pprof/": "goroutine", "/debug/pprof/goroutine?debug=1": "goroutine profile:", "/debug/pprof/heap": ""} {
		if body, err := get(c, path); err != nil || !strings.Contains(body, part) {
			t.Errorf("GET %s: %.100q, %v; want %q in it", path, body, err, part)
		}
	}
	if body, err := get(c, "/"); err == nil {
		t.Errorf("GET / is answered with %.100q", body)
	}
	scrapeTogether(t, c)

	// One more agent on the directory is refused, and takes nothing away.
	if err := Run(t.Context(), Config{Dir: dir}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a second agent on the directory: %v, want refused", err)
	}
	if err := Scrape(t.Context(), dir, io.Discard); err != nil {
		t.Errorf("metrics after a second agent was refused: %v", err)
	}

	// One that is being profiled stops as fast as any other.
	profiled := make(chan struct{})
	go func() { defer close(profiled); _, _ = get(c, "/debug/pprof/trace?seconds=9") }()
	began := time.Now()
	if err := stop(); err != nil {
		t.Fatalf("the host ended with %v", err)
	}
	<-profiled
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the host took %v to stop", took)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is there after the end: %v", err)
	}
	if err := Scrape(t.Context(), dir, io.Discard); !errors.Is(err, kbroker.NotFound) {
		t.Errorf("metrics without an agent: %v, want not found", err)
	}
}

// scrapeTogether reads from many at once: who is one too many is told so.
func scrapeTogether(t *testing.T, c *http.Client) {
	t.Helper()
	var all sync.WaitGroup
	answers := make(chan error, 4*maxScrapes)
	for range cap(answers) {
		all.Go(func() {
			_, err := get(c, metricsPath)
			answers <- err
		})
	}
	all.Wait()
	close(answers)
	good := 0
	for err := range answers {
		switch {
		case err == nil:
			good++
		case !strings.Contains(err.Error(), "503"):
			t.Errorf("one of many: %v", err)
		}
	}
	if good < maxScrapes {
		t.Errorf("%d of %d that came together were answered", good, cap(answers))
	}
}

func TestAHostRunsWithoutMetrics(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		prepare func(t *testing.T) string
		logged  string
	}{
		"in a directory that is too deep": {func(t *testing.T) string {
			return filepath.Join(t.TempDir(), strings.Repeat("d", maxSocketPath))
		}, "the kernel takes 107"},
		"where a directory has the socket's name": {func(t *testing.T) string {
			dir := shortDir(t)
			if err := os.MkdirAll(filepath.Join(dir, metricsFile, "x"), 0o700); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "address already in use"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, log := tc.prepare(t), &lines{}
			stop := start(t, Config{Dir: dir, Name: "h1", Found: true, Advertise: "127.0.0.1", Log: slog.New(slog.NewTextHandler(log, nil))})
			awaitLeader(t, dir)
			if text := log.text(); !strings.Contains(text, tc.logged) || !strings.Contains(text, "runs without metrics") {
				t.Errorf("the log does not say %q:\n%s", tc.logged, text)
			}
			err := Scrape(t.Context(), dir, io.Discard)
			if e := kbroker.AsError(err); e == nil || e.Hint == "" || e.Code != kbroker.Invalid && e.Code != kbroker.Unavailable {
				t.Errorf("metrics of it: %v, want why there are none, and a hint", err)
			}
			if err := stop(); err != nil {
				t.Errorf("the host ended with %v", err)
			}
		})
	}
}

// lines is a log that can be read while it is written.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
