package agent

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

// Files of the data directory.
const (
	viewFile     = "view.json"
	instancesDir = "instances"
	artifactsDir = "artifacts"
)

// Files of an instance, in instances/<tenant>/<instance>.
const (
	recordFile   = "record.json"   // what was started, and what became of it
	instanceFile = "instance.json" // in runDir: a kbroker.InstanceFile
	endedFile    = "ended"         // only output is left here
	outputFile   = "output.log"
	// What the process owns:
	workDir = "work"
	tempDir = "tmp"
	runDir  = "run" // instanceFile and credentials

	// credsSuffix follows the incarnation: for one start of the instance, its key, and
	// what was signed for it.
	credsSuffix = ".creds"
)

// errDamaged: a file is there and is not what was written.
var errDamaged = errors.New("damaged")

// record is what a later agent must know of an instance. It is on disk before the
// process runs (where that cannot be held back: without a pid before the fork, as an
// intent, and again after); and when a process has ended without being started again
// at once.
type record struct {
	Placement   kbroker.Placement   `json:"placement"` // what it was started from
	Incarnation kbroker.Incarnation `json:"incarnation"`
	BootID      string              `json:"boot_id"`
	procID
	// Group is the control group, User the user that it was started in; empty and 0:
	// none of its own.
	Group     string        `json:"group,omitempty"`
	User      uint32        `json:"user,omitempty"`
	StartedAt time.Time     `json:"started_at"`
	LogStart  int64         `json:"log_start"` // all output that was written before the start
	Restarts  int           `json:"restarts"`
	Crashes   int           `json:"crashes"`
	Loop      crashLoop     `json:"loop,omitzero"`
	Stopped   bool          `json:"stopped,omitempty"` // ended, and not to be started again
	Exit      *kbroker.Exit `json:"exit,omitempty"`    // of this incarnation: it has ended
	Message   string        `json:"message,omitempty"`
	// Ports are the numbers of its ports, its own until nothing is left of it.
	Ports map[string]int `json:"ports,omitempty"`
}

// sealed is a file with the digest of its content: a flipped bit in a pid must
// not be taken for another process.
type sealed struct {
	SHA256 string          `json:"sha256"`
	Body   json.RawMessage `json:"body"`
}

func seal(v any) ([]byte, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sealed{SHA256: digest(body), Body: body})
}

// saveSealed writes a file that loadSealed reads.
func saveSealed(path string, v any) error {
	b, err := seal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return durable.Replace(path, b, 0o600)
}

// saveRecord is saveSealed for what only this boot has: a power-off ends all
// processes, and what was to run is in the view.
func saveRecord(home string, r record) error {
	b, err := seal(r)
	if err != nil {
		return fmt.Errorf("encode the record of %s: %w", r.Incarnation, err)
	}
	return durable.Swap(filepath.Join(home, recordFile), b, 0o600)
}

// loadSealed reads what saveSealed or saveRecord wrote. errDamaged: it is something else now, or
// cannot be read; it is put aside. os.ErrNotExist: there is none.
func loadSealed(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return err
	}
	var s sealed
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err == nil && digest(s.Body) != s.SHA256 {
		err = errors.New("the digest does not match")
	}
	if err == nil {
		err = json.Unmarshal(s.Body, v)
	}
	if err != nil {
		_, keep := durable.SetAside(path)
		return errors.Join(fmt.Errorf("%s is %w: %w", path, errDamaged, err), keep)
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// home is the directory of an instance.
func (d *Dir) home(k kbroker.StatusKey) string {
	return filepath.Join(d.Path, instancesDir, string(k.Tenant), string(k.Instance))
}

// credsPath is the file of the credential of a start: each has its own, so that nobody who
// is late for one overwrites that of the next.
func credsPath(home string, start kbroker.Incarnation) string {
	return filepath.Join(home, runDir, filepath.Base(string(start))+credsSuffix)
}

// instancePath is the file that tells an instance who it is.
func instancePath(home string) string { return filepath.Join(home, runDir, instanceFile) }

// maxCreds bounds the files of an instance that are taken for credentials: it can make
// more, but its start has one, and rarely one before was not taken back.
const maxCreds = 64

// credsIn are the files of the credentials of an instance's starts; of too many those
// that the directory has first.
func credsIn(home string) []string {
	dir, err := os.Open(filepath.Join(home, runDir))
	if err != nil {
		return nil // one that is not there has none
	}
	defer dir.Close()
	entries, _ := dir.ReadDir(2 * maxCreds) // what is not there any more has none
	var paths []string
	for _, e := range entries {
		if len(paths) == maxCreds {
			break
		}
		if name := e.Name(); e.Type().IsRegular() && strings.HasSuffix(name, credsSuffix) && !strings.HasPrefix(name, ".") {
			paths = append(paths, filepath.Join(home, runDir, name))
		}
	}
	return paths
}

// homes lists the instances that have a directory.
func (d *Dir) homes() ([]kbroker.StatusKey, error) {
	root := filepath.Join(d.Path, instancesDir)
	if _, err := asideUnless(root, os.ModeDir); err != nil {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	tenants, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list instances: %w", err)
	}
	var keys []kbroker.StatusKey
	for _, t := range tenants {
		if !plainName(t.Name()) {
			continue // it was put aside
		}
		if kept, err := asideUnless(filepath.Join(root, t.Name()), os.ModeDir); err != nil || kept != "" {
			if err != nil {
				return nil, fmt.Errorf("list instances: %w", err)
			}
			continue
		}
		instances, err := os.ReadDir(filepath.Join(root, t.Name()))
		if err != nil {
			return nil, fmt.Errorf("list instances: %w", err)
		}
		for _, i := range instances {
			k := kbroker.StatusKey{Tenant: kbroker.TenantID(t.Name()), Instance: kbroker.InstanceID(i.Name())}
			if validKey(k) != nil {
				continue
			}
			kept, err := asideUnless(filepath.Join(root, t.Name(), i.Name()), os.ModeDir)
			if err != nil {
				return nil, fmt.Errorf("list instances: %w", err)
			}
			if kept == "" {
				keys = append(keys, k)
			}
		}
	}
	return keys, nil
}

// validKey keeps names from the wire from becoming other paths or subjects.
func validKey(k kbroker.StatusKey) error {
	if !plainName(string(k.Tenant)) || !plainName(string(k.Instance)) {
		return kbroker.Errorf(kbroker.Invalid, "no instance can be named %q of tenant %q", k.Instance, k.Tenant)
	}
	return nil
}

func plainName(s string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyz0123456789-"
	return s != "" && len(s) <= 200 && strings.Trim(s, allowed) == ""
}

func keyOf(p kbroker.Placement) kbroker.StatusKey {
	return kbroker.StatusKey{Tenant: p.Tenant, Instance: p.Instance}
}
