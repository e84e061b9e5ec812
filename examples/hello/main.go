// Hello greets whoever calls it, and says which instance did.
package main

import (
	"context"

	"github.com/kbroker/kbroker/sdk"
)

// Greet asks for a greeting.
type Greet struct {
	Name string `json:"name"`
}

// Greeting is the answer.
type Greeting struct {
	Text     string `json:"text"`
	Instance string `json:"instance"`
}

func main() {
	app := sdk.New()
	sdk.Handle(app, "greet", func(_ context.Context, in Greet) (Greeting, error) {
		if in.Name == "" {
			return Greeting{}, sdk.Errorf(sdk.Invalid, "name is empty").WithHint(`send {"name":"Ann"}`)
		}
		return Greeting{Text: "Hello, " + in.Name + "!", Instance: string(app.Instance())}, nil
	}, sdk.Idempotent())
	app.Main() // signals, drain, exit code
}
