package main

import (
	"fmt"
	"io"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker/node"
)

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "version",
		Short:             "Print the version of this binary",
		Example:           "  kbroker version\n  kbroker version -o json",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(*cobra.Command, []string) error {
			v := node.BuildVersion{Version: node.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			return c.print(v, func(w io.Writer) { fmt.Fprintf(w, "kbroker %s %s %s/%s\n", v.Version, v.Go, v.OS, v.Arch) })
		},
	}
}
