// Once is a service whose method must not be run twice: it counts its runs.
package main

import (
	"context"
	"sync/atomic"

	"github.com/kbroker/kbroker/sdk"
)

type answer struct {
	Instance string `json:"instance"`
	Run      int64  `json:"run"` // of this instance, from 1
}

func main() {
	app := sdk.New()
	var runs atomic.Int64
	sdk.Handle(app, "add", func(context.Context, struct{}) (answer, error) {
		return answer{string(app.Instance()), runs.Add(1)}, nil
	})
	app.Main()
}
