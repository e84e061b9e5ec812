// Load puts the wordcount example under load and checks its answers. It splits
// real files into chunks, sends them at a fixed rate whatever the answers take
// (open loop), and prints one line of JSON.
//
// A request is sent at its scheduled time, or as soon after it as a caller is
// free; one that could not start within 5 s of its time is missed, and failed.
// Latencies count from the scheduled time. The exit code is 1 when a request
// failed or when the cluster's count is not the local one, 2 when it could not
// run.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

const (
	// deadline bounds a request, and how late it may start.
	deadline = 5 * time.Second
	// connectTime bounds the first connection.
	connectTime = 10 * time.Second
)

func main() {
	rate := flag.Float64("rate", 500, "requests per second")
	callers := flag.Int("callers", 64, "requests under way at a time, at most")
	duration := flag.Duration("duration", 10*time.Second, "how long to send")
	dir := flag.String("dir", "", "folder of the files to send (default: the Go installation's src/net)")
	suffix := flag.String("suffix", ".go", "files to send end in this")
	at := flag.String("at", "", "the cluster: a directory, a context or nats:// URLs (default: as for kbroker)")
	flag.Parse()
	if *rate <= 0 || *callers < 1 || *duration <= 0 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "load: -rate, -callers and -duration must be above 0, and there are no arguments")
		os.Exit(2)
	}
	chunks, err := readChunks(*dir, *suffix)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := run(ctx, *at, plan{*rate, *callers, *duration}, chunks)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	if report.Failed > 0 || report.Words != report.WordsLocal {
		os.Exit(1)
	}
}

// words is the answer of wordcount.
type words struct {
	Words int `json:"words"`
}

// run connects and sends. An interrupt ends the sending early; what was sent
// until then is reported.
func run(ctx context.Context, at string, p plan, chunks []chunk) (Report, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	dialling, cancel := context.WithTimeout(ctx, connectTime)
	client, err := sdk.Dial(dialling, sdk.At(at), sdk.Logger(log))
	cancel()
	if err != nil {
		return Report{}, err
	}
	defer client.Close()
	target := client.Service("wordcount")
	send := func(text []byte) (int, error) {
		// Not under ctx: an interrupt stops new requests, not those under way.
		out, err := sdk.Call[words](context.Background(), target, "count", text, sdk.Timeout(deadline))
		return out.Words, err
	}
	report := p.send(ctx, chunks, send, func(err error) { log.Warn("request failed", "err", err) })
	report.Retried = client.Stats().Retried
	return report, nil
}
