package sdk

import (
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/natstest"
	"github.com/kbroker/kbroker/subjects"
)

// A call is as old as the first of its attempts that may have run: by a clock of its own.
func TestACallTellsItsAge(t *testing.T) {
	s := natstest.Start(t)
	nc := s.Connect(t)
	var mu sync.Mutex
	var ages []int64
	o := acc("1")
	if _, err := nc.Subscribe(subjects.ObjectMethod("bank", o.Shard(), o.Kind, "deposit"), func(m *nats.Msg) {
		mu.Lock()
		defer mu.Unlock()
		age, err := strconv.ParseInt(m.Header.Get(subjects.HeaderAge), 10, 64)
		if sent, e := strconv.ParseInt(m.Header.Get(subjects.HeaderSent), 10, 64); err != nil || e != nil || time.Since(time.UnixMilli(sent)) > 5*time.Second {
			t.Errorf("the headers are %v", m.Header)
		}
		switch ages = append(ages, age); len(ages) {
		case 1: // certainly not run
			_ = m.RespondMsg(errorReply(m.Reply, nil, notRun(kbroker.Errorf(kbroker.Moved, "on its way"))))
		case 2, 3: // no answer
		default:
			_ = m.Respond([]byte("7"))
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	c := dial(t, s.URL)
	got, err := Call[int64](within(t, 600*time.Millisecond), c.Object("bank/"+o.String()), "deposit", 1)
	if err != nil || got != 7 {
		t.Fatalf("the call: %d, %v", got, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ages) != 4 || ages[0] != 0 || ages[1] != 0 || ages[2] < 30 || ages[3] < ages[2]+100 {
		t.Errorf("the ages of the attempts are %v ms, want 0, 0, about 60, about 260", ages)
	}
}
