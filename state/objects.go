package state

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// fewObjects of a stream are listed, and counted, at once; more are listed one shard after
	// another, and counted in some of them: the leader takes no writes while it goes through
	// what it is asked for.
	fewObjects = 5_000
	// listWithin is how long shards are looked at for one page.
	listWithin = 600 * time.Millisecond
	// beyond is an offset at which a list of subjects is empty: what is asked for is their number.
	beyond = 1 << 40
)

// ObjectQuery is which objects are wanted.
type ObjectQuery struct {
	Kind   kbroker.KindName // empty: of all kinds
	Prefix string           // of the id
	After  string           // what Objects has returned last
	Limit  int
	// Placed are the kinds of the app that are placed: Objects lists none of them.
	Placed []kbroker.KindName

	few int // of a stream that are listed at once; 0: fewObjects
}

// Objects reads records of objects in the order of their shards, kinds and ids, each through
// the leader of its stream; those that were deleted are among them for as long as something
// is stored of them. next is where to go on; empty: that was all. Few objects may be found,
// or none, where there are more: looking for them takes a while, too.
//
// Errors: Invalid - After is none; Unavailable - a leader does not answer.
func (s *Store) Objects(ctx context.Context, k AppKey, streams int, q ObjectQuery) (found []kbroker.Stored, next string, err error) {
	first, after := kbroker.Shard(0), ""
	if q.After != "" {
		token, rest, _ := strings.Cut(q.After, ".")
		n, err := strconv.ParseUint(token, 10, 16)
		if err != nil || n >= kbroker.Shards || rest != "" && subjects.ParseOwnKey(q.After).Table != subjects.OwnState {
			return nil, "", kbroker.Errorf(kbroker.Invalid, "%.80q is not where a list of objects goes on", q.After)
		}
		if first = kbroker.Shard(n); rest != "" {
			after = q.After
		}
	}
	few, err := s.fewObjects(ctx, k, streams, q)
	if err != nil {
		return nil, "", err
	}
	began := time.Now()
	for n := first; n < kbroker.Shards; n++ {
		keys, listed := few.keys[n], few.streams[int(n)%streams]
		if !listed {
			match := subjects.MatchStates(n)
			if q.Kind != "" {
				match = subjects.MatchKind(n, q.Kind)
			}
			if keys, _, err = s.keysBelow(ctx, k, streams, match, ""); err != nil {
				return nil, "", err
			}
		}
		wanted := slices.DeleteFunc(keys, func(key string) bool {
			return key <= after || !strings.HasPrefix(subjects.ParseOwnKey(key).Object.ID, q.Prefix)
		})
		slices.Sort(wanted)
		after = ""
		for len(wanted) > 0 {
			some := wanted[:min(len(wanted), q.Limit-len(found))]
			at, err := ownPlace(k, streams, some)
			if err != nil {
				return nil, "", err
			}
			for r, err := range s.readMany(ctx, at, some, 0) {
				if err != nil {
					return nil, "", err
				}
				if r.Exists() {
					found = append(found, r)
				}
			}
			if len(found) >= q.Limit {
				return found, some[len(some)-1], nil
			}
			wanted = wanted[len(some):]
		}
		if time.Since(began) > listWithin && n+1 < kbroker.Shards {
			return found, strconv.Itoa(int(n) + 1), nil
		}
	}
	return found, "", nil
}

// someKeys are the keys of objects by shard, of the streams that have few of them.
type someKeys struct {
	streams map[int]bool
	keys    map[kbroker.Shard][]string
}

func (s *Store) fewObjects(ctx context.Context, k AppKey, streams int, q ObjectQuery) (someKeys, error) {
	out := someKeys{map[int]bool{}, map[kbroker.Shard][]string{}}
	for n := range streams {
		stream, prefix := objectsAt(k, streams, n)
		c := counting{store: s, stream: stream, prefix: prefix, n: n, streams: streams, few: cmp.Or(q.few, fewObjects), placed: q.Placed}
		about, err := c.about(ctx, q.Kind)
		if err != nil {
			return out, unavailable(err, "count the objects of app %s", k.App)
		}
		if about > c.few {
			continue
		}
		out.streams[n] = true
		if about == 0 {
			continue
		}
		page, err := s.subjectsOf(ctx, stream, prefix+filterOf(q.Kind), 0)
		if err != nil {
			return out, unavailable(err, "list the objects of app %s", k.App)
		}
		for subject := range page.State.Subjects {
			if key := subjects.ParseOwnKey(strings.TrimPrefix(subject, prefix)); key.Table == subjects.OwnState {
				out.keys[key.Shard] = append(out.keys[key.Shard], subjects.KeyState(key.Object))
			}
		}
	}
	return out, nil
}

// maxCounted is up to where CountBelow counts.
const maxCounted = 1000

// CountBelow counts the records that exist and whose keys are below the beginning of a key, up
// to maxCounted: what is taken away is not among them.
func (s *Store) CountBelow(ctx context.Context, k AppKey, streams int, match string) (int, error) {
	r := kbroker.OwnReadRequest{Match: match}
	for n := 0; ; {
		page, err := s.OwnRead(ctx, k, streams, r)
		if err != nil {
			return 0, err
		}
		if n += len(page.Records); !page.More || n >= maxCounted || len(page.Records) == 0 {
			return min(n, maxCounted), nil
		}
		r.After = page.Records[len(page.Records)-1].Key
	}
}

// OwnChanged is when a record of an app's ownership was written, by the clock of the leader
// of its stream; zero: there is none. Errors: Invalid, Unavailable.
func (s *Store) OwnChanged(ctx context.Context, k AppKey, key string) (time.Time, error) {
	at, err := ownPlace(k, 0, []string{key})
	if err != nil {
		return time.Time{}, err
	}
	m, err := readLast(ctx, s.cfg.Conn, at.stream, at.prefix+key)
	switch {
	case err != nil:
		return time.Time{}, unavailable(err, "read %s", key)
	case m == nil:
		return time.Time{}, nil
	}
	return m.at.UTC(), nil
}

func filterOf(kind kbroker.KindName) string {
	if kind == "" {
		return subjects.FilterStates
	}
	return subjects.FilterKind(kind)
}

// objectsAt is the n-th stream of an app's objects, and what its subjects are but for the key.
func objectsAt(k AppKey, streams, n int) (stream, prefix string) {
	stream, prefix, _ = subjects.StoredAt(k.Tenant, k.App, streams, strconv.Itoa(n))
	return stream, prefix
}
