package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/kbroker/kbroker/subjects"
)

// streamsAtOnce are asked.
const streamsAtOnce = 16

// lookAtStreams lists the streams and asks the leader of each, those of mirrors
// last: what a mirror has then can be compared with what its source had. One
// that does not answer has no peers. An error if there is no list.
func (m *membership) lookAtStreams(ctx context.Context) ([]stream, error) {
	ctx, cancel := context.WithTimeout(ctx, streamsTimeout)
	defer cancel()
	names, err := m.streamNames(ctx)
	if err != nil {
		return nil, err
	}
	streams := make([]stream, len(names))
	for i, name := range names {
		streams[i].name = name
		if source, host, ok := subjects.ParseMirror(name); ok {
			streams[i].mirror = &mirror{source: source, host: host, silent: -1}
		}
	}
	m.askStreams(ctx, streams, func(s stream) bool { return s.mirror == nil })
	m.askStreams(ctx, streams, func(s stream) bool { return s.mirror != nil })
	return streams, nil
}

// askStreams fills in what the leaders of the chosen streams say.
func (m *membership) askStreams(ctx context.Context, streams []stream, chosen func(stream) bool) {
	slots := make(chan struct{}, streamsAtOnce)
	var asks sync.WaitGroup
	defer asks.Wait()
	for i := range streams {
		if !chosen(streams[i]) {
			continue
		}
		slots <- struct{}{}
		asks.Go(func() {
			defer func() { <-slots }()
			info, err := m.streamInfo(ctx, streams[i].name)
			if err == nil {
				err = streams[i].learn(info)
			}
			if err != nil && ctx.Err() == nil {
				m.b.log.Debug("stream does not answer", "stream", streams[i].name, "err", err)
			}
		})
	}
}

// learn takes over what a stream's leader said.
func (s *stream) learn(info *server.StreamInfo) error {
	cfg := info.Config
	s.replicas, s.last, s.bytes, s.created = cfg.Replicas, info.State.LastSeq, info.State.Bytes, info.Created
	s.copied = cfg.Retention == server.LimitsPolicy && cfg.Storage == server.FileStorage && cfg.Mirror == nil
	if s.mirror != nil {
		s.origin = cfg.Metadata[subjects.MirrorOrigin]
		if info.Mirror != nil {
			s.mirror.lag, s.mirror.silent = info.Mirror.Lag, info.Mirror.Active
		}
	} else {
		origin, err := originOf(cfg)
		if err != nil {
			return err
		}
		s.origin = origin
	}
	if c := info.Cluster; c != nil && c.Leader != "" {
		s.peers, s.moving = peersOf(c.Leader, c.Replicas), c.Desired != nil
	}
	return nil
}

// serverMetadata is the prefix of what the server itself writes into a stream's
// metadata.
const serverMetadata = "_nats."

// originOf a stream is its configuration without what the server adds, as JSON:
// what a mirror keeps, so that the stream can be made again.
func originOf(cfg server.StreamConfig) (string, error) {
	metadata := map[string]string{}
	for k, v := range cfg.Metadata {
		if !strings.HasPrefix(k, serverMetadata) {
			metadata[k] = v
		}
	}
	cfg.Metadata = metadata
	b, err := json.Marshal(cfg)
	if err != nil {
		return "", fmt.Errorf("encode stream %s: %w", cfg.Name, err)
	}
	return string(b), nil
}

// mirrorConfig is that of a mirror of a stream, on a host. It keeps what the
// stream keeps, and ends what ends by age or by TTL at the same time; the
// stream's delete markers come to it as messages. The server has it answer
// direct gets of the stream if the stream does.
func mirrorConfig(source server.StreamConfig, m action) (server.StreamConfig, error) {
	origin, err := originOf(source)
	if err != nil {
		return server.StreamConfig{}, err
	}
	return server.StreamConfig{
		Name: subjects.MirrorOf(source.Name, m.host), Mirror: &server.StreamSource{Name: source.Name},
		Storage: server.FileStorage, Replicas: 1, Compression: source.Compression,
		MaxMsgs: source.MaxMsgs, MaxBytes: source.MaxBytes, MaxAge: source.MaxAge, MaxMsgsPer: source.MaxMsgsPer,
		MaxMsgSize: source.MaxMsgSize, MaxConsumers: -1,
		AllowMsgTTL: source.AllowMsgTTL, AllowRollup: source.AllowRollup, AllowDirect: true,
		Placement: &server.Placement{Tags: []string{subjects.TagCore, subjects.TagHost(m.host)}},
		Metadata:  map[string]string{subjects.MirrorOrigin: origin},
	}, nil
}

func (m *membership) streamNames(ctx context.Context) ([]string, error) {
	var names []string
	for {
		body, err := json.Marshal(server.JSApiStreamNamesRequest{ApiPagedRequest: server.ApiPagedRequest{Offset: len(names)}})
		if err != nil {
			return nil, fmt.Errorf("encode question: %w", err)
		}
		var r server.JSApiStreamNamesResponse
		if err := ask(ctx, m.conn, server.JSApiStreams, body, &r); err != nil {
			return nil, fmt.Errorf("list streams: %w", err)
		}
		if r.Error != nil {
			return nil, fmt.Errorf("list streams: %w", r.Error)
		}
		names = append(names, r.Streams...)
		if len(r.Streams) == 0 || len(names) >= r.Total {
			return names, nil
		}
	}
}

func (m *membership) streamInfo(ctx context.Context, name string) (*server.StreamInfo, error) {
	var r server.JSApiStreamInfoResponse
	if err := ask(ctx, m.conn, fmt.Sprintf(server.JSApiStreamInfoT, name), nil, &r); err != nil {
		return nil, fmt.Errorf("look at stream %s: %w", name, err)
	}
	if r.Error != nil {
		return nil, fmt.Errorf("look at stream %s: %w", name, r.Error)
	}
	if r.StreamInfo == nil {
		return nil, fmt.Errorf("look at stream %s: empty answer", name)
	}
	return r.StreamInfo, nil
}

// raise asks for more replicas of a stream. Everything else of its
// configuration is sent back as it was read just now; the server has no
// compare-and-set for it. A write that is in flight at the switch may get no
// answer.
func (m *membership) raise(ctx context.Context, name string) error {
	info, err := m.streamInfo(ctx, name)
	if err != nil {
		return err
	}
	config := info.Config
	if config.Replicas >= replicasWanted {
		return nil
	}
	config.Replicas = replicasWanted
	// A stream that is pinned to one host cannot have three replicas. The server
	// refuses another placement beside another number of replicas, but not none.
	if p := config.Placement; p != nil && slices.ContainsFunc(p.Tags, subjects.IsTagHost) {
		config.Placement = nil
	}
	var r server.JSApiStreamUpdateResponse
	if err := m.change(ctx, fmt.Sprintf(server.JSApiStreamUpdateT, name), config, &r); err != nil {
		return fmt.Errorf("raise stream %s: %w", name, err)
	}
	if r.Error != nil {
		return fmt.Errorf("raise stream %s: %w", name, r.Error)
	}
	return nil
}

// makeMirror of a stream on a host.
func (m *membership) makeMirror(ctx context.Context, a action) error {
	info, err := m.streamInfo(ctx, a.stream)
	if err != nil {
		return err
	}
	config, err := mirrorConfig(info.Config, a)
	if err != nil {
		return err
	}
	var r server.JSApiStreamCreateResponse
	if err := m.change(ctx, fmt.Sprintf(server.JSApiStreamCreateT, config.Name), config, &r); err != nil {
		return fmt.Errorf("make mirror %s: %w", config.Name, err)
	}
	if r.Error != nil {
		return fmt.Errorf("make mirror %s: %w", config.Name, r.Error)
	}
	return nil
}

// dropMirror deletes a mirror, and nothing that is none.
func (m *membership) dropMirror(ctx context.Context, name string) error {
	if _, _, ok := subjects.ParseMirror(name); !ok {
		return fmt.Errorf("drop stream %s: it is no mirror", name)
	}
	var r server.JSApiStreamDeleteResponse
	if err := ask(ctx, m.conn, fmt.Sprintf(server.JSApiStreamDeleteT, name), nil, &r); err != nil {
		return fmt.Errorf("drop mirror %s: %w", name, err)
	}
	if r.Error != nil && r.Error.ErrCode != uint16(server.JSStreamNotFoundErr) {
		return fmt.Errorf("drop mirror %s: %w", name, r.Error)
	}
	return nil
}

// change makes one request with a body.
func (m *membership) change(ctx context.Context, subject string, body, out any) error {
	b, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode request: %w", err)
	}
	return ask(ctx, m.conn, subject, b, out)
}
