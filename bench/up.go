package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Up is how long a new cluster of a side took, until its demonstration answered.
type Up struct {
	Name string
	Took []time.Duration
}

// build is the kbroker program of a side.
type build struct{ name, bin string }

// measureUp starts three hosts with the demonstration, in new folders, and takes them
// down: in each round those of one build after those of the other. Nothing else of the
// bench runs meanwhile.
func measureUp(ctx context.Context, builds []build, rounds int, progress io.Writer) ([]Up, error) {
	if rounds == 0 {
		return nil, nil
	}
	ups := make([]Up, len(builds))
	for i := range rounds {
		for n, b := range builds {
			fmt.Fprintf(progress, "up of %s, round %d of %d\n", b.name, i+1, rounds)
			took, err := upOnce(ctx, b.bin)
			if err != nil {
				return nil, fmt.Errorf("up of %s: %w", b.name, err)
			}
			ups[n].Name, ups[n].Took = b.name, append(ups[n].Took, took)
		}
	}
	return ups, nil
}

func upOnce(ctx context.Context, bin string) (took time.Duration, err error) {
	c, err := newCluster(bin)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	begin := time.Now()
	out, err := c.up(ctx, "--demo", "-o", "json")
	took = time.Since(begin)
	if err != nil {
		return 0, err
	}
	var said struct {
		Answer json.RawMessage `json:"answer"` // of hello
	}
	switch err := json.Unmarshal(out, &said); {
	case err != nil:
		return 0, fmt.Errorf("decode what up says: %w", err)
	case len(said.Answer) == 0:
		return 0, errors.New("up came back without an answer of hello")
	}
	return took, nil
}
