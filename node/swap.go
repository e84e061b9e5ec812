package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/kbroker/kbroker"
	"github.com/kbroker/kbroker/internal/durable"
)

// Files of a rescue in a host's directory.
//
//	broker.rescue-read   copies of the old broker's streams, while they are read
//	broker.rescue        the new broker's directory, until it is broker
//	rescue.json          the intent: broker.rescue is whole, and takes over
//	broker.of-CLUSTER    the old broker's directory
//
// The intent is the point of no return. Each step behind it can be made twice:
// whoever has the directory's lock ends what an intent says, whenever the one
// before was killed.
const (
	scratchDir = "broker.rescue-read"
	freshDir   = "broker.rescue"
	intentFile = "rescue.json"
)

// oldDir is the name of the directory that the broker of a lost cluster gets.
func oldDir(clusterID string) string { return "broker.of-" + clusterID }

// intent is a rescue of which only the swap is missing.
type intent struct {
	Old        string      `json:"old"` // the name that the old broker's directory gets
	Membership *membership `json:"membership"`
}

func writeIntent(dir string, i intent) error {
	raw, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal the intent: %w", err)
	}
	return durable.Replace(filepath.Join(dir, intentFile), append(raw, '\n'), 0o600)
}

// endRescue does what an intent says: the old broker's directory steps aside,
// the new one takes its name, the host belongs to the new cluster. nil: there
// is no intent. The caller has the directory's lock.
func endRescue(dir string) (*Rescued, error) {
	path := filepath.Join(dir, intentFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	i := intent{Membership: &membership{}}
	if err == nil {
		err = json.Unmarshal(raw, &i)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	old, fresh := filepath.Join(dir, i.Old), filepath.Join(dir, freshDir)
	if err := move(brokerDir(dir), old); err != nil {
		return nil, err
	}
	if err := move(fresh, brokerDir(dir)); err != nil {
		return nil, err
	}
	i.Membership.path = filepath.Join(dir, membershipFile)
	if err := i.Membership.save(); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil {
		return nil, fmt.Errorf("end the rescue: %w", err)
	}
	return &Rescued{ClusterID: i.Membership.ClusterID, Old: old}, durable.Sync(dir)
}

// move renames a directory, durably, unless that was done: to is there then.
func move(from, to string) error {
	_, err := os.Lstat(to)
	if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = durable.Rename(from, to)
	}
	if err != nil {
		return fmt.Errorf("move %s: %w", from, err)
	}
	return nil
}

// rescued is the membership of the same host in the cluster that it founds anew.
func (m *membership) rescued(clusterID string) *membership {
	return &membership{
		ClusterID: clusterID, Host: m.Host, Role: m.Role, Founded: true, RescuedFrom: m.ClusterID,
		Client: m.Client, Route: m.Route, Fingerprint: m.Fingerprint, Generation: m.Generation,
		Cores: []kbroker.CoreAddr{},
	}
}
