package main

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

func TestFlagsWinOverEnvironmentOverFileOverDefaults(t *testing.T) {
	file := filepath.Join(t.TempDir(), "agent.yaml")
	content := `name: from-file
advertise: 10.0.0.1
client_port: 1
route_port: 1
join: [a:1]
label: {disk: ssd, example.com/rack: r1}
`
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KBROKER_AGENT_CLIENT_PORT", "2")
	t.Setenv("KBROKER_AGENT_ROUTE_PORT", "2")
	t.Setenv("KBROKER_AGENT_JOIN", "b:1, b:2")
	t.Setenv("KBROKER_AGENT_STOCK_RAFT", "true")
	cmd := (&cli{}).agentCommand()
	if err := cmd.ParseFlags([]string{"--route-port", "3", "--label", "disk=hdd", "--dir", "d"}); err != nil {
		t.Fatal(err)
	}
	got, err := loadAgentSettings(file, cmd.Flags())
	if err != nil {
		t.Fatal(err)
	}
	want := agentSettings{
		Dir: "d", Name: "from-file", Advertise: "10.0.0.1", ClientPort: 2, RoutePort: 3, StockRaft: true,
		Join: []string{"b:1", "b:2"}, Label: map[string]string{"disk": "hdd", "example.com/rack": "r1"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("settings are\n%+v\nwant\n%+v", got, want)
	}
}

func TestSettingsHaveDefaults(t *testing.T) {
	cmd := (&cli{}).agentCommand()
	if err := cmd.ParseFlags([]string{"--join", "a:1,b:1"}); err != nil {
		t.Fatal(err)
	}
	got, err := loadAgentSettings("", cmd.Flags())
	if err != nil {
		t.Fatal(err)
	}
	if want := (agentSettings{Dir: defaultAgentDir, Join: []string{"a:1", "b:1"}}); !reflect.DeepEqual(got, want) {
		t.Fatalf("settings are %+v, want %+v", got, want)
	}
}
