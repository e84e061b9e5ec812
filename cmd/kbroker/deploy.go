package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/spec"
)

// deployed is what deploy and scale print.
type deployed struct {
	App       kbroker.AppName `json:"app"`
	Version   int             `json:"version"`
	Unchanged bool            `json:"unchanged"`
	Done      bool            `json:"done"` // false: not waited for
}

func (c *cli) deployCommand() *cobra.Command {
	var detach bool
	var checkIndex uint64
	cmd := &cobra.Command{
		Use:   "deploy FILE",
		Short: "Build, upload and run an application, or a new version of it",
		Long: `Build, upload and run an application, or a new version of it, and follow the
rollout until every instance of the new version is ready (0), it failed (1) or
--timeout has passed (6; the rollout goes on).

The build lines run in the folder of FILE. Archives are unpacked once, in a
temporary directory, to see that hosts will take them. The cluster checks the spec before
anything is uploaded. Deploying what runs already changes nothing.`,
		Example: `  kbroker deploy examples/hello/app.yaml
  kbroker deploy app.yaml --detach
  kbroker deploy app.yaml --timeout 1m
  kbroker deploy --check-index 81985529216486 app.yaml   # as kbroker plan said, or not at all`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeSpec,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := c.within(cmd.Context(), 0)
			defer cancel()
			return c.deploy(ctx, args[0], checkIndex, detach)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait for the rollout")
	cmd.Flags().Uint64Var(&checkIndex, "check-index", 0, "refuse (4) when the app has changed since the `PLAN` of this index")
	return cmd
}

func (c *cli) deploy(ctx context.Context, file string, checkIndex uint64, detach bool) error {
	doc, err := readSpec(file)
	if err != nil {
		return err
	}
	api, _, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer api.Close()
	app, folder := doc.App(), filepath.Dir(file)
	if checkIndex != 0 {
		if err := asPlanned(ctx, api, *app, checkIndex); err != nil {
			return locate(doc, app, err)
		}
	}
	brings := programs(app)
	for _, p := range brings {
		if p.build == "" {
			continue
		}
		c.say("building %s/%s", app.Name, p.of)
		if err := runBuild(ctx, folder, p); err != nil {
			return err
		}
	}
	var findings spec.Errors
	for _, p := range brings {
		if err := measure(ctx, doc, folder, p); err != nil {
			finding, ok := errors.AsType[spec.Error](err)
			if !ok {
				return err
			}
			findings = append(findings, finding)
		}
	}
	if len(findings) > 0 {
		return findings
	}
	// Everything that would be refused is refused before anything is stored.
	if _, err := api.Check(ctx, *app); err != nil {
		return locate(doc, app, err)
	}
	for _, p := range brings {
		if err := c.upload(ctx, api, folder, *p.artifact); err != nil {
			return err
		}
	}
	reply, err := api.DeployPlanned(ctx, *app, checkIndex)
	if err != nil {
		return locate(doc, app, err)
	}
	return c.finish(ctx, api, app.Name, reply, detach)
}

// asPlanned refuses the deploy of a plan that does not hold any more, before the
// minutes that a build and an upload take. What changes meanwhile is refused by
// the deploy itself.
func asPlanned(ctx context.Context, api *client.Client, app kbroker.App, checkIndex uint64) error {
	now, err := api.Plan(ctx, app)
	if err != nil {
		return err
	}
	if now.CheckIndex != checkIndex {
		return kbroker.Errorf(kbroker.Refused, "app %q has changed since that plan was made; nothing was built or uploaded", app.Name).
			WithHint("plan again: `kbroker plan FILE` shows what would change now, with a new check index")
	}
	return nil
}

// finish follows the rollout of a version, unless it need not be waited for,
// and prints what came of it.
func (c *cli) finish(ctx context.Context, api *client.Client, app kbroker.AppName, reply kbroker.DeployReply, detach bool) error {
	result := deployed{App: app, Version: reply.Version, Unchanged: reply.Unchanged}
	if !detach {
		if err := c.rollout(ctx, api, app, reply.Version); err != nil {
			return err
		}
		result.Done = true
	}
	return c.print(result, func(w io.Writer) {
		verb := "is ready"
		switch {
		case detach:
			verb = "is on its way; kbroker apps shows how far it is"
		case reply.Unchanged:
			verb = "was there already and is ready"
		}
		fmt.Fprintf(w, "%s version %d %s\n", app, reply.Version, verb)
	})
}

// locate puts the cluster's refusal of a service at the place of the service
// in the spec.
func locate(doc *spec.Document, app *kbroker.App, err error) error {
	if !errors.Is(err, kbroker.Invalid) {
		return err
	}
	e := kbroker.AsError(err)
	if app.Own != nil && strings.HasPrefix(e.Message, "service "+string(kbroker.AllocatorService)+":") {
		return doc.At("allocator.run", "%s", e.Message).WithHint("%s", e.Hint)
	}
	for _, s := range app.Services {
		prefix := "service " + string(s.Name) + ":"
		if !strings.HasPrefix(e.Message, prefix) {
			continue
		}
		at := "services." + string(s.Name)
		if len(s.Require) > 0 {
			at += ".require"
		} else {
			at += ".run"
		}
		return doc.At(at, "%s", e.Message).WithHint("%s", e.Hint)
	}
	return err
}

// upload puts a program where hosts can fetch it.
func (c *cli) upload(ctx context.Context, api *client.Client, folder string, a kbroker.Artifact) error {
	path := a.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(folder, path)
	}
	f, err := os.Open(path)
	if err != nil {
		return inputError(path, err)
	}
	defer f.Close()
	bar := c.bar("uploading "+a.Path, a.SizeBytes)
	err = api.PutArtifact(ctx, a.SHA256, a.SizeBytes, f, bar.at)
	bar.end()
	switch {
	case ctx.Err() != nil:
		return ctxError(ctx, "the upload of "+path)
	case err != nil:
		return fmt.Errorf("upload %s: %w", path, err)
	}
	return nil
}

// bar shows how far something is, on one line of a terminal that is written
// over; nowhere else.
type bar struct {
	cli   *cli
	what  string
	total int64
	shown int64 // percent; -1: nothing yet
}

func (c *cli) bar(what string, total int64) *bar {
	return &bar{cli: c, what: what, total: total, shown: -1}
}

func (b *bar) at(done int64) {
	percent := done * 100 / max(1, b.total)
	if percent == b.shown || b.cli.output != formatTable || !isTerminal(b.cli.err) {
		return
	}
	b.shown = percent
	fmt.Fprintf(b.cli.err, "\r%s, %s: %3d%%", b.what, bytesText(b.total), percent)
}

func (b *bar) end() {
	if b.shown >= 0 {
		fmt.Fprintln(b.cli.err)
	}
}
