package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
)

// defaultAudits is how many records are shown unless --limit says.
const defaultAudits = 50

func (c *cli) auditCommand() *cobra.Command {
	var q client.AuditQuery
	var ago time.Duration
	var verify bool
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Show who changed what, and who was refused",
		Long: `Show the audit trail, the oldest first: every change that somebody asked for, and
every request that was refused, with who it was and from where. It needs the role
admin. Equal refusals are one record with their number. Nobody can delete from the
trail; its oldest records leave it when it has 256 MiB.

--verify reads all of it and computes the chain of hashes again: exit code 0 when
it is intact, 1 when a record was altered, removed or put in.`,
		Example: `  kbroker audit
  kbroker audit --refused --since 24h
  kbroker audit --actor ann -o json
  kbroker audit --verify`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := cmd.Flags()
			if verify {
				for _, other := range []string{"follow", "refused", "actor", "since", "limit"} {
					if flags.Changed(other) {
						return kbroker.Errorf(kbroker.Invalid, "--verify reads the whole trail, and goes with no --%s", other)
					}
				}
				return c.verifyAudit(cmd.Context())
			}
			if q.Limit < 1 {
				return kbroker.Errorf(kbroker.Invalid, "a limit of %d records is not possible", q.Limit).WithHint("1 or more")
			}
			if ago < 0 {
				return kbroker.Errorf(kbroker.Invalid, "--since %v lies in the future", ago).WithHint("a duration such as 24h: how far back to look")
			}
			if ago > 0 {
				q.Since = time.Now().Add(-ago).UTC()
				if !flags.Changed("limit") {
					q.Limit = 0
				}
			}
			return c.listAudit(cmd.Context(), q)
		},
	}
	cmd.Flags().BoolVar(&verify, "verify", false, "verify the whole trail instead of showing it")
	cmd.Flags().BoolVarP(&q.Follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().BoolVar(&q.Refused, "refused", false, "only what was refused")
	cmd.Flags().StringVar(&q.Actor, "actor", "", "only what this `WHO` asked for: a name, key, host, instance, app or address")
	cmd.Flags().DurationVar(&ago, "since", 0, "only what is not older than this `DURATION`, such as 24h")
	cmd.Flags().IntVarP(&q.Limit, "limit", "n", defaultAudits, "the newest `N` records (with --since alone: all)")
	return cmd
}

func (c *cli) listAudit(ctx context.Context, q client.AuditQuery) error {
	usual := listTimeout
	if q.Follow {
		usual = 0
	}
	ctx, api, done, err := c.connect(ctx, usual)
	if err != nil {
		return err
	}
	defer done()
	q.Notice = c.noticeSilence
	all, shown := []kbroker.AuditRecord{}, 0
	emit := func(r kbroker.AuditRecord) error {
		shown++
		return c.auditLine(r)
	}
	list := c.output != formatTable && !q.Follow
	if list {
		emit = func(r kbroker.AuditRecord) error { all = append(all, r); return nil }
	}
	err = api.Audit(ctx, q, emit)
	if err != nil && !errors.Is(err, kbroker.Failed) {
		return err
	}
	if list {
		return errors.Join(err, c.print(all, func(io.Writer) {}))
	}
	if err != nil {
		return err
	}
	if shown == 0 && !q.Follow {
		c.say("there is no such record")
	}
	return nil
}

// auditLine prints one record as it comes.
func (c *cli) auditLine(r kbroker.AuditRecord) error {
	if done, err := c.row(r); done {
		return err
	}
	color := ""
	outcome := string(r.Outcome)
	if r.Outcome == kbroker.AuditRefused {
		color = colorYellow
	}
	if r.Count > 1 {
		outcome += fmt.Sprintf(" x%d", r.Count)
	}
	_, err := fmt.Fprintf(c.out, "%6d  %s  %-34s  %s  %-28s  %s\n", r.Number, r.Time.Local().Format(time.DateTime), actorText(r.Actor),
		c.paint(c.out, color)(fmt.Sprintf("%-10s", outcome)), strings.TrimSpace(r.Action+" "+oneLine(r.Object)), oneLine(r.Message))
	return err
}

// actorText is who it was, and from where.
func actorText(a kbroker.Caller) string {
	text := a.String()
	if a.Role != "" && a.Role != text {
		text += " (" + a.Role + ")"
	}
	if a.Address != "" && a.Address != text {
		text += " " + a.Address
	}
	return oneLine(text)
}

// verified is what --verify found.
type verified struct {
	Intact  bool      `json:"intact"`
	Records int       `json:"records"`
	First   uint64    `json:"first"` // numbers of records
	Last    uint64    `json:"last"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	Hash    string    `json:"hash"`    // of the last record
	Rescues []uint64  `json:"rescues"` // numbers of their records
}

func (c *cli) verifyAudit(ctx context.Context) error {
	ctx, api, done, err := c.connect(ctx, 0)
	if err != nil {
		return err
	}
	defer done()
	chain, err := api.VerifyAudit(ctx)
	if err != nil {
		return err
	}
	v := verified{
		Intact: true, Records: chain.Records, First: chain.First.Number, Last: chain.Last.Number,
		Since: chain.First.Time, Until: chain.Last.Time, Hash: chain.Last.Hash, Rescues: append([]uint64{}, chain.Rescues...),
	}
	return c.print(v, func(w io.Writer) {
		fmt.Fprintf(w, "intact: %d records, %d to %d, from %s to %s\n", v.Records, v.First, v.Last,
			v.Since.Local().Format(time.DateTime), v.Until.Local().Format(time.DateTime))
		for _, n := range v.Rescues {
			fmt.Fprintf(w, "record %d is a rescue: what the lost cluster wrote after record %d is not there\n", n, n-1)
		}
		fmt.Fprintf(w, "the last hash is %s\n", v.Hash)
	})
}
