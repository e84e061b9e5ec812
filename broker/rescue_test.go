package broker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// The founder of two is lost for good: what the other holds of it, restored
// under another cluster id, is everything that was acknowledged before the copy
// was last seen to follow; the new cluster works and grows.
func TestTheFounderOfTwoIsLostAndItsCopyRestored(t *testing.T) {
	t.Parallel()
	a := configOf(t, "a", true)
	b := configOf(t, "b", false, a)
	founder := startChild(t, a)
	nc := dial(t, a)
	createControl(t, nc)
	second := start(t, b)
	second.awaitReady(15 * time.Second)
	extraStream(t, nc, server.StreamConfig{
		Name: "many", Subjects: []string{"many.>"}, Storage: server.FileStorage, Replicas: 1, Placement: pinned("a"), AllowDirect: true,
	})
	for i := range 600 { // more than are in flight at once
		put(t, nc, fmt.Sprint("many.", i%3), fmt.Sprint(i), nil)
	}
	for name, copied := range map[string]string{"numbered": "", "gaps": "", "copied": "5"} {
		extraStream(t, nc, server.StreamConfig{
			Name: name, Subjects: []string{name + ".>"}, Storage: server.FileStorage, Replicas: 1, Placement: pinned("a"), AllowDirect: true, AllowRollup: true,
			Metadata: map[string]string{subjects.CopiedUpTo: copied},
		})
		for i := range 6 {
			put(t, nc, fmt.Sprint(name, ".", i), fmt.Sprint(i), nil)
		}
		if name == "gaps" {
			put(t, nc, name+".3", "again", nats.Header{"Nats-Rollup": {"sub"}})
			continue
		}
		if _, err := nc.Request(fmt.Sprintf(server.JSApiStreamPurgeT, name), []byte(`{"seq":4}`), 5*time.Second); err != nil {
			t.Fatal(err)
		}
	}
	key := func(s string) string { return subjects.Control("app.test." + s) }
	put(t, nc, key("deleted"), "x", nil)
	put(t, nc, key("deleted"), "", nats.Header{"KV-Operation": {"DEL"}, "Nats-TTL": {"1h"}})
	put(t, nc, key("purged"), "x", nil)
	put(t, nc, key("purged"), "", nats.Header{"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}})
	w := startWriter(t, nc, nil)
	mirrored(t, second)
	wait.Until(t, 10*time.Second, func() error {
		if w.count() < 200 {
			return errors.New("fewer than 200 writes")
		}
		return nil
	})
	w.stop()
	sameContent(t, nc, subjects.ControlStream, subjects.MirrorOf(subjects.ControlStream, "b"))
	sameContent(t, nc, "many", subjects.MirrorOf("many", "b"))
	sameContent(t, nc, "numbered", subjects.MirrorOf("numbered", "b"))
	sameContent(t, nc, "copied", subjects.MirrorOf("copied", "b"))
	sameContent(t, nc, "gaps", subjects.MirrorOf("gaps", "b"))
	contents := map[string]string{}
	for k := range w.acked {
		m, err := last(nc, subjects.ControlStream, subjects.Control(k))
		if err != nil {
			t.Fatal(err)
		}
		contents[k] = string(m.Data)
	}
	founder.kill()
	if err := second.stop(); err != nil {
		t.Fatal(err)
	}

	// A server that has stopped may still remove what it has purged (nats-server
	// 2.15, filestore.go, purgeLocked).
	wait.Until(t, 10*time.Second, func() error {
		for path := range treeOf(t, b.Dir) {
			if filepath.Base(path) == "__msgs__" {
				return fmt.Errorf("%s is not removed yet", path)
			}
		}
		return nil
	})
	before := treeOf(t, b.Dir)
	work := t.TempDir()
	began := time.Now()
	m, err := ReadMirrors(t.Context(), b.Dir, filepath.Join(work, "scratch"), testGrants, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range m.Streams() {
		t.Logf("%s: %d messages, the newest %v old", s.Name, s.Messages, time.Since(s.Newest).Round(time.Millisecond))
	}
	restored := b
	restored.Dir, restored.ClusterID, restored.Found, restored.Cores = filepath.Join(work, "b"), b.ClusterID+"-rescued", true, nil
	cfg := RestoreConfig{Host: "b", Dir: restored.Dir, ClusterID: restored.ClusterID, Grants: testGrants}
	cfg.Change = func(stream string, m *nats.Msg) ([]*nats.Msg, error) {
		switch {
		case m == nil && stream == subjects.ControlStream:
			return []*nats.Msg{{Subject: key("added"), Data: []byte("at the end"), Header: nats.Header{}}}, nil
		case m == nil:
			return nil, nil
		}
		return []*nats.Msg{m}, nil
	}
	if err := errors.Join(Restore(t.Context(), cfg, m), m.Close()); err != nil {
		t.Fatal(err)
	}
	t.Logf("restored within %v", time.Since(began).Round(time.Millisecond))
	after := treeOf(t, b.Dir)
	paths := maps.Clone(before)
	maps.Copy(paths, after)
	for path := range paths {
		if before[path] != after[path] {
			t.Errorf("in the old directory, %s was %q and is %q", path, before[path], after[path])
		}
	}
	if _, err := os.Stat(filepath.Join(work, "scratch")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the scratch directory: %v, want that it is gone", err)
	}
	if _, err := New(Config{Host: "b", Grants: testGrants, Dir: restored.Dir, ClusterID: b.ClusterID, ClientAddr: b.ClientAddr, RouteAddr: b.RouteAddr}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("the new directory under the old cluster id: %v, want refused", err)
	}

	again := startChild(t, restored)
	nc = dial(t, restored)
	wait.Until(t, 10*time.Second, func() error { return metaAnswers(nc) })
	for name, want := range map[string]uint64{"many": 600} {
		info, err := streamOf(nc, name)
		if err != nil {
			t.Fatal(err)
		}
		if info.State.Msgs != want {
			t.Errorf("stream %s has %d messages, want %d", name, info.State.Msgs, want)
		}
	}
	for subject, want := range map[string]string{"many.0": "597", "many.2": "599"} {
		if m, err := last(nc, "many", subject); err != nil || string(m.Data) != want {
			t.Errorf("last of %s: %v, %v, want %s", subject, m, err, want)
		}
	}
	if m, err := last(nc, subjects.ControlStream, key("added")); err != nil || string(m.Data) != "at the end" {
		t.Errorf("what was added: %v, %v", m, err)
	}
	for _, k := range []string{"deleted", "purged"} {
		if m, err := last(nc, subjects.ControlStream, key(k)); err != nil || len(m.Data) != 0 {
			t.Errorf("%s key: %v, %v, want nothing or a marker", k, m, err)
		}
	}
	if m, err := last(nc, "many", "many.1"); err != nil || len(m.Header) != 0 {
		t.Errorf("a message without headers has %q (%v)", m.Header, err)
	}
	// A stream that keeps its sequences has them, unless some are missing.
	for name, want := range map[string]struct {
		first, last uint64
		copied      string
	}{"numbered": {4, 6, "6"}, "gaps": {1, 6, "0"}, "copied": {4, 6, "5"}} {
		info, err := streamOf(nc, name)
		if err != nil || info.State.FirstSeq != want.first || info.State.LastSeq != want.last || info.Config.Metadata[subjects.CopiedUpTo] != want.copied {
			t.Errorf("stream %s is %+v (%v), want %+v", name, info, err, want)
		}
	}
	if m, err := last(nc, "numbered", "numbered.4"); err != nil || m.Sequence != 5 || string(m.Data) != "4" {
		t.Errorf("a message of 5 is %+v (%v)", m, err)
	}
	// Sequences of others are new, contents are not.
	for k, sequence := range w.acked {
		now, err := last(nc, subjects.ControlStream, subjects.Control(k))
		if err != nil || contents[k] == "" || string(now.Data) != contents[k] {
			t.Errorf("key %s, acknowledged as %d with %q: %v, %v", k, sequence, contents[k], now, err)
		}
	}
	info, err := streamOf(nc, subjects.ControlStream)
	if err != nil {
		t.Fatal(err)
	}
	if c := info.Config; c.Metadata["kept"] != "yes" || !c.AllowAtomicPublish || c.RePublish == nil || c.MaxMsgsPer != 1 || c.Mirror != nil {
		t.Errorf("the control stream is %+v, want it as it was", c)
	}
	// It is a cluster like any other.
	c := configOf(t, "c", false, restored)
	c.ClusterID = restored.ClusterID
	d := configOf(t, "d", false, restored, c)
	d.ClusterID = restored.ClusterID
	startChild(t, c)
	third := start(t, d)
	_ = again
	third.awaitReady(20 * time.Second)
	wait.Until(t, 20*time.Second, func() error { return replicated(nc) })
}

func TestNothingToRescue(t *testing.T) {
	scratch := filepath.Join(t.TempDir(), "scratch")
	a := start(t, configOf(t, "a", true))
	a.awaitReady(10 * time.Second)
	nc := a.conn()
	extraStream(t, nc, server.StreamConfig{Name: "other", Subjects: []string{"other.>"}, Storage: server.FileStorage, Replicas: 1})
	if err := a.stop(); err != nil {
		t.Fatal(err)
	}
	for name, dir := range map[string]string{"an empty directory": t.TempDir(), "one without a control stream": a.cfg.Dir} {
		if _, err := ReadMirrors(context.Background(), dir, scratch, testGrants, nil); !errors.Is(err, kbroker.Refused) {
			t.Errorf("%s: %v, want refused", name, err)
		}
		if _, err := os.Stat(scratch); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the scratch directory: %v", name, err)
		}
	}
}

// treeOf has the files of a directory with their sizes and times.
func treeOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) && path != dir {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files[path] = fmt.Sprint(info.Size(), " ", info.ModTime())
		} else if errors.Is(err, os.ErrNotExist) {
			err = nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}
