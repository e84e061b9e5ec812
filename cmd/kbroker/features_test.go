package main

import (
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

func TestUpSaysWhatIsNotEnforced(t *testing.T) {
	all := map[string]string{}
	for _, f := range []string{
		kbroker.FeatureOwnUser, kbroker.FeatureOwnGroup, kbroker.FeatureLimitMemory, kbroker.FeatureLimitCPU, kbroker.FeatureLimitPIDs, kbroker.FeatureSandbox,
	} {
		all[f] = kbroker.FeatureYes
	}
	if got := unenforced([]kbroker.HostRow{{Labels: all}, {}}); got != "" {
		t.Errorf("a machine that can do everything lacks %q", got)
	}
	if got := unenforced(nil); got != "" {
		t.Errorf("no host lacks %q", got)
	}
	delete(all, kbroker.FeatureLimitMemory)
	if got := unenforced([]kbroker.HostRow{{Labels: all}}); !strings.HasPrefix(got, "limits of memory") {
		t.Errorf("without limits of memory it lacks %q", got)
	}
	if got := unenforced([]kbroker.HostRow{{}}); !strings.HasPrefix(got, "a user of its own for each instance, control groups, limits of memory, of cpu, of processes, sandboxes") {
		t.Errorf("a machine that can do nothing lacks %q", got)
	}
}
