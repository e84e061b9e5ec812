package main

import (
	"os"
	"strings"

	"github.com/kbroker/kbroker"
)

// unenforced names what none of the hosts of a local cluster, which are all on this
// machine, can hold its instances to; empty: nothing.
func unenforced(rows []kbroker.HostRow) string {
	var lacks []string
	for _, f := range []struct{ label, words string }{
		{kbroker.FeatureOwnUser, "a user of its own for each instance"},
		{kbroker.FeatureOwnGroup, "control groups"},
		{kbroker.FeatureLimitMemory, "limits of memory"},
		{kbroker.FeatureLimitCPU, "of cpu"},
		{kbroker.FeatureLimitPIDs, "of processes"},
		{kbroker.FeatureSandbox, "sandboxes"},
	} {
		has := len(rows) == 0
		for _, r := range rows {
			has = has || r.Labels[f.label] == kbroker.FeatureYes
		}
		if !has {
			lacks = append(lacks, f.words)
		}
	}
	text := strings.Join(lacks, ", ")
	if text != "" && os.Geteuid() != 0 {
		text += " (kbroker up as root has what the machine can do)"
	}
	return text
}
