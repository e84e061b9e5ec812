package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/node"
)

func TestARescueNeedsConsent(t *testing.T) {
	for in, agreed := range map[string]bool{"yes\n": true, " yes \n": true, "yes": true, "": false, "\n": false, "y\n": false, "no\nyes\n": false} {
		c := &cli{in: strings.NewReader(in), err: io.Discard}
		switch err := c.consent(t.Context()); {
		case agreed && err != nil:
			t.Errorf("%q: %v, want that it goes on", in, err)
		case !agreed && (!errors.Is(err, kbroker.Refused) || kbroker.AsError(err).Hint == ""):
			t.Errorf("%q: %v, want refused with a hint", in, err)
		}
	}
}

func TestTheQuestionForConsentCanBeInterrupted(t *testing.T) {
	in, never := io.Pipe()
	defer never.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := &cli{in: in, err: io.Discard}
	if err := c.consent(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that it was interrupted", err)
	}
}

// What may be missing is said before anybody is asked.
func TestARescueShowsWhatThereIs(t *testing.T) {
	newest := time.Now().Add(-90 * time.Second)
	var out bytes.Buffer
	c := &cli{err: &out}
	r := rescueResult{
		Host: "b", From: "kb-old", Lost: []kbroker.HostID{"a"}, Newest: &newest,
		Streams: []node.RescuedStream{{Name: "KV_kbroker", Messages: 12, Newest: newest}, {Name: "events"}},
	}
	c.showCopies(r)
	for _, want := range []string{"KV_kbroker  12", "events      0", "The newest write was made 1m30s ago, at ", "a is removed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing in:\n%s", want, out.String())
		}
	}
	out.Reset()
	c.output = formatJSON
	if c.showCopies(r); out.Len() > 0 {
		t.Errorf("a program is shown %q", out.String())
	}
}
