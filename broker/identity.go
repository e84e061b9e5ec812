package broker

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

// Files of a broker's directory:
//
//	identity.json    whose directory it is, written before anything else
//	joined           this core has been seen current in the meta group
//	removed          this core has been removed from the cluster
//	witness.retired  the witness has been seen outside the meta group
//	store/           the core's JetStream
//	witness/         the witness's JetStream, until it is retired
const (
	identityFile = "identity.json"
	joinedFile   = "joined"
	removedFile  = "removed"
	retiredFile  = "witness.retired"
	storeDir     = "store"
	witnessDir   = "witness"
)

// metaDir is where the server keeps its vote and its log of the meta group, under a
// store directory. system is the public key of SYS.
func metaDir(system string) string { return filepath.Join("jetstream", system, "_js_", "_meta_") }

// identity binds a directory to one host of one cluster for ever: raft state
// that comes back under another name breaks quorums silently.
type identity struct {
	ClusterID string         `json:"cluster_id"`
	Host      kbroker.HostID `json:"host"`
	Founder   bool           `json:"founder"`
}

// claimDir makes dir the directory of want, or says (Refused) why it cannot
// be. It returns the identity that holds.
func claimDir(dir, system string, want identity, knowsCores bool) (identity, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return identity{}, fmt.Errorf("make broker directory: %w", err)
	}
	path := filepath.Join(dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return claimEmptyDir(dir, want, knowsCores)
	}
	if err != nil {
		return identity{}, fmt.Errorf("read identity: %w", err)
	}
	var have identity
	if err := json.Unmarshal(b, &have); err != nil {
		return identity{}, fmt.Errorf("read identity %s: %w", path, err)
	}
	switch {
	case have.ClusterID != want.ClusterID:
		return identity{}, kbroker.Errorf(kbroker.Refused, "directory %s belongs to cluster %s, not to %s", dir, have.ClusterID, want.ClusterID).
			WithHint("use an empty directory to join another cluster")
	case have.Host != want.Host:
		return identity{}, kbroker.Errorf(kbroker.Refused, "directory %s belongs to host %s, not to %s", dir, have.Host, want.Host).
			WithHint("start it as %s again, or use an empty directory for a new host", have.Host)
	case want.Founder && !have.Founder:
		return identity{}, kbroker.Errorf(kbroker.Refused, "host %s joined cluster %s, it cannot found it", have.Host, have.ClusterID).
			WithHint("start it without founding, or use an empty directory")
	}
	removed, err := exists(filepath.Join(dir, removedFile))
	if err != nil {
		return identity{}, err
	}
	if removed {
		return identity{}, refuseRemoved(have.Host, dir)
	}
	gone, err := StoreGone(dir, system)
	if err != nil {
		return identity{}, err
	}
	if gone {
		return identity{}, kbroker.Errorf(kbroker.Refused, "the store of host %s in %s is gone: it was deleted, or the host was removed from the cluster", have.Host, dir).
			WithHint("remove the host from the cluster, then join under a new name with an empty directory")
	}
	return have, nil
}

// claimEmptyDir claims a directory without an identity.
func claimEmptyDir(dir string, want identity, knowsCores bool) (identity, error) {
	if want.Founder && knowsCores {
		return identity{}, kbroker.Errorf(kbroker.Refused, "directory %s is empty, but cluster %s has other cores already", dir, want.ClusterID).
			WithHint("the founder's data is not here: restore its directory, or join under a new name")
	}
	for _, old := range []string{storeDir, witnessDir} {
		there, err := exists(filepath.Join(dir, old))
		if err != nil {
			return identity{}, err
		}
		if there {
			return identity{}, kbroker.Errorf(kbroker.Refused, "directory %s holds the data of an unknown host", dir).
				WithHint("use an empty directory")
		}
	}
	b, err := json.Marshal(want)
	if err != nil {
		return identity{}, fmt.Errorf("encode identity: %w", err)
	}
	if err := durable.Replace(filepath.Join(dir, identityFile), append(b, '\n'), 0o600); err != nil {
		return identity{}, err
	}
	return want, nil
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Joined reports whether the core whose broker has this directory has been seen
// as a current member of its cluster. Until then it joins with an admission.
func Joined(dir string) (bool, error) { return exists(filepath.Join(dir, joinedFile)) }

// Removed reports whether the core whose broker has this directory has been
// removed from its cluster, as its broker saw it.
func Removed(dir string) (bool, error) { return exists(filepath.Join(dir, removedFile)) }

// NoteRemoved remembers for ever that the core whose broker has this directory was
// removed from its cluster, and is no member of its group any more. Its broker may
// not have seen that: the others do not talk to it.
func NoteRemoved(dir string) error {
	return durable.Replace(filepath.Join(dir, removedFile), nil, 0o600)
}

// StoreGone reports whether the core whose broker has this directory has been a
// member, and has no store any more: it was deleted, or dropped by the server when
// the core was removed. New refuses such a directory. system is the public key of the
// cluster's SYS.
func StoreGone(dir, system string) (bool, error) {
	joined, err := Joined(dir)
	if err != nil || !joined {
		return false, err
	}
	there, err := exists(filepath.Join(dir, storeDir, metaDir(system)))
	return err == nil && !there, err
}
