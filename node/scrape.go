package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"syscall"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/agent"
)

// Scrape writes the metrics of the host whose agent runs on a data directory, in
// the text form of Prometheus. Errors: NotFound - no agent runs there, or it is
// the directory of no host; Refused - they may not be read by this user;
// Unavailable - the agent serves none; that of ctx.
func Scrape(ctx context.Context, dir string, out io.Writer) error {
	path := filepath.Join(dir, metricsFile)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://host"+metricsPath, nil)
	if err != nil {
		return fmt.Errorf("ask for metrics: %w", err)
	}
	res, err := (&http.Client{Transport: over(path)}).Do(req)
	if ctx.Err() != nil {
		return fmt.Errorf("ask the agent of %s: %w", dir, ctx.Err())
	}
	if err != nil {
		return unscraped(dir, path, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10)) // what there is of a reason
		return kbroker.Errorf(kbroker.Unavailable, "the agent of %s does not tell its metrics: %s: %s", dir, res.Status, firstLine(said))
	}
	if _, err := io.Copy(out, res.Body); err != nil {
		return fmt.Errorf("read metrics: %w", err)
	}
	return nil
}

// over connects to the socket at path, whatever host a URL names, and keeps no
// connection: nothing is to be closed.
func over(path string) *http.Transport {
	return &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}
}

// unscraped says why nobody answers at the socket of a directory.
func unscraped(dir, path string, failed error) error {
	if errors.Is(failed, fs.ErrPermission) {
		return kbroker.Errorf(kbroker.Refused, "you may not read the metrics of %s", dir).WithHint("run it as the user of the agent, or as root")
	}
	m, err := readMember(dir)
	if err != nil {
		return err
	}
	h, alive, err := agent.HolderOf(dir)
	switch {
	case err != nil:
		return err
	case !alive && m.Removed:
		return m.errRemoved()
	case !alive:
		return kbroker.Errorf(kbroker.NotFound, "no agent runs on %s", dir).
			WithHint("start it with kbroker agent --dir %s, systemctl start kbroker, or kbroker up", dir)
	}
	if err := checkSocketPath(path); err != nil {
		return err
	}
	if errors.Is(failed, fs.ErrNotExist) || errors.Is(failed, syscall.ECONNREFUSED) {
		return kbroker.Errorf(kbroker.Unavailable, "agent %d of %s serves no metrics", h.PID, dir).
			WithHint("its log says why; one that is older than this program has none until kbroker agent upgrade")
	}
	return kbroker.Errorf(kbroker.Unavailable, "agent %d of %s: %v", h.PID, dir, failed)
}
