package state

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

// Allocated reads the assignments of placed objects that wanted says yes to, part by part, in
// each in the order of their keys, and limit at most. next is where to go on; empty: that was
// all. As Objects it may find few, or none, where there are more.
//
// Errors: Invalid - after is none; Unavailable - the leader does not answer.
func (s *Store) Allocated(ctx context.Context, k AppKey, after string, limit int, wanted func(kbroker.Stored) bool) (found []kbroker.Stored, next string, err error) {
	parts, first := subjects.MatchPlaced(), 0
	if after != "" {
		key := subjects.ParseOwnKey(after)
		part := after
		if key.Table == subjects.OwnAssign {
			part = after[:strings.LastIndexByte(after, '.')]
		}
		if first = slices.Index(parts, part); first < 0 {
			return nil, "", kbroker.Errorf(kbroker.Invalid, "%.80q is not where a list of placed objects goes on", after)
		}
	}
	began := time.Now()
	for ; first < len(parts); first += readsAtOnce {
		some := parts[first:min(first+readsAtOnce, len(parts))]
		below, err := s.assigned(ctx, k, some, after)
		if err != nil {
			return nil, "", err
		}
		for _, r := range below {
			if !wanted(r) {
				continue
			}
			if found = append(found, r); len(found) == limit {
				return found, r.Key, nil
			}
		}
		after = ""
		if time.Since(began) > listWithin && first+readsAtOnce < len(parts) {
			return found, parts[first+readsAtOnce], nil
		}
	}
	return found, "", nil
}

// assigned reads some parts of the assignments of placed objects, of the first one what is
// after a key.
func (s *Store) assigned(ctx context.Context, k AppKey, parts []string, after string) ([]kbroker.Stored, error) {
	below, failed := make([][]string, len(parts)), make([]error, len(parts))
	var listed sync.WaitGroup
	for i, part := range parts {
		behind := ""
		if i == 0 {
			behind = after
		}
		listed.Go(func() { below[i], _, failed[i] = s.keysBelow(ctx, k, 0, part, behind) })
	}
	listed.Wait()
	for _, err := range failed {
		if err != nil {
			return nil, err
		}
	}
	return s.readKeys(ctx, k, 0, slices.Concat(below...))
}

// OwnRecords reads records of an app by their keys, in whichever streams they are. What is not
// there is left out. Errors: Invalid - a key is none; Unavailable.
func (s *Store) OwnRecords(ctx context.Context, k AppKey, streams int, keys []string) (map[string]kbroker.Stored, error) {
	of := map[string][]string{}
	for _, key := range keys {
		stream, _, _ := subjects.StoredAt(k.Tenant, k.App, streams, key)
		of[stream] = append(of[stream], key)
	}
	all := map[string]kbroker.Stored{}
	for _, some := range of {
		records, err := s.readKeys(ctx, k, streams, some)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			all[r.Key] = r
		}
	}
	return all, nil
}

// readKeys reads records of one stream: those that exist, in the order of their keys.
func (s *Store) readKeys(ctx context.Context, k AppKey, streams int, keys []string) (found []kbroker.Stored, err error) {
	at, err := ownPlace(k, streams, keys)
	if err != nil {
		return nil, err
	}
	for r, err := range s.readMany(ctx, at, keys, 0) {
		if err != nil {
			return nil, err
		}
		if r.Exists() {
			found = append(found, r)
		}
	}
	return found, nil
}

// PlacedObjects reads records of placed objects, also of those that are not allocated, of the
// streams with few objects: in the others they are not listed, as nothing says in which shards
// they are, and left is true then. Otherwise it is as Objects.
func (s *Store) PlacedObjects(ctx context.Context, k AppKey, streams int, q ObjectQuery) (found []kbroker.Stored, next string, left bool, err error) {
	key := subjects.ParseOwnKey(q.After)
	if q.After != "" && !(key.Table == subjects.OwnState && key.Shard.OfOne()) {
		return nil, "", false, kbroker.Errorf(kbroker.Invalid, "%.80q is not where a list of placed objects goes on", q.After)
	}
	few, err := s.fewObjects(ctx, k, streams, q)
	if err != nil {
		return nil, "", false, err
	}
	var wanted []string
	for shard, keys := range few.keys {
		for _, key := range keys {
			if shard.OfOne() && key > q.After && strings.HasPrefix(subjects.ParseOwnKey(key).Object.ID, q.Prefix) {
				wanted = append(wanted, key)
			}
		}
	}
	slices.Sort(wanted)
	more := len(wanted) > q.Limit
	wanted = wanted[:min(len(wanted), q.Limit)]
	records, err := s.OwnRecords(ctx, k, streams, wanted)
	if err != nil {
		return nil, "", false, err
	}
	for _, key := range wanted {
		if r, is := records[key]; is {
			found = append(found, r)
		}
	}
	if more {
		next = wanted[len(wanted)-1]
	}
	return found, next, len(few.streams) < streams, nil
}
