package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/wait"
)

// rightWithin is how long after its start an agent on damaged files may take until
// the list of what runs is right.
const rightWithin = 10 * time.Second

// spoil damages a file in one way. It is another file then: a program that runs cannot
// be written to.
func spoil(path, how string, random *rand.Rand) error {
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.Remove(path)
	}
	if err != nil {
		return err
	}
	switch how {
	case "empty":
		b = nil
	case "half":
		b = b[:len(b)/2]
	case "other bytes":
		for i := range b {
			b[i] = byte(random.Uint32())
		}
	case "one bit":
		if len(b) > 0 {
			b[random.IntN(len(b))] ^= 1 << random.IntN(8)
		}
	case "a directory":
		return os.Mkdir(path, 0o700)
	}
	return os.WriteFile(path, b, 0o600)
}

// spoilAll damages the files of a host but the server's store, what instances have
// in their own directories, and root.key, which no start needs; and what is a copy for
// the case. It returns how many.
func (c *cluster) spoilAll(host, how string, random *rand.Rand) (n int) {
	c.t.Helper()
	dir := c.host(host)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, dir+"/")
		switch {
		case err != nil:
			return err
		case d.IsDir() && (name == "broker" || d.Name() == "work" || d.Name() == "tmp"), d.IsDir() && strings.Contains(name, ".damaged-"):
			return fs.SkipDir
		case !d.Type().IsRegular(), strings.HasSuffix(name, ".copy"), d.Name() == "root.key", d.Name() == "agent.log", strings.Contains(name, ".damaged-"):
			return nil
		}
		n++
		return spoil(path, how, random)
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// TestDamagedFilesRestartNothing: all files of a dead agent are damaged, in one way
// after the other; the next one refuses nothing, restarts nothing, and what `ps` shows
// is right within 10 s.
func TestDamagedFilesRestartNothing(t *testing.T) {
	c := alone(t)
	before := c.incarnations()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	c.secondAgent("h1")
	ways := []string{"other bytes"}
	if *long {
		ways = []string{"empty", "half", "other bytes", "one bit", "a directory"}
	}
	for _, how := range ways {
		c.kill("h1", true)
		n := c.spoilAll("h1", how, random)
		if n < 15 {
			t.Fatalf("only %d files were damaged", n)
		}
		began := time.Now()
		c.up()
		var now map[kbroker.InstanceID]string
		wait.Until(t, 2*rightWithin, func() error {
			if now = c.incarnations(); !maps.Equal(before, now) {
				return fmt.Errorf("instances are\n%v, want the processes of before:\n%v", now, before)
			}
			return nil
		})
		took := time.Since(began)
		t.Logf("%s: %d files, right after %v", how, n, took.Round(10*time.Millisecond))
		if took > rightWithin {
			t.Errorf("%s: right after %v, want %v", how, took, rightWithin)
		}
		c.settled(20*time.Second, "wordcount", 3)
	}
}

// secondAgent holds that another agent on a host's directory is refused at once.
func (c *cluster) secondAgent(host string) {
	c.t.Helper()
	began := time.Now()
	out, code := c.try("agent", "--dir", c.host(host))
	if took := time.Since(began); code != 4 || !strings.Contains(out, "another agent holds") || took > time.Second {
		c.t.Errorf("a second agent: exit code %d after %v, want 4 within a second\n%s", code, took, out)
	}
}
