package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/kbroker/kbroker"
)

// member is what a host's directory says of it.
type member struct {
	ClusterID   string       `json:"cluster_id,omitempty"`
	Host        string       `json:"host"`
	Role        kbroker.Role `json:"role"`
	Founded     bool         `json:"founded"`
	Removed     bool         `json:"removed,omitempty"`
	RescuedFrom string       `json:"rescued_from,omitempty"`
}

// TestWhoIsGoneIsNotStartedAgain: a host whose start would make a second
// cluster beside that of the others.
func TestWhoIsGoneIsNotStartedAgain(t *testing.T) {
	const core, worker = kbroker.RoleCore, kbroker.RoleWorker
	founder := member{Host: "h1", Role: core, ClusterID: "kb-a", Founded: true}
	second := member{Host: "h2", Role: core, ClusterID: "kb-a"}
	rescued := member{Host: "h2", Role: core, ClusterID: "kb-b", Founded: true, RescuedFrom: "kb-a"}
	for name, tc := range map[string]struct {
		members []member // those of h1, h2, h3 that have directories
		gone    string
		says    string
	}{
		"nothing yet":                           {},
		"whole":                                 {members: []member{founder, second}},
		"a founder that was not admitted ever":  {members: []member{{Host: "h1", Role: core}}},
		"one that joins":                        {members: []member{founder, {Host: "h2", Role: core}}},
		"the founder without its data":          {members: []member{second}, gone: "h1", says: "h1 has lost its data"},
		"the founder without its cluster":       {members: []member{{Host: "h1", Role: core}, second}, gone: "h1", says: "h1 has lost its data"},
		"a second without its data":             {members: []member{founder}},
		"rescued, the founder's data is gone":   {members: []member{rescued}, gone: "h1", says: "its cluster was rescued"},
		"rescued, the founder's data is here":   {members: []member{founder, rescued}, gone: "h1", says: "h2 was rescued from"},
		"rescued, a worker that has not heard":  {members: []member{rescued, {Host: "h3", Role: worker, ClusterID: "kb-a"}}, gone: "h1", says: "rescued"},
		"removed by the cluster, which says it": {members: []member{founder, {Host: "h2", Role: core, ClusterID: "kb-a", Removed: true}}, gone: "h2"},
	} {
		t.Run(name, func(t *testing.T) {
			l := &localCluster{dir: t.TempDir(), Hosts: []localHost{{Name: "h1", Role: core}, {Name: "h2", Role: core}, {Name: "h3", Role: worker}}}
			for _, m := range tc.members {
				raw, err := json.Marshal(m)
				if err == nil {
					err = os.MkdirAll(l.hostDir(kbroker.HostID(m.Host)), 0o700)
				}
				if err == nil {
					err = os.WriteFile(filepath.Join(l.dir, m.Host, "membership.json"), raw, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			notices, err := l.noteGone()
			if err != nil {
				t.Fatal(err)
			}
			var gone []string
			for _, h := range l.Hosts {
				if h.Removed {
					gone = append(gone, string(h.Name))
				}
			}
			said := strings.Join(notices, "\n")
			if strings.Join(gone, " ") != tc.gone || (said == "") != (tc.says == "") || !strings.Contains(said, tc.says) {
				t.Errorf("gone are %q with the notice %q, want %q with %q", gone, said, tc.gone, tc.says)
			}
			if again, err := l.noteGone(); err != nil || len(again) > 0 {
				t.Errorf("said once more: %q, %v", again, err)
			}
		})
	}
}
