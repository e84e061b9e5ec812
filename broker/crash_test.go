package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// metaAnswers fails unless the JetStream API has a meta leader.
func metaAnswers(nc *nats.Conn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err := (&membership{conn: nc}).streamNames(ctx)
	return err
}

// replicated fails unless the control stream has three current replicas.
func replicated(nc *nats.Conn) error {
	info, err := streamOf(nc, subjects.ControlStream)
	if err != nil {
		return err
	}
	s := stream{replicas: info.Config.Replicas}
	if c := info.Cluster; c != nil && c.Leader != "" {
		s.peers = peersOf(c.Leader, c.Replicas)
	}
	if s.replicas != replicasWanted || !s.settled() {
		b, _ := json.Marshal(info.Cluster)
		return fmt.Errorf("control stream has %d replicas: %s", s.replicas, b)
	}
	return nil
}

func TestKilledSingleHostWritesWithinTwoSecondsOfItsRestart(t *testing.T) {
	cfg := configOf(t, "solo", true)
	a := startChild(t, cfg)
	nc := dial(t, cfg)
	createControl(t, nc)
	w := startWriter(t, nc, nil)
	var firsts []time.Duration
	for range 3 {
		wait.Until(t, 5*time.Second, func() error {
			if w.count() < 100 {
				return errors.New("fewer than 100 writes")
			}
			return nil
		})
		a.kill()
		w.stop()
		began := time.Now()
		a = startChild(t, cfg)
		w = startWriter(t, nc, w)
		wait.Until(t, 10*time.Second, func() error {
			if w.count() == 0 {
				return errors.New("no write since the restart")
			}
			return nil
		})
		first := time.Since(began)
		wait.Until(t, 10*time.Second, func() error { return metaAnswers(nc) })
		t.Logf("restart after kill -9: first write %v, meta leader %v", first, time.Since(began))
		firsts = append(firsts, first)
	}
	if slices.Sort(firsts); firsts[1] > 2*time.Second {
		t.Errorf("first writes %v after the restarts, want 2 s at the median", firsts)
	}
	w.check(t)
}

func TestWritesResumeWithoutTheLeadingCore(t *testing.T) {
	t.Parallel()
	a := configOf(t, "a", true)
	b := configOf(t, "b", false, a)
	c := configOf(t, "c", false, a, b)
	children := map[string]*childHost{"a": startChild(t, a)}
	nc := dial(t, a, b, c)
	createControl(t, nc)
	children["b"], children["c"] = startChild(t, b), startChild(t, c)
	wait.Until(t, 30*time.Second, func() error { return replicated(nc) })
	w := startWriter(t, nc, nil)
	for _, fault := range []struct {
		name  string
		limit time.Duration // without an acknowledged write, besides an attempt that began before
		hit   func(*childHost)
		heal  func(*childHost)
	}{
		{"killed", 4 * time.Second, (*childHost).kill, func(c *childHost) { children[string(c.cfg.Host)] = startChild(t, c.cfg) }},
		{"frozen", 5 * time.Second, func(c *childHost) { c.signal(t, syscall.SIGSTOP) }, func(c *childHost) { c.signal(t, syscall.SIGCONT) }},
	} {
		// A split vote costs a second election. They are rare, but not on a
		// machine that is busy: the best of three must be within the limit.
		var gap time.Duration
		for range 3 {
			if gap = gapWithoutLeader(t, nc, w, children, fault.name, fault.hit, fault.heal); gap <= fault.limit+writerTimeout {
				break
			}
		}
		if gap > fault.limit+writerTimeout {
			t.Errorf("%s: %v without a write even at the best of three, want %v", fault.name, gap, fault.limit)
		}
	}
	wait.Until(t, time.Minute, func() error { return replicated(nc) })
	w.check(t)
}

// gapWithoutLeader hits the leader of the control stream, and heals it when
// writes have resumed; it returns the longest time without one.
func gapWithoutLeader(t *testing.T, nc *nats.Conn, w *writer, children map[string]*childHost, name string, hit, heal func(*childHost)) time.Duration {
	t.Helper()
	before := w.count()
	began := time.Now()
	// nats-server 2.15: a follower has once been seen to refuse what its leader sent it to
	// catch up with ("Expected first catchup entry to be a snapshot") for 15 s. Writes go
	// on meanwhile, with two of three; when all are current again is not the question here.
	wait.Until(t, time.Minute, func() error {
		if err := replicated(nc); err != nil {
			return err
		}
		if w.count() < before+100 {
			return errors.New("fewer than 100 writes")
		}
		return nil
	})
	if took := time.Since(began); took > 5*time.Second {
		t.Logf("all were current after %v", took)
	}
	info, err := streamOf(nc, subjects.ControlStream)
	if err != nil {
		t.Fatal(err)
	}
	leader := children[info.Cluster.Leader]
	w.takeGap()
	before = w.count()
	hit(leader)
	wait.Until(t, 15*time.Second, func() error {
		if w.count() < before+20 {
			return fmt.Errorf("writes have not resumed after %s was %s", leader.cfg.Host, name)
		}
		return nil
	})
	gap := w.takeGap()
	t.Logf("stream leader %s %s: %v without an acknowledged write", leader.cfg.Host, name, gap)
	heal(leader)
	return gap
}

// The founder dies at some moment between the join of the third core and the
// last raised stream; whatever had been done, it is finished after its restart.
func TestFounderKilledWhileTheWitnessIsReplaced(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	a := configOf(t, "a", true)
	b := configOf(t, "b", false, a)
	c := configOf(t, "c", false, a, b)
	founder := startChild(t, a)
	nc := dial(t, a, b, c)
	createControl(t, nc)
	w := startWriter(t, nc, nil)
	startChild(t, b)
	wait.Until(t, 10*time.Second, func() error { return metaAnswers(dial(t, b)) })
	delay := time.Duration(random.IntN(2000)) * time.Millisecond
	t.Logf("seed %d: the founder is killed %v after the third core was started", seed, delay)
	startChild(t, c)
	<-time.After(delay)
	founder.kill()
	_, err := os.Stat(filepath.Join(a.Dir, retiredFile))
	t.Logf("killed; the witness was retired: %t", err == nil)
	began := time.Now()
	startChild(t, a)
	wait.Until(t, 30*time.Second, func() error {
		if err := replicated(nc); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(a.Dir, retiredFile)); err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(a.Dir, witnessDir)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("the witness's store: %w", err)
		}
		return nil
	})
	t.Logf("converged %v after the restart", time.Since(began))
	w.check(t)
}
