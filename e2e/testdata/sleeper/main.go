// Sleeper runs only while it is asked for something. Each instance writes what it runs into
// a file of its own in $RUNS.
package main

import (
	"context"
	"os"
	"path/filepath"

	"github.com/kbroker/kbroker/sdk"
)

func main() {
	app := sdk.New()
	sdk.Handle(app, "note", func(_ context.Context, line []byte) ([]byte, error) {
		f, err := os.OpenFile(filepath.Join(os.Getenv("RUNS"), string(app.Instance())), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		_, err = f.Write(append(line, '\n'))
		return line, err
	})
	app.Main()
}
