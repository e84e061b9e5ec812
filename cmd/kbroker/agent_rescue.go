package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

// rescueConsent is what a person answers to go on.
const rescueConsent = "yes"

// rescueResult is what `agent rescue` prints.
type rescueResult struct {
	Host    kbroker.HostID       `json:"host"`
	From    string               `json:"from"`    // the lost cluster; empty when only the end was missing
	Cluster string               `json:"cluster"` // the new one
	Lost    []kbroker.HostID     `json:"lost"`
	Streams []node.RescuedStream `json:"streams"`
	// Newest is when the newest message of all was stored; null: there is none,
	// or only the end was missing.
	Newest *time.Time `json:"newest"`
	Old    string     `json:"old"` // the directory with what was there before
	TookS  float64    `json:"took_s"`
}

func (c *cli) agentRescueCommand() *cobra.Command {
	var dir string
	var yes bool
	cmd := &cobra.Command{
		Use:   "rescue",
		Short: "Make a new cluster out of the copies on the second of two hosts",
		Long: `Make a new cluster of this host alone out of the copies that it holds, when the
first of two hosts, the founder, is lost for good. Stop this host's agent first,
run it as the agent's user, then start the agent again as before: with its
settings, under its name, at its address. Further hosts join as usual.

It shows what the copies hold and how old the newest write is: what was written
later, a moment as a rule, is lost. Applications on this host run on meanwhile and
are started anew by the agent; what ran on the lost host is placed here if there is
room. The lost host is removed, and must not be started again with its old data.

Nothing is deleted: the old data stays in the data directory under another name.
Killed in the middle, it has changed nothing, or is ended by its next run or the
next start of the agent. Refused (4): an agent runs on the directory, another core
answers, there is no copy (one host, or three and more), or it is rescued already.`,
		Example: `  systemctl stop kbroker && kbroker agent rescue && systemctl start kbroker
  kbroker agent rescue --dir /srv/kbroker --yes -o json`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needLinux(); err != nil {
				return err
			}
			if c.server != "" {
				return kbroker.Errorf(kbroker.Invalid, "the data directory names the cluster").WithHint("leave --context out; --dir names the directory")
			}
			ctx, cancel := c.within(cmd.Context(), 0)
			defer cancel()
			return c.rescue(ctx, dir, yes)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", defaultAgentDir, "data directory of the host")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

func (c *cli) rescue(ctx context.Context, dir string, yes bool) (err error) {
	r, err := node.BeginRescue(ctx, dir, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	result := rescueResult{Host: r.Host, Lost: []kbroker.HostID{}, Streams: []node.RescuedStream{}}
	if r.Ended != nil {
		c.say("an earlier rescue was cut off; it is ended now")
		result.Cluster, result.Old = r.Ended.ClusterID, r.Ended.Old
		return c.print(result, func(w io.Writer) { rescueText(w, result, dir) })
	}
	result.From, result.Streams = r.ClusterID, r.Streams
	result.Lost = append(result.Lost, r.Lost...)
	if newest := r.Newest(); !newest.IsZero() {
		result.Newest = &newest
	}
	c.showCopies(result)
	if !yes {
		if err := c.consent(ctx); err != nil {
			return err
		}
	}
	began := time.Now()
	done, err := r.Finish(ctx)
	if err != nil {
		return err
	}
	result.Cluster, result.Old, result.TookS = done.ClusterID, done.Old, time.Since(began).Seconds()
	return c.print(result, func(w io.Writer) { rescueText(w, result, dir) })
}

// showCopies tells a person what there is, and what may be missing.
func (c *cli) showCopies(r rescueResult) {
	if c.output != formatTable {
		return
	}
	now := time.Now()
	t := table{header: []string{"STREAM", "MESSAGES", "NEWEST"}}
	for _, s := range r.Streams {
		t.add(s.Name, fmt.Sprint(s.Messages), ago(&s.Newest, now))
	}
	t.write(c, c.err)
	var lost []string
	for _, h := range r.Lost {
		lost = append(lost, string(h))
	}
	c.say("\nhost %s holds these copies of cluster %s.", r.Host, r.From)
	if r.Newest != nil {
		c.say("The newest write was made %s, at %s; later ones are lost.", ago(r.Newest, now), r.Newest.UTC().Format(time.RFC3339))
	}
	c.say("A new cluster of %s alone is made of them; %s is removed, and must never run with its old data again.",
		r.Host, strings.Join(lost, ", "))
}

// ago says when something was.
func ago(t *time.Time, now time.Time) string {
	if t == nil || t.IsZero() {
		return "-"
	}
	return since(t, now) + " ago"
}

// consent asks on the terminal whether to go on.
func (c *cli) consent(ctx context.Context) error {
	fmt.Fprintf(c.err, "Type %s to go on: ", rescueConsent)
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() { // ends with the input, at the latest with this process: a read of a terminal cannot be called off
		text, err := bufio.NewReader(c.in).ReadString('\n')
		answers <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return ctxError(ctx, "the answer; nothing was changed")
	case a := <-answers:
		if a.err != nil && !errors.Is(a.err, io.EOF) {
			return fmt.Errorf("read the answer: %w", a.err)
		}
		if strings.TrimSpace(a.text) != rescueConsent {
			return kbroker.Errorf(kbroker.Refused, "not agreed to; nothing was changed").WithHint("programs say --yes")
		}
	}
	return nil
}

func rescueText(w io.Writer, r rescueResult, dir string) {
	fmt.Fprintf(w, "host %s is cluster %s now\n", r.Host, r.Cluster)
	fmt.Fprintf(w, "what was there before is kept: %s\n", r.Old)
	fmt.Fprintf(w, "start the agent as before:\n  systemctl start kbroker   # or: kbroker agent --dir %s\n", dir)
}
