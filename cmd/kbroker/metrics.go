package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

func (c *cli) metricsCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print the metrics of this host's agent, for Prometheus",
		Long: `Print the metrics of this host's agent, of its broker and its super, in the text
form of Prometheus. They are served over HTTP on the socket metrics.sock in the
host's data directory, for the agent's user and root, and on no port; so are the
profiles of the agent, under /debug/pprof/.

--dir is the data directory of a host; by default that of the one host of kbroker
up in KBROKER_DIR, else in .kbroker here, else ` + defaultAgentDir + `.`,
		Example: `  kbroker metrics --dir .kbroker/h1
  curl --unix-socket ` + defaultAgentDir + `/metrics.sock http://host/metrics
  curl --unix-socket ` + defaultAgentDir + `/metrics.sock -o heap.pprof http://host/debug/pprof/heap`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needLinux(); err != nil {
				return err
			}
			switch {
			case c.server != "":
				return kbroker.Errorf(kbroker.Invalid, "metrics are those of a host of this machine, not of --context %s", c.server).
					WithHint("name its data directory with --dir")
			case c.output != formatTable:
				return kbroker.Errorf(kbroker.Invalid, "metrics are text in the form of Prometheus, not %s", c.output.String()).WithHint("leave -o out")
			}
			host, err := thisHostDir(dir)
			if err != nil {
				return err
			}
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			err = node.Scrape(ctx, host, c.out)
			if err != nil && ctx.Err() != nil {
				return ctxError(ctx, "the answer of the agent of "+host)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "data directory of the host")
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

// thisHostDir is the data directory of the host that is meant: the flag's, that
// of the one host of a local cluster, else the agent's default.
func thisHostDir(flag string) (string, error) {
	dir, err := localDir(flag)
	if err != nil {
		return "", err
	}
	_, err = os.Stat(filepath.Join(dir, localFile))
	switch {
	case errors.Is(err, fs.ErrNotExist) && flag != "":
		return flag, nil // as it was given: the path of a socket must be short
	case errors.Is(err, fs.ErrNotExist):
		return defaultAgentDir, nil
	}
	local, err := loadLocal(dir)
	if err != nil {
		return "", err
	}
	hosts := local.members()
	if len(hosts) == 1 {
		return local.hostDir(hosts[0].Name), nil
	}
	var names []string
	for _, h := range hosts {
		names = append(names, string(h.Name))
	}
	if len(names) == 0 {
		return "", kbroker.Errorf(kbroker.NotFound, "the cluster in %s has no host", dir).WithHint("kbroker up starts one")
	}
	return "", kbroker.Errorf(kbroker.Invalid, "the cluster in %s has the hosts %s", dir, strings.Join(names, ", ")).
		WithHint("say which: --dir %s", local.hostDir(hosts[0].Name))
}
