package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/grants"
	"github.com/kbroker/kbroker/internal/pki"
	"github.com/kbroker/kbroker/internal/wait"
	"github.com/kbroker/kbroker/subjects"
)

// The second of two hosts is rescued: refused while it runs and while the other
// answers, and it changes nothing unless it is finished; then the same directory
// starts as a cluster of one, which another host joins.
func TestTheSecondOfTwoHostsIsRescued(t *testing.T) {
	t.Parallel()
	work := t.TempDir()
	dir := func(host string) string { return filepath.Join(work, host) }
	stopFounder := start(t, Config{Dir: dir("a"), Name: "a", Found: true, Advertise: "127.0.0.1"})
	founder := awaitLeader(t, dir("a"))
	stopSecond := start(t, Config{Dir: dir("b"), Name: "b", Join: []string{founder.Client}, TokenFile: newToken(t, founder, kbroker.RoleCore), Advertise: "127.0.0.1"})
	awaitCopies(t, founder, "b")
	refused(t, dir("b"), "another agent holds")
	if err := stopSecond(); err != nil {
		t.Fatal(err)
	}
	refused(t, dir("b"), "core a of cluster "+founder.ClusterID+" is not lost")
	if err := stopFounder(); err != nil {
		t.Fatal(err)
	}
	refused(t, dir("a"), "it has the data itself")
	silent, err := net.Listen("tcp", founder.Client)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, dir("b"), "core a may not be lost") // it may hang
	_ = silent.Close()
	root, away := filepath.Join(dir("b"), identityDir, founder.ClusterID, rootKeyFile), filepath.Join(work, "root.key")
	if err := os.Rename(root, away); err != nil {
		t.Fatal(err)
	}
	refused(t, dir("b"), "root.key is not in")
	if err := os.Rename(away, root); err != nil {
		t.Fatal(err)
	}

	thief, out := aViewer(t, founder)
	addRevoked(t, openRevoked(t, filepath.Join(dir("b"), revokedFile), time.Now), map[string]time.Time{out: time.Now().Add(time.Hour)})

	before := listing(t, dir("b"))
	r := begin(t, dir("b"))
	if r.Host != "b" || r.ClusterID != founder.ClusterID || !slices.Equal(r.Lost, []kbroker.HostID{"a"}) || r.Ended != nil {
		t.Errorf("found %+v, want b of %s that has lost a", r, founder.ClusterID)
	}
	control := slices.IndexFunc(r.Streams, func(s RescuedStream) bool { return s.Name == subjects.ControlStream })
	if control < 0 || r.Streams[control].Messages == 0 || time.Since(r.Newest()) > time.Minute {
		t.Errorf("found streams %+v", r.Streams)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Finish(canceled); err == nil {
		t.Error("a rescue that was called off succeeded")
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if after := listing(t, dir("b")); after != before {
		t.Errorf("the directory of a rescue that was not finished was\n%s\nand is\n%s", before, after)
	}

	r = begin(t, dir("b"))
	done, err := r.Finish(t.Context())
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	if done.ClusterID == founder.ClusterID || done.Old != filepath.Join(r.dir.Path, "broker.of-"+founder.ClusterID) {
		t.Errorf("made %+v out of %s", done, founder.ClusterID)
	}
	if _, err := os.Stat(filepath.Join(done.Old, "identity.json")); err != nil {
		t.Errorf("the old data: %v", err)
	}
	refused(t, dir("b"), "was rescued already")
	// Its settings still say whom it joined once.
	start(t, Config{Dir: dir("b"), Name: "b", Join: []string{founder.Client}, Advertise: "127.0.0.1"})
	rescued := awaitLeader(t, dir("b"))
	if rescued.ClusterID != done.ClusterID || !rescued.Founded || len(rescued.Cores) != 0 || rescued.RescuedFrom != founder.ClusterID {
		t.Errorf("the host is %+v", rescued)
	}
	if err := connectTo(rescued, thief); err == nil {
		t.Error("who was out of the lost cluster is let into the new one")
	}
	start(t, Config{Dir: dir("c"), Name: "c", Join: []string{rescued.Client}, TokenFile: newToken(t, rescued, kbroker.RoleCore), Advertise: "127.0.0.1"})
	awaitCopies(t, rescued, "c")
	if err := Run(t.Context(), Config{Dir: dir("d"), Name: "a", Join: []string{rescued.Client}, TokenFile: newToken(t, rescued, kbroker.RoleCore), Advertise: "127.0.0.1"}); !errors.Is(err, kbroker.Refused) {
		t.Errorf("a new host under the name of the lost one: %v, want refused", err)
	}
}

func begin(t *testing.T, dir string) *Rescue {
	t.Helper()
	r, err := BeginRescue(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// refused holds that a rescue is, with a reason and a hint.
func refused(t *testing.T, dir, why string) {
	t.Helper()
	r, err := BeginRescue(t.Context(), dir, nil)
	if err == nil {
		t.Fatalf("the rescue of %s began (%v), want it refused: %s", dir, r.Close(), why)
	}
	if e := kbroker.AsError(err); e.Code != kbroker.Refused || !strings.Contains(e.Message, why) || e.Hint == "" {
		t.Errorf("the rescue of %s: %v (hint %q), want refused: %s", dir, err, e.Hint, why)
	}
}

// awaitCopies waits until each stream has a copy, and the host is a member.
func awaitCopies(t *testing.T, core *membership, second kbroker.HostID) {
	t.Helper()
	nc, err := core.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	wait.Until(t, 30*time.Second, func() error {
		reply, err := nc.Request(subjects.Host(second, subjects.VerbCheckup, kbroker.DefaultTenant), []byte("{}"), 2*time.Second)
		if err != nil {
			return err
		}
		var got kbroker.Checkup
		if err := json.Unmarshal(reply.Data, &got); err != nil {
			return err
		}
		if got.Core == nil || !got.Core.Mirrored {
			return fmt.Errorf("the checkup of %s is %s", second, reply.Data)
		}
		return nil
	})
}

// listing of a directory, without what its lock writes.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var list strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || strings.HasPrefix(d.Name(), "agent.json") || path == dir {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&list, path, info.Size(), info.ModTime())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list.String()
}

// Whatever step it was killed behind: the next one ends the swap, also if it is
// killed in turn.
func TestASwapIsEndedWhereItWasCutOff(t *testing.T) {
	was := &membership{ClusterID: "kb-old", Host: "b", Role: kbroker.RoleCore, Fingerprint: "f", Generation: 3, Client: "c", Route: "r", Cores: []kbroker.CoreAddr{{Host: "a"}}}
	steps := []struct {
		name string
		do   func(dir string) error
	}{
		{"the intent", func(dir string) error {
			return writeIntent(dir, intent{Old: oldDir("kb-old"), Membership: was.rescued("kb-new")})
		}},
		{"the old directory's move", func(dir string) error { return os.Rename(brokerDir(dir), filepath.Join(dir, "broker.of-kb-old")) }},
		{"the new directory's move", func(dir string) error { return os.Rename(filepath.Join(dir, freshDir), brokerDir(dir)) }},
		{"the membership", func(dir string) error {
			m := was.rescued("kb-new")
			m.path = filepath.Join(dir, membershipFile)
			return m.save()
		}},
	}
	for n := range len(steps) + 1 {
		name := "before the intent"
		if n > 0 {
			name = "behind " + steps[n-1].name
		}
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for sub, content := range map[string]string{brokerDir(dir): "old", filepath.Join(dir, freshDir): "new"} {
				if err := errors.Join(os.Mkdir(sub, 0o700), os.WriteFile(filepath.Join(sub, "content"), []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			was.path = filepath.Join(dir, membershipFile)
			if err := was.save(); err != nil {
				t.Fatal(err)
			}
			for _, s := range steps[:n] {
				if err := s.do(dir); err != nil {
					t.Fatal(err)
				}
			}
			done, err := endRescue(dir)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{"broker": "new", "broker.of-kb-old": "old"}
			id := "kb-new"
			if n == 0 {
				want, id = map[string]string{"broker": "old", "broker.rescue": "new"}, "kb-old"
			}
			if (done != nil) != (n > 0) {
				t.Errorf("ended %+v", done)
			}
			for sub, content := range want {
				if b, err := os.ReadFile(filepath.Join(dir, sub, "content")); err != nil || string(b) != content {
					t.Errorf("%s has %q (%v), want %q", sub, b, err, content)
				}
			}
			m, err := readMember(dir)
			if err != nil || m.ClusterID != id || m.Host != "b" || m.Generation != 3 || m.Founded != (n > 0) {
				t.Errorf("the membership is %+v (%v), want that of %s", m, err, id)
			}
			if again, err := endRescue(dir); again != nil || err != nil {
				t.Errorf("ended twice: %+v, %v", again, err)
			}
		})
	}
}

// Whoever comes next ends a rescue that was cut off: the next rescue, or an
// agent (this one is of a removed host, and runs no further).
func TestARescueIsEndedByTheNextOne(t *testing.T) {
	for name, end := range map[string]func(dir string) error{
		"rescue": func(dir string) error {
			r, err := BeginRescue(t.Context(), dir, nil)
			if err != nil {
				return err
			}
			if r.Ended == nil || r.Ended.ClusterID != "kb-new" || r.Ended.Old != filepath.Join(r.dir.Path, "broker.of-kb-old") {
				t.Errorf("ended %+v", r.Ended)
			}
			return r.Close()
		},
		"agent": func(dir string) error {
			err := Run(t.Context(), Config{Dir: dir})
			if err == nil || !strings.Contains(err.Error(), "was removed from cluster kb-new") {
				return fmt.Errorf("the agent ended with %w", err)
			}
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			was := &membership{path: filepath.Join(dir, membershipFile), ClusterID: "kb-old", Host: "b", Role: kbroker.RoleCore}
			next := was.rescued("kb-new")
			next.Removed = true
			err := errors.Join(os.Mkdir(brokerDir(dir), 0o700), os.Mkdir(filepath.Join(dir, freshDir), 0o700), was.save(),
				writeIntent(dir, intent{Old: oldDir("kb-old"), Membership: next}))
			if err != nil {
				t.Fatal(err)
			}
			if err := end(dir); err != nil {
				t.Error(err)
			}
			for _, sub := range []string{"broker", "broker.of-kb-old"} {
				if _, err := os.Stat(filepath.Join(dir, sub)); err != nil {
					t.Error(err)
				}
			}
			if m, err := readMember(dir); err != nil || m.ClusterID != "kb-new" {
				t.Errorf("the membership is %+v (%v)", m, err)
			}
		})
	}
}

func TestARescueByAnotherUserIsRefused(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a directory to another user")
	}
	dir := t.TempDir()
	err := errors.Join(os.WriteFile(filepath.Join(dir, membershipFile), []byte(`{"host":"b","role":"core","cluster_id":"kb-x"}`), 0o600), os.Chown(dir, 4711, -1))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, dir, "belongs to user 4711")
}

func TestRescueIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		member string // the file; empty: there is none
		want   kbroker.Code
		says   string
	}{
		"a directory of nobody":         {"", kbroker.NotFound, "not the data directory of a host"},
		"a host that waits to join":     {`{"host":"b","role":"core"}`, kbroker.Refused, "has not joined"},
		"a removed host":                {`{"host":"b","role":"core","cluster_id":"kb-x","removed":true}`, kbroker.Refused, "was removed"},
		"a worker":                      {`{"host":"b","role":"worker","cluster_id":"kb-x"}`, kbroker.Refused, "is a worker"},
		"a core without a copy":         {`{"host":"b","role":"core","cluster_id":"kb-x"}`, kbroker.Refused, "there is no copy"},
		"a core that rescued itself":    {`{"host":"b","role":"core","cluster_id":"kb-x","founded":true,"rescued_from":"kb-y"}`, kbroker.Refused, "rescued already"},
		"a core whose cluster is alone": {`{"host":"b","role":"core","cluster_id":"kb-x","founded":true}`, kbroker.Refused, "the data itself"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if tc.member != "" {
				if err := os.WriteFile(filepath.Join(dir, membershipFile), []byte(tc.member), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			identity := filepath.Join(dir, identityDir, "kb-x")
			if err := errors.Join(os.MkdirAll(identity, 0o700), pki.SaveSecret(filepath.Join(identity, accountsFile), make([]byte, grants.SecretSize))); err != nil {
				t.Fatal(err)
			}
			_, err := BeginRescue(t.Context(), dir, nil)
			if e := kbroker.AsError(err); err == nil || e.Code != tc.want || !strings.Contains(e.Message, tc.says) || e.Hint == "" {
				t.Errorf("%v (hint %q), want %s: %s", err, e.Hint, tc.want, tc.says)
			}
		})
	}
}
