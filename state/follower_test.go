package state

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/kbroker/kbroker/internal/natstest"
)

// published is what a follower handed on.
type published struct {
	seqs   []uint64 // of the messages of one call
	reset  bool
	upTo   uint64
	proven bool
}

// script is a stream of which each read is answered as a test says.
type script struct {
	reads  [][]*nats.Msg // one answer each; after the last: nothing
	floors []uint64      // likewise; after the last: the last one
	out    []published

	mu    sync.Mutex // reads are answered beside the test
	asked []string   // what was done, in order
}

func (s *script) note(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, what)
}

func fed(stream string, seq uint64, header ...string) *nats.Msg {
	m := newMsg("x", nil)
	m.Header.Set(jetstream.StreamHeader, stream)
	m.Header.Set(jetstream.SubjectHeader, fmt.Sprintf("key-%d", seq))
	m.Header.Set(jetstream.SequenceHeader, fmt.Sprint(seq))
	m.Header.Set(jetstream.TimeStampHeaer, time.Unix(0, 0).UTC().Format(time.RFC3339Nano))
	for i := 0; i < len(header); i += 2 {
		m.Header.Set(header[i], header[i+1])
	}
	return m
}

// answer is one answer to a batched read: the messages of these sequences.
func answer(pending int, seqs ...uint64) []*nats.Msg {
	var msgs []*nats.Msg
	before := uint64(0)
	for _, seq := range seqs {
		msgs = append(msgs, fed("S", seq, "Nats-Last-Sequence", fmt.Sprint(before), "Nats-Num-Pending", fmt.Sprint(pending)))
		before = seq
	}
	return msgs
}

// follow returns a follower of the script.
func (s *script) follow(t *testing.T) *follower {
	t.Helper()
	conn := natstest.Start(t).Connect(t)
	_, err := conn.Subscribe("scripted.>", func(m *nats.Msg) {
		end := newMsg(m.Reply, nil)
		end.Header.Set("Status", "404")
		if len(s.reads) > 0 && strings.Contains(m.Subject, "DIRECT.GET") {
			for _, r := range s.reads[0] {
				r.Subject = m.Reply
				_ = conn.PublishMsg(r)
				end.Header.Set("Status", "204")
				end.Header.Set("Description", "EOB")
			}
			s.reads = s.reads[1:]
		}
		s.note("read")
		_ = conn.PublishMsg(end)
	})
	if err != nil {
		t.Fatalf("subscribe: %v", err)
	}
	js, err := jetstream.NewWithAPIPrefix(conn, "scripted")
	if err != nil {
		t.Fatalf("jetstream: %v", err)
	}
	f := &follower{conn: conn, js: js, stream: "S", clock: Boottime, log: testLog(t), nudged: make(chan uint64, 1)}
	f.floor = func(context.Context) (uint64, bool, error) {
		s.note("floor")
		at := s.floors[0]
		if len(s.floors) > 1 {
			s.floors = s.floors[1:]
		}
		return at, true, nil
	}
	f.publish = func(batch []message, reset bool, seq uint64, proven bool) {
		p := published{reset: reset, upTo: seq, proven: proven}
		for _, m := range batch {
			p.seqs = append(p.seqs, m.seq)
		}
		s.out = append(s.out, p)
	}
	f.restart()
	return f
}

func (s *script) expect(t *testing.T, want ...published) {
	t.Helper()
	same := func(a, b published) bool {
		return slices.Equal(a.seqs, b.seqs) && a.reset == b.reset && a.upTo == b.upTo && a.proven == b.proven
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.EqualFunc(s.out, want, same) {
		t.Fatalf("published %+v, want %+v (%v)", s.out, want, s.asked)
	}
	s.out = nil
}

// A replica that answers may have dropped messages for later ones that the next
// replica to answer does not have yet: the end of its answers is no state that
// the store ever had.
func TestNothingIsPublishedBeforeTheFloor(t *testing.T) {
	s := &script{floors: []uint64{6, 7}, reads: [][]*nats.Msg{answer(2, 3), nil, nil, answer(0, 4, 5, 6), answer(0, 7)}}
	f := s.follow(t)
	f.catchUp(testContext(t, 10*time.Second), nil, 0)
	s.expect(t, published{seqs: []uint64{3, 4, 5, 6}, reset: true, upTo: 6, proven: true})
}

// What a read left out may have been superseded after the floor was learned.
func TestAReadThatLeavesOutMessagesNeedsANewFloor(t *testing.T) {
	s := &script{floors: []uint64{4, 9}, reads: [][]*nats.Msg{answer(0, 1, 2), nil, answer(1, 4, 6), nil, answer(0, 7, 8, 9)}}
	f := s.follow(t)
	f.catchUp(testContext(t, 10*time.Second), nil, 0)
	s.expect(t, published{seqs: []uint64{1, 2, 4, 6, 7, 8, 9}, reset: true, upTo: 9, proven: true})
}

func TestALostMessageOfAnAnswerIsReadAgain(t *testing.T) {
	broken := answer(0, 1, 2, 3, 4)
	s := &script{floors: []uint64{4}, reads: [][]*nats.Msg{slices.Delete(broken, 1, 2), answer(0, 2, 3, 4)}}
	f := s.follow(t)
	f.catchUp(testContext(t, 10*time.Second), nil, 0)
	s.expect(t, published{seqs: []uint64{1, 2, 3, 4}, reset: true, upTo: 4, proven: true})
}

func TestABatchIsPublishedWhole(t *testing.T) {
	s := &script{floors: []uint64{1}, reads: [][]*nats.Msg{answer(0, 1)}}
	f := s.follow(t)
	ctx := testContext(t, 10*time.Second)
	f.catchUp(ctx, nil, 0)
	s.expect(t, published{seqs: []uint64{1}, reset: true, upTo: 1, proven: true})
	f.take(ctx, nil, fed("S", 2, headerBatch, "b"))
	f.take(ctx, nil, fed("S", 3, headerBatch, "b"))
	s.expect(t)
	f.take(ctx, nil, fed("S", 4, headerBatch, "b", headerCommit, "1"))
	s.expect(t, published{seqs: []uint64{2, 3, 4}, upTo: 4, proven: true})
	f.take(ctx, nil, fed("other", 5)) // another stream's
	s.expect(t)
	f.take(ctx, nil, fed("S", 5))
	s.expect(t, published{seqs: []uint64{5}, upTo: 5, proven: true})
}

func TestAReadThatEndsInsideABatchIsNotPublished(t *testing.T) {
	cut := answer(0, 1, 2)
	cut[1].Header.Set(headerBatch, "b")
	s := &script{floors: []uint64{2}, reads: [][]*nats.Msg{cut, nil, answer(0, 3)}}
	f := s.follow(t)
	f.catchUp(testContext(t, 10*time.Second), nil, 0)
	s.expect(t, published{seqs: []uint64{1, 2, 3}, reset: true, upTo: 3, proven: true})
}

func TestAReplicaThatWasAwayForLongStartsAgain(t *testing.T) {
	s := &script{floors: []uint64{1, 9}, reads: [][]*nats.Msg{answer(0, 1)}}
	f := s.follow(t)
	clock := &fakeClock{}
	f.clock = clock.read
	f.restart()
	ctx := testContext(t, 10*time.Second)
	f.catchUp(ctx, nil, 0)
	clock.advance(markerTTL) // markers of deleted keys are gone
	s.out, s.reads = nil, [][]*nats.Msg{answer(0, 8, 9)}
	f.catchUp(ctx, nil, 0)
	s.expect(t, published{seqs: []uint64{8, 9}, reset: true, upTo: 9, proven: true})
}

// A store with one replica may republish what it then loses in a crash.
func TestAStoreThatWentBackIsReadAgain(t *testing.T) {
	for name, again := range map[string]*nats.Msg{
		"a sequence comes twice":                     fed("S", 3),
		"the guard does not name what we have of it": fed("S", 5, jetstream.SubjectHeader, "guard", jetstream.LastSequenceHeader, "1"),
	} {
		t.Run(name, func(t *testing.T) {
			s := &script{floors: []uint64{1, 3}, reads: [][]*nats.Msg{answer(0, 1)}}
			f := s.follow(t)
			f.guard = "guard"
			ctx := testContext(t, 10*time.Second)
			f.catchUp(ctx, nil, 0)
			f.take(ctx, nil, fed("S", 2))
			f.take(ctx, nil, fed("S", 3, jetstream.SubjectHeader, "guard", jetstream.LastSequenceHeader, "0", headerBatch, "b")) // lost, with all after it
			f.take(ctx, nil, fed("S", 4, headerBatch, "b"))
			s.out, s.reads = nil, [][]*nats.Msg{answer(0, 1, 2, 3)}
			f.take(ctx, nil, again)
			s.expect(t, published{seqs: []uint64{1, 2, 3}, reset: true, upTo: 3, proven: true})
		})
	}
}

// A late copy of what a read brought is no reason to read again.
func TestALateMessageOfTheFeedIsIgnored(t *testing.T) {
	s := &script{floors: []uint64{3}, reads: [][]*nats.Msg{answer(0, 1, 2, 3)}}
	f := s.follow(t)
	ctx := testContext(t, 10*time.Second)
	f.catchUp(ctx, nil, 0)
	s.out = nil
	f.take(ctx, nil, fed("S", 2))
	f.take(ctx, nil, fed("S", 3))
	s.expect(t)
	f.take(ctx, nil, fed("S", 4))
	s.expect(t, published{seqs: []uint64{4}, upTo: 4, proven: true})
}
