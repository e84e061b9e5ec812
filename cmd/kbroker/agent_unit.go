package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/kbroker/kbroker"
)

const (
	unitName = "kbroker.service"
	// stateRoot is where systemd itself keeps the state of services.
	stateRoot = "/var/lib"
)

// unitTemplate is the unit of an agent. It takes the command line and the lines
// about the data directory.
//
// Type=exec, not notify: nothing is ordered after the agent, and when it counts
// as ready may depend on other hosts (to be admitted, to have a majority); a
// boot must not wait for them. `kbroker agent install` waits on its own until
// the agent holds its directory.
const unitTemplate = `# Changes belong into a drop-in: systemctl edit kbroker

[Unit]
Description=kbroker agent
Documentation=https://github.com/kbroker/kbroker
# The advertised address must be there, and what is joined may be a name. Not
# after time-sync.target: leases are measured without the wall clock, and a host
# without a time server has to start, too.
Wants=network-online.target
After=network-online.target nss-lookup.target
# Never give up: a host without its agent is lost to the cluster.
StartLimitIntervalSec=0
%[2]s
[Service]
Type=exec
ExecStart=%[1]s
# Applications survive their agent; the next one takes them over.
KillMode=process
# The control groups below the agent's are its own to make.
Delegate=yes
Restart=always
RestartSec=1s
# Bad settings, or a directory that another agent holds: starting again cures
# neither.
RestartPreventExitStatus=%[3]d %[4]d
# A core moves its leaderships and sends clients away before it goes; that is
# bounded by 7 s.
TimeoutStopSec=30s
%[5]s# The soft limit is for applications that use select(2); the agent raises its own.
LimitNOFILE=1024:524288
TasksMax=infinity
# The agent gives applications the ordinary score. When one of them is killed for
# its memory, the others and the agent go on.
OOMScoreAdjust=-900
OOMPolicy=continue

[Install]
WantedBy=multi-user.target
`

// renderUnit is the unit that runs program with the settings in config and the
// data directory dir; all are absolute paths. Pure.
func renderUnit(program, config, dir string) (string, error) {
	command, err := unitWords(program, "agent", "--config", config)
	if err != nil {
		return "", err
	}
	data, err := unitWords(dir)
	if err != nil {
		return "", err
	}
	mounts, state := "# The data directory's disk.\nRequiresMountsFor="+data+"\n", ""
	if name, ok := strings.CutPrefix(filepath.Clean(dir), stateRoot+"/"); ok {
		if name, err = unitWords(name); err != nil {
			return "", err
		}
		mounts, state = "", "StateDirectory="+name+"\nStateDirectoryMode=0700\n"
	}
	return fmt.Sprintf(unitTemplate, command, mounts, exitUsage, exitRefused, state), nil
}

// unitWords writes words as systemd reads them back: quoted where needed, without
// specifiers (%). See systemd.syntax(7). A dollar sign is refused: how one is
// written differs from line to line ("COMMAND LINES" in systemd.service(5)).
func unitWords(words ...string) (string, error) {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`)
	out := make([]string, len(words))
	for i, w := range words {
		if strings.ContainsFunc(w, func(r rune) bool { return r < ' ' || r == 0x7f || r == '$' }) {
			return "", kbroker.Errorf(kbroker.Invalid, "%q cannot be written into a unit", w).WithHint("use a path without control characters and dollar signs")
		}
		out[i] = escape.Replace(w)
		if w == "" || strings.ContainsAny(w, " \"'\\;") {
			out[i] = `"` + out[i] + `"`
		}
	}
	return strings.Join(out, " "), nil
}
