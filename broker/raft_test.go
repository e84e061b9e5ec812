package broker

import (
	"strings"
	"testing"
	"time"
)

// stockAtStart is evaluated before any test can have made a broker.
var stockAtStart = func() map[string]time.Duration {
	values := map[string]time.Duration{}
	for _, t := range raftTimes {
		values[t.name] = *t.value
	}
	return values
}()

// After an upgrade of the server this is the test that fails when a variable
// was renamed (its value is 0 then), or when its stock value changed.
func TestRaftVariablesOfTheServerHaveTheirStockValues(t *testing.T) {
	for _, r := range raftTimes {
		if got := stockAtStart[r.name]; got != r.stock {
			t.Errorf("%s = %v in the server, want its stock value %v", r.name, got, r.stock)
		}
	}
}

func TestTuneSetsAllVariablesOrNone(t *testing.T) {
	first, second, renamed := time.Second, 2*time.Second, time.Duration(0)
	good := []raftTime{
		{"first", &first, time.Second, time.Millisecond},
		{"second", &second, 2 * time.Second, 2 * time.Millisecond},
	}
	err := tune(append(good, raftTime{"renamed", &renamed, time.Second, time.Millisecond}))
	if err == nil || !strings.Contains(err.Error(), "renamed is 0s, want its stock value 1s") {
		t.Errorf("tune with a renamed variable: %v", err)
	}
	if first != time.Second || second != 2*time.Second || renamed != 0 {
		t.Errorf("a refused tune changed %v, %v, %v", first, second, renamed)
	}
	if err := tune(good); err != nil {
		t.Errorf("tune: %v", err)
	}
	if first != time.Millisecond || second != 2*time.Millisecond {
		t.Errorf("tune set %v, %v, want 1ms, 2ms", first, second)
	}
}

func TestTheServerTakesTheTunedValues(t *testing.T) {
	b, err := New(configOf(t, "a", true))
	if err != nil {
		t.Fatal(err)
	}
	if !b.RaftTuned() {
		t.Fatal("raft is not tuned")
	}
	for _, r := range raftTimes {
		if *r.value != r.tuned {
			t.Errorf("%s = %v, want %v", r.name, *r.value, r.tuned)
		}
	}
	cfg := configOf(t, "b", true)
	cfg.StockRaft = true
	if b, err = New(cfg); err != nil {
		t.Fatal(err)
	} else if b.RaftTuned() {
		t.Error("a broker with stock raft says that it is tuned")
	}
}
