// Load puts the bank example under load and checks what becomes of the money. Callers
// deposit, withdraw and transfer, each one movement after the other, and every movement is
// in a journal of their own, on the disk, before it is sent. When they have ended and the
// outboxes of the accounts are empty, at most 30 s later, the balances are compared with
// the journal: nothing that was acknowledged may be missing, nothing may be there twice.
// The accounts are new ones with each run. It prints one line of JSON.
//
// Failed are movements that had no effect for want of an owner, refused those that the bank
// did not make; of unknown ones the journal allows both. The exit code is 1 when an invariant is broken or fewer
// than 10 movements per second took effect, 2 when it could not run.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/kbroker/kbroker/sdk"
)

// connectTime bounds the first connection.
const connectTime = 10 * time.Second

func main() {
	duration := flag.Duration("duration", time.Minute, "how long to send")
	callers := flag.Int("callers", 100, "movements under way at a time")
	accounts := flag.Int("accounts", 1000, "accounts")
	transfers := flag.Int("transfers", 40, "of a hundred movements, so many are transfers between accounts")
	pause := flag.Duration("pause", 0, "how long a caller waits behind each movement")
	at := flag.String("at", "", "the cluster: a directory, a context or nats:// URLs (default: as for kbroker)")
	keep := flag.String("journal", "", "write the journal to this new file, and keep it")
	flag.Parse()
	if *transfers < 0 || *transfers > 100 || *callers < 1 || *accounts < 2 || *duration <= 0 || *pause < 0 || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "load: -callers and -duration must be above 0, -accounts above 1, -pause not below, -transfers from 0 to 100, and there are no arguments")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	report, err := run(ctx, *at, *keep, load{accounts: *accounts, callers: *callers, transfers: *transfers, duration: *duration, pause: *pause})
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(report)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	if !report.holds() {
		os.Exit(1)
	}
}

// run connects, sends and judges. An interrupt ends the sending early; what was sent until
// then is judged.
func run(ctx context.Context, at, path string, l load) (Report, error) {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if path == "" {
		dir, err := os.MkdirTemp("", "kbroker-bank-")
		if err != nil {
			return Report{}, err
		}
		defer func() { _ = os.RemoveAll(dir) }() // a journal that nobody asked for
		path = filepath.Join(dir, "journal")
	}
	journal, err := openJournal(path)
	if err != nil {
		return Report{}, err
	}
	dialling, cancel := context.WithTimeout(ctx, connectTime)
	client, err := sdk.Dial(dialling, sdk.At(at), sdk.Logger(log))
	cancel()
	if err != nil {
		return Report{}, err
	}
	defer client.Close()
	l.bank = accounts{client, "load-" + strconv.FormatUint(rand.Uint64(), 36)}
	l.journal = journal
	l.failed = func(m move, err error) {
		if !errors.Is(err, overdrawn) { // as banks do
			log.Warn("movement not acknowledged", "outcome", m.outcome, "from", m.from, "to", m.to, "err", err)
		}
	}
	report, err := l.run(ctx)
	if closed := journal.close(); err == nil {
		err = closed
	}
	if err != nil {
		return Report{}, err
	}
	moves, err := readJournal(path)
	if err != nil {
		return Report{}, err
	}
	v, wrong, err := l.settle(context.Background(), moves)
	if err != nil {
		return Report{}, fmt.Errorf("the balances are not to be had within %v: %w", settleWithin, err)
	}
	for _, w := range wrong {
		log.Error(w)
	}
	report.verdict = v
	return report, nil
}

// accounts are those of the bank in a cluster, which no other run has.
type accounts struct {
	client *sdk.Client
	prefix string
}

type amount struct {
	To    string `json:"to,omitempty"`
	Cents int64  `json:"cents"`
}

// move makes a movement. Not under a context: an interrupt stops new ones, not those under
// way.
func (a accounts) move(m move) error {
	method, at, in := "transfer", m.from, amount{Cents: m.cents}
	switch {
	case m.from == outside:
		method, at = "deposit", m.to
	case m.to == outside:
		method = "withdraw"
	default:
		in.To = a.id(m.to)
	}
	_, err := sdk.Call[struct{}](context.Background(), a.object(at), method, in)
	return err
}

func (a accounts) balance(account int) (int64, error) {
	out, err := sdk.Call[amount](context.Background(), a.object(account), "balance", nil)
	return out.Cents, err
}

func (a accounts) id(account int) string { return a.prefix + "-" + strconv.Itoa(account) }

func (a accounts) object(account int) sdk.Target {
	return a.client.Object("bank/account:" + a.id(account))
}
