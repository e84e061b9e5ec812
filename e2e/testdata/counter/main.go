// Counter keeps counters, as objects.
package main

import (
	"context"

	"github.com/kbroker/kbroker/sdk"
)

type counter struct {
	Count int `json:"count"`
}

func (c *counter) add(context.Context, struct{}) (counter, error) {
	c.Count++
	return *c, nil
}

func (c *counter) get(context.Context, struct{}) (counter, error) { return *c, nil }

func main() {
	app := sdk.New()
	counters := sdk.Objects[counter](app, "counter")
	sdk.Method(counters, "add", (*counter).add)
	sdk.ReadOnly(counters, "get", (*counter).get)
	app.Main()
}
