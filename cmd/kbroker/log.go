package main

import (
	"io"
	"log/slog"
	"time"

	"github.com/lmittmann/tint"
)

// newLogger logs for people on a terminal, as JSON anywhere else.
func newLogger(w io.Writer) *slog.Logger {
	var h slog.Handler = slog.NewJSONHandler(w, nil)
	if isTerminal(w) {
		h = tint.NewTextHandler(w, &tint.Options{TimeFormat: time.TimeOnly})
	}
	return slog.New(h)
}
