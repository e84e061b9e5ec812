package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// statusOutput is what `status -o json` prints: the cluster's answer, and how
// the cluster was found.
type statusOutput struct {
	kbroker.StatusReply
	Source  string   `json:"source"`
	Servers []string `json:"servers"`
}

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say how the cluster is, and how it was found",
		Long: `Say how the cluster is, and which place named it. Ends with 3 when no core
answers or the cluster has no leader.`,
		Example:           "  kbroker status\n  kbroker status --context nats://10.0.0.1:4222",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := c.within(cmd.Context(), listTimeout)
			defer cancel()
			api, target, err := c.open(ctx)
			if err != nil {
				return err
			}
			defer api.Close()
			s, err := api.Status(ctx)
			if err != nil {
				if errors.Is(err, kbroker.Unavailable) {
					err = kbroker.AsError(err).WithHint("the cores answer when a majority of them is up: start the agents that are dead, `kbroker up` those of this machine")
				}
				return fmt.Errorf("cluster of %s: %w", target.Source, err)
			}
			if s.Alarms == nil {
				s.Alarms = []string{}
			}
			if err := c.print(statusOutput{StatusReply: s, Source: target.Source, Servers: target.Servers}, func(w io.Writer) {
				c.statusText(w, s, target)
			}); err != nil {
				return err
			}
			if s.Leader == nil {
				return kbroker.Errorf(kbroker.NoLeader, "the cluster has no leader").
					WithHint("what runs goes on; changes wait until a majority of the cores is up")
			}
			return nil
		},
	}
}

func (c *cli) statusText(w io.Writer, s kbroker.StatusReply, t client.Target) {
	red, green := c.paint(w, colorRed), c.paint(w, colorGreen)
	writable := red("no")
	if s.Writable {
		writable = green("yes")
	}
	leader := red("none")
	if s.Leader != nil {
		leader = string(*s.Leader)
	}
	fmt.Fprintf(w, "found by   %s\n", t.Source)
	fmt.Fprintf(w, "servers    %s\n", strings.Join(t.Servers, " "))
	fmt.Fprintf(w, "cluster    %s\n", s.ClusterID)
	fmt.Fprintf(w, "answered   %s\n", s.Core)
	fmt.Fprintf(w, "leader     %s\n", leader)
	fmt.Fprintf(w, "writable   %s\n", writable)
	fmt.Fprintf(w, "hosts      %d of %d up\n", s.HostsUp, s.Hosts)
	fmt.Fprintf(w, "cores      %d of %d up, %s\n", s.CoresUp, s.Cores, client.Counted(s.Replicas, "replica"))
	fmt.Fprintf(w, "instances  %d of %d ready, in %s\n", s.Ready, s.Instances, client.Counted(s.Apps, "app"))
	if len(s.Alarms) == 0 {
		fmt.Fprintf(w, "alarms     none\n")
	}
	for _, a := range s.Alarms {
		fmt.Fprintf(w, "%s      %s\n", red("alarm"), a)
	}
}
