package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker/client"
	"github.com/kbroker/kbroker/subjects"
)

// childEnv makes this test binary do one job, of the jobs below, until its
// standard input ends: a client of a cluster has to be where that cluster can be
// reached. It prints its report as one line of JSON.
const childEnv = "KBROKER_TEST_E2E_CHILD"

// credsEnv names the file of its credential.
const credsEnv = "KBROKER_TEST_E2E_CREDS"

const (
	writerJob = "writer"
	proberJob = "prober"
	countJob  = "count"
	rateJob   = "rate"
	placeJob  = "place"
	// These do not wait for the end of standard input.
	replicasJob = "replicas"
	valuesJob   = "values"
	noteJob     = "note"
	// It ends when it is told to leave, as programs are.
	echoJob = "echo"
)

// child does a job, named in the environment, on the cores of the command line.
func child(job string) int {
	if job == hostileJob || job == usernsJob {
		return hostile(job)
	}
	if job == daemonJob || job == zombiesJob {
		return misbehave(job)
	}
	if job == echoJob {
		if err := echo(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	servers := os.Args[1:] // or what else the job is told
	var report any
	people, err := client.Find("") // in the environment
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	core := people
	core.CredentialFile = os.Getenv(credsEnv)
	switch job {
	case writerJob:
		report, err = writeUntilTold(core, servers)
	case proberJob:
		report, err = probeUntilTold(people, core, servers)
	case countJob:
		report, err = countUntilTold(servers)
	case rateJob:
		report, err = sendAtRates(servers)
	case placeJob:
		report, err = placeUntilTold(servers)
	case noteJob:
		report, err = note(servers)
	case replicasJob:
		report, err = replicas(core, servers)
	case valuesJob:
		report, err = valuesOf(core, servers)
	default:
		err = fmt.Errorf("there is no job %q", job)
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(report)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// told returns when the parent has closed standard input.
func told() { _, _ = io.Copy(io.Discard, os.Stdin) }

// childRun is a child that runs.
type childRun struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdin          io.Closer
	stdout, stderr bytes.Buffer
	ended          bool
}

// startChild starts this binary where the cluster's people are.
func (c *cluster) startChild(job string, servers []string) *childRun {
	c.t.Helper()
	r := &childRun{t: c.t, cmd: c.client(context.Background(), os.Args[0], servers...)}
	r.cmd.Env = append(r.cmd.Env, childEnv+"="+job, credsEnv+"="+c.coreCreds())
	r.cmd.Stdout, r.cmd.Stderr = &r.stdout, &r.stderr
	stdin, err := r.cmd.StdinPipe()
	if err == nil {
		r.stdin, err = stdin, r.cmd.Start()
	}
	if err != nil {
		c.t.Fatalf("start the %s: %v", job, err)
	}
	c.t.Cleanup(func() {
		if !r.ended {
			_ = r.cmd.Process.Kill()
			_ = r.cmd.Wait()
		}
	})
	return r
}

// report ends the child and takes what it says.
func (r *childRun) report(into any) {
	r.t.Helper()
	r.ended = true
	_ = r.stdin.Close()
	err := r.cmd.Wait()
	if err == nil {
		err = json.Unmarshal(r.stdout.Bytes(), into)
	}
	if err != nil {
		r.t.Fatalf("a child printed %q (%v): %s", r.stdout.String(), err, r.stderr.String())
	}
}

// writes is what a writer says.
type writes struct {
	Acknowledged int           `json:"acknowledged"`
	Gap          time.Duration `json:"gap"` // the longest time without one
	GapAt        time.Time     `json:"gap_at"`
	Lost         string        `json:"lost"`
	// Values are those that were acknowledged last, by key, Newest is the last
	// sequence of them.
	Values map[string]string `json:"values"`
	Newest uint64            `json:"newest"`
	// Open is what was sent last; it may have been applied.
	Open struct{ Key, Value string } `json:"open"`
}

func writeUntilTold(target client.Target, servers []string) (writes, error) {
	nc, err := connectTo(target, servers...)
	if err != nil {
		return writes{}, err
	}
	defer nc.Close()
	w := startWriter(nc)
	told()
	r := writes{}
	if err := w.verify(); err != nil {
		r.Lost = err.Error()
	}
	r.Acknowledged, r.Gap, r.GapAt = w.writes, w.gap, w.gapAt
	r.Values, r.Newest, r.Open = w.values, newestOf(w), w.open
	return r, nil
}

// startWrites makes compare-and-set writes beside what the test does; end reads
// them back and holds that no acknowledged one is lost.
func (c *cluster) startWrites(servers []string) (end func()) {
	c.t.Helper()
	r := c.startChild(writerJob, servers)
	return func() {
		c.t.Helper()
		var w writes
		r.report(&w)
		if w.Lost != "" {
			c.t.Errorf("after %d acknowledged writes: %s", w.Acknowledged, w.Lost)
			return
		}
		c.t.Logf("%d acknowledged writes, 0 lost; longest time without one %v, from %s on",
			w.Acknowledged, w.Gap.Round(time.Millisecond), w.GapAt.UTC().Format("15:04:05.000"))
	}
}

// replicas are, by stream, the cores that have it and have caught up. Empty while
// nobody answers.
func replicas(target client.Target, servers []string) (map[string][]string, error) {
	nc, err := connectTo(target, servers...)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	reply, err := nc.Request("$JS.API.STREAM.LIST", nil, time.Second)
	if err != nil {
		return nil, nil
	}
	var list struct {
		Streams []struct {
			Config  struct{ Name string }
			Cluster struct {
				Leader   string
				Replicas []struct {
					Name    string
					Current bool
					Offline bool
				}
			}
		}
	}
	if err := json.Unmarshal(reply.Data, &list); err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, s := range list.Streams {
		on := []string{s.Cluster.Leader}
		for _, r := range s.Cluster.Replicas {
			if r.Current && !r.Offline {
				on = append(on, r.Name)
			}
		}
		slices.Sort(on)
		out[s.Config.Name] = on
	}
	return out, nil
}

// stored is what the control store holds of writers.
type stored struct {
	Values map[string]string `json:"values"`
	// Copied is the last sequence of the copy on h2, 0 if there is none.
	Copied uint64 `json:"copied"`
}

func valuesOf(target client.Target, servers []string) (stored, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readBack)
	defer cancel()
	out := stored{Values: map[string]string{}}
	nc, err := connectTo(target, servers...)
	if err != nil {
		return out, err
	}
	defer nc.Close()
	out.Copied, _ = lastCopied(nc, "h2") // there may be no copy
	w := &writer{nc: nc}
	var info struct {
		State struct {
			Subjects map[string]int `json:"subjects"`
		} `json:"state"`
	}
	ask := nats.NewMsg("$JS.API.STREAM.INFO." + subjects.ControlStream)
	ask.Data = fmt.Appendf(nil, `{"subjects_filter": %q}`, subjects.Control("test.>"))
	if err := w.ask(ctx, ask, &info); err != nil {
		return out, err
	}
	for subject := range info.State.Subjects {
		key, _ := subjects.ControlKey(subject)
		if _, out.Values[key], err = w.read(ctx, key); err != nil {
			return out, err
		}
	}
	return out, nil
}
