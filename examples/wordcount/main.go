// Wordcount counts the words of a chunk of text: raw bytes, or JSON {"text":
// "..."}. load beside it puts it under load and checks every count.
package main

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/kbroker/kbroker/sdk"
)

// Words is the answer: how many words, separated by white space, the text has.
type Words struct {
	Words int `json:"words"`
}

func main() {
	app := sdk.New()
	sdk.Handle(app, "count", func(_ context.Context, in []byte) (Words, error) {
		return Words{Words: len(bytes.Fields(text(in)))}, nil
	}, sdk.Idempotent())
	app.Main()
}

// text takes the text out of the JSON form; everything else is the text.
func text(in []byte) []byte {
	var form struct {
		Text *string `json:"text"`
	}
	d := json.NewDecoder(bytes.NewReader(in))
	d.DisallowUnknownFields()
	if err := d.Decode(&form); err != nil || form.Text == nil || d.More() {
		return in
	}
	return []byte(*form.Text)
}
