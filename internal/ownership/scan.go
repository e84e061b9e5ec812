package ownership

import (
	"time"

	"github.com/kbroker/kbroker"
)

// scan looks through a shard that is heard from now on for objects with something to send:
// also one that is heard again, as its move was called off.
func (s *shard) scan(now time.Duration) {
	s.scanNow(now)
	epoch := s.epoch
	s.owner.later(now+scanAgain*s.owner.cfg.Times.ObserverActs, func(now time.Duration) {
		if s.role == owning && s.epoch == epoch {
			s.scanNow(now)
		}
	})
}

func (s *shard) scanNow(now time.Duration) {
	o := s.owner
	o.toScan = append(o.toScan, s)
	o.scanNext(now)
}

func (o *Owner) scanNext(time.Duration) {
	for o.scans < maxScans && len(o.toScan) > 0 {
		s := o.toScan[0]
		o.toScan = o.toScan[1:]
		if s.role != owning {
			continue
		}
		o.scans++
		o.want(ScanOut{s.number, s.epoch})
	}
}

// ScannedOut is the answer to ScanOut: the objects of the shard that have messages stored.
// ok is false if they could not be read, which is tried again.
func (o *Owner) ScannedOut(now time.Duration, n kbroker.Shard, epoch uint64, found []kbroker.Object, ok bool) {
	o.scans--
	defer o.scanNext(now)
	s := o.shards[n]
	if o.ended || s == nil || s.role != owning || s.epoch != epoch {
		return
	}
	if o.look(now); o.ended {
		return
	}
	if !ok {
		o.later(now+retryMost, func(now time.Duration) {
			if s.role == owning && s.epoch == epoch {
				s.scanNow(now)
			}
		})
		return
	}
	for _, id := range found {
		if s.objects[id] == nil {
			x := &object{shard: s, id: id}
			s.objects[id] = x
			x.begin()
			x.appear(now)
		}
	}
}
