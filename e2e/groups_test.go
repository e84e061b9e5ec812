package e2e

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
)

// groups are the directories of control groups that the hosts of the cluster in dir
// have: what their agents say.
func groups(dir string) (all []string) {
	files, _ := filepath.Glob(filepath.Join(dir, "*", "cgroups.json"))
	for _, file := range files {
		var at struct {
			Unified string            `json:"unified"`
			V1      map[string]string `json:"v1"`
		}
		raw, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(raw, &at) != nil {
			continue // a host without
		}
		if at.Unified != "" {
			all = append(all, at.Unified)
		}
		for _, dir := range at.V1 {
			all = append(all, dir)
		}
	}
	return all
}

// leftOf are those of the groups that are there, with all that is in them.
func leftOf(groups []string) (left []string) {
	for _, group := range groups {
		_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				left = append(left, path)
			}
			return nil // what is not there is what is wanted
		})
	}
	return left
}
