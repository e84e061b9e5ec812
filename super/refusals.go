package super

import (
	"cmp"
	"slices"
	"time"

	"github.com/kbroker/kbroker"
)

// Everybody who reaches a core can be refused as often as they like, and each record of it
// takes the place of an older one in the trail. So equal refusals are told together, less
// often the longer they go on; and who comes with ever new names, or from ever new
// addresses, is told as one of many.
const (
	// refusalWindow is how long equal refusals are gathered at first; each next time twice
	// as long, up to refusalWindowMax.
	refusalWindow    = time.Second
	refusalWindowMax = time.Hour
	// refusalsBurst different ones are told one by one, and then so many a second.
	refusalsBurst     = 64
	refusalsPerSecond = 0.1
	// maxRefusalGroups bounds the groups that are gathered at once.
	maxRefusalGroups = 2 * refusalsBurst
	// objectsOfOne is how many different objects of the same kind of refusal of somebody are
	// told apart; those that follow are told together.
	objectsOfOne = 8
)

// refusals gathers what was refused. Not safe for concurrent use: no clock, no I/O.
type refusals struct {
	groups  map[refusalKey]*refusalGroup
	left    float64 // of the bucket
	at      time.Duration
	dropped int
}

// refusalKey is what makes refusals equal.
type refusalKey struct {
	kind   refusalKind
	object string // empty: one of many, too
}

type refusalKind struct {
	by     string
	who    kbroker.Caller // zero: one of many
	action string
	code   kbroker.Code // empty: it was done
}

type refusalGroup struct {
	first  kbroker.AuditRecord
	count  int // since it was told last
	window time.Duration
	due    time.Duration
}

func newRefusals(now time.Duration) *refusals {
	return &refusals{groups: map[refusalKey]*refusalGroup{}, left: refusalsBurst, at: now}
}

// add takes one.
func (s *refusals) add(r kbroker.AuditRecord, now time.Duration) {
	k := refusalKey{refusalKind{by: r.By, who: r.Actor, action: r.Action, code: r.Code}, r.Object}
	g := s.groups[k]
	if g == nil && s.objects(k.kind) >= objectsOfOne {
		k.object = ""
		g = s.groups[k]
	}
	if g == nil && !s.take(now) {
		k.kind.who, k.object = kbroker.Caller{}, ""
		r.Actor, r.Object, r.Message = kbroker.Caller{}, "", "by many; the first: "+r.Actor.String()+": "+r.Message
		g = s.groups[k]
	}
	if g == nil {
		if len(s.groups) >= maxRefusalGroups {
			s.dropped += max(1, r.Count)
			return
		}
		g = &refusalGroup{window: refusalWindow, due: now + refusalWindow}
		s.groups[k] = g
	}
	if g.count == 0 {
		g.first = r
	}
	g.count += max(1, r.Count)
}

// objects is how many objects of a kind are told apart now.
func (s *refusals) objects(k refusalKind) (n int) {
	for other := range s.groups {
		if other.kind == k && other.object != "" {
			n++
		}
	}
	return n
}

// take takes one from the bucket, or finds it empty.
func (s *refusals) take(now time.Duration) bool {
	s.left = min(refusalsBurst, s.left+refusalsPerSecond*(now-s.at).Seconds())
	s.at = now
	if s.left < 1 {
		return false
	}
	s.left--
	return true
}

// due are the records that are to be told now, oldest first; all: those that could wait,
// too.
func (s *refusals) due(now time.Duration, all bool) []kbroker.AuditRecord {
	var out []kbroker.AuditRecord
	for k, g := range s.groups {
		if now < g.due && !all {
			continue
		}
		if g.count == 0 {
			delete(s.groups, k)
			continue
		}
		r := g.first
		if r.Count = g.count; r.Count == 1 {
			r.Count = 0
		}
		out = append(out, r)
		g.count, g.window = 0, min(2*g.window, refusalWindowMax)
		g.due = now + g.window
	}
	slices.SortFunc(out, func(a, b kbroker.AuditRecord) int {
		return cmp.Or(a.Time.Compare(b.Time), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Actor.String(), b.Actor.String()))
	})
	return out
}

// lost returns how many were dropped since it was asked last.
func (s *refusals) lost() int {
	n := s.dropped
	s.dropped = 0
	return n
}
