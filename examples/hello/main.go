// Hello greets whoever calls it, and says which instance did.
package main

import (
	"context"

	"github.com/kbroker/kbroker/sdk"
)

type greet struct {
	Name string `json:"name"`
}
type greeting struct {
	Text     string `json:"text"`
	Instance string `json:"instance"`
}

func main() {
	app := sdk.New()
	sdk.Handle(app, "greet", func(_ context.Context, in greet) (greeting, error) {
		if in.Name == "" {
			return greeting{}, sdk.Errorf(sdk.Invalid, "name is empty")
		}
		return greeting{"Hello, " + in.Name + "!", string(app.Instance())}, nil
	}, sdk.Idempotent())
	app.Main() // signals, drain, exit code
}
