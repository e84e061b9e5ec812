package broker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/subjects"
)

// Bounds of reading mirrors.
const (
	// mirrorsOpenWithin bounds the start of the server that reads them; it reads
	// every block of every stream whose index is not whole.
	mirrorsOpenWithin = 5 * time.Minute
	mirrorReadAttempt = 5 * time.Second
)

// streamMetaFile has a stream's configuration, in the stream's directory.
const streamMetaFile = "meta.inf"

// streamsDir is where the server keeps the streams of an account, under a store
// directory.
func streamsDir(account string) string { return filepath.Join("jetstream", account, "streams") }

// answerHeaders are what the server adds to a stored message when it answers a
// direct get.
var answerHeaders = []string{server.JSStream, server.JSSequence, server.JSTimeStamp, server.JSSubject, server.JSLastSequence, server.JSNumPending}

// Mirrors are the streams of a lost cluster of two that its second core holds,
// open for reading: the mirrors, and what it held itself. They are read from a
// copy of their files by a server without a cluster: nothing in the directory is
// changed, and nobody has to vote.
type Mirrors struct {
	scratch string
	server  *server.Server
	conn    *nats.Conn
	js      jetstream.JetStream
	streams []MirroredStream
}

// MirroredStream is one of them.
type MirroredStream struct {
	Name     string // of the stream, not of its mirror
	Messages uint64
	// Newest is when its newest message was stored by the lost core; zero if
	// there is none.
	Newest time.Time

	stored string // the name under which it is there
	first  uint64 // sequence
	last   uint64
	config server.StreamConfig
}

// ReadMirrors opens the copies in the directory of a core's broker that does not
// run. g is of its cluster. scratch is a directory that must not exist, for as much as
// they have; Close deletes it. Refused: there are no copies to read.
func ReadMirrors(ctx context.Context, dir, scratch string, g *grants.Authority, log *slog.Logger) (_ *Mirrors, err error) {
	streams, err := findMirrors(filepath.Join(dir, storeDir, streamsDir(g.Control())))
	if err != nil {
		return nil, err
	}
	m := &Mirrors{scratch: scratch}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	for _, s := range streams {
		from := filepath.Join(dir, storeDir, streamsDir(g.Control()), s.stored)
		to := filepath.Join(scratch, streamsDir(g.Control()), s.stored)
		if err := os.MkdirAll(to, 0o700); err != nil {
			return nil, fmt.Errorf("copy stream %s: %w", s.stored, err)
		}
		// Consumers are not of interest.
		for _, part := range []string{"msgs", streamMetaFile, "meta.sum"} {
			if err := copyTree(filepath.Join(from, part), filepath.Join(to, part)); err != nil {
				return nil, fmt.Errorf("copy stream %s: %w", s.stored, err)
			}
		}
	}
	if err := m.open(g, log); err != nil {
		return nil, err
	}
	return m, m.choose(ctx, streams)
}

// findMirrors reads which streams are in a directory of streams.
func findMirrors(dir string) ([]MirroredStream, error) {
	none := kbroker.Errorf(kbroker.Refused, "there is no copy of a cluster in %s", dir)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, none.WithHint("copies are made while there are two cores")
	}
	if err != nil {
		return nil, fmt.Errorf("look for streams: %w", err)
	}
	var streams []MirroredStream
	control := false
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name(), streamMetaFile))
		var info server.FileStreamInfo
		if err == nil {
			err = json.Unmarshal(b, &info)
		}
		if err != nil {
			return nil, fmt.Errorf("read what stream %s is: %w", e.Name(), err)
		}
		s := MirroredStream{Name: info.Name, stored: info.Name, config: info.StreamConfig}
		if source, _, ok := subjects.ParseMirror(info.Name); ok {
			s.Name, s.config = source, server.StreamConfig{}
			if err := json.Unmarshal([]byte(info.Metadata[subjects.MirrorOrigin]), &s.config); err != nil {
				return nil, fmt.Errorf("read what mirror %s copies: %w", info.Name, err)
			}
		}
		if s.config.Replicas > 1 {
			return nil, kbroker.Errorf(kbroker.Refused, "stream %s has %d replicas: there were three cores or more", s.Name, s.config.Replicas).
				WithHint("a majority of the cores has all; start them, or remove the one that is lost: kbroker remove")
		}
		control = control || s.Name == subjects.ControlStream
		streams = append(streams, s)
	}
	if !control {
		return nil, none.WithHint("stream %s is not among the %d that are there", subjects.ControlStream, len(streams))
	}
	return streams, nil
}

// open starts the server that reads the copied files.
func (m *Mirrors) open(g *grants.Authority, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	o := &server.Options{
		ServerName: "rescue", DontListen: true, NoSigs: true, DisableJetStreamBanner: true,
		JetStream: true, StoreDir: m.scratch, JetStreamMaxMemory: memoryStoreBytes, JetStreamMaxStore: math.MaxInt64 / 2,
	}
	acc, err := newAccounts(g)
	if err == nil {
		err = acc.apply(o)
	}
	if err != nil {
		return err
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("make the server that reads copies: %w", err)
	}
	m.server = s
	fatal := make(chan error, 1)
	// That a mirror's source is not there is said again and again.
	first := func(err error) {
		select {
		case fatal <- err:
		default:
		}
	}
	s.SetLoggerV2(&logger{log: log.With("server", o.ServerName), fatal: first}, false, false, false)
	s.Start()
	if !s.ReadyForConnections(mirrorsOpenWithin) {
		select {
		case err := <-fatal:
			return fmt.Errorf("open the copies: %w", err)
		default:
			return fmt.Errorf("the copies are not open after %v", mirrorsOpenWithin)
		}
	}
	if m.conn, err = acc.core.connect(s); err != nil {
		return fmt.Errorf("connect to the server that reads copies: %w", err)
	}
	if m.js, err = jetstream.New(m.conn, jetstream.WithDefaultTimeout(mirrorReadAttempt)); err != nil {
		return fmt.Errorf("open jetstream: %w", err)
	}
	return nil
}

// choose takes of each stream that is there twice the copy that has more: one
// that was moved, and whose mirror was not dropped yet.
func (m *Mirrors) choose(ctx context.Context, streams []MirroredStream) error {
	for _, s := range streams {
		stream, err := m.js.Stream(ctx, s.stored)
		if err != nil {
			return fmt.Errorf("open copy %s: %w", s.stored, err)
		}
		state := stream.CachedInfo().State
		s.Messages, s.first, s.last = state.Msgs, state.FirstSeq, state.LastSeq
		if state.Msgs > 0 {
			s.Newest = state.LastTime
		}
		i := slices.IndexFunc(m.streams, func(o MirroredStream) bool { return o.Name == s.Name })
		switch {
		case i < 0:
			m.streams = append(m.streams, s)
		case s.last > m.streams[i].last:
			m.streams[i] = s
		}
	}
	slices.SortFunc(m.streams, func(a, b MirroredStream) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// Streams are what is there, by name.
func (m *Mirrors) Streams() []MirroredStream { return m.streams }

// Each yields the messages of a stream in their order, as they were stored; an
// error of yield ends it.
func (m *Mirrors) Each(ctx context.Context, s MirroredStream, yield func(*nats.Msg) error) error {
	stream, err := m.js.Stream(ctx, s.stored)
	if err != nil {
		return fmt.Errorf("open copy %s: %w", s.stored, err)
	}
	for next := uint64(1); ; {
		raw, err := stream.GetMsg(ctx, next, jetstream.WithGetMsgSubject(">"))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read copy %s at %d: %w", s.stored, next, err)
		}
		for _, name := range answerHeaders {
			raw.Header.Del(name)
		}
		if err := yield(&nats.Msg{Subject: raw.Subject, Header: raw.Header, Data: raw.Data}); err != nil {
			return err
		}
		next = raw.Sequence + 1
	}
}

// Close ends the reading and deletes the scratch directory.
func (m *Mirrors) Close() error {
	if m.conn != nil {
		m.conn.Close()
	}
	if m.server != nil {
		m.server.Shutdown()
		m.server.WaitForShutdown()
	}
	if err := os.RemoveAll(m.scratch); err != nil {
		return fmt.Errorf("delete what was copied: %w", err)
	}
	return nil
}

// copyTree copies a file or a directory.
func copyTree(from, to string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
