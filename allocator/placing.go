package allocator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/ownership"
	"github.com/kbroker/kbroker/subjects"
)

const (
	// maxAsked bounds the placed objects that wait, and those that are to be released.
	maxAsked = 100_000
	// mostWait bounds for how long one waits.
	mostWait = 10 * time.Minute
	// readPlacedAtOnce are the parts of the records of placed objects that are read at a time.
	readPlacedAtOnce = 8
	// maxTold bounds the records of a message to an owner.
	maxTold = 128
	// tellAgain is how long an owner may not know what is on it, before it is told again;
	// tellAgainInFlow that if what is on it has changed meanwhile: then it mostly knows by now.
	tellAgain       = time.Second
	tellAgainInFlow = 10 * time.Second
)

// placing is what is asked of placed objects, and where they are. Of shards, under its mu.
//
//	allocate, release ---> asked ---> plan ---> batch behind the lease ---> answers, owners told
//	                                    ^--- owners that are lost, or leave
//
// What is asked is in memory alone: who is not answered asks again, the next allocator too.
type placing struct {
	asked   map[kbroker.Shard]*claim // that wait for a place
	order   []kbroker.Shard          // the oldest first; some of them may wait no more
	leaving map[kbroker.Shard]*claim // that are to be released
	used    map[kbroker.Incarnation]kbroker.Demanded
	total   int                            // of all that are placed
	number  uint64                         // of what was to be released last
	untold  map[kbroker.Incarnation]untold // owners that know of another number
	read    bool                           // what is stored was read once
}

// untold is what an owner does not know.
type untold struct {
	since time.Duration
	count int           // of what is on it
	same  time.Duration // since when
}

func newPlacing() placing {
	return placing{
		asked: map[kbroker.Shard]*claim{}, leaving: map[kbroker.Shard]*claim{}, used: map[kbroker.Incarnation]kbroker.Demanded{},
		untold: map[kbroker.Incarnation]untold{},
	}
}

// claim is what somebody wants of a placed object.
type claim struct {
	Placed
	until   time.Duration // of one that waits for a place
	number  uint64        // of one that is to be released: the oldest come first
	replies []string
}

// sawPlaced counts what is on whom. The caller holds mu.
func (s *shards) sawPlaced(was, is ownership.Assignment) {
	count := func(a ownership.Assignment, with func(d, e kbroker.Demanded) kbroker.Demanded) {
		for _, i := range []kbroker.Incarnation{a.Owner, a.Next} {
			if i == "" || i == ownership.Nobody || a.Placed == nil {
				continue
			}
			if s.placing.used[i] = with(s.placing.used[i], a.Placed.Demanded); s.assigner.CountOn(i) == 0 {
				delete(s.placing.used, i)
			}
		}
	}
	count(was, kbroker.Demanded.Minus)
	count(is, kbroker.Demanded.Plus)
	if was.Owner != "" {
		s.placing.total--
	}
	if is.Owner != "" {
		s.placing.total++
	}
}

// readPlaced reads where the placed objects are.
func (s *shards) readPlaced(ctx context.Context) error {
	v, ok := s.alloc.view()
	if !ok || !slices.ContainsFunc(v.App.Services, places) {
		return nil
	}
	parts := slices.Concat(subjects.MatchPlaced(), subjects.MatchPlacedReleases())
	gate, failed := make(chan struct{}, readPlacedAtOnce), make([]error, len(parts))
	var reading sync.WaitGroup
	for n, match := range parts {
		gate <- struct{}{}
		reading.Go(func() {
			defer func() { <-gate }()
			failed[n] = s.readPart(ctx, match)
		})
	}
	reading.Wait()
	if err := errors.Join(failed...); err != nil {
		return failed[slices.IndexFunc(failed, func(err error) bool { return err != nil })]
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.placing.read = true
	s.saw()
	return nil
}

// readPart reads one part of the records: those too by name that were expected to be among
// them, and are not.
func (s *shards) readPart(ctx context.Context, match string) error {
	found, err := s.alloc.readBelow(ctx, match)
	if err != nil {
		return err
	}
	is := map[string]bool{}
	for _, r := range found {
		is[r.Key] = true
	}
	s.mu.Lock()
	var missing []string
	for _, n := range s.assigner.AllPlaced() {
		if key := subjects.KeyAssign(n); strings.HasPrefix(key, match+".") && !is[key] {
			missing = append(missing, key)
		}
	}
	s.mu.Unlock()
	named, err := s.alloc.readKeys(ctx, missing)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := s.alloc.cfg.Judge()
	for _, r := range slices.Concat(found, named) {
		s.see(0, at, r)
	}
	return nil
}

func places(s kbroker.Service) bool { return len(s.Placed) > 0 }

// onPlacing takes what is asked of placed objects, of the active allocator.
func (a *Allocator) onPlacing(m *nats.Msg) {
	if m.Reply == "" {
		return
	}
	verb, _ := subjects.ParsePlacing(m.Subject)
	switch verb {
	case subjects.VerbAllocate:
		var r kbroker.AllocateRequest
		if err := readable(m, &r, func() error { return r.Check() }); err != nil {
			a.answer(m.Reply, nil, err)
			return
		}
		a.shards.allocate(m.Reply, r)
	case subjects.VerbRelease, subjects.VerbFind:
		var r kbroker.PlacedRequest
		if err := readable(m, &r, func() error { return r.Object().Check() }); err != nil {
			a.answer(m.Reply, nil, err)
			return
		}
		if verb == subjects.VerbFind {
			a.shards.find(m.Reply, r.Object())
		} else {
			a.shards.release(m.Reply, r.Object())
		}
	default:
		a.answer(m.Reply, nil, kbroker.Errorf(kbroker.Invalid, "%q is not asked of an allocator", m.Subject))
	}
}

// readable decodes a request, and checks it.
func readable(m *nats.Msg, into any, check func() error) error {
	if err := json.Unmarshal(m.Data, into); err != nil {
		return kbroker.Errorf(kbroker.Invalid, "unreadable request: %v", err)
	}
	return check()
}

// answer sends an answer, or why there is none.
func (a *Allocator) answer(to string, answer any, failure error) {
	reply := &nats.Msg{Subject: to}
	if failure != nil {
		e := kbroker.AsError(failure)
		if e.Executed == "" {
			e.Executed = kbroker.ExecutedNo
		}
		reply.Header, answer = nats.Header{subjects.HeaderCode: {string(e.Code)}}, e
	}
	var err error
	if reply.Data, err = json.Marshal(answer); err == nil {
		err = a.cfg.Conn.PublishMsg(reply)
	}
	if err != nil {
		a.log.Debug("who asks for a placed object is not answered", "err", err)
	}
}

// placedKind is what the spec says of a placed kind.
func (s *shards) placedKind(o kbroker.Object) (demand kbroker.Demanded, of kbroker.Service, err error) {
	v, known := s.alloc.view()
	if !known {
		return demand, of, kbroker.Errorf(kbroker.Unavailable, "the allocator of app %s has not read its spec yet", s.alloc.own.App)
	}
	for _, service := range v.App.Services {
		if d, is := service.Placed[o.Kind]; is {
			return d, service, nil
		}
	}
	if err := v.App.CheckKind(o.Kind); err != nil {
		return demand, of, err
	}
	return demand, of, kbroker.Errorf(kbroker.Invalid, "objects of kind %s are not placed: they are there without being allocated", o.Kind).
		WithHint("call it; or in the spec of app %s: objects: [{kind: %s, placed: {slots: 1}}]", v.App.Name, o.Kind)
}

// taken is that another object has the shard of this one: their hashes are the same.
func taken(o kbroker.Object, a ownership.Assignment) error {
	if a.Owner == "" || a.Placed == nil || a.Placed.Object() == o {
		return nil
	}
	return kbroker.Errorf(kbroker.Conflict, "%s cannot be placed while %s is", o, a.Placed.Object()).WithHint("another id")
}

// allocate takes that an object is to get a place.
func (s *shards) allocate(reply string, r kbroker.AllocateRequest) {
	o := kbroker.Object{Kind: r.Kind, ID: r.ID, Placed: true}
	demand, service, err := s.placedKind(o)
	if r.Demand != nil {
		demand = *r.Demand
	}
	if has := roomOf(service); err == nil && !(Room{Has: has}).Fits(demand) {
		err = kbroker.Errorf(kbroker.Invalid, "%s takes more than an instance of %s has (%d slots, %v cores, %d bytes)", o, service.Name, has.Slots, has.CPU, has.MemoryBytes).
			WithHint("more slots or resources in the spec of the service, or less of placed")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := o.Shard()
	is := s.assigner.Placed(n)
	if err == nil {
		err = taken(o, is)
	}
	p := &s.placing
	switch waits := p.asked[n]; {
	case err != nil:
		s.alloc.answer(reply, nil, err)
	case p.leaving[n] != nil || is.Next == ownership.Nobody:
		s.alloc.answer(reply, nil, kbroker.Errorf(kbroker.Unavailable, "%s is being released", o).WithHint("allocate it again in a moment"))
	case is.Owner != "":
		s.alloc.answer(reply, allocation(is, true), nil)
	case waits != nil && waits.Object != o:
		s.alloc.answer(reply, nil, kbroker.Errorf(kbroker.Conflict, "%s cannot be placed while %s is", o, waits.Object).WithHint("another id"))
	case waits != nil:
		// The answer to an earlier attempt may be lost: the newest ones are answered.
		waits.replies = append(waits.replies[max(0, len(waits.replies)-3):], reply)
		waits.until = max(waits.until, s.waitsUntil(r.WaitMS))
	case len(p.asked) >= maxAsked:
		s.alloc.answer(reply, nil, kbroker.Errorf(kbroker.Overloaded, "%d placed objects of app %s wait for a place", maxAsked, s.alloc.own.App).WithHint("more instances, or objects that take less"))
	default:
		p.asked[n] = &claim{
			Placed:  Placed{Object: o, Demanded: demand, Labels: r.Labels, Instance: r.Instance, Host: r.Host},
			until:   s.waitsUntil(r.WaitMS),
			replies: []string{reply},
		}
		p.order = append(p.order, n)
		s.now.ring()
	}
}

func (s *shards) waitsUntil(ms int64) time.Duration {
	wait := mostWait
	if ms < wait.Milliseconds() {
		wait = time.Duration(max(ms, 0)) * time.Millisecond
	}
	return s.alloc.cfg.Clock() + wait
}

// allocation is where an object is, or is to be.
func allocation(a ownership.Assignment, existed bool) kbroker.Allocation {
	to := a.Next
	if to == "" || to == ownership.Nobody {
		to = a.Owner
	}
	return kbroker.Allocation{Kind: a.Placed.Kind, ID: a.Placed.ID, Instance: to.Instance(), Labels: a.Placed.Labels, Existed: existed}
}

// find answers where an object is.
func (s *shards) find(reply string, o kbroker.Object) {
	_, _, err := s.placedKind(o)
	s.mu.Lock()
	defer s.mu.Unlock()
	is := s.assigner.Placed(o.Shard())
	switch {
	case err != nil:
	case !s.placing.read:
		err = kbroker.Errorf(kbroker.Unavailable, "it is not known yet where placed objects are")
	case is.Owner == "" || is.Placed.Object() != o || is.Next == ownership.Nobody:
		err = notAllocated(s.alloc.own.App, o)
	default:
		s.alloc.answer(reply, allocation(is, true), nil)
		return
	}
	s.alloc.answer(reply, nil, err)
}

func notAllocated(app kbroker.AppName, o kbroker.Object) *kbroker.Error {
	return kbroker.Errorf(kbroker.NotFound, "%s is not allocated", o).WithHint("objects of kind %s are placed: sdk.Allocate %s/%s first", o.Kind, app, o)
}

// release takes that an object is to be there no more.
func (s *shards) release(reply string, o kbroker.Object) {
	_, _, err := s.placedKind(o)
	n := o.Shard()
	s.mu.Lock()
	defer s.mu.Unlock()
	p, is := &s.placing, s.assigner.Placed(n)
	if err == nil {
		err = taken(o, is)
	}
	if waits := p.asked[n]; err == nil && waits != nil && waits.Object == o {
		s.refuse(n, waits, kbroker.Errorf(kbroker.Conflict, "%s was released while it waited for a place", o))
	}
	switch out := p.leaving[n]; {
	case err != nil:
		s.alloc.answer(reply, nil, err)
	case !p.read:
		s.alloc.answer(reply, nil, kbroker.Errorf(kbroker.Unavailable, "it is not known yet where placed objects are"))
	case is.Owner == "":
		s.alloc.answer(reply, kbroker.ReleaseReply{}, nil)
	case out != nil:
		out.replies = append(out.replies[max(0, len(out.replies)-3):], reply)
	case len(p.leaving) >= maxAsked:
		s.alloc.answer(reply, nil, kbroker.Errorf(kbroker.Overloaded, "%d placed objects of app %s are being released", maxAsked, s.alloc.own.App))
	default:
		p.number++
		p.leaving[n] = &claim{Placed: Placed{Object: o}, number: p.number, replies: []string{reply}}
		s.now.ring()
	}
}

// refuse ends the wait for a place. The caller holds mu.
func (s *shards) refuse(n kbroker.Shard, w *claim, err error) {
	for _, reply := range w.replies {
		s.alloc.answer(reply, nil, err)
	}
	delete(s.placing.asked, n)
}

// forgetAsked drops what is asked: who is not answered asks again, the next active allocator.
func (s *shards) forgetAsked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.placing
	clear(p.asked)
	clear(p.leaving)
	clear(p.untold)
	p.order = nil
}

// roomOf is what an instance of a service has for placed objects.
func roomOf(s kbroker.Service) kbroker.Demanded {
	return kbroker.Demanded{Slots: s.Slots, CPU: s.Resources.CPU, MemoryBytes: s.Resources.MemoryBytes}
}

// fillPlaced adds to a view the rooms, and what waits. The caller holds mu.
func (s *shards) fillPlaced(v *View) {
	at := slices.IndexFunc(v.App.Services, places)
	if at < 0 {
		return
	}
	has, loads := roomOf(v.App.Services[at]), map[kbroker.InstanceID]Instance{}
	for _, i := range v.Instances {
		loads[i.Name] = i
	}
	for _, owner := range v.Owners {
		name := owner.Instance()
		v.Rooms = append(v.Rooms, Room{
			Owner: owner, Instance: name, Host: s.assigner.HostOf(owner), Has: has, Used: s.placing.used[owner],
			Objects: s.assigner.CountOn(owner), Load: loads[name].Load,
		})
	}
	for _, n := range s.assigner.Unplaced(s.alloc.cfg.Judge()) {
		is := s.assigner.Placed(n)
		if is.Placed == nil || s.placing.leaving[n] != nil || !s.assigner.Homeless(s.alloc.cfg.Judge(), n) {
			continue // it has a place, or needs none
		}
		v.Missing = v.Missing.Plus(is.Placed.Demanded)
		if len(v.Waiting) < MostPlaced {
			v.Waiting = append(v.Waiting, Placed{Object: is.Placed.Object(), Demanded: is.Placed.Demanded, Labels: is.Placed.Labels, Owner: is.Owner})
		}
	}
	now, p := s.alloc.cfg.Clock(), &s.placing
	p.order = slices.DeleteFunc(p.order, func(n kbroker.Shard) bool {
		w := p.asked[n]
		if w == nil {
			return true
		}
		if s.answerPlaced(n); p.asked[n] == nil {
			return true
		}
		if now >= w.until {
			s.refuse(n, w, kbroker.Errorf(kbroker.Unavailable, "no instance has had room for %s in its time", w.Object).
				WithHint("kbroker allocator %s says how much there is", s.alloc.own.App))
			return true
		}
		v.Missing = v.Missing.Plus(w.Demanded)
		if len(v.Waiting) < MostPlaced {
			v.Waiting = append(v.Waiting, w.Placed)
		}
		return false
	})
}

// planPlaced is the next batch for placed objects; to is where those that wait in the view are
// to be. The caller holds mu.
func (s *shards) planPlaced(epoch uint64, v View, to []kbroker.Incarnation) ownership.Batch {
	if !slices.ContainsFunc(v.App.Services, places) {
		return ownership.Batch{}
	}
	if len(to) != len(v.Waiting) {
		to = fitted(v, emptiest)
	}
	var plans []ownership.PlacedPlan
	for n := range s.placing.leaving {
		s.answerReleased(n) // it was not known what became of a batch
	}
	for n := range s.placing.leaving {
		plans = append(plans, ownership.PlacedPlan{Shard: n, Gone: true})
	}
	slices.SortFunc(plans, func(a, b ownership.PlacedPlan) int {
		return cmp.Compare(s.placing.leaving[a.Shard].number, s.placing.leaving[b.Shard].number)
	})
	wanted := map[kbroker.Shard]kbroker.Incarnation{}
	for i, w := range v.Waiting {
		if n := w.Object.Shard(); w.Owner != "" {
			wanted[n] = to[i]
		}
	}
	for _, n := range s.assigner.Unplaced(s.alloc.cfg.Judge()) {
		if s.placing.leaving[n] == nil {
			plans = append(plans, ownership.PlacedPlan{Shard: n, To: wanted[n]})
		}
	}
	for i, w := range v.Waiting {
		n := w.Object.Shard()
		if s.placing.asked[n] != nil && to[i] != "" && w.Owner == "" {
			plans = append(plans, ownership.PlacedPlan{
				Shard: n, To: to[i], New: &ownership.Placed{Kind: w.Object.Kind, ID: w.Object.ID, Demanded: w.Demanded, Labels: w.Labels},
			})
		}
	}
	return s.assigner.PlanPlaced(s.alloc.cfg.Judge(), epoch, plans)
}

// tellOwners tells who has a placed object now, is to have it, or had it, what is written, and
// answers who has asked for it. Before is what was known before. The caller holds mu.
func (s *shards) tellOwners(before map[kbroker.Shard]ownership.Assignment, all []kbroker.Stored) {
	told := map[kbroker.Incarnation][]kbroker.Stored{}
	for _, r := range all {
		k := subjects.ParseOwnKey(r.Key)
		if k.Table != subjects.OwnAssign || !k.Shard.OfOne() {
			continue
		}
		was, is := before[k.Shard], s.assigner.Placed(k.Shard)
		to := map[kbroker.Incarnation]bool{was.Owner: true, was.Next: true, is.Owner: true, is.Next: true}
		for i := range to {
			if i != "" && i != ownership.Nobody {
				told[i] = append(told[i], r)
			}
		}
		s.answerPlaced(k.Shard)
		s.answerReleased(k.Shard)
	}
	for i, records := range told {
		s.tellOwner(i, records)
	}
}

// answerPlaced answers who waits for a place that the object has now. The caller holds mu.
func (s *shards) answerPlaced(n kbroker.Shard) {
	w, is := s.placing.asked[n], s.assigner.Placed(n)
	if w == nil || is.Owner == "" {
		return
	}
	for _, reply := range w.replies {
		s.alloc.answer(reply, allocation(is, false), nil)
	}
	delete(s.placing.asked, n)
}

// answerReleased answers who waits for the end of an object that is not there any more. The
// caller holds mu.
func (s *shards) answerReleased(n kbroker.Shard) {
	w := s.placing.leaving[n]
	if w == nil || s.assigner.Placed(n).Owner != "" {
		return
	}
	for _, reply := range w.replies {
		s.alloc.answer(reply, kbroker.ReleaseReply{Released: true}, nil)
	}
	delete(s.placing.leaving, n)
}

// tellOwner tells a start what is on it.
func (s *shards) tellOwner(i kbroker.Incarnation, records []kbroker.Stored) {
	for some := range slices.Chunk(records, maxTold) {
		b, err := kbroker.OwnReadReply{Records: some}.MarshalBinary()
		if err == nil {
			err = s.alloc.cfg.Conn.Publish(subjects.PlacedOn(s.alloc.own.Tenant, s.alloc.own.App, i), b)
		}
		if err != nil {
			s.alloc.log.Debug("an owner is not told what is on it; it is told again", "err", err)
		}
	}
}

// knows takes how many placed objects a start knows to be on it: one that has not heard of some
// is told all, and which of them it is to leave, as long as it has not. Of the active allocator.
func (s *shards) knows(now time.Duration, m kbroker.InstanceLoad) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.placing
	moving, count := s.assigner.MovingFrom(m.Incarnation), s.assigner.CountOn(m.Incarnation)
	if count == m.Placed && len(moving) == 0 {
		delete(p.untold, m.Incarnation)
		return
	}
	u, known := p.untold[m.Incarnation]
	if !known {
		u.since = now
	}
	if !known || u.count != count {
		u.count, u.same = count, now
	}
	if p.untold[m.Incarnation] = u; now-u.same < tellAgain && now-u.since < tellAgainInFlow {
		return
	}
	p.untold[m.Incarnation] = untold{since: now, count: count, same: now}
	var records []kbroker.Stored
	told := moving // it may not know that it is to leave them
	if count != m.Placed {
		told = s.assigner.PlacedOn(m.Incarnation)
	}
	for _, n := range told {
		records = append(records, s.assigner.PlacedRecord(n))
	}
	s.tellOwner(m.Incarnation, records)
}

// forward tells the next owner of a placed object that it was released to it. The caller holds
// mu.
func (s *shards) forward(r kbroker.Stored, n kbroker.Shard) {
	if next := s.assigner.Placed(n).Next; next != "" && next != ownership.Nobody {
		s.tellOwner(next, []kbroker.Stored{r})
	}
}
