package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/spec"
)

// specFile is what the file of a spec is usually called.
const specFile = "app.yaml"

func (c *cli) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE",
		Short: "Check an app spec and show all that is wrong with it",
		Long: `Check an app spec and show all that is wrong with it at once, each finding with
its line, its column and what to do. Asks no cluster and builds nothing.`,
		Example:           "  kbroker validate app.yaml",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeSpec,
		RunE: func(_ *cobra.Command, args []string) error {
			doc, err := readSpec(args[0])
			if err != nil {
				return err
			}
			app := doc.App()
			return c.print(app, func(w io.Writer) {
				fmt.Fprintf(w, "%s: app %s is valid, %s\n", args[0], app.Name, client.Counted(len(app.Services), "service"))
			})
		},
	}
}

// readSpec parses a spec file. Not more of it than a spec may have is read.
func readSpec(path string) (*spec.Document, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, inputError(path, err)
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, spec.MaxBytes+1))
	if err != nil {
		return nil, inputError(path, err)
	}
	return spec.ParseDocument(src, path)
}

// inputError is what a file that the user named and that cannot be read comes
// to.
func inputError(path string, err error) error {
	e := kbroker.Errorf(kbroker.Invalid, "cannot read %s: %v", path, reason(err))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return e.WithHint("is the path right? it is relative to the working directory")
	case errors.Is(err, syscall.EISDIR):
		return e.WithHint("name the file in it, such as %s", filepath.Join(path, specFile))
	}
	return e
}

// reason is what the system said about a file, without naming the file again.
func reason(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}
