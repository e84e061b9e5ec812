package state

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	createAttempt = 250 * time.Millisecond // a young cluster has no leader for a moment
	createPause   = 50 * time.Millisecond
	statusTTL     = time.Hour // of a status that says exited
)

// Found creates the buckets with one replica and a released super lease, and
// returns nil if they exist already. It tries until ctx ends. Only the host
// that founds a cluster calls it.
//
// Where the server is clustered, the streams are placed on servers with
// subjects.TagCore.
func Found(ctx context.Context, conn *nats.Conn) error {
	js, err := jetstream.New(conn)
	if err != nil {
		return fmt.Errorf("open jetstream: %w", err)
	}
	var placement *jetstream.Placement
	if conn.ConnectedClusterName() != "" {
		placement = &jetstream.Placement{Tags: []string{subjects.TagCore}}
	}
	control := recordStream(subjects.ControlStream, subjects.ControlAll, subjects.ControlChanged, 1, placement)
	status := recordStream(subjects.StatusStream, subjects.StatusAll, subjects.StatusChanged, 1, placement)
	// An exited instance's status ends by itself: its marker tells replicas.
	status.SubjectDeleteMarkerTTL = statusTTL
	for _, cfg := range []jetstream.StreamConfig{control, status} {
		if _, err := create(ctx, js, cfg); err != nil {
			return err
		}
	}
	return seedLease(ctx, conn, js, subjects.ControlStream, subjects.Control(subjects.KeySuperLease))
}

// recordStream is the configuration of a stream of records by key. The first
// two are KV buckets: `nats kv` reads them.
func recordStream(name, all, republished string, replicas int, placement *jetstream.Placement) jetstream.StreamConfig {
	cfg := jetstream.StreamConfig{
		Name: name, Subjects: []string{all}, MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew,
		MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1, MaxConsumers: -1,
		Storage: jetstream.FileStorage, Replicas: replicas, Placement: placement,
		AllowRollup: true, DenyDelete: true, AllowDirect: true, AllowMsgTTL: true, AllowAtomicPublish: true,
	}
	if republished != "" {
		cfg.RePublish = &jetstream.RePublish{Source: all, Destination: republished}
	}
	return cfg
}

// create makes a stream exist and reports whether it was not there before. It
// retries what a cluster without a leader answers, or one whose leader has not
// heard of its peers yet, until ctx ends.
func create(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) (fresh bool, err error) {
	for {
		fresh, err = createOnce(ctx, js, cfg)
		if err == nil {
			return fresh, nil
		}
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && e.ErrorCode != codeNoPeers && e.Code >= 400 && e.Code < 500 {
			return false, fmt.Errorf("create stream %s: %w", cfg.Name, err) // no retry cures it
		}
		if sleep(ctx, createPause); ctx.Err() != nil {
			return false, unavailable(err, "create stream %s", cfg.Name)
		}
	}
}

func createOnce(ctx context.Context, js jetstream.JetStream, cfg jetstream.StreamConfig) (fresh bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, createAttempt)
	defer cancel()
	if _, err := js.Stream(ctx, cfg.Name); err == nil {
		return false, nil
	}
	_, err = js.CreateStream(ctx, cfg)
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		return false, nil
	}
	return err == nil, err
}

// seedLease writes a released lease where there never was one, so that the
// first holder need not wait. A lease is never deleted: one that is absent
// after its stream was created was never written.
func seedLease(ctx context.Context, conn *nats.Conn, js jetstream.JetStream, stream, subject string) error {
	m := newRecord(subject, leaseRecord{Released: true})
	expect(m, 0)
	for {
		attempt, cancel := context.WithTimeout(ctx, readAttempt)
		_, err := js.PublishMsg(attempt, m)
		cancel()
		if err == nil || code(err) == codeWrongSequence {
			return nil
		}
		if last, readErr := readLast(ctx, conn, stream, subject); readErr == nil && last != nil {
			return nil
		}
		if sleep(ctx, createPause); ctx.Err() != nil {
			return unavailable(err, "seed the lease in stream %s", stream)
		}
	}
}

// EnsureApp makes the app's ownership stream exist, with the replicas that the
// control store has now, as this build wants it: one of an older build is republished
// nowhere. Only super calls it.
func (s *Store) EnsureApp(ctx context.Context, k AppKey) error {
	name, all := subjects.Ownership(k.Tenant, k.App)
	replicas, placement, err := s.like(ctx)
	if err != nil {
		return err
	}
	cfg := recordStream(name, all, subjects.OwnedOf(k.Tenant, k.App)+">", replicas, placement)
	fresh, err := create(ctx, s.js, cfg)
	switch {
	case err != nil:
		return err
	case !fresh:
		return s.amend(ctx, cfg)
	}
	return seedLease(ctx, s.cfg.Conn, s.js, name, subjects.AllocatorLease(k.Tenant, k.App))
}

// EnsureObjects makes the streams of an app's objects exist, so many of them; as
// EnsureApp. Their changes are republished nowhere: the state of an object is its owner's.
func (s *Store) EnsureObjects(ctx context.Context, k AppKey, streams int) error {
	replicas, placement, err := s.like(ctx)
	if err != nil {
		return err
	}
	failed := make([]error, streams)
	var creates sync.WaitGroup
	for n := range streams {
		creates.Go(func() {
			name, all := subjects.Objects(k.Tenant, k.App, n)
			_, failed[n] = create(ctx, s.js, recordStream(name, all, "", replicas, placement))
		})
	}
	creates.Wait()
	return errors.Join(failed...)
}

// amend has a stream that exists republish as cfg says. All else stays as it is: the server
// has no compare-and-set for a configuration, and the broker may raise the replicas at the
// same time. So it looks again, until ctx ends, and the broker does so all the time.
func (s *Store) amend(ctx context.Context, cfg jetstream.StreamConfig) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, readAttempt)
		stream, err := streamOf(attempt, s.js, cfg.Name)
		if err == nil {
			now := stream.CachedInfo().Config
			if now.RePublish != nil && *now.RePublish == *cfg.RePublish {
				cancel()
				return nil
			}
			now.RePublish = cfg.RePublish
			_, err = s.js.UpdateStream(attempt, now)
		}
		cancel()
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && e.Code >= 400 && e.Code < 500 {
			return fmt.Errorf("update stream %s: %w", cfg.Name, err) // no retry cures it
		}
		if err != nil {
			sleep(ctx, createPause)
		}
		if ctx.Err() != nil {
			return unavailable(err, "update stream %s", cfg.Name)
		}
	}
}

// like returns how the control stream is replicated and placed now, for streams
// that are made beside it. With one replica they land on the same core: it is
// the one that the cluster cannot do without already. While fewer cores are
// members than the control stream wants replicas, it is as many as it has: the
// broker raises them as it raises the control stream.
func (s *Store) like(ctx context.Context) (replicas int, placement *jetstream.Placement, err error) {
	ctx, cancel := context.WithTimeout(ctx, readAttempt)
	defer cancel()
	control, err := streamOf(ctx, s.js, subjects.ControlStream)
	if err != nil {
		return 0, nil, unavailable(err, "read the configuration of the control store")
	}
	info := control.CachedInfo()
	if info.Cluster == nil || info.Cluster.Leader == "" || info.Cluster.Name == "" {
		return info.Config.Replicas, info.Config.Placement, nil // not clustered
	}
	replicas = min(info.Config.Replicas, 1+len(info.Cluster.Replicas))
	if replicas == 1 {
		tags := []string{subjects.TagCore, subjects.TagHost(kbroker.HostID(info.Cluster.Leader))}
		return 1, &jetstream.Placement{Tags: tags}, nil
	}
	return replicas, info.Config.Placement, nil
}
