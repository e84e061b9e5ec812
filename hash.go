package kbroker

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// PlacementsHash is what a Head says of a host's placements: equal hashes mean
// that a view is complete. The order of placements does not matter.
func PlacementsHash(placements []Placement) string {
	sorted := slices.Clone(placements)
	slices.SortFunc(sorted, func(a, b Placement) int {
		return cmp.Or(cmp.Compare(a.Tenant, b.Tenant), cmp.Compare(a.Instance, b.Instance))
	})
	h := sha256.New()
	for _, p := range sorted {
		fmt.Fprintf(h, "%s/%s %d %d %t %s\n", p.Tenant, p.Instance, p.Epoch, p.Version, p.Stop, p.Template)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Template hashes what a process is started from: two placements with the same
// template run the same program in the same way, so that a change of counts, of
// what scales them, of update rules or constraints restarts nothing.
func Template(s Service) string {
	s.Artifact.Path, s.Artifact.SizeBytes, s.Build, s.Run = "", 0, "", ""
	s.Count, s.Scale, s.Update, s.Require, s.Spread = Count{}, nil, Update{}, nil, ""
	b, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("kbroker: a service spec does not marshal: %v", err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}
